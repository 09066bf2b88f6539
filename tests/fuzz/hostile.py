"""Hostile checkpoint files, a function each: what a stranger may send.

`canary` is a file that must never come to be. ``HOSTILE`` names them all.
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

HOSTILE: dict[str, Callable[[Path, Path], None]] = {}


def hostile(function: Callable[[Path, Path], None]) -> Callable[[Path, Path], None]:
    HOSTILE[function.__name__] = function
    return function


class Calls:
    """Unpickling this calls `function` with `arguments`."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.parts


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def archive(path: Path, data: bytes, records: dict[str, bytes] | None = None, kind: int = zipfile.ZIP_STORED) -> None:
    """A zip such as torch.save writes, with `data` as its pickle and `records` as its storages."""
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", b"3\n")
        for key, content in (records or {"0": bytes(64)}).items():
            file.writestr(f"archive/data/{key}", content)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def calls(path: Path, function: Any, *arguments: Any, state: Any = None) -> None:
    archive(path, pickle.dumps({"model": Calls(function, *arguments, state=state)}, 2))


# Code by reduce: the classic, and what it may hide behind.
SIMPLE: dict[str, Callable[[Path], tuple[Any, ...]]] = {
    "os_system": lambda c: (os.system, f"touch {c}"),
    "exec_text": lambda c: (builtins.exec, f"open({str(c)!r}, 'w')"),
    "eval_text": lambda c: (builtins.eval, f"open({str(c)!r}, 'w')"),
    "popen": lambda c: (subprocess.Popen, ["touch", str(c)]),
    "touch": lambda c: (Path.touch, c),
    "open_file": lambda c: (open, str(c), "w"),
    "run_path": lambda c: (runpy.run_path, str(c.with_name("evil.py"))),
    "import_module": lambda c: (importlib.import_module, "antigravity"),
    "remove_tree": lambda c: (shutil.rmtree, str(c.parent / "kept")),
    "getattr_chain": lambda c: (getattr, Path, "touch"),
    "nested_load": lambda c: (torch.storage._load_from_bytes, saved(Calls(Path.touch, c))),
    "torch_load": lambda c: (torch.serialization.load, str(c.with_name("evil.pkl"))),
    "hub_load": lambda c: (torch.hub.load, "someone/thing", "model"),
    "wrapper_subclass": lambda c: (torch._utils._rebuild_wrapper_subclass, torch.Tensor, torch.float32, (1,), (1,), 0,
                                   torch.strided, torch.device("cpu"), False),
    "bytearray_of_100_gb": lambda c: (bytearray, 10**11),
    "tensor_of_400_gb": lambda c: (torch.Tensor, 10**11),
    "meta_tensor": lambda c: (torch._utils._rebuild_meta_tensor_no_storage, torch.float32, (10**12,), (1,), False),
    "complex_number": lambda c: (complex, 1, 2),
}  # fmt: skip


def _simple(name: str) -> None:
    HOSTILE[name] = lambda path, canary: calls(path, *SIMPLE[name](canary))


for _name in SIMPLE:
    _simple(_name)


