"""Starting from a checkpoint: the model it describes, rebuilt by our registry, and weights that fit another task."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigmodel_cli.core.errors import BigmodelError, InputError
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.registry import augments, losses, models, tasks
from bigmodel_cli.core.resolve import Layer, resolve
from bigmodel_cli.core.types import SPECS, Source, Spec, Task
from bigmodel_cli.engine.checkpoint import checkpoint
from bigmodel_cli.engine.checkpoint.sharded import is_parts
from bigmodel_cli.models.layers.meta_init import without_noise, without_values

SHOWN = 1 << 23  # numbers of the train split that a model may begin from: some 2,700 pictures of CIFAR


@dataclass(frozen=True)
class Trained:
    """A checkpoint brought back to life: the model in eval mode, its task, and what it remembers."""

    path: Path
    model: nn.Module
    task: Any
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


def head_of(recipe: Recipe) -> str:
    """The name of the last layer of the recipe's model, as it was registered."""
    return str(models.get(recipe.model.name).meta["head"])


def weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights to evaluate, export or start from: averaged where they are, adapters merged, packed ones unpacked."""
    from bigmodel_cli.models.adapters.lora import merged
    from bigmodel_cli.models.quantization.quantized_weights import unpacked

    chosen = merged(unpacked(state["model_ema"] or state["model"]))
    chosen.pop("n_averaged", None)
    return chosen


def checkpoint_file(path: Path) -> Path:
    """`path` itself, or the best checkpoint of the run folder it is.

    Raises:
        InputError: there is none.
    """
    if path.is_dir() and not is_parts(path):
        found = next((path / name for name in ("best.pt", "last.pt") if (path / name).exists()), None)
        if found is None:
            raise InputError(f"{path}: no checkpoint in this folder", "expected best.pt or last.pt")
        return found
    return path


def check_pin(path: Path, sha256: str | None) -> None:
    """Hold the file at `path` to the hash that the user gave, before anything is read of it.

    Raises:
        InputError: it is another file, or not there.
    """
    if sha256 is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    if found != sha256.lower():
        what = f"{path}: SHA-256 {found[:12]}..., start.sha256 is {sha256[:12].lower()}..."
        raise InputError(what, "expected the pinned file", f"sha256sum {path}")


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
    with without_noise():
        model = build_model(recipe, spec)
    model.load_state_dict(weights(state))
    return Trained(path, model.eval(), task, recipe, state["meta"], state["progress"])


def described(state: Mapping[str, Any], source: str) -> tuple[Recipe, Any]:
    """The recipe and the spec in a checkpoint, held against each other and against its tensors.

    A checkpoint is a stranger's word: its recipe is checked like any other, and the
    model is built without memory first, so that a width of a billion stays a number.

    Raises:
        InputError: they do not agree, or this version has no such model.
    """
    meta = state["meta"]
    recipe = resolve([Layer(source, meta["recipe"])]).recipe
    options = {k: recipe.to_dict()["model"].get(k) for k in recipe.model.options}
    said = {"architecture": (meta["arch"], recipe.model.name)}
    said |= {k: (_plain(meta["arch_args"].get(k)), options.get(k)) for k in sorted(options.keys() | meta["arch_args"])}
    for what, (one, other) in said.items():
        if one != other:
            raise InputError(f"{source}: {what} {_short(one)} in meta", f"{_short(other)} in its recipe")
    spec = build_spec(meta["input"], source)
    if list(getattr(spec, "classes", ())) != meta["classes"]:
        difference = first_difference("classes", meta["classes"], list(getattr(spec, "classes", ())), "meta", "input")
        raise InputError(f"{source}: {difference}", hint="restore it from a copy")
    with without_values():
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


def first_difference(name: str, one: Any, other: Any, *whose: str) -> str:
    """Where two values differ, both named; `whose` they are, such as "checkpoint" and "data"."""
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        if len(one) == len(other):
            at = next(i for i in range(len(one)) if one[i] != other[i])
            name, one, other = f"{name}[{at}]", one[at], other[at]
        else:
            odd = [x for x in (*one, *other) if (x in one) != (x in other)]
            name += f" (such as {_short(odd[0])})" if odd else ""
            one, other = len(one), len(other)
    return f"{name}: {_short(one)} in the {whose[0]}, {_short(other)} in the {whose[1]}"


def _plain(value: Any) -> Any:
    """`value` with tuples as lists, as a recipe's plain values are."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def build_spec(values: Mapping[str, Any], source: str) -> Any:
    """A spec from the plain values in the checkpoint that `source` names.

    Raises:
        InputError: they are not those of a spec.
    """
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in SPECS:
        raise InputError(f"{source}: input of kind {kind!r}", "expected " + " or ".join(SPECS))
    try:
        return SPECS[kind].from_dict({k: v for k, v in values.items() if k != "kind"})
    except InputError as error:
        raise InputError(f"{source}: {error.what}", error.expected, "restore it from a copy") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{source}: not a spec of kind {kind!r} ({error})", hint="restore it from a copy") from None


def build_task(recipe: Recipe, spec: Spec) -> Task:
    """The task that the model was registered for, with the recipe's loss and augmentation."""
    loss = losses.get(recipe.loss.name)(**recipe.loss.options)
    chosen = augments.get(recipe.augment.name)
    if chosen.meta.get("changes", True) and chosen.meta.get("kind", "image") != spec.kind:
        what = f"augment.name = {chosen.name}, which is not for {spec.kind}"
        raise InputError(what, hint="bigmodel recipe schema")
    augment = chosen(**recipe.augment.options)
    entry = tasks.get(models.get(recipe.model.name).meta["task"])
    if entry.meta["kind"] != spec.kind:
        what = f"{recipe.model.name} is for {entry.meta['kind']} data"
        raise InputError(what, f"data {recipe.data.name} is {spec.kind}", "bigmodel models")
    return entry(spec, loss, augment)  # type: ignore[no-any-return]


