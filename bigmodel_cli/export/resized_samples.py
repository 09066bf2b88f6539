"""Images of sizes other than the model's, to prove an export that includes preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bigmodel_cli.core.files.scratch import scratch_folder
from bigmodel_cli.core.processes.call_limit import bounded
from bigmodel_cli.core.tasks import Predicts
from bigmodel_cli.export.folder import Run

if TYPE_CHECKING:
    from bigmodel_cli.export.subject import Subject

FEW = 8
APART, APART_ROUNDED = 1e-3, 0.05
"""Maximum difference of a logit on images of other sizes. With intermediate rounding to integers, a few pixels are
off by one (training rounds in integer arithmetic)."""
SCALES = ((2.0, 1.5), (0.8, 1.3))
"""Scale factors of height and width: one image taller and one wider than the data's."""


def compare_other_sizes(subject: Subject, run: Run) -> dict[str, Any]:
    """Compare the export with the checkpoint on real images of other sizes."""
    from PIL import Image

    task, largest, equal, count = subject.task, 0.0, 0, 0
    assert isinstance(task, Predicts)
    with scratch_folder() as place, torch.inference_mode():
        for scale in SCALES:
            for i in range(min(FEW, len(subject.raw[0]["image"]))):
                file = resized_sample(subject, i, scale, place)
                plain = torch.from_numpy(np.array(Image.open(file))[None])
                given = plain if plain.dim() == 4 else plain[..., None]
                ((_, raw),) = task.read_file(file)
                ours = subject.model(task.prepare(raw)["image"])
                with bounded():
                    output = run(given.expand(-1, -1, -1, task.spec.channels).contiguous().numpy())
                theirs = torch.from_numpy(output)
                largest = max(largest, float((ours - theirs).abs().max()))
                equal += int(ours.argmax() == theirs.argmax())
                count += 1
    tolerance = APART if task.spec.square is None else APART_ROUNDED
    return {"inputs": count, "largest_difference": largest, "equal_answers": equal / count, "tolerance": tolerance}


def resized_sample(subject: Subject, index: int, scale: tuple[float, float], place: Path) -> Path:
    """Image `index` of the first batch as a PNG, its height and width scaled."""
    from PIL import Image

    pixels = subject.raw[0]["image"][index].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    size = max(2, round(image.width * scale[1])), max(2, round(image.height * scale[0]))
    file = place / f"sample-{index}.png"
    image.resize(size, Image.Resampling.BICUBIC).save(file)
    return file
