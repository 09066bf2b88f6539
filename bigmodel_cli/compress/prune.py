"""Structured pruning: whole channels go, and with them the rows and columns of every layer that they touch."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.compress.work import Work, slim, write_checkpoint
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import compressions
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.model import build_model
from bigmodel_cli.models.adapters.pruned import PRUNABLE, diff_widths, layer_widths

Ratio = Annotated[float, Field(gt=0, lt=1)]
ROOTS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""The layers whose outputs are pruned; what follows them goes along."""
PRUNING_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, AssertionError, TypeError, AttributeError)
"""What torch-pruning and a network that does not fit itself any more raise."""
ROUND_TO = 8
"""Channels come in multiples of this, as vector units like them; layers of fewer than four times as many in ones."""


@compressions.register(
    "prune", gives="checkpoint", kinds=("image", "text"), needs=("torch_pruning",), extra="compress"
)  # fmt: skip
def prune(
    work: Work,
    *,
    ratio: Ratio = 0.5,
    epochs: Annotated[int, Field(ge=0)] = 1,
    lr: Annotated[float, Field(gt=0)] = 1e-3,
    batch_size: Annotated[int, Field(gt=0)] = 128,
) -> None:
    """Take the `ratio` of channels with the smallest weights out of every layer, then train for `epochs` to repair.

    Groups of layers that share their channels (a residual stage) are pruned as one, by the
    L2 norm of all that belongs to a channel (Fang et al. 2023, "DepGraph"). The head keeps
    its classes. What is left is an ordinary checkpoint, its widths in ``model.pruned``.

    Raises:
        InputError: no layer of this model can be narrowed.
    """
    folder = work.out.parent
    cut = folder / "cut.pt"
    if not cut.exists():
        write_cut(work, ratio, cut)
    if not epochs:
        cut.replace(work.out)
        return
    changes: dict[str, dict[str, Any]] = {
        "train": {"epochs": epochs, "batch_size": batch_size},
        "optimizer": {"name": "adamw", "lr": lr},
    }
    best = work.train(cut, changes, folder / "run")
    slim(best, work.out, {"method": "prune", "ratio": ratio, "epochs": epochs, "lr": lr})


def write_cut(work: Work, ratio: float, path: Path) -> None:
    """The checkpoint at `path`: the model with the `ratio` of its channels gone, not yet repaired."""
    trained = work.trained
    model = pruned(work.model, work.example(), ratio, trained.head)
    # Against the architecture itself: what was pruned before counts as well.
    whole = resolve([Layer("", trained.recipe.to_dict()), Layer("", {"model": {"pruned": None}})]).recipe
    widths = diff_widths(model, build_model(whole, trained.task.spec))
    recipe = resolve([Layer("", trained.recipe.to_dict()), Layer("", {"model": {"pruned": widths}})]).recipe
    build_model(recipe, trained.task.spec).load_state_dict(model.state_dict())  # or it would never open again
    write_checkpoint(path, trained, model.state_dict(), {"method": "prune", "ratio": ratio, "epochs": 0}, recipe)


def pruned(model: nn.Module, example: tuple[Tensor, ...], ratio: float, head: str) -> nn.Module:
    """A copy of `model` without the `ratio` of the channels of each layer that can lose some.

    Where a layer's channels are fixed by the code around it (heads of attention, a shortcut
    padded with zeros), that layer keeps them: it is found by trying each alone.

    Raises:
        InputError: no layer can lose any.
    """
    found = _without(model, example, ratio, [head])
    if found is None:
        layers = [n for n, m in model.named_modules() if isinstance(m, ROOTS) and n != head]
        fixed = [name for name in layers if not _can_lose_one(model, example, name)]
        found = _without(model, example, ratio, [head, *fixed])
    if found is None or _parameters(found) == _parameters(model):
        what = f"no layer of {type(model).__name__} can lose {ratio:.0%} of its channels"
        raise InputError(what, "expected convolutions or linear layers", "--method int8")
    return found


def _without(model: nn.Module, example: tuple[Tensor, ...], ratio: float, ignored: list[str]) -> nn.Module | None:
    """`model` pruned with the layers called `ignored` as they are; None where it does not run any more."""
    import torch_pruning

    copied = copy.deepcopy(model).eval()
    with warnings.catch_warnings(), torch.enable_grad():  # its tracing follows gradients
        warnings.simplefilter("ignore")
        try:
            pruner = torch_pruning.pruner.BasePruner(
                copied,
                _inputs(example),
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                max_pruning_ratio=max(ratio, 0.95),
                ignored_layers=[copied.get_submodule(name) for name in ignored],
                root_module_types=list(ROOTS),
                round_to=_round_to(copied),
            )
            pruner.step()
            return copied if _answers_alike(copied, model, example) else None
        except PRUNING_ERRORS:
            return None


def _can_lose_one(model: nn.Module, example: tuple[Tensor, ...], name: str) -> bool:
    """Whether `model` still answers once the layer called `name`, and what shares its channels, has lost some.

    Eight, so that a count that must be even, or divide by a number of heads, is not what fails.
    """
    import torch_pruning

    copied = copy.deepcopy(model).eval()
    layer = copied.get_submodule(name)
    cut = (
        torch_pruning.prune_linear_out_channels
        if isinstance(layer, nn.Linear)
        else torch_pruning.prune_conv_out_channels
    )
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        try:
            graph = torch_pruning.DependencyGraph().build_dependency(copied, _inputs(example))
            graph.get_pruning_group(layer, cut, idxs=[*range(min(ROUND_TO, layer_widths(layer)[1] // 2))]).prune()
            return _answers_alike(copied, model, example)
        except PRUNING_ERRORS:
            return False


def _answers_alike(model: nn.Module, whole: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether `model`, a pruned `whole`, runs, answers in the same shape, and can be said by ``model.pruned``."""
    with torch.no_grad():
        same = model(*example).shape == whole(*example).shape
    known = {n for n, m in whole.named_modules() if isinstance(m, PRUNABLE)}
    was = whole.state_dict()
    changed = [k for k, v in model.state_dict().items() if v.shape != was[k].shape]
    return same and all(key.rpartition(".")[0] in known for key in changed)


def _inputs(example: tuple[Tensor, ...]) -> Any:
    return example if len(example) > 1 else example[0]


def _round_to(model: nn.Module) -> int | None:
    widths = [layer_widths(m)[1] for m in model.modules() if isinstance(m, (nn.Conv1d, nn.Conv2d))]
    return ROUND_TO if widths and min(widths) >= 4 * ROUND_TO else None


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
