"""Shadow models: the same recipe trained again and again, each without another half of the audited samples.

Shapes: P audited samples, S shadow models, K classes.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files import atomic_files
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.core.processes.worker_pool import worker_pool
from bigmodel_cli.core.recipe import Recipe
from bigmodel_cli.core.special_tokens import PAD
from bigmodel_cli.core.tokenizers.tokens import tokenizer
from bigmodel_cli.core.types import Source, TextSpec
from bigmodel_cli.data.joined import Joined
from bigmodel_cli.data.subset import Subset
from bigmodel_cli.engine.build.data import load_data, load_split
from bigmodel_cli.engine.training.assemble import execute, prepare
from bigmodel_cli.engine.training.build_run import Built, build
from bigmodel_cli.engine.training.evaluate import split_outputs
from bigmodel_cli.engine.training.run import Hooks, Run

MOST = 5000
"""The most members, and others, that are audited."""


@dataclass(frozen=True)
class Audited:
    """The samples whose membership is tested: `members` of train, and `others` of the split called `split`."""

    split: str
    members: Tensor
    others: Tensor
    epoch: int
    """How many epochs the audited model has learned; the shadow models learn as long."""

    @property
    def is_member(self) -> Tensor:
        """(P,) bool."""
        return torch.arange(len(self.members) + len(self.others)) < len(self.members)


def audited_samples(train: Source, other: Source, split: str, epoch: int, seed: int) -> Audited:
    """As many samples of train as of the other split, drawn with `seed`, at most half of train and MOST of each."""
    numbers = torch.Generator().manual_seed(seed)
    count = min(len(other), len(train) // 2, MOST)
    if count < 2:
        raise InputError(f"{min(len(train), len(other))} samples", "expected two of train and two of another split")
    return Audited(
        split,
        torch.randperm(len(train), generator=numbers)[:count].sort().values,
        torch.randperm(len(other), generator=numbers)[:count].sort().values,
        epoch,
    )


def halves(samples: int, models: int, seed: int) -> Tensor:
    """(S,P) bool: which models train on which samples. Of two models one gets a random half, the other the rest.

    So each trains on as many samples as the audited model, and each sample has models with and without it.
    """
    numbers = torch.Generator().manual_seed(seed)
    inside = torch.zeros(models, samples, dtype=torch.bool)
    for first in range(0, models, 2):
        inside[first, torch.randperm(samples, generator=numbers)[: samples // 2]] = True
        if first + 1 < models:
            inside[first + 1] = ~inside[first]
    return inside


def shadow_outputs(
    recipe: Recipe,
    audited: Audited,
    fingerprint: str,
    folder: Path,
    count: int,
    seed: int,
    workers: int,
    done: Callable[[int], None] = lambda finished: None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Train `count` shadow models. Returns their logits (S,P,K), the labels (P,), and which trained on what (S,P).

    Finished ones are in `folder` and are not trained again. `done` is called with the number that is finished.

    Raises:
        BigmodelError: a model cannot be trained.
    """
    inside = halves(len(audited.is_member), count, seed)
    folder = folder / _key(recipe, audited, fingerprint, count, seed)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"shadow-{k}.npz" for k in range(count)]
    missing = [k for k, file in enumerate(files) if not file.exists()]
    done(count - len(missing))
    tasks = {k: (recipe.to_dict(), audited, inside[k], seed + 1 + k, str(files[k])) for k in missing}
    if workers <= 1 or len(missing) <= 1:
        for finished, task in enumerate(tasks.values(), count - len(missing) + 1):
            _train_shadow(*task)
            done(finished)
    else:
        hint = "the same command goes on from those that are done; more memory, if it ran out"
        with worker_pool(workers, "the process of a shadow model", hint, _one_thread) as pool:
            pending = [pool.submit(_train_shadow, *task) for task in tasks.values()]
            for finished, future in enumerate(as_completed(pending), count - len(missing) + 1):
                future.result()
                done(finished)
    found = [_read(file, len(audited.is_member)) for file in files]
    return torch.stack([f["logits"] for f in found]), found[0]["labels"], inside


