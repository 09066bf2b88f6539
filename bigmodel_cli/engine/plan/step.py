"""Traces the engine's training step (autocast, loss, backward, optimizer) on fake tensors.

Under torch's FakeTensorMode shapes, types and autograd are real, but nothing is computed or allocated: a model
of any size can be traced on any machine.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import methods
from bigmodel_cli.core.types import Batch, Start, Task
from bigmodel_cli.engine.build.model import build_model, head_name
from bigmodel_cli.engine.build.optimizer import build_optimizer
from bigmodel_cli.engine.device.small_map_conv import dense_small_maps
from bigmodel_cli.engine.plan.trace import Recorder, Trace, storage_bytes


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks, which are sharded and recomputed one at a time: members of lists of a single class."""
    found: list[nn.Module] = []
    seen: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            children = list(module)
            uniform = len(children) > 1 and len({type(c) for c in children}) == 1
            if uniform and any(True for _ in children[0].parameters()) and children[0] not in seen:
                found += children
                seen.update(part for c in children for part in c.modules())
    return found


@contextlib.contextmanager
def _tracking_blocks(recorder: Recorder, model: nn.Module) -> Iterator[None]:
    """Mark operators that run in a block, and record the size of each block's output."""

    def enter(module: nn.Module, args: Any) -> None:
        recorder.in_block = True

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        recorder.in_block = False
        if recorder.phase == "forward":
            recorder.trace.block_output_bytes.append(
                sum(storage_bytes(x) for x in tree_iter(out) if isinstance(x, Tensor))
            )

    handles = []
    for block in repeated_blocks(model):
        handles += [block.register_forward_pre_hook(enter), block.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def trace_step(
    recipe: Recipe,
    task: Task,
    sample: Batch,
    batch: int,
    *,
    low_precision: bool,
    master: bool = True,
    recompute: bool = False,
    small_maps: bool = False,
    depth: int | None = None,
) -> Trace:
    """Trace one step of `recipe` on `batch` samples like those in `sample`, a prepared batch of any size.

    Args:
        low_precision: autocast to bf16.
        master: weights are fp32 and the optimizer updates them. Else the weights are bf16, as gathered shards
            are, and there is no optimizer: the caller counts that of the shards.
        recompute: blocks save only their inputs, and run again in the backward pass.
        small_maps: as on a CPU, convolutions over tiny maps are matrix products (``engine/device/small_map_conv.py``).
        depth: how many of the blocks that `count_stacked_blocks` counts to keep; None: all.
    """
    trace = Trace(batch)
    recorder = Recorder(trace)
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        model, optimizer = _build_for_trace(recipe, task, master, depth)
        dense_small_maps(model, small_maps)
        if recompute:
            for block in repeated_blocks(model):
                _checkpoint_block(block)
        inputs = {k: torch.empty((batch, *v.shape[1:]), dtype=v.dtype) for k, v in sample.items()}
        if not master:
            inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
        inputs = {k: v.contiguous(memory_format=torch.channels_last) if v.dim() == 4 else v for k, v in inputs.items()}
        with recorder, _tracking_blocks(recorder, model):
            _record_initial_state(recorder, model, optimizer, inputs)
            recorder.phase = "forward"
            with torch.autocast("cpu", torch.bfloat16, enabled=low_precision and master):
                loss = task.loss(model, inputs).total / batch
            recorder.phase = "backward"
            loss.backward()
            for p in model.parameters():
                if p.grad is not None:
                    trace.categories[recorder.key(p.grad)] = "gradients"
            recorder.phase = "optimizer"
            if optimizer is not None:
                torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
    return trace


def count_stacked_blocks(recipe: Recipe, task: Task) -> int:
    """The number of equal blocks in the model's list of blocks; 0 where it has none, or also has other blocks."""
    with torch.device("meta"):
        model = build_model(recipe, task.spec)
    stack = _longest_stack(model)
    return len(stack) if stack is not None and len(stack) == len(repeated_blocks(model)) else 0


def _longest_stack(model: nn.Module) -> nn.ModuleList | None:
    """The longest list of modules with parameters of the same shapes."""

    def shapes(module: nn.Module) -> list[torch.Size]:
        return [p.shape for p in module.parameters()]

    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1]
    uniform = [m for m in lists if shapes(m[0]) and all(shapes(one) == shapes(m[0]) for one in m)]
    return max(uniform, key=len, default=None)


def _build_for_trace(
    recipe: Recipe, task: Task, master: bool, depth: int | None
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """The model in train mode, and its optimizer after a first step, which allocates its state."""
    # Built outside of fake mode: builders may read values of small CPU tensors.
    with unset_fake_temporarily(), torch.device("meta"):
        model = build_model(recipe, task.spec)
        stack = _longest_stack(model)
        if depth is not None and stack is not None:
            del stack[depth:]
    _to_fake_cpu(model, None if master else torch.bfloat16)
    start = Start(model, head_name(recipe), _no_teacher, task, task.spec)
    methods.get(recipe.start.method)(start, **recipe.start.options)
    model.train()
    if not master:
        return model, None
    optimizer = build_optimizer(recipe, model)
    for p in model.parameters():
        p.grad = torch.zeros_like(p) if p.requires_grad else None
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def _to_fake_cpu(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Replace meta tensors by fake CPU ones, floats as `dtype`. ``Module.to`` fails on weakly referenced tensors."""
    moved: dict[int, Tensor] = {}  # keeps tied parameters tied

    def fake(x: Tensor) -> Tensor:
        if id(x) not in moved:
            form = torch.channels_last if x.dim() == 4 else torch.contiguous_format  # as Placement.model does
            kind = dtype if dtype and x.is_floating_point() else x.dtype
            moved[id(x)] = torch.empty(x.shape, dtype=kind, memory_format=form)
            if isinstance(x, nn.Parameter):
                moved[id(x)] = nn.Parameter(moved[id(x)], x.requires_grad)
        return moved[id(x)]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({k: fake(v) for k, v in tensors.items() if v is not None})  # type: ignore[misc]


def _no_teacher(path: str) -> Any:
    raise InputError(f"plan does not open {path}", "expected a method that needs no other checkpoint")


def _checkpoint_block(block: nn.Module) -> None:
    forward = block.forward
    block.forward = lambda *a, **k: checkpoint(forward, *a, use_reentrant=False, **k)  # type: ignore[method-assign]


def _record_initial_state(recorder: Recorder, model: nn.Module, optimizer: Any, inputs: Batch) -> None:
    """Record the storages that exist before the step."""
    trace = recorder.trace
    for x in (*model.parameters(), *model.buffers()):
        trace.categories[recorder.key(x)] = "weights"
    for state in optimizer.state.values() if optimizer is not None else ():
        for x in state.values():
            if isinstance(x, Tensor):
                trace.categories[recorder.key(x)] = "optimizer"
    for x in inputs.values():
        recorder.key(x)
    trace.parameters = sum(p.numel() for p in model.parameters())
    trace.trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    trace.block_parameters = [sum(p.numel() for p in block.parameters()) for block in repeated_blocks(model)]
