"""Loads a trained model: the task and model that a checkpoint describes are rebuilt from the registry."""

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
from bigmodel_cli.engine.build.compatibility import check_state_dict, first_difference, rename, shorten, tuples_to_lists
from bigmodel_cli.engine.build.digest import digest
from bigmodel_cli.engine.build.locate import checkpoint_file
from bigmodel_cli.engine.build.model import build_architecture, build_model, build_spec, build_task, head_name
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.models.layers.meta_init import at_most_parameters, init_on_meta, skip_random_init


@dataclass(frozen=True)
class TrainedModel:
    """A checkpoint, loaded: the model in eval mode, its task, its recipe, and its metadata."""

    path: Path
    model: nn.Module
    task: Task
    recipe: Recipe
    meta: Mapping[str, Any]
    progress: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    """Lines for the user on how it was loaded."""
    new: tuple[str, ...] = ()
    """The parameters below the head that published weights lack, so that they are random."""

    @property
    def head(self) -> str:
        return head_name(self.recipe)

    def source_metadata(self) -> dict[str, Any]:
        """What an export records about its source, as plain values."""
        spec, model = self.task.spec, self.recipe.to_dict()["model"]
        kept = {key: self.meta[key] for key in ("compressed", "privacy") if self.meta.get(key)}
        return {
            "arch": self.recipe.model.name,
            "arch_args": {k: v for k, v in model.items() if k in self.recipe.model.options},
            "task": self.task.name,
            "input": {"kind": spec.kind, **spec.to_dict()},
            "recipe": self.recipe.to_dict(),
            "checkpoint": {"file": self.path.name, "SHA-256 of its tensors": digest(self.model)},
            **kept,
        }


def inference_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to evaluate, export or start from: EMA if there is one, with adapters merged and fp32 throughout."""
    from bigmodel_cli.models.adapters.lora import merge_state
    from bigmodel_cli.models.quantization.quantized_weights import unpack_state

    chosen = merge_state(unpack_state(state["model_ema"] or state["model"]))
    chosen.pop("n_averaged", None)
    return chosen


def load_meta(path: Path) -> dict[str, Any]:
    """The metadata of the checkpoint at `path`."""
    return checkpoint.load(path)["meta"]  # type: ignore[no-any-return]


def load_trained(path: Path) -> TrainedModel:
    """Rebuild the model and task of the checkpoint at `path`, which may also be a run folder.

    Raises:
        InputError: it is damaged, foreign, or describes a model this version does not have.
    """
    path = checkpoint_file(path)
    state = {**checkpoint.load(path), "optimizer": {}}  # which may hold twice the weights, and only resuming needs
    recipe, spec = recipe_and_spec(state, str(path))
    task = build_task(recipe, spec)
    with skip_random_init():
        model = build_model(recipe, spec)
    model.load_state_dict(inference_weights(state))
    return TrainedModel(path, model.eval(), task, recipe, state["meta"], state["progress"])


def recipe_and_spec(state: Mapping[str, Any], source: str) -> tuple[Recipe, Spec]:
    """The recipe and the spec in a checkpoint, checked against each other and against its tensors.

    A checkpoint is untrusted input. Its recipe is checked like any other, and the model is first built on the
    meta device, so that a width of a billion allocates nothing, and of no more layers than its tensors allow.
    Tensors in `state` that an earlier version named otherwise get the names of now.

    Raises:
        InputError: they disagree, or this version does not have the model.
    """
    meta = state["meta"]
    try:
        recipe = resolve([Layer(source, meta["recipe"])]).recipe
    except UnknownName as error:  # not always a typing error: whoever made the file may have had a plug-in
        hint = "--import FILE.py that has it, or install the package that brings it"
        raise InputError(f"{source}: {error.what}", error.expected, hint) from None
    options = {k: recipe.to_dict()["model"].get(k) for k in recipe.model.options}
    claims = {"architecture": (models.current(meta["arch"]), recipe.model.name)}
    # An option that is newer than the file is in neither, and has its default.
    stated = (options.keys() & meta["recipe"].get("model", {}).keys()) | meta["arch_args"].keys()
    claims |= {k: (tuples_to_lists(meta["arch_args"].get(k)), options.get(k)) for k in sorted(stated)}
    for what, (claimed, actual) in claims.items():
        if claimed != actual:
            raise InputError(f"{source}: {what} {shorten(claimed)} in meta", f"{shorten(actual)} in its recipe")
    spec = build_spec(meta["input"], source)
    if list(spec.classes) != meta["classes"]:
        difference = first_difference("classes", meta["classes"], list(spec.classes), "meta", "input")
        raise InputError(f"{source}: {difference}", hint="restore it from a copy")
    # Twice as many: a layer may be replaced by another while it is built.
    most = 2 * len(state["model_ema"] or state["model"]) + 64
    with at_most_parameters(most, source), init_on_meta():
        expected = build_architecture(recipe, spec).state_dict()
    for section in ("model", "model_ema"):
        for key, value in (state[section] or {}).items():
            if not isinstance(key, str) or not isinstance(value, Tensor):
                raise InputError(
                    f"{source}: {section} holds {key!r} of type {type(value).__name__}", "expected tensors"
                )
        rename(state[section] or {}, models.get(recipe.model.name).meta.get("renames", {}))
    try:
        tensors = inference_weights(state)
    except (LookupError, TypeError, ValueError, RuntimeError) as error:  # an incomplete one, or one of another shape
        raise InputError(
            f"{source}: an adapter or a packed weight that does not fit ({error})", "restore it from a copy"
        ) from None
    check_state_dict(expected, tensors, source)
    return recipe, spec