def _one_thread() -> None:
    torch.set_num_threads(1)


def _read(file: Path, samples: int) -> dict[str, Tensor]:
    """The outputs in `file`, which lies beside a checkpoint and may be as much a stranger's.

    Raises:
        InputError: it is not what :func:`_train_shadow` wrote: a few stored bytes can claim any amount of memory.
    """
    try:
        with open_regular(file) as raw, zipfile.ZipFile(raw) as parts:
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist()):
                raise ValueError("compressed")
            raw.seek(0)
            with numpy.load(raw, allow_pickle=False) as found:
                values = {name: torch.from_numpy(found[name]) for name in ("logits", "labels")}
        if values["logits"].shape[:-1] != (samples,) or values["labels"].shape != (samples,):
            raise ValueError("another number of samples")
    except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        what = f"{file}: damaged: {error}".partition("\n")[0]
        raise InputError(what, "expected a shadow model's outputs", f"remove {file} to train it again") from None
    return values


def _key(recipe: Recipe, audited: Audited, fingerprint: str, count: int, seed: int) -> str:
    """A name that changes with whatever changes the shadow models."""
    values = recipe.to_dict()
    values["data"].pop("dir")
    values.pop("placement")
    samples = [audited.split, audited.epoch, audited.members.tolist(), audited.others.tolist()]
    text = json.dumps([values, samples, fingerprint, count, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _train_shadow(recipe: Mapping[str, Any], audited: Audited, inside: Tensor, seed: int, file: str) -> None:
    """Train one shadow model and write its outputs for the audited samples."""
    built, whole, pool = _shadow_build(Recipe(**recipe), audited, inside, seed)
    kept: dict[str, Tensor] = {}

    def save(run: Run, is_best: bool) -> None:
        if run.progress.epoch == audited.epoch and not kept:  # a stop comes a step later
            kept.update({name: t.detach().clone() for name, t in run.eval_model.state_dict().items()})

    run = prepare(built, Hooks(save=save, should_stop=lambda run: run.progress.epoch >= audited.epoch))
    execute(run)
    run.eval_model.load_state_dict(kept)
    model = run.model if run.ema is None else run.ema.module
    size = run.recipe.train.eval_batch_size
    outputs = split_outputs(model, built.draft.task, Subset(whole, pool), run.placement, size)
    assert outputs is not None
    order = outputs["index"].argsort()
    values: dict[str, Any] = {
        "logits": outputs["logits"][order].float().numpy(),
        "labels": outputs["label"][order].numpy(),
    }

    def write(path: Path) -> None:
        with path.open("wb") as out:
            numpy.savez(out, **values)

    atomic_files.replace(Path(file), write, lambda: sum(v.nbytes for v in values.values()))


def _shadow_build(recipe: Recipe, audited: Audited, inside: Tensor, seed: int) -> tuple[Built, Source, Tensor]:
    """A shadow model's build, all samples there are, and the audited ones among them.

    It is validated on the audited samples that it does not train on.
    """
    train_ = recipe.train.model_copy(update={"seed": seed, "patience": None})
    recipe = recipe.model_copy(update={"train": train_})
    built = build(recipe, measure=False)
    draft = built.draft
    train, other = draft.batches.source, draft.val
    spec = draft.task.spec
    if audited.split != "val":
        other = load_split(load_data(recipe.data, spec, recipe.task), recipe.data, audited.split)
    fill = tokenizer(spec).special.get(PAD, 0) if isinstance(spec, TextSpec) else 0
    whole = Joined(train, other, fill)
    pool = torch.cat((audited.members, audited.others + len(train)))
    rest = torch.ones(len(train), dtype=torch.bool)
    rest[audited.members] = False
    learned = torch.cat((rest.nonzero().flatten(), pool[inside]))
    batches = replace(draft.batches, source=Subset(whole, learned))
    return replace(built, draft=replace(draft, batches=batches, val=Subset(whole, pool[~inside]))), whole, pool
