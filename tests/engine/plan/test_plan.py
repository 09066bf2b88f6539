"""Plans: the traced step against a real one, the formulas by hand, and the command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.resolve import Layer, resolve, set_layer
from bigmodel_cli.engine.plan import pipeline
from bigmodel_cli.engine.plan.ceilings import MeasuredCeilings
from bigmodel_cli.engine.plan.devices import parse_cluster
from bigmodel_cli.engine.plan.estimate import Tracer, make_plan
from bigmodel_cli.engine.plan.network import ACHIEVED_FRACTION, Ring
from bigmodel_cli.engine.plan.roofline import DataSheetCeilings, fuse_memory_ops, interpolate, op_seconds, phase_seconds
from bigmodel_cli.engine.plan.strategies import (
    HOST_SECONDS,
    Layout,
    LayoutEstimate,
    Model,
    Work,
    estimate_layout,
    largest_fitting,
    peak_memory,
    possible_layouts,
)
from bigmodel_cli.engine.plan.trace import Memory, Op

TINY = ("data.vocabulary=64", "data.context=32", "data.tokens=4096", "placement.precision=fp32", "model.layers=3")


def recipe(model: str, data: str, *options: str) -> Any:
    layer = Layer("test", {"model": {"name": model}, "data": {"name": data}, "train": {"batch_size": 8}})
    return resolve([layer, set_layer(options)]).recipe


@pytest.mark.parametrize(
    ("model", "data", "options"),
    [("gpt", "synthetic_text", TINY), ("resnet8", "synthetic_images", ("data.size=32", "data.count=64"))],
)
def test_the_traced_step_holds_what_a_real_one_holds(model: str, data: str, options: tuple[str, ...]) -> None:
    from torch.profiler import ProfilerActivity, profile
    from torch.utils.flop_counter import FlopCounterMode

    from bigmodel_cli.engine.training.assemble import assemble
    from bigmodel_cli.engine.training.loop import train_step

    wanted = recipe(model, data, *options, "placement.precision=fp32", "placement.device=cpu")
    trace = Tracer(wanted, parse_cluster("cpu"), calibrate=False).trace(8, False, False)
    run = assemble(wanted, measure=False)
    run.train_mode()
    raw = next(run.batches.steps(0))
    with FlopCounterMode(display=False) as counter:
        train_step(run, raw)
    assert trace.flops() == counter.get_total_flops()
    held = [*run.model.parameters(), *run.model.buffers()]
    held += [x for state in run.optimizer.state.values() for x in state.values()]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        train_step(run, raw)
    live = most = 0
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        live += size
        most = max(most, live)
    static = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
    assert trace.memory().total == pytest.approx(most + sum(static.values()), rel=0.05)
    assert trace.parameters == sum(p.numel() for p in run.model.parameters())
    assert trace.memory().optimizer == pytest.approx(8 * trace.parameters, rel=0.01)


def test_recomputing_blocks_holds_less_and_computes_more() -> None:
    tracer = Tracer(recipe("gpt", "synthetic_text", *TINY), parse_cluster("1xH100"))
    plain, again = (tracer.trace(8, True, recompute) for recompute in (False, True))
    assert again.live() < 0.7 * plain.live()
    assert 1.1 * plain.flops() < again.flops() < 4 / 3 * plain.flops()
    assert len(plain.block_parameters) == 3 and len(plain.block_output_bytes) == 3
    width, vocabulary = 128, 64  # what may be cut in a product: of its weight, never the 256 tokens
    assert {op.side for op in plain.ops if op.kind == "matmul"} == {width, vocabulary}


def test_compiled_neighbours_move_less() -> None:
    tracer = Tracer(recipe("gpt", "synthetic_text", *TINY), parse_cluster("1xH100"))
    trace = tracer.trace(8, False, False)
    assert sum(op.bytes for op in fuse_memory_ops(trace)) < sum(op.bytes for op in trace.ops)
    assert sum(op.flops for op in fuse_memory_ops(trace)) == trace.flops()
    ceilings = DataSheetCeilings(parse_cluster("1xH100").device)
    assert sum(phase_seconds(trace, ceilings, compiled=True).values()) < sum(phase_seconds(trace, ceilings).values())


def test_shallow_models_say_what_a_deep_one_takes() -> None:
    options = [o for o in TINY if "layers" not in o]
    tracer = Tracer(recipe("gpt", "synthetic_text", *options, "model.layers=20"), parse_cluster("8xH100"))
    assert tracer.depth == 20
    way = Layout("ddp", 1, 8, False)
    short, model, flops = tracer.work(4, way), tracer.model(), tracer.flops(4)
    tracer.depth = None
    whole = tracer._work(4, way)
    assert model == tracer._model() and flops == tracer.flops(4)
    assert short.memory.total == pytest.approx(whole.memory.total, rel=0.01)
    assert short.live == pytest.approx(whole.live, rel=0.01)
    assert short.forward == pytest.approx(whole.forward, rel=0.01)
    assert short.backward == pytest.approx(whole.backward, rel=0.01)


def test_a_cut_leaves_the_tokens_of_a_product_whole() -> None:
    """The head works on a few rows at a time: on each of 8 devices as many, and an eighth of the columns."""
    device = parse_cluster("8xH100").device
    head = Op("mm", "forward", 10**12, 10**9, 0, 128, 16384, True, False, frozenset(), frozenset())
    keys = replace(head, min_dim=1024, side=1024)
    assert DataSheetCeilings(device).arithmetic(head, 8) == DataSheetCeilings(device).arithmetic(head, 1)
    assert DataSheetCeilings(device).arithmetic(keys, 8) == pytest.approx(0.5 * 0.7 * 989e12)


def test_rings_by_hand() -> None:
    device = parse_cluster("64xH100").device
    size = 1e9
    node = Ring(8, 8, device)
    assert node.all_reduce(size) == pytest.approx(2 * (size * 7 / 8 / (ACHIEVED_FRACTION * 450e9) + 7 * 2e-6))
    # 64 ranks on 8 nodes: every node's 8 cards carry a share, so the ring is as quick as 8 x 50 GB/s.
    across = Ring(64, 8, device)
    hops = 8 * 6e-6 + 55 * 2e-6
    assert across.all_gather(size) == pytest.approx(size * 63 / 64 / (ACHIEVED_FRACTION * 400e9) + hops)
    assert Ring(1, 1, device).all_reduce(size) == 0


def test_memory_of_each_strategy_by_hand() -> None:
    model = Model(parameters=1000, trained=1000, blocks=[300, 300], state=8000, averaged=False)
    work = Work(Memory(4000, 1500, 8000, 5000, 100), live=6000, forward=1.0, backward=2.0, optimizer=0.1)
    assert peak_memory(Layout("single", 1, 1, False), model, work, 1).total == 18600
    assert peak_memory(Layout("ddp", 1, 4, False), model, work, 1).gradients == 4000
    sharded = peak_memory(Layout("fsdp", 1, 4, False), model, work, 1)
    assert sharded.optimizer == 2000 and sharded.activations == 6000
    assert sharded.weights == 1000 + (2 * 300 + 400) * 2 and sharded.gradients == 1000 + 300 * 6
    both = peak_memory(Layout("tp2 x fsdp", 2, 2, False), model, work, 1)
    assert both.activations == 3000 and both.optimizer == 2000


def test_a_tiny_model_is_not_worth_cutting() -> None:
    """What FSDP's hooks cost the host is more than the step of a small network, and nothing beside a large one."""
    tiny = make_plan(
        recipe("resnet8", "synthetic_images", "data.size=32", "data.count=64"), parse_cluster("8xA100"), None, 0
    )
    assert str(tiny.chosen and tiny.chosen.layout) == "ddp" and "fsdp is" in tiny.why
    large = Model(70_000_000_000, 70_000_000_000, [875_000_000] * 80, 560_000_000_000, False)
    work = Work(Memory(activations=8_000_000_000), 8_000_000_000, 3.0, 6.0, 0.1)
    layout = Layout("fsdp", 1, 1024, False)
    found = estimate_layout(layout, parse_cluster("1024xA100"), large, lambda m: work, 1024, lambda m: 0.0, 1)
    assert 0.005 * found.step_seconds > 3 * 81 * HOST_SECONDS


