"""Starting from a checkpoint: the model it describes, rebuilt by our registry, and weights that fit another task."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import UnknownName, models
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import Spec, Task
from bigmodel_cli.engine.build.compatibility import _plain, _short, check_fit, first_difference
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.locate import checkpoint_file
from bigmodel_cli.engine.build.model import architecture, build_model, build_spec, build_task, head_of
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.models.layers.meta_init import init_on_meta, skip_random_init


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life: the model in eval mode, its task, and what it remembers."""

    path: Path
    model: nn.Module
    task: Task
    recipe: Recipe
    meta: Mapping[str, Any]
    progress: Mapping[str, Any]

    @property
    def head(self) -> str:
        return head_of(self.recipe)

    def described(self) -> dict[str, Any]:
        """What an export says of its source, as plain values."""
        spec, model = self.task.spec, self.recipe.to_dict()["model"]
        compressed = self.meta.get("compressed")
        return {
            "arch": self.recipe.model.name,
            "arch_args": {k: v for k, v in model.items() if k in self.recipe.model.options},
            "task": self.task.name,
            "input": {"kind": spec.kind, **spec.to_dict()},
            "recipe": self.recipe.to_dict(),
            "checkpoint": {"file": self.path.name, "SHA-256 of its tensors": digest(self.model)},
            **({"compressed": list(compressed)} if compressed else {}),
        }


def weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to evaluate, export or start from: EMA if there is one, with adapters merged and fp32 throughout."""
    from bigmodel_cli.models.adapters.lora import merge_state
    from bigmodel_cli.models.quantization.quantized_weights import unpack_state

    chosen = merge_state(unpack_state(state["model_ema"] or state["model"]))
    chosen.pop("n_averaged", None)
    return chosen


def load_meta(path: Path) -> dict[str, Any]:
    """What the checkpoint at `path` says of itself."""
    return checkpoint.load(path)["meta"]  # type: ignore[no-any-return]


def load_trained(path: Path) -> Trained:
    """Rebuild the model and task of the checkpoint at `path`, which may also be a run folder.

    Raises:
        InputError: it is damaged, foreign, or describes a model this version does not have.
    """
    path = checkpoint_file(path)
    state = checkpoint.load(path)
    recipe, spec = described(state, str(path))
    task = build_task(recipe, spec)
    with skip_random_init():
        model = build_model(recipe, spec)
    model.load_state_dict(weights(state))
    return Trained(path, model.eval(), task, recipe, state["meta"], state["progress"])


def described(state: Mapping[str, Any], source: str) -> tuple[Recipe, Spec]:
    """The recipe and the spec in a checkpoint, held against each other and against its tensors.

    A checkpoint is a stranger's word: its recipe is checked like any other, and the
    model is built without memory first, so that a width of a billion stays a number.

    Raises:
        InputError: they do not agree, or this version has no such model.
    """
    meta = state["meta"]
    try:
        recipe = resolve([Layer(source, meta["recipe"])]).recipe
    except UnknownName as error:  # not always a typing error: whoever made the file may have had a plug-in
        hint = "--import FILE.py that has it, or install the package that brings it"
        raise InputError(f"{source}: {error.what}", error.expected, hint) from None
    options = {k: recipe.to_dict()["model"].get(k) for k in recipe.model.options}
    said = {"architecture": (models.current(meta["arch"]), recipe.model.name)}
    said |= {k: (_plain(meta["arch_args"].get(k)), options.get(k)) for k in sorted(options.keys() | meta["arch_args"])}
    for what, (one, other) in said.items():
        if one != other:
            raise InputError(f"{source}: {what} {_short(one)} in meta", f"{_short(other)} in its recipe")
    spec = build_spec(meta["input"], source)
    if list(spec.classes) != meta["classes"]:
        difference = first_difference("classes", meta["classes"], list(spec.classes), "meta", "input")
        raise InputError(f"{source}: {difference}", hint="restore it from a copy")
    with init_on_meta():
        ours = architecture(recipe, spec).state_dict()
    for part in ("model", "model_ema"):
        for key, value in (state[part] or {}).items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise InputError(f"{source}: {part} holds {key!r} of type {type(value).__name__}", "expected tensors")
    try:
        plain = weights(state)
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:  # half of one, or of another shape
        raise InputError(
            f"{source}: an adapter or a packed weight that does not fit ({error})", "restore it from a copy"
        ) from None
    check_fit(ours, plain, source)
    return recipe, spec
