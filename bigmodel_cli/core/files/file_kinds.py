"""What a file is by its first bytes, whatever its name says: for the error where something else was expected."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path

BEGINNINGS = {
    b"\x7fELF": "a program (ELF)",
    b"MZ": "a program (Windows)",
    b"#!": "a script",
    b"\x89HDF": "HDF5",
    b"GGUF": "GGUF",
    b"\x1f\x8b": "a gzip archive",
    b"\x80\x02": "a pickle file, which can run code",
    b"\x80\x03": "a pickle file, which can run code",
    b"\x80\x04": "a pickle file, which can run code",
    b"\x80\x05": "a pickle file, which can run code",
    b"cposix\n": "a pickle file, which can run code",
}
PT2_WEIGHTS = "/data/weights/"


def program_in(names: Iterable[str]) -> str | None:
    """What runs when a zip whose entries have these names is opened; None if no format of programs has such names."""
    for name in names:
        inside = f"/{name}"
        if "/aotinductor/" in inside:
            return "an AOTInductor package, which is machine code"
        if inside.endswith("/constants.pkl") or "/code/" in inside:
            return "a TorchScript program, which would run"
    return None


def kind_of(path: Path) -> str | None:
    """What the file at `path` is, if that can be told.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        first = file.read(265)
    if first.startswith(b"PK\x03\x04"):
        return _zip_kind(path)
    if first[257:262] == b"ustar":
        return "a tar archive"
    if first[8:10] == b'{"' and int.from_bytes(first[:8], "little") <= path.stat().st_size - 8:
        return "safetensors"
    return next((kind for start, kind in BEGINNINGS.items() if first.startswith(start)), None)


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many kinds on damaged directories
        return "a damaged zip"
    if any(PT2_WEIGHTS in f"/{name}" for name in names) and program_in(names) is None:
        return "a .pt2 program, which can hold code"
    pickled = any(name.endswith("/data.pkl") for name in names)
    return program_in(names) or ("a file of torch.save, which can hold code" if pickled else "a zip")
