"""One component of each kind, as somebody else's package has them: tests/project/test_plugins.py installs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from pydantic import Field
from torch import Tensor, nn

from bigmodel_cli.core.registry import (
    augments,
    commands,
    data,
    exports,
    figures,
    loggers,
    losses,
    methods,
    metrics,
    models,
    optimizers,
    reports,
    schedules,
    tasks,
)
from bigmodel_cli.core.types import Adapted, DataBundle, ImageSpec, Start
from bigmodel_cli.data.image.arrays import ImageArrays
from bigmodel_cli.export.runtime import Runtime, run_with_torch
from bigmodel_cli.insight.reports import Report, headline, plain
from bigmodel_cli.metrics.intervals import measure
from bigmodel_cli.tasks.image_classification import ImageClassification

if "ACME_RUNS" in os.environ:
    with Path(os.environ["ACME_RUNS"]).open("a") as seen:
        seen.write(f"{os.getpid()}\n")


class Grading(ImageClassification):
    """Image classification that is reported on its own way."""

    name = "acme_grading"
    report = "acme_report"
    metrics = ("accuracy", "acme_margin")


@tasks.register(spec_type=ImageSpec, pipeline_tag="image-classification")
def acme_grading(spec: ImageSpec, loss: Any, augment: Any) -> Grading:
    """One grade an image."""
    return Grading(spec, loss, augment)


@models.register(task="acme_grading", head="head", backbone_first="body", formerly=("acme_old_net",))
def acme_net(spec: ImageSpec, *, width: Annotated[int, Field(gt=0)] = 16) -> nn.Module:
    """Two layers by Acme."""
    net = nn.Sequential()
    net.add_module("flatten", nn.Flatten())
    net.add_module("body", nn.Linear(spec.channels * spec.height * spec.width, width))
    net.add_module("act", nn.ReLU())
    net.add_module("head", nn.Linear(width, spec.num_classes))
    return net


@data.register(files=(), reads=lambda given: 10 * (given.suffix == ".squares"))
def acme_squares(root: Path, *, path: str | None = None, count: int = 200) -> DataBundle:
    """Squares that are bright or dark; without a path too."""

    def load(split: str) -> ImageArrays:
        labels = torch.arange(count) % 2
        noise = torch.randint(0, 60, (count, 1, 8, 8), generator=torch.Generator().manual_seed(len(split)))
        return ImageArrays((noise + 150 * labels.view(-1, 1, 1, 1)).to(torch.uint8), labels, split)

    spec = ImageSpec(1, 8, 8, ("dark", "bright"))
    return DataBundle(spec, {split: lambda split=split: load(split) for split in ("train", "val", "test")}, "squares")


@augments.register(kind="image")
def acme_mirror() -> Callable[..., Tensor]:
    """Each image mirrored."""
    return lambda images, key, size=None: images.flip(-1)


@losses.register()
def acme_hinge(*, margin: float = 1.0) -> Callable[[Tensor, Tensor], Tensor]:
    """Multi-class hinge loss."""
    return lambda logits, labels: nn.functional.multi_margin_loss(logits, labels, margin=margin, reduction="none")


@optimizers.register()
def acme_sgd(named: Any, *, lr: float = 0.05) -> torch.optim.Optimizer:
    """Plain steps."""
    return torch.optim.SGD([parameter for _, parameter in named], lr=lr)


@schedules.register()
def acme_flat(total_steps: int) -> Callable[[int], float]:
    """Always the same."""
    return lambda step: 1.0


@methods.register("acme-all", lr=1e-2)
def acme_all(start: Start) -> Adapted:
    """Everything trains."""
    return Adapted()


@metrics.register(better="max", needs=("logits",))
def acme_margin(out: Mapping[str, Any]) -> Tensor:
    """How far the largest logit is from the next."""
    best = out["logits"].topk(2, 1).values
    return best[:, 0] - best[:, 1]


@metrics.register(better="max", share=True, needs=("logits", "label"))
def acme_sure(out: Mapping[str, Any]) -> Tensor:
    """Share of right answers that are surer than 0.6."""
    sure = out["logits"].softmax(1).max(1)
    return (sure.indices == out["label"]) & (sure.values > 0.6)


@reports.register()
def acme_report(task: Any, data: Any, source: Any, outputs: Any, wrong: int, names: Sequence[str]) -> Report:
    """The headline alone."""
    found = measure(names, outputs())
    return Report({"by": "acme", "headline": plain(found)}, [headline(found)])


@figures.register()
def acme_bars(results: list[dict[str, Any]], path: Path) -> None:
    """What each run came to, as text in an image file's place."""
    path.write_text(" ".join(result["run"] for result in results))


@loggers.register(files=("acme.log",))
@contextmanager
def acme_log(folder: Path, history: Sequence[Any]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A line an event."""
    with (folder / "acme.log").open("a") as file:
        yield lambda event: print(event["event"], file=file, flush=True)


@loggers.register()
@contextmanager
def acme_broken_log(folder: Path, history: Sequence[Any]) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Fails."""

    def fail(event: Mapping[str, Any]) -> None:
        raise OSError("the log's server is gone")

    yield fail


RUNTIME = Runtime(
    needs=("torch",),
    imports="import torch",
    run='model = torch.jit.load(here / "model.acme")\nlogits = model(torch.from_numpy(x)).detach().numpy()',
)


def run_acme(path: Path, build: Callable[[], nn.Module]) -> Any:
    return run_with_torch(torch.jit.load(str(path)))


@exports.register(suffix=".acme", run=run_acme, runtime=RUNTIME)
def acme_trace(model: nn.Module, example: tuple[Tensor, ...], path: Path, carry: dict[str, Any]) -> None:
    """A trace under a name of Acme's."""
    torch.jit.save(torch.jit.trace(model, example), str(path))


@commands.register("acme-hello")
def acme_hello(name: Annotated[str, typer.Option("--name", help="Whom.")] = "you") -> None:
    """Say hello. And no more."""
    typer.echo(f"hello {name}")
