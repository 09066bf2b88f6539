"""Checks, by its content, that a model file holds data only, before a runtime opens it.

A format registers its check as ``check=``. One without a check, as every format that can hold code, is opened only if
the user trusts the file (:meth:`bigmodel_cli.export.folder.ExportFolder.open`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.files.file_kinds import kind_of
from bigmodel_cli.core.files.regular_files import open_regular
from bigmodel_cli.export.checksums import is_file_of

MAX_HEADER = 100_000_000
MAX_FIELDS = 20_000_000


def refuse(path: Path, why: str, expected: str) -> InputError:
    """The error for a file that is not what its format says; where it is known what it is instead, that is said."""
    kind = kind_of(path)
    return InputError(
        f"{path}: {why}" + f": it is {kind}" * (kind is not None), f"expected {expected}", "export it again"
    )


def check_safetensors(path: Path) -> None:
    """A regular file of its folder, with a JSON header whose length fits it.

    Raises:
        InputError: the file is something else.
    """
    require_own(path)
    with open_regular(path) as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER, path.stat().st_size - 8) or file.read(1) != b"{":
            raise refuse(path, "no safetensors file", "a header of JSON")


def require_own(path: Path) -> None:
    """Require a file that a runtime finds by its name to be a regular one of its folder: no digest need list it.

    Raises:
        InputError: it is not.
    """
    if not is_file_of(path.parent, path):
        raise InputError(f"{path}: no regular file of this folder", "expected no links out of it", "export it again")


def check_openvino(path: Path) -> None:
    """An IR whose constants lie within ``model.bin``; no document type, which could expand without end.

    Raises:
        InputError: the file is something else.
    """
    from xml.parsers import expat

    weights = path.with_suffix(".bin")
    if weights.exists() or weights.is_symlink():
        require_own(weights)
    size = weights.stat().st_size if weights.is_file() else 0
    seen = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal seen
        seen += 1
        if seen == 1 and tag != "net":
            raise refuse(path, f"<{tag[:40]}> at its root", "OpenVINO's IR")
        if tag == "data" and "offset" in attributes:
            first, length = attributes["offset"], attributes["size"]
            if not (first + length).isdecimal() or not first.isascii() or not length.isascii():
                raise ValueError(f"offset {first[:20]!r}, size {length[:20]!r}")  # C++ reads what int() takes otherwise
            if int(first) + int(length) > size:
                raise refuse(path, "a constant beyond model.bin", f"at most {size} bytes")

    def doctype(*_: object) -> None:
        raise refuse(path, "declares a document type", "OpenVINO's IR")

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.StartDoctypeDeclHandler = start, doctype
    try:
        with path.open("rb") as file:
            parser.ParseFile(file)
    except (expat.ExpatError, ValueError, KeyError) as error:
        raise refuse(path, f"cannot be read: {error}", "OpenVINO's IR") from None


# The parts of ONNX's protobuf that lead to tensors: message -> field -> the message in it.
# https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
NESTED = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}
LOCATION = b"location"
MAX_DEPTH = 64


def check_onnx(path: Path) -> None:
    """A graph whose external data lies in files of its own folder.

    Raises:
        InputError: the file is something else, or asks for a file elsewhere.
    """
    for name in external_files(path):
        if Path(name).is_absolute() or not is_file_of(path.parent, path.parent / name):
            raise refuse(path, f"its tensors are in {name[:80]!r}", "a file in the same folder")


def external_files(path: Path) -> list[str]:
    """The names of the files that hold tensors of the ONNX model at `path`, read without ONNX's own library.

    Raises:
        InputError: it is no ONNX model.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            walk = _Walk(file)
            walk.message("model", size, 0)
        except (ValueError, EOFError) as error:
            raise refuse(path, f"no ONNX model ({error})", "a protobuf with a graph") from None
    if not walk.graphs:
        raise refuse(path, "no graph in it", "an ONNX model")
    return sorted(walk.files)


class _Walk:
    """A walk over a protobuf that skips what leads to no tensor; see https://protobuf.dev/programming-guides/encoding."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.files: set[str] = set()
        self.graphs = self.fields = 0

    def message(self, kind: str, end: int, depth: int) -> None:
        """Read fields up to the offset `end`."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        self.graphs += kind == "graph"
        if kind == "external":
            self._external(end)
            return
        for field, stop in self._fields(end):
            inside = NESTED[kind].get(field)
            if inside is not None:
                self.message(inside, stop, depth + 1)
            self.file.seek(stop)

    def _fields(self, end: int) -> Iterator[tuple[int, int]]:
        """(number, offset of the end) of each length-delimited field; the others are skipped."""
        while self.file.tell() < end:
            self.fields += 1
            if self.fields > MAX_FIELDS:
                raise ValueError("too many fields")
            key = self._varint()
            kind = key & 7
            length = self._varint() if kind == 2 else {1: 8, 5: 4}.get(kind, 0)
            if kind == 0:
                self._varint()
            elif kind not in (1, 2, 5):
                raise ValueError(f"wire type {kind}")
            stop = self.file.tell() + length
            if stop > end:
                raise ValueError("a field beyond its message")
            if kind == 2:
                yield key >> 3, stop
            self.file.seek(stop)

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.file.read(1)
            if not byte:
                raise EOFError("cut off")
            value |= (byte[0] & 127) << shift
            if byte[0] < 128:
                return value
        raise ValueError("a number of more than 64 bits")

    def _external(self, end: int) -> None:
        """A key (field 1) and its value (field 2); the key ``location`` names a file."""
        found = {}
        for field, stop in self._fields(end):
            found[field] = self.file.read(min(stop - self.file.tell(), 4096))
        if found.get(1) == LOCATION:
            self.files.add(found.get(2, b"").decode("utf-8"))