def staged(name: str) -> LayoutEstimate:
    """30 blocks of 1 s forward, 2 s backward and 0.1 GB kept a sample, ends that take as much, 64 samples, 64 H100."""

    def part(micro: int, blocks: int) -> Work:
        size = 100_000_000 * micro * (blocks + 1)
        return Work(Memory(activations=size), size, micro * (blocks + 1.0), micro * (blocks + 1.0) * 2, 0.1)

    model = Model(32_000_000_000, 32_000_000_000, [1_000_000_000] * 30, 256_000_000_000, False)
    on = parse_cluster("64xH100")
    (way,) = pipeline.pipeline_layouts(name, on, 64, 30, lambda width: True, False)
    return pipeline.estimate_pipeline(way, on, model, part, 64, lambda micro: 30e8 * micro)


def test_pipeline_stages_by_hand() -> None:
    assert pipeline.balance_stages(30, 4, 1.0, 2.0) == (6, 8)  # 8, 8, 8 blocks, and 6 beside the head
    assert pipeline.balance_stages(32, 4, 1.0, 0.1) == (8, 8)
    found = staged("tp2 x pp4")
    assert (found.layout.replicas, found.micro_batch, found.accumulate) == (8, 1, 8)
    assert (found.seconds["forward"], found.seconds["backward"]) == (8 * 8.0, 8 * 16.0)  # of 8 blocks
    assert found.seconds["bubble"] == pytest.approx(3 * 24.0, rel=1e-2)  # and what is sent meanwhile
    assert found.memory.activations == (100_000_000 + 4 * 8 * 100_000_000) / 2  # four micro-batches on the first stage
    numbers = (8_000_000_000 + 2_000_000_000) / 2
    assert found.memory.gradients == numbers * 4 and found.memory.optimizer == numbers * 8 / 8
    assert found.memory.weights == numbers * (2 + 4 / 8)
    chunks = staged("tp2 x pp4x8")
    assert chunks.seconds["bubble"] == pytest.approx(found.seconds["bubble"] / 8, rel=1e-2)
    assert chunks.memory.activations > found.memory.activations and chunks.sent > found.sent


