"""The whole service, but for its model, which is a function that is slow, wrong, or silent on purpose."""

from __future__ import annotations

import contextlib
import json
import sys
import time

import numpy as np

from bigmodel_cli.commands.display import console
from bigmodel_cli.core.specs import ImageSpec
from bigmodel_cli.serve import server
from bigmodel_cli.serve.app import build_app
from bigmodel_cli.serve.model import ImageReader, ServedModel
from bigmodel_cli.serve.service import Options, Service
from bigmodel_cli.serve.uploads import Limits
from bigmodel_cli.tasks.answers import ClassAnswer

HOW = {"mode": "L", "resize": {"height": 4, "width": 4}, "scale": 1 / 255, "mean": [0.0], "std": [1.0]}


class SlowReader(ImageReader):
    """Takes as many seconds to decode an image as the image is called: ``0.5``."""

    def _one(self, name: str, raw: bytes, limits: Limits) -> np.ndarray:
        with contextlib.suppress(ValueError):
            time.sleep(float(name))
        return super()._one(name, raw, limits)


def main() -> None:
    """`seconds` a run, of images that are not black; one of a grey of 51, 102 or 153 is answered with nonsense."""
    given = {"seconds": 0.0, "queue": 64, "timeout": 20.0, "head": 10.0, "max_batch": 8, "max_wait": 0.0}
    given |= {"stop": 5, "spare": 256, **json.loads(sys.argv[1])}

    def model(x: np.ndarray) -> np.ndarray:
        if x.max() == 0:  # the example: the start and the health checks must go through
            return np.zeros((len(x), 2), np.float32)
        time.sleep(given["seconds"])
        grey = round(float(x.max()) * 255)
        if grey == 153:
            raise RuntimeError("out of\nluck")
        return np.full((len(x), 3 if grey == 102 else 2), np.nan if grey == 51 else 0, np.float32)

    server.HEAD_SECONDS, server.SPARE_CONNECTIONS = given["head"], given["spare"]
    spec = ImageSpec(1, 4, 4, ("a", "b"))
    reader = SlowReader(HOW, spec)
    limits = Limits(1_000_000, 1_000_000, 8, given["timeout"])
    options = Options(limits, given["max_batch"], given["max_wait"], given["queue"], given["timeout"], None)
    service = Service(ServedModel(model, reader, spec.classes, {}, spec, ClassAnswer()), options)
    listening = server.bind("127.0.0.1", 0)
    ready = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.run(build_app(service, console.note, False), listening, given["stop"], lambda: console.say(ready))


if __name__ == "__main__":
    from bigmodel_cli import cli

    cli.app = lambda **options: main()  # its exit codes are the command line's own
    cli.main()
