"""Opens files in every way there is, each in a process of its own that is watched from outside and from inside.

Run as a program: reads a line of JSON ``{"kind", "path"}`` for each file and prints a line about it. The parent
measures the peak and the processor time of the process that read the file. Within it, an audit hook (PEP 578) notes
whatever runs a program, opens a connection, unpickles an object, or writes outside the file's own folder; and a file
that must never come to be (the canary) is looked for.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DATA_LIMIT, CPU_LIMIT = 3 << 30, 60
RUNS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "os.fork", "pty.spawn")
REACHES = ("socket.connect", "socket.bind", "urllib.Request", "ftplib.connect", "webbrowser.open")


def ways() -> dict[str, list[Callable[[Path], Any]]]:
    """How each kind of file is opened: the functions behind the commands."""
    from bigmodel_cli.commands import watch
    from bigmodel_cli.commands.checkpoint import describe
    from bigmodel_cli.commands.comparison.page import curves, epochs_of
    from bigmodel_cli.core.errors import InputError
    from bigmodel_cli.core.files.event_log import read_events, read_state
    from bigmodel_cli.core.image.images import decode, decode_plain
    from bigmodel_cli.core.readers.json_lines import read_objects
    from bigmodel_cli.core.readers.text_files import read_text
    from bigmodel_cli.core.resolve import document_layer, resolve
    from bigmodel_cli.core.strict_yaml import read_yaml
    from bigmodel_cli.core.tokenizers.tokens import BPETokenizer
    from bigmodel_cli.data.token_shards.files import read_index
    from bigmodel_cli.data.user_data.image_discovery import list_images
    from bigmodel_cli.engine.build.load import load_trained
    from bigmodel_cli.engine.checkpoint import checkpoint
    from bigmodel_cli.engine.checkpoint.inspect import inspect_file
    from bigmodel_cli.engine.checkpoint.sharded_reader import read_sharded
    from bigmodel_cli.engine.experiments.reproduce import last_metrics
    from bigmodel_cli.engine.experiments.study import read_study, recipes
    from bigmodel_cli.export.folder import read_folder

    def images_in(path: Path) -> None:
        listing = list_images(str(path))
        for items in listing.splits.values():
            for item in items[:3]:
                decode(item.read(), item.name, 3, 32)

    def shards(path: Path) -> None:
        index = read_index(path.parent, 16)
        index.document_lengths()
        if damaged := index.damaged_files():
            raise InputError(f"{damaged}: other files than the index says")

    def tokens(path: Path) -> None:
        known = BPETokenizer(read_text(path))
        known.decode(known.encode("one text, <s> of many \u00e9\u4e2d"))

    def watched_run(path: Path) -> None:
        events = read_events(path.parent / "metrics.jsonl")
        watch.view(path.parent, events)
        for event in events:
            watch.line_of(event)
        curves({"a": epochs_of(path.parent)}, "val_loss")

    weights = [lambda p: describe(inspect_file(p)), checkpoint.read, load_trained]
    return {
        "checkpoint": weights,
        "safetensors": weights,
        "pt2": weights,
        "sharded index": [lambda p: checkpoint.load(p.parent), lambda p: read_sharded(p.parent, (1, 2))],
        "token shards": [shards],
        "recipe": [lambda p: resolve([document_layer(read_yaml(p), str(p))])],
        "study": [lambda p: recipes(read_study(p), p.parent / "out", [])],
        "tokenizer": [tokens],
        "text": [lambda p: read_text(p, "auto")],
        "jsonl": [lambda p: list(read_objects(p, "utf-8", {}))],
        "csv": [images_in],
        "tar": [images_in],
        "picture": [lambda p: decode(p.read_bytes(), p.name, 3, 32), lambda p: decode_plain(p.read_bytes(), p.name, 1)],
        "export folder": [lambda p: read_folder(p.parent).open()],
        "run folder": [
            lambda p: load_trained(p.parent), lambda p: checkpoint.newest_valid(p.parent),
            lambda p: last_metrics(p.parent), lambda p: read_events(p.parent / "metrics.jsonl"),
            lambda p: read_state(p.parent), watched_run,
        ],
        "control": [lambda p: __import__("pickle").loads(p.read_bytes())],
    }  # fmt: skip


def watched(folder: Path, seen: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """An audit hook that notes in `seen` what no file may cause."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in RUNS or event in REACHES or event == "pickle.find_class":
            seen.append(f"{event} {arguments!r:.100}")
        elif event == "open" and len(arguments) > 2:
            path, mode, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) if isinstance(flags, int) else "w" in str(mode)
            where = os.path.realpath(os.fsdecode(path)) if isinstance(path, (str, bytes)) else ""
            allowed = (str(folder), os.environ.get("BIGMODEL_CACHE", "/nowhere"), "/dev/", "/proc/")
            if writes and where and not where.startswith(allowed):
                seen.append(f"open {where:.100} to write")

    return hook


def read_one(kind: str, path: Path, functions: list[Callable[[Path], Any]]) -> dict[str, Any]:
    """Open `path` in every way; what came of each: None if it was read, else [exit code, line]."""
    from bigmodel_cli.core.errors import BigmodelError

    seen: list[str] = []
    folder = path.parent.resolve()
    sys.addaudithook(watched(folder, seen))
    answers: list[Any] = []
    for way in functions:
        try:
            way(path)
            answers.append(None)
        except BigmodelError as error:
            answers.append([error.exit_code, error.line])
        except MemoryError:
            answers.append([1, "MemoryError"])
        except BaseException as error:
            answers.append([1, f"{type(error).__name__}: {error}"[:300]])
    loaded = [
        name for name, module in sys.modules.items() if str(getattr(module, "__file__", None)).startswith(str(folder))
    ]
    return {"answers": answers, "ran": seen + [f"import {name}" for name in loaded]}


def _child(kind: str, path: Path, functions: list[Callable[[Path], Any]], pipe: int) -> None:
    os.chdir(path.parent)
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_LIMIT, DATA_LIMIT))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        answer = read_one(kind, path, functions)
    with os.fdopen(pipe, "w") as file:
        file.write(json.dumps(answer))
    os._exit(0)


def measured(kind: str, path: Path, functions: list[Callable[[Path], Any]]) -> dict[str, Any]:
    """Fork, read `path`, and give what the child said with its peak in bytes and its seconds of processor time."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            _child(kind, path, functions, writing)
        finally:
            os._exit(70)
    os.close(writing)
    with os.fdopen(reading) as file:
        said = file.read()
    _, status, used = os.wait4(child, 0)
    answer = json.loads(said) if said else {"answers": [[os.waitstatus_to_exitcode(status), "died"]], "ran": []}
    return {**answer, "peak": used.ru_maxrss << 10, "seconds": used.ru_utime + used.ru_stime}


def main() -> None:
    import torch

    torch.set_num_threads(1)
    known = ways()
    import tokenizers  # noqa: F401
    import torchvision  # noqa: F401

    idle = measured("control", Path("/dev/null"), [])
    for request in requests():
        path = Path(request["path"])
        found = measured(request["kind"], path, known[request["kind"]])
        found["peak"] = max(0, found["peak"] - idle["peak"])
        found["seconds"] = max(0.0, found["seconds"] - idle["seconds"])
        print(json.dumps({**request, **found}), flush=True)  # noqa: T201


def requests() -> Iterator[dict[str, str]]:
    for line in sys.stdin:
        yield json.loads(line)


if __name__ == "__main__":
    main()