@hostile
def as_a_key(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02}(" + pickle.dumps(Calls(os.system, f"touch {canary}"), 2)[2:-1] + b"K\x01u.")


@hostile
def in_the_state(path: Path, canary: Path) -> None:
    calls(path, Path, "x", state={"k": Calls(Path.touch, canary)})


@hostile
def setstate(path: Path, canary: Path) -> None:
    data = b"\x80\x02ctorch\nTensor\n)\x81}X\x01\x00\x00\x00ak\x01sb.".replace(b"k\x01", b"K\x01")
    archive(path, data)


@hostile
def instance_instruction(path: Path, canary: Path) -> None:
    archive(path, b"(" + text(f"touch {canary}") + b"ios\nsystem\n.")


@hostile
def object_instruction(path: Path, canary: Path) -> None:
    archive(path, b"(cos\nsystem\n" + text(f"touch {canary}") + b"o.")


@hostile
def stack_global(path: Path, canary: Path) -> None:
    archive(path, pickle.dumps({"model": Calls(os.system, f"touch {canary}")}, 4))


@hostile
def extension_code(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02\x82\x01.")


@hostile
def text_persistent_id(path: Path, canary: Path) -> None:
    archive(path, b"Pos.system\n.")


@hostile
def renamed_module(path: Path, canary: Path) -> None:
    """Python 2's name, which torch maps to ``builtins.exec``'s module."""
    archive(path, b"\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.")


@hostile
def memo_from_nowhere(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02h\xffh\xfe\x86.")


@hostile
def list_within_itself(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02]q\x00h\x00a.")


@hostile
def doubled_forty_times(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02(]q\x00" + b"".join(b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(40)) + b"t.")


@hostile
def nested_without_end(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")


@hostile
def number_of_a_million_digits(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02\x8b" + struct.pack("<i", 400_000) + b"\x7f" * 400_000 + b".")


@hostile
def number_of_600_digits(path: Path, canary: Path) -> None:
    archive(path, b"\x80\x02\x8a\xfa" + b"\x7f" * 250 + b".")


def tensor(shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, count: int = 16, key: str = "0") -> bytes:
    """The pickle of {"model": tensor} with whatever geometry is asked for."""
    whole = b"\x80\x02}X\x05\x00\x00\x00modelctorch._utils\n_rebuild_tensor_v2\n(("
    name = key.encode()
    whole += b"X\x07\x00\x00\x00storagectorch\nFloatStorage\nX" + struct.pack("<I", len(name)) + name
    plain = [pickle.dumps(v, 2)[2:-1] for v in (count, offset, shape, stride)]
    whole += b"X\x03\x00\x00\x00cpu" + plain[0] + b"tQ" + plain[1] + plain[2] + plain[3]
    return whole + b"\x89ccollections\nOrderedDict\n)RtRs."


GEOMETRY: dict[str, dict[str, Any]] = {
    "beyond_its_storage": {"shape": (10**11,), "stride": (1,)},
    "one_number_as_a_trillion": {"shape": (10**6, 10**6), "stride": (0, 0)},
    "negative_stride": {"shape": (4,), "stride": (-1,), "offset": 3},
    "negative_offset": {"shape": (4,), "stride": (1,), "offset": -4},
    "storage_larger_than_its_entry": {"shape": (10**9,), "stride": (1,), "count": 10**9},
    "storage_of_no_entry": {"shape": (4,), "stride": (1,), "key": "77"},
    "storage_outside": {"shape": (4,), "stride": (1,), "key": "../../x"},
    "shape_that_overflows": {"shape": (2**62, 4), "stride": (4, 1)},
    "negative_shape": {"shape": (-1,), "stride": (1,)},
    "negative_count": {"shape": (1,), "stride": (1,), "count": -16},
    "more_sides_than_strides": {"shape": (2, 2), "stride": (1,)},
}


def _geometry(name: str) -> None:
    HOSTILE[name] = lambda path, canary: archive(path, tensor(**GEOMETRY[name]))


for _name in GEOMETRY:
    _geometry(_name)


@hostile
def shared_a_million_times(path: Path, canary: Path) -> None:
    """60,000 views of one storage of 4 MB: 240 GB to whoever adds them up."""
    one = tensor((10**6,), (1,), count=10**6)[len(b"\x80\x02}X\x05\x00\x00\x00model") : -2]
    archive(path, b"\x80\x02](" + one + b"q\x05" + b"h\x05" * 60_000 + b"e.", {"0": bytes(4 * 10**6)})


@hostile
def sparse_out_of_range(path: Path, canary: Path) -> None:
    torch.save({"model": torch.sparse_coo_tensor([[3]], [1.0], (4,))}, path)


@hostile
def quantized(path: Path, canary: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save({"model": torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)}, path)


@hostile
def torchscript(path: Path, canary: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)), str(path))


# The zip around it.
GOOD = pickle.dumps({"model": 1}, 2)


@hostile
def deflated_bomb(path: Path, canary: Path) -> None:
    archive(path, GOOD, {"0": bytes(60_000_000)}, zipfile.ZIP_DEFLATED)


@hostile
def lzma_bomb(path: Path, canary: Path) -> None:
    archive(path, bytes(20_000_000), kind=zipfile.ZIP_LZMA)


def twice(path: Path, first: str, second: str) -> None:
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as file:
        warnings.simplefilter("ignore")
        for name in ("archive/version", first, second):
            file.writestr(name, GOOD)


NAMES = {
    "the_same_entry_twice": ("archive/data.pkl", "archive/data.pkl"),
    "the_same_but_for_case": ("archive/data.pkl", "archive/DATA.PKL"),
    "absolute_name": ("archive/data.pkl", "/etc/cron.d/x"),
    "name_with_dots": ("archive/data.pkl", "archive/../../x"),
    "name_with_backslash": ("archive/data.pkl", "archive\\..\\..\\x"),
    "two_folders": ("archive/data.pkl", "other/data.pkl"),
    "no_pickle": ("archive/readme", "archive/data/0"),
}


def _names(name: str) -> None:
    HOSTILE[name] = lambda path, canary: twice(path, *NAMES[name])


for _name in NAMES:
    _names(_name)


def edited(path: Path, *edits: tuple[bytes, int, bytes]) -> None:
    """A plain archive with bytes put in: after the n-th place of a signature, at an offset from it."""
    archive(path, GOOD)
    raw = bytearray(path.read_bytes())
    for signature, offset, new in edits:
        at = raw.index(signature) + offset
        raw[at : at + len(new)] = new
    path.write_bytes(raw)


LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
EDITS: dict[str, list[tuple[bytes, int, bytes]]] = {
    "two_names": [(LOCAL, 30, b"archive/evil.pkl")],
    "two_methods": [(LOCAL, 8, b"\x08\x00")],
    "two_sizes": [(CENTRAL, 20, struct.pack("<L", 5))],
    "size_of_4_gb": [(CENTRAL, 20, struct.pack("<LL", 2**32 - 2, 2**32 - 2))],
    "zip64_without_its_field": [(CENTRAL, 20, b"\xff" * 8)],
    "encrypted": [(CENTRAL, 8, b"\x01\x00")],
    "beyond_the_end": [(CENTRAL, 42, struct.pack("<L", 2**31))],
    "entries_without_number": [(END, 8, b"\xff\xff\xff\xff")],
    "directory_before_the_file": [(END, 16, b"\xff\xff\xff\x7f")],
    "wrong_checksum": [(CENTRAL, 16, b"\x00\x00\x00\x00")],
}


def _edit(name: str) -> None:
    HOSTILE[name] = lambda path, canary: edited(path, *EDITS[name])


for _name in EDITS:
    _edit(_name)


@hostile
def overlapping(path: Path, canary: Path) -> None:
    """Each directory entry names the same bytes (Fifield 2019, "A better zip bomb")."""
    archive(path, GOOD)
    raw = bytearray(path.read_bytes())
    first = raw.index(CENTRAL)
    second = raw.index(CENTRAL, first + 4)
    raw[second + 42 : second + 46] = raw[first + 42 : first + 46]
    path.write_bytes(raw)


def put_in(path: Path, signature: bytes, hidden: bytes) -> None:
    """A file of torch.save with `hidden` before the first `signature`, and a directory that knows of it."""
    torch.save({"model": torch.ones(4)}, path)
    raw = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        directory, entries = file.start_dir, file.infolist()
    at = raw.index(signature, 1)
    whole = bytearray(raw[:at] + hidden + raw[at:])
    place = directory + len(hidden)
    for entry in entries:
        moved = entry.header_offset + len(hidden) * (entry.header_offset >= at)
        whole[place + 42 : place + 46] = struct.pack("<L", moved)
        place += 46 + len(entry.orig_filename) + len(entry.extra)
    for signature, offset, form in ((END, 16, "<L"), (b"PK\x06\x06", 48, "<Q"), (b"PK\x06\x07", 8, "<Q")):
        at = whole.rindex(signature) + offset
        value = struct.unpack_from(form, whole, at)[0]
        struct.pack_into(form, whole, at, value + len(hidden))
    path.write_bytes(whole)


@hostile
def bytes_between(path: Path, canary: Path) -> None:
    put_in(path, LOCAL, b"#!/bin/sh\n")


@hostile
def another_descriptor(path: Path, canary: Path) -> None:
    put_in(path, LOCAL, b"PK\x07\x08" + bytes(12))


@hostile
def bytes_before_the_directory(path: Path, canary: Path) -> None:
    put_in(path, CENTRAL, b"#!/bin/sh\n")


@hostile
def zip64_sizes(path: Path, canary: Path) -> None:
    archive(path, GOOD)
    raw = path.read_bytes()
    at = raw.index(CENTRAL)
    entry = bytearray(raw[at : at + 46 + len("archive/data.pkl")])
    entry[20:28] = b"\xff" * 8
    entry[30:32] = struct.pack("<H", 20)
    extra = struct.pack("<HHQQ", 1, 16, 2**62, 2**62)
    end = bytearray(raw[-22:])
    end[12:16] = struct.pack("<L", struct.unpack("<L", raw[-10:-6])[0] + 20)
    path.write_bytes(raw[:at] + entry + extra + raw[at + len(entry) : -22] + end)


@hostile
def script_in_front(path: Path, canary: Path) -> None:
    archive(path, GOOD)
    path.write_bytes(b"PK\x03\x04#!/bin/sh\n" + path.read_bytes())


@hostile
def a_zip_behind(path: Path, canary: Path) -> None:
    archive(path, GOOD)
    path.write_bytes(path.read_bytes() + b"x" * 30)


@hostile
def a_comment(path: Path, canary: Path) -> None:
    archive(path, GOOD)
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"PK\x05\x06" + bytes(18)


@hostile
def a_terabyte_of_nothing(path: Path, canary: Path) -> None:
    """A sparse file: a few kB on the disk, 1 TB to whoever reads it."""
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.truncate(2**40)


# What is no zip.
@hostile
def old_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(pickle.dumps(Calls(Path.touch, canary), 2))


@hostile
def old_torch_save(path: Path, canary: Path) -> None:
    torch.save({"model": Calls(Path.touch, canary)}, path, _use_new_zipfile_serialization=False)


@hostile
def text_pickle(path: Path, canary: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR.")


@hostile
def tar_of_storages(path: Path, canary: Path) -> None:
    with tarfile.open(path, "w") as file:
        info = tarfile.TarInfo("storages")
        data = pickle.dumps(Calls(Path.touch, canary))
        info.size = len(data)
        file.addfile(info, io.BytesIO(data))


@hostile
def python_source(path: Path, canary: Path) -> None:
    path.write_text(f"open({str(canary)!r}, 'w')\n")


def safetensors(path: Path, header: bytes, length: int | None = None, data: bytes = bytes(64)) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


HEADERS: dict[str, tuple[bytes, int | None]] = {
    "header_of_8_exabytes": (b'{"a":{}}', 2**63),
    "header_longer_than_the_file": (b'{"a":{}}', 10**6),
    "header_cut_off": (b'{"a":{"dtype":"F32"', None),
    "offsets_that_overlap": (
        b'{"a":{"dtype":"F32","shape":[8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[8],"data_offsets":[16,48]}}',
        None,
    ),
    "offsets_beyond_the_end": (b'{"a":{"dtype":"F32","shape":[999],"data_offsets":[0,3996]}}', None),
    "offsets_backwards": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[16,0]}}', None),
    "shape_unlike_its_bytes": (b'{"a":{"dtype":"F32","shape":[99999999],"data_offsets":[0,64]}}', None),
    "shape_over_64_bits": (b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,64]}}', None),
    "tensor_of_65_dimensions": (
        b'{"a":{"dtype":"F32","shape":[' + b"1," * 63 + b'16,1],"data_offsets":[0,64]}}',
        None,
    ),
    "negative_side": (b'{"a":{"dtype":"F32","shape":[-16],"data_offsets":[0,64]}}', None),
    "a_type_of_its_own": (b'{"a":{"dtype":"OBJECT","shape":[16],"data_offsets":[0,64]}}', None),
    "nested_json": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "not_text": (b'{"\xff\xfe":1}', None),
    "bytes_left_over": (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', None),
}


def _header(name: str) -> None:
    HOSTILE[name] = lambda path, canary: safetensors(path.with_suffix(".safetensors"), *HEADERS[name])


for _name in HEADERS:
    _header(_name)
