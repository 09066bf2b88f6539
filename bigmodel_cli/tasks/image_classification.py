"""Images to classes. Shapes: B batch, C channels, H height, W width, K classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from bigmodel_cli.core.device_constant import device_constant
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.regular_files import read_regular
from bigmodel_cli.core.image.images import decode
from bigmodel_cli.core.output_values import uncalibrated
from bigmodel_cli.core.preprocessing import describe_image_steps
from bigmodel_cli.core.readers.text_samples import AS_FOUND, Reading
from bigmodel_cli.core.registry import tasks
from bigmodel_cli.core.tasks import ChoosesSide, Forward, Mixes, Predictions
from bigmodel_cli.core.types import Batch, ImageSpec, LossSum, SampleKey, Source
from bigmodel_cli.tasks import labelled
from bigmodel_cli.tasks.answers import answer_of, outputs_described

ENOUGH = 1 << 26  # pixels to measure mean and deviation on: all of MNIST or CIFAR, or a thousand photos
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's convert("L")
MAX_FILE = 256 * 2**20  # bytes of one image file


@tasks.register(spec_type=ImageSpec, answers="classes", pipeline_tag="image-classification")
def image_classification(
    spec: ImageSpec, loss: Callable[[Tensor, Tensor], Tensor], augment: Callable[..., Tensor]
) -> ImageClassification:
    """One class per image."""
    return ImageClassification(spec, loss, augment)


@dataclass(frozen=True)
class ImageClassification:
    """See :class:`Classifies` and :class:`Predicts` in core/tasks.py."""

    spec: ImageSpec
    loss_per_sample: Callable[[Tensor, Tensor], Tensor]
    augment: Callable[..., Tensor]
    """See `Augment` in data/image/augment.py."""
    label_map: tuple[int, ...] | None = None
    """The model's label for each label of the data; -1 if the model has no such class. None if they agree."""
    name = "image_classification"
    unit = "images"
    unit_axis = None
    best = ("accuracy", "max")
    inputs = ("image",)
    report = "classification"
    answers = "classes"

    @property
    def metrics(self) -> tuple[str, ...]:
        return labelled.metrics_of(self.spec)

    def fit_spec(self, train: Source) -> ImageClassification:
        """Measure the mean and standard deviation per channel, on the 0..1 scale, over the train split.

        A split of more than ENOUGH pixels is measured on evenly spaced samples. A spec that has a mean keeps it.
        """
        if self.spec.mean:
            return self
        total = square = torch.zeros(self.spec.channels, dtype=torch.float64)
        pixels = 0
        area = self.spec.square**2 if self.spec.square else self.spec.height * self.spec.width
        stride = max(1, len(train) * area // ENOUGH)
        for indices in torch.arange(0, len(train), stride).split(max(1, (1 << 21) // area)):
            x = train.gather(indices)["image"].float() / 255
            total = total + x.sum((0, 2, 3), dtype=torch.float64)
            square = square + x.square().sum((0, 2, 3), dtype=torch.float64)
            pixels += x.shape[0] * x.shape[2] * x.shape[3]
        mean = total / pixels
        # Do not divide by zero for a constant channel. Half a grey level is below any real deviation.
        std = (square / pixels - mean**2).clamp(min=0).sqrt().clamp(min=0.5 / 255)
        return replace(self, spec=self.spec.with_(mean=tuple(mean.tolist()), std=tuple(std.tolist())))

    def for_data(self, data: ImageSpec) -> ImageClassification:
        """Return the task for data with its own class list. Labels are matched by *name*, never by position."""
        return replace(self, label_map=labelled.label_map(self.spec.classes, data.classes))

    def with_(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def adopt(self, trained: ImageSpec, data: ImageSpec) -> tuple[ImageSpec, list[str]]:
        """Return the spec for fine-tuning: trained input size and normalization, the new data's channels and classes.

        The second value is one note for the user for each change.
        """
        notes, mean, std = [], trained.mean, trained.std
        if trained.channels != data.channels:
            notes.append(f"input channels {trained.channels} -> {data.channels}")
            mean = _repeat_mean(mean, data.channels)
            std = _repeat_mean(std, data.channels)
        if (trained.height, trained.width) != (data.height, data.width):
            size = f"{trained.height}x{trained.width}"
            notes.append(f"images are resized from {data.height}x{data.width} to the model's {size}")
        same = set(trained.classes) == set(data.classes)
        classes = trained.classes if same else data.classes
        changed: dict[str, Any] = {"channels": data.channels, "classes": classes, "mean": mean, "std": std}
        # predict must read files as training does
        changed |= {"square": data.square, "crop": data.crop, "value_range": data.value_range}
        if data.square is not None:
            changed["interpolation"] = data.interpolation
        return uncalibrated(trained.with_(**changed)), notes

    def prepare(self, batch: Batch, key: SampleKey | None = None) -> Batch:
        """Prepare image uint8 (B,C',H',W') -> float32 (B,C,H,W): augment if `key` is given, resize, normalize."""
        x = batch["image"]
        spec, size = self.spec, (self.spec.height, self.spec.width)
        if key is not None:
            x = self.augment(x, key, size)
            side = self.augment.side if isinstance(self.augment, ChoosesSide) else None
            size = size if side is None else (side, side)
        if x.shape[2:] != size and spec.crop < 1:
            x = _crop_centre(x, spec.crop)
        if x.shape[1] != spec.channels:
            x = _to_channels(x.float(), spec.channels)
        if x.shape[2:] != size:
            x = F.interpolate(x.float(), size, mode=spec.interpolation, antialias=True)
            x = x.clamp_(0, 255) if spec.interpolation == "bicubic" else x  # it overshoots at edges
        label = batch["label"]
        if self.label_map is not None:
            label = device_constant(self.label_map, torch.int64, label.device)[label]
        mixed: Batch = {}
        mixing = self.augment.mixing if isinstance(self.augment, Mixes) else None
        if key is not None and mixing is not None:
            x, partner, share = mixing(x.float(), key)
            mixed = {"other_label": label[partner], "share": share}
        if spec.mean:
            mean = device_constant(spec.mean, torch.float32, x.device).view(1, -1, 1, 1) * 255
            std = device_constant(spec.std, torch.float32, x.device).view(1, -1, 1, 1) * 255
            # In place on a copy: twice as fast as (x - mean) / std from uint8.
            x = (x.float() if x.dtype == torch.uint8 else x.clone()).sub_(mean).div_(std)
        return {**batch, "image": x.float(), "label": label, **mixed}

    def count(self, batch: Batch) -> int:
        return len(batch["label"])

    def loss(self, model: Forward, batch: Batch) -> LossSum:
        logits = labelled.logits_of(model(batch["image"]), self.spec)
        losses = self.loss_per_sample(logits, batch["label"])
        if "share" in batch:  # mixed images (see `mixing` in data/image/augment_photo.py): equals a soft-label loss
            losses = torch.lerp(self.loss_per_sample(logits, batch["other_label"]), losses, batch["share"])
        return LossSum(losses.sum(), len(logits))

    def outputs(self, model: Forward, batch: Batch) -> Batch:
        return labelled.outputs(model(batch["image"]), batch, self.loss_per_sample, self.spec)

    def evaluate(self, model: Forward, batch: Batch) -> dict[str, Tensor]:
        return labelled.sums(self.outputs(model, batch))

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return labelled.summarise(sums)

    def _read(self, path: Path) -> Batch:
        """Read one image file as a raw batch of one, with the model's number of channels.

        Raises:
            InputError: the file is not a supported image, is too large, or is damaged.
        """
        raw = read_regular(path, MAX_FILE)  # not a pipe, which would be waited for
        spec = self.spec
        how = (spec.channels, spec.square, spec.interpolation, spec.value_range)
        pixels = decode(raw, str(path), *how)
        return {"image": pixels[None], "label": torch.zeros(1, dtype=torch.int64), "index": torch.zeros(1)}

    def read_file(self, path: Path, how: Reading = AS_FOUND) -> Iterator[tuple[str, Batch]]:
        """Yield the only image in the file."""
        yield str(path), self._read(path)

    def predict(self, model: Forward, batch: Batch, top: int = 5) -> list[Predictions]:
        """Return the `top` classes and probabilities for each image, most likely first."""
        answer = answer_of(self)
        logits = labelled.logits_of(model(batch["image"]), self.spec)
        values = answer.values(logits.double().cpu().numpy(), self.spec)
        return [answer.choose(row, self.spec, top) for row in values]

    def preprocessing(self) -> dict[str, Any]:
        """Describe the preprocessing steps for other programs, in order."""
        return {**describe_image_steps(self.spec), **outputs_described(self.spec)}

    def example(self, batch_size: int) -> tuple[Tensor, ...]:
        return (torch.zeros(batch_size, self.spec.channels, self.spec.height, self.spec.width),)


def _crop_centre(x: Tensor, share: float) -> Tensor:
    """Crop the centre of (B,C,H,W) to the fraction `share` of each side."""
    height, width = (round(side * share) for side in x.shape[2:])
    top, left = (x.shape[2] - height) // 2, (x.shape[3] - width) // 2
    return x[:, :, top : top + height, left : left + width]


def _repeat_mean(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return (sum(values) / len(values),) * channels if values else values


def _to_channels(x: Tensor, channels: int) -> Tensor:
    """Convert (B,C',H,W) to (B,channels,H,W): repeat grey channels, reduce colour to luma."""
    if x.shape[1] == 1:
        return x.expand(-1, channels, -1, -1)
    if x.shape[1] == 3 and channels == 1:
        return (x * device_constant(LUMA, x.dtype, x.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    raise InputError(f"images have {x.shape[1]} channels", f"the model takes {channels}")