def build_model(recipe: Recipe, spec: Spec) -> nn.Module:
    """The model, randomly initialised from torch's generator as it stands."""
    from bigmodel_cli.models.layers.initialise import initialise

    model = architecture(recipe, spec)
    initialise(model, recipe.model.init)
    return model


def show(model: nn.Module, task: Task, train: Source) -> None:
    """Let a model whose weights begin from the data (it has ``look_at``) see prepared samples from all over `train`."""
    look_at = getattr(model, "look_at", None)
    if look_at is not None:
        each = sum(x.numel() for x in task.example(1))
        count = min(len(train), max(1, SHOWN // each))
        batch = task.prepare(train.gather(torch.arange(count) * len(train) // count))
        look_at(*(batch[name] for name in task.inputs))


def architecture(recipe: Recipe, spec: Spec) -> nn.Module:
    """The model as it was registered, its layers as narrow as pruning left them.

    Raises:
        InputError: ``model.pruned`` does not fit the model.
    """
    from bigmodel_cli.models.adapters.pruned import narrow

    model: nn.Module = models.get(recipe.model.name)(spec, **recipe.model.options)
    return narrow(model, recipe.model.pruned) if recipe.model.pruned else model


def check_fit(ours: Mapping[str, Tensor], state: Mapping[str, Any], source: str) -> None:
    """Hold the tensors `state`, read from `source`, against a model's own, `ours`: the same names and shapes.

    Raises:
        InputError: one is missing, unexpected or of another shape.
    """
    missing, unexpected = ours.keys() - state.keys(), state.keys() - ours.keys()
    if missing or unexpected:
        example = sorted(missing or unexpected)[0]
        counts = f"{len(missing)} tensors missing, {len(unexpected)} unexpected"
        raise InputError(f"{source}: {counts}, e.g. {example}", "the weights must fit the architecture they name")
    for key, tensor in state.items():
        shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
        if shape != tuple(ours[key].shape):
            raise InputError(f"{source}: {key} is {shape}", f"the model's is {tuple(ours[key].shape)}")


def transfer(model: nn.Module, trained: Trained, spec: Any) -> list[str]:
    """Copy the weights of `trained` into `model`, built for `spec`; say what was kept and what was not.

    The head is kept where the class names are the same set. The first layer is
    adapted where the number of input channels differs: filters are summed over the
    channels for one grey channel, and repeated, divided by the count, for several,
    so that a grey picture gives the same activations either way.
    """
    state = dict(weights({"model": trained.model.state_dict(), "model_ema": None}))
    ours, notes = model.state_dict(), []
    meta = models.get(trained.recipe.model.name).meta
    head, first = meta["head"], meta["backbone_first"] + ".weight"
    if set(spec.classes) == set(trained.task.spec.classes):
        notes += [f"head kept: the {len(spec.classes)} classes match by name"] if spec.classes else []
    else:
        for key in [k for k in state if k.startswith(head + ".")]:
            del state[key]
        notes.append(
            f"head replaced: {len(trained.task.spec.classes)} classes in the checkpoint, {len(spec.classes)} now"
        )
    notes += fit_channels(state, ours, first)
    wrong = [k for k, v in state.items() if v.shape != ours[k].shape]
    if wrong:
        was, now = tuple(state[wrong[0]].shape), tuple(ours[wrong[0]].shape)
        raise InputError(f"{trained.path}: {wrong[0]} is {was}", f"the data needs {now}", "fine-tune on the same size")
    model.load_state_dict({**ours, **state})
    return notes


def fit_channels(state: dict[str, Tensor], ours: Mapping[str, Tensor], first: str) -> list[str]:
    """Adapt the filters of the tensor `first` in `state` to the input channels that `ours` has; say so."""
    if first not in state or state[first].shape == ours[first].shape or state[first].dim() != 4:
        return []
    old, new = state[first].shape[1], ours[first].shape[1]
    if old == new:
        return []
    summed = state[first].sum(1, keepdim=True)
    state[first] = summed if new == 1 else summed.expand(-1, new, -1, -1) / new
    how = "summed over" if new == 1 else "repeated over"
    return [f"{first}: filters {how} the input channels ({old} -> {new})"]


def digest(model: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of a model's tensors, or of the tensors themselves."""
    total = hashlib.sha256()
    state = model.state_dict() if isinstance(model, nn.Module) else model
    for key, tensor in sorted(state.items()):
        flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        total.update(f"{key}{tuple(tensor.shape)}{tensor.dtype}".encode())
        total.update(flat.numpy().tobytes())
    return total.hexdigest()


@contextlib.contextmanager
def unchanged(model: nn.Module, names: frozenset[str]) -> Iterator[None]:
    """Hold the tensors called `names` to their bytes across the block.

    Raises:
        BigmodelError: one of them changed (a bug, hence exit code 1).
    """
    before = {k: v.detach().clone() for k, v in model.state_dict().items() if k in names}
    yield
    after = model.state_dict()
    changed = [k for k, v in before.items() if not torch.equal(v, after[k])]
    if changed:
        raise BigmodelError(f"{len(changed)} frozen tensors changed, first {changed[0]}")
