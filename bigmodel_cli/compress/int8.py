"""int8 arithmetic, its ranges calibrated on training samples: an export folder that a runtime runs.

The family ``int8`` is ranked by measurement (docs/compress.md): ``--method int8`` is the first that is installed.
torchao's PT2E for the x86 inductor is left out: with a free batch its compiled ResNets answered wrongly (torch 2.15).
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
        exports.get("openvino")(model, example, _whole(path), carry)
        # One at a time: nncf takes the first axis of a statistic for a sample's own.
        one = [
            tuple(x[i : i + 1].numpy() for x in batch)
            for batch in work.calibration(samples)
            for i in range(len(batch[0]))
        ]
        data = nncf.Dataset([parts if len(parts) > 1 else parts[0] for parts in one])
        whole = openvino.Core().read_model(_whole(path))
        small = nncf.quantize(whole, data, subset_size=len(one), preset=nncf.QuantizationPreset.MIXED)
        openvino.save_model(small, path)
        for left in (_whole(path), _whole(path).with_suffix(".bin")):
            left.unlink()

    _prove(work, "openvino", write, {"method": "int8-openvino", "samples": samples})


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
            _Samples(work, path, samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            # Unsigned: x86's instruction takes one unsigned side; signed inputs were 10 times slower.
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method={"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy,
                              "percentile": CalibrationMethod.Percentile}[ranges],
        )  # fmt: skip
        _tidy(path, carry)

    _prove(work, "onnx", write, {"method": "int8-onnx", "samples": samples, "ranges": ranges})


@compressions.register(
    "dynamic-int8", gives="export", kinds=("image", "text"), needs=("onnx", "onnxscript", "onnxruntime"), extra="onnx"
)  # fmt: skip
def dynamic_int8(work: Work) -> None:
    """int8 linear layers for onnxruntime, input ranges found at run time: no calibration; for text models."""

    def write(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(
            str(_onnx(model, example, path, carry)), str(path), op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True, weight_type=QuantType.QInt8,
        )  # fmt: skip
        _tidy(path, carry)

    _prove(work, "onnx", write, {"method": "dynamic-int8"})


def _nncf() -> tuple[Any, Any]:
    """nncf and openvino, which else would report their use to their makers."""
    from bigmodel_cli.export.openvino import library

    package = library()  # first: without the reporter's package nncf reports nothing either
    import nncf

    return nncf, package


class _Samples:
    """Training samples as onnxruntime's calibration asks for them."""

    def __init__(self, work: Work, path: Path, samples: int) -> None:
        import onnx

        graph = onnx.load(str(_whole(path))).graph
        self.names = [value.name for value in graph.input]
        self.batches: Iterator[tuple[Tensor, ...]] = work.calibration(samples)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(zip(self.names, (x.numpy() for x in batch), strict=True))


def _whole(path: Path) -> Path:
    return path.with_name("whole" + path.suffix)


def _onnx(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> Path:
    """The fp32 graph beside `path`, shapes inferred and constants folded, as the quantizer wants it."""
    from onnxruntime.quantization import quant_pre_process

    whole = _whole(path)
    exports.get("onnx")(model, example, whole, carry)
    quant_pre_process(str(whole), str(whole), skip_symbolic_shape=True)
    return whole


def _tidy(path: Path, carry: dict[str, Any]) -> None:
    """Only the int8 file stays, the fp32 one's description in it."""
    import onnx

    proto = onnx.load(str(path))
    described = {entry.key for entry in proto.metadata_props}
    for entry in onnx.load(str(_whole(path))).metadata_props:
        if entry.key not in described:
            proto.metadata_props.append(entry)
    onnx.save(proto, str(path))
    _whole(path).unlink()


def _prove(work: Work, format_name: str, write: Write, how: Mapping[str, Any]) -> None:
    """Write the export at ``work.out`` and compare it with its source on validation inputs.

    int8 differs by more than any tolerance for fp32, so nothing is refused here: the proof in
    the folder tells the differences, and whoever asked decides by the accuracy.
    """
    from bigmodel_cli.export.proof import prove

    work.out.parent.mkdir(parents=True, exist_ok=True)
    prove(work.subject(how), format_name, work.out, tolerance=float("inf"), overwrite=True, seconds=0.2, write=write)
