"""Structured pruning: removes whole channels, with the rows and columns of every connected layer."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.compress.work import Work, strip_checkpoint, write_checkpoint
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import compressions
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.engine.build.model import build_model
from bigmodel_cli.models.adapters.pruned import PRUNABLE, diff_widths, layer_widths

Ratio = Annotated[float, Field(gt=0, lt=1)]
ROOTS = (nn.Conv1d, nn.Conv2d, nn.Linear)
"""The layers whose outputs are pruned; dependent layers follow."""
PRUNING_ERRORS = (RuntimeError, ValueError, IndexError, KeyError, AssertionError, TypeError, AttributeError)
"""Errors of torch-pruning, or of a network whose layers no longer fit together."""
ROUND_TO = 8
"""Channel counts are rounded to multiples of this for vector units, unless a layer has fewer than four times that."""


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
    """Remove the fraction `ratio` of channels with the smallest weights from every layer, then train for `epochs`.

    Layers that share channels (a residual
    stage) are pruned together, by the L2 norm over all weights of a channel (Fang et al.
    2023, "DepGraph"). The head is not pruned. The result is an ordinary checkpoint with
    its widths in ``model.pruned``.

    Raises:
        InputError: no layer of this model can be pruned.
    """
    folder = work.out.parent
    cut = folder / "cut.pt"
    if not cut.exists():
        write_pruned(work, ratio, cut)
    if not epochs:
        cut.replace(work.out)
        return
    changes: dict[str, dict[str, Any]] = {
        "train": {"epochs": epochs, "batch_size": batch_size},
        "optimizer": {"name": "adamw", "lr": lr},
    }
    best = work.train(cut, changes, folder / "run")
    strip_checkpoint(best, work.out, {"method": "prune", "ratio": ratio, "epochs": epochs, "lr": lr})


def write_pruned(work: Work, ratio: float, path: Path) -> None:
    """Write the pruned model, not yet fine-tuned, as a checkpoint to `path`."""
    trained = work.trained
    model = prune_model(work.model, work.example(), ratio, trained.head)
    # Compare with the original architecture, so that earlier pruning is included.
    whole = resolve([Layer("", trained.recipe.to_dict()), Layer("", {"model": {"pruned": None}})]).recipe
    widths = diff_widths(model, build_model(whole, trained.task.spec))
    recipe = resolve([Layer("", trained.recipe.to_dict()), Layer("", {"model": {"pruned": widths}})]).recipe
    build_model(recipe, trained.task.spec).load_state_dict(
        model.state_dict()
    )  # check that the checkpoint can be loaded
    write_checkpoint(path, trained, model.state_dict(), {"method": "prune", "ratio": ratio, "epochs": 0}, recipe)


def prune_model(model: nn.Module, example: tuple[Tensor, ...], ratio: float, head: str) -> nn.Module:
    """A copy of `model` with `ratio` of the channels of each prunable layer removed.

    Layers whose widths are fixed by the surrounding code (attention heads, a zero-padded
    shortcut) are left alone. They are found by trying each layer on its own.

    Raises:
        InputError: no layer can be pruned.
    """
    found = _try_prune(model, example, ratio, [head])
    if found is None:
        layers = [n for n, m in model.named_modules() if isinstance(m, ROOTS) and n != head]
        fixed = [name for name in layers if not _is_prunable(model, example, name)]
        found = _try_prune(model, example, ratio, [head, *fixed])
    if found is None or _count_parameters(found) == _count_parameters(model):
        what = f"no layer of {type(model).__name__} can be pruned by {ratio:.0%}"
        raise InputError(what, "expected convolutions or linear layers", "--method int8")
    return found


def _try_prune(model: nn.Module, example: tuple[Tensor, ...], ratio: float, ignored: list[str]) -> nn.Module | None:
    """Prune `model` except for the `ignored` layers; None if the result does not run."""
    import torch_pruning

    copied = copy.deepcopy(model).eval()
    with warnings.catch_warnings(), torch.enable_grad():  # torch-pruning traces the autograd graph
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
            return copied if _is_valid(copied, model, example) else None
        except PRUNING_ERRORS:
            return None


def _is_prunable(model: nn.Module, example: tuple[Tensor, ...], name: str) -> bool:
    """Whether `model` still runs after pruning the layer `name` and the layers that share its channels.

    It removes eight channels, because some counts must be even or divisible by the number of heads.
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
            return _is_valid(copied, model, example)
        except PRUNING_ERRORS:
            return False


def _is_valid(model: nn.Module, whole: nn.Module, example: tuple[Tensor, ...]) -> bool:
    """Whether `model`, a pruned `whole`, has the same output shape and is representable in ``model.pruned``."""
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


def _count_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())
