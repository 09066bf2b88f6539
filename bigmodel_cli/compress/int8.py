"""int8 inference with ranges calibrated on training samples, as an export folder for a runtime.

The family ``int8`` is ranked by measurement (docs/compress.md); ``--method int8`` selects the first that is installed.
torchao's PT2E for the x86 inductor is excluded: with a dynamic batch, its compiled ResNets gave wrong results
(torch 2.15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.compress.work import Work
from bigmodel_cli.core.registry import compressions, exports

Samples = Annotated[int, Field(gt=0)]
Write = Callable[[nn.Module, tuple[Tensor, ...], Path, dict[str, Any]], object]


@compressions.register(
    "int8-openvino", family="int8", rank=1, gives="export", kinds=("image",), needs=("openvino", "nncf"),
    extra="compress",
)  # fmt: skip
def int8_openvino(work: Work, *, samples: Samples = 300) -> None:
    """Static int8 for OpenVINO, calibrated by nncf, with fast bias correction."""

    def write(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
        nncf, openvino = _nncf()
        exports.get("openvino")(model, example, _fp32_path(path), carry)
        # Batches of one: nncf treats the first axis of a statistic as part of a sample.
        one = [
            tuple(x[i : i + 1].numpy() for x in batch)
            for batch in work.calibration(samples)
            for i in range(len(batch[0]))
        ]
        data = nncf.Dataset([parts if len(parts) > 1 else parts[0] for parts in one])
        whole = openvino.Core().read_model(_fp32_path(path))
        small = nncf.quantize(whole, data, subset_size=len(one), preset=nncf.QuantizationPreset.MIXED)
        openvino.save_model(small, path)
        for left in (_fp32_path(path), _fp32_path(path).with_suffix(".bin")):
            left.unlink()

    _write_export(work, "openvino", write, {"method": "int8-openvino", "samples": samples})


@compressions.register(
    "int8-onnx", family="int8", rank=2, gives="export", kinds=("image",), needs=("onnx", "onnxscript", "onnxruntime"),
    extra="onnx",
)  # fmt: skip
def int8_onnx(
    work: Work, *, samples: Samples = 512, ranges: Literal["minmax", "entropy", "percentile"] = "minmax"
) -> None:
    """Static int8 for onnxruntime (QDQ), weight scales per channel; `ranges` is the calibration method."""

    def write(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        quantize_static(
            str(_onnx(model, example, path, carry)),
            str(path),
            _CalibrationReader(work, path, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Unsigned, because x86's instruction takes one unsigned operand; signed inputs were 10 times slower.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method={"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
                              "percentile": CalibrationMethod.Percentile}[ranges],
        )  # fmt: skip
        _replace_fp32(path, carry)

    _write_export(work, "onnx", write, {"method": "int8-onnx", "samples": samples, "ranges": ranges})


@compressions.register(
    "dynamic-int8", gives="export", kinds=("image", "text"), needs=("onnx", "onnxscript", "onnxruntime"), extra="onnx"
)  # fmt: skip
def dynamic_int8(work: Work) -> None:
    """int8 linear layers for onnxruntime, input ranges computed at run time, without calibration; for text models."""

    def write(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(_onnx(model, example, path, carry)), str(path), op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True, weight_type=QuantType.QInt8,
        )  # fmt: skip
        _replace_fp32(path, carry)

    _write_export(work, "onnx", write, {"method": "dynamic-int8"})


def _nncf() -> tuple[Any, Any]:
    """Import nncf and openvino with their telemetry disabled."""
    from bigmodel_cli.export.openvino import import_openvino

    package = import_openvino()  # first: it hides the telemetry package, which nncf uses too
    import nncf

    return nncf, package


class _CalibrationReader:
    """Training samples in the interface of onnxruntime's calibration."""

    def __init__(self, work: Work, path: Path, samples: int) -> None:
        import onnx

        graph = onnx.load(str(_fp32_path(path))).graph
        self.names = [value.name for value in graph.input]
        self.batches: Iterator[tuple[Tensor, ...]] = work.calibration(samples)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(zip(self.names, (x.numpy() for x in batch), strict=True))


def _fp32_path(path: Path) -> Path:
    return path.with_name("whole" + path.suffix)


def _onnx(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> Path:
    """Write the fp32 graph next to `path`, with inferred shapes and folded constants, as the quantizer requires."""
    from onnxruntime.quantization import quant_pre_process

    whole = _fp32_path(path)
    exports.get("onnx")(model, example, whole, carry)
    quant_pre_process(str(whole), str(whole), skip_symbolic_shape=True)
    return whole


def _replace_fp32(path: Path, carry: dict[str, Any]) -> None:
    """Copy the metadata of the fp32 file into the int8 file, and delete the former."""
    import onnx

    from bigmodel_cli.export.onnx import lower_ir

    proto = onnx.load(str(path))
    described = {entry.key for entry in proto.metadata_props}
    for entry in onnx.load(str(_fp32_path(path))).metadata_props:
        if entry.key not in described:
            proto.metadata_props.append(entry)
    lower_ir(proto)
    onnx.save(proto, str(path))
    _fp32_path(path).unlink()


def _write_export(work: Work, format_name: str, write: Write, how: Mapping[str, Any]) -> None:
    """Write the export at ``work.out`` and compare it with its source on validation inputs.

    The differences of int8 exceed any tolerance meant for fp32, so the tolerance is infinite. The proof in the
    folder records the differences; the accuracy decides.
    """
    from bigmodel_cli.export.proof import prove

    work.out.parent.mkdir(parents=True, exist_ok=True)
    prove(work.subject(how), format_name, work.out, tolerance=float("inf"), overwrite=True, seconds=0.2, write=write)