@pytest.mark.parametrize(("stages", "numbers", "rate", "hop"), [(2, 18e9, 450e9, 2e-6), (16, 4e9, 50e9, 6e-6)])
def test_what_stages_send_by_hand(stages: int, numbers: float, rate: float, hop: float) -> None:
    found = staged(f"pp{stages}")
    replicas = Ring(64 // stages, max(1, 8 // stages), parse_cluster("64xH100").device)
    times = 2 * found.accumulate  # one boundary forward, its gradient backward
    assert found.sent == pytest.approx(times * 1e8 + replicas.bytes_sent(numbers * 6))
    # Both are hidden behind seconds of one micro-batch, but for a piece of the blocks and the ends.
    reduced = (replicas.all_gather(numbers * 4) + replicas.all_gather(numbers * 2)) / (numbers / 1e9 - 1)
    assert found.seconds["waiting"] == pytest.approx(times * (1e8 / (ACHIEVED_FRACTION * rate) + hop) + reduced)


def test_stages_are_predicted_where_they_are_asked_for(capsys: Any) -> None:
    """By name alone, and said to be no more than that: what is recommended is what runs here."""
    from bigmodel_cli.commands.plan import _show

    size = ("model.layers=16", "model.width=32", "model.checkpointing=true")
    wanted, on = (
        recipe("gpt", "synthetic_text", *(o for o in TINY if "layers" not in o), *size),
        parse_cluster("8xH100"),
    )
    found = make_plan(wanted, on, "pp4", 0)
    assert found.chosen and found.chosen.layout.stages == 4 and found.chosen.seconds["bubble"] > 0
    assert not any(row["runs"] for row in found.to_dict()["spreads"])
    _show(found)
    assert "does not train with pipeline stages" in capsys.readouterr().out
    with pytest.raises(InputError, match="8 devices in replicas of N x S, at most 8 of them, S x V at most 18"):
        make_plan(wanted, on, "pp3", 0)
    for name in ("pp3", "pp1", "pp4x5", "tp16 x pp2", "ppx", "tp3 x pp2", "fsdp"):
        assert pipeline.pipeline_layouts(name, on, 8, 16, lambda width: True, True) == []
    assert pipeline.pipeline_layouts("pp4", on, 1, 16, lambda width: True, True) == []  # a sample for two replicas
    assert all(way.runs for way in possible_layouts(on, 8, lambda width: True, True))


def test_the_rate_of_a_cpu_by_hand() -> None:
    """Narrow products are slower, and so are convolutions whose map is small; what is bound by memory is a pass."""
    curves = {
        "mm": [[16, 1e9], [256, 3e9]], "convolution": [[64, 2e9]], "convolution by side": [[2, 1e9], [14, 4e9]],
        "add": [[1e6, 5e9]],
    }  # fmt: skip
    here = MeasuredCeilings(1e-6, curves)

    def op(name: str, narrow: int, side: int = 0) -> Op:
        return Op(name, "forward", 10**9, 10**6, 0, narrow, side, False, False, frozenset(), frozenset())

    assert here.arithmetic(op("mm", 64), 1) == pytest.approx(2e9)
    assert here.arithmetic(op("convolution", 64, 14), 1) == pytest.approx(2e9)
    assert here.arithmetic(op("convolution", 64, 2), 1) == pytest.approx(5e8)
    assert op_seconds(op("relu", 0), here) == pytest.approx(1e-6 + 10**9 / 1e9)
    assert here.traffic(op("relu", 0)) == 5e9


def test_a_batch_that_does_not_fit_is_accumulated() -> None:
    model = Model(1000, 1000, [500, 500], 8000, False)
    work = Work(Memory(4000, 4000, 8000, 5000, 100), 6000, 1.0, 2.0, 0.1)
    found = estimate_layout(
        Layout("single", 1, 1, False), parse_cluster("H100"), model, lambda m: work, 100, lambda m: 0.0, 30
    )
    assert (found.accumulate, found.micro_batch) == (4, 25)
    assert found.step_seconds == pytest.approx(4 * 3 + 0.1)
    assert largest_fitting(lambda b: b <= 37) == 37 and largest_fitting(lambda b: False) == 0
    assert interpolate([(1, 10.0), (100, 20.0)], 10) == pytest.approx(15)


def test_synthetic_data_is_a_function_of_the_index() -> None:
    from bigmodel_cli.engine.build.data import load_data

    for name, field in (("synthetic_text", "tokens"), ("synthetic_images", "image")):
        options = ("data.vocabulary=50", "data.context=8") if field == "tokens" else ("data.size=8", "data.count=100")
        source = load_data(recipe("gpt", name, *options).data).load["train"]()
        both = source.gather(torch.tensor([7, 3]))
        assert torch.equal(both[field][1], source.gather(torch.tensor([3]))[field][0])
        assert not torch.equal(both[field][0], both[field][1])
        assert int(both[field].max()) < (50 if field == "tokens" else 256)


@pytest.mark.parametrize("text", ["64xH101", "x", "0xH100", "H100x8", "2xcpu", ""])
def test_unknown_devices(text: str) -> None:
    with pytest.raises(InputError):
        parse_cluster(text)


def test_the_command(run_cli: Any) -> None:
    size = ["--set", "model.layers=2", "--set", "model.width=4096", "--set", "model.heads=32"]
    words = ["plan", "gpt", "--data", "synthetic_text", "--gpus", "16xA100-40GB", "--batch-size", "256", *size]
    done = run_cli(*words, "--price", "2", "--json", "--epochs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chosen"] and found["cost"] == pytest.approx(found["seconds"] / 3600 * 16 * 2)
    ways = {row["layout"]["strategy"]: row for row in found["spreads"]}
    assert {"ddp", "fsdp", "tp2 x fsdp", "tp8 x fsdp"} <= set(ways)
    assert ways["fsdp"]["memory"]["optimizer"] == pytest.approx(ways["ddp"]["memory"]["optimizer"] / 16, rel=0.01)
    assert 0.1 < found["utilisation"] < 0.8
    shown = run_cli(*words, "--strategy", "fsdp", "--price", "2")
    assert shown.returncode == 0 and "device hours" in shown.stdout and "fsdp" in shown.stdout
    assert run_cli("plan", "resnet18", "--data", "digits", "--gpus", "8xH999").returncode == 2
