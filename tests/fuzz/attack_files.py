"""Hostile files for every reader, drawn at random: ``MAKERS[kind](draw, folder, canary)`` writes one, gives its path.

`folder` is empty, and holds modules that a careless import would run; `canary` is a file that must never come to be.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import random
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attack_mutations import Raw, changed, dump, replaced, values
from hostile import HOSTILE, Calls, archive, safetensors, text

from bigmodel_cli.core.tokenizers.huggingface_json import tokenizer_json
from bigmodel_cli.core.types import TextSpec
from bigmodel_cli.engine.checkpoint import sharded
from bigmodel_cli.export.checksums import digests, sums_text

Maker = Callable[[random.Random, Path, Path], Path]
MAKERS: dict[str, Maker] = {}
ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests/golden"
MODULES = ("typer", "yaml", "torch", "numpy", "json", "PIL", "safetensors", "sitecustomize")


def maker(kind: str) -> Callable[[Maker], Maker]:
    def add(function: Maker) -> Maker:
        MAKERS[kind] = function
        return function

    return add


def traps(folder: Path, canary: Path) -> None:
    """Modules in the folder that the canary comes from if anything imports them."""
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(canary)!r}, 'w')\n")


@functools.cache
def golden() -> dict[str, bytes]:
    with zipfile.ZipFile(GOLDEN / "v1.pt") as file:
        return {name.partition("/")[2]: file.read(name) for name in file.namelist()}


def opcodes(canary: Path) -> tuple[bytes, ...]:
    """Pieces of pickles that call, import, or share without end."""
    call = b"cos\nsystem\n" + text(f"touch {canary}") + b"\x85R"
    return (call, b"cbuiltins\neval\n", b"ctorch\nload\n", b"cposix\nsystem\n", b"\x93", b"R", b"b", b"\x81",
            b"\x92", b"(",
            b"]", b"}", b"N" * 1000, b"h\x00", b"q\x00", b"\x94", b"i", b"o", b"Q", b"P0\n", b"\x82\x01",
            b"\x8e" + b"\xff" * 8,
            b"B" + b"\xff\xff\xff\x7f", b"\x8b\xff\xff\xff\x7f", b"ctorch._utils\n_rebuild_tensor_v2\n",
            b"cbuiltins\nbytearray\n")  # fmt: skip


@maker("checkpoint")
def checkpoint(draw: random.Random, folder: Path, canary: Path) -> Path:
    """One that is known; ours with its bytes, or its pickle in a sound zip, changed; or ours with other values."""
    path, way = folder / "x.pt", draw.randrange(8)
    known = [name for name in HOSTILE if name != "a_terabyte_of_nothing"]
    if way == 0:
        (folder / "kept").mkdir()
        (folder / "evil.pkl").write_bytes(pickle.dumps(Calls(Path.touch, canary)))
        HOSTILE[draw.choice(known)](path, canary)
        return next(p for p in folder.iterdir() if p.suffix in (".pt", ".safetensors"))
    if way == 1:
        path.write_bytes(changed(draw, (GOLDEN / "v1.pt").read_bytes()))
    elif way < 6:
        records = {name.removeprefix("data/"): raw for name, raw in golden().items() if name.startswith("data/")}
        archive(path, changed(draw, golden()["data.pkl"], opcodes(canary)), records)
    else:
        state = torch.load(GOLDEN / "v1.pt", weights_only=True)
        try:
            torch.save(replaced(draw, state, canary), path)
        except (RuntimeError, ValueError):  # it cannot be pickled
            torch.save({"model": dump(values(draw, canary))}, path)
    return path


@maker("safetensors")
def tensors(draw: random.Random, folder: Path, canary: Path) -> Path:
    raw = (GOLDEN / "v1.safetensors").read_bytes()
    path, length = folder / "x.safetensors", int.from_bytes(raw[:8], "little")
    if draw.random() < 0.3:
        path.write_bytes(changed(draw, raw))
    else:
        header = dump(replaced(draw, json.loads(raw[8 : 8 + length]), canary))
        safetensors(path, header.encode(errors="surrogatepass"), data=raw[8 + length :])
    return path


WEIGHT = {
    "path_name": "weight_0", "is_param": True, "use_pickle": False,
    "tensor_meta": {
        "dtype": 7, "sizes": [{"as_int": 3}, {"as_int": 4}], "strides": [{"as_int": 4}, {"as_int": 1}],
        "storage_offset": {"as_int": 0}, "requires_grad": True, "layout": 7,
    },
}  # fmt: skip


@maker("pt2")
def exported_program(draw: random.Random, folder: Path, canary: Path) -> Path:
    """An archive of torch.export with another description of its weight, or other bytes in it."""
    from bigmodel_cli.engine.checkpoint.pt2_archive import CARRIED, CONFIG, WEIGHTS

    path, call = folder / "x.pt2", pickle.dumps(Calls(Path.touch, canary))
    config = dump(replaced(draw, {"config": {"fc.weight": WEIGHT}}, canary, 3))
    carried = dump(replaced(draw, {"arch": "mlp", "arch_args": {"width": 8}, "classes": ["a", "b"]}, canary))
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"archive{WEIGHTS}weight_0", call if draw.random() < 0.3 else bytes(48))
        file.writestr(f"archive{WEIGHTS}model{CONFIG}", config.encode(errors="surrogatepass"))
        file.writestr("archive/models/model.json", "{}")
        file.writestr("archive/data/sample_inputs/model.pt", call)
        file.writestr(f"archive{CARRIED}", carried.encode(errors="surrogatepass"))
    if draw.random() < 0.2:
        path.write_bytes(changed(draw, path.read_bytes()))
    return path


def sharded_state(draw: random.Random, folder: Path) -> dict[str, Any]:
    """The index of a checkpoint in two shards, which are there and have the checksums that it says."""
    from safetensors.torch import save

    held = {"model": {"a": torch.ones(4, 3), "b": torch.ones(2)}, "meta": {"x": 1}}
    state, _ = sharded.split_state(held, lambda tensor: None, True)
    files = []
    for rank, tensors in enumerate(({"model.a": [0, 2], "model.b": [0, -1]}, {"model.a": [2, 2]})):
        file = folder / f"part-{rank:05}.safetensors"
        raw = save({name: torch.ones(2, 3) if name == "model.a" else torch.ones(2) for name in tensors})
        file.write_bytes(changed(draw, raw) if draw.random() < 0.1 else raw)
        about = {"bytes": file.stat().st_size, "sha256": sharded.file_sha256(file), "tensors": tensors}
        files.append({"file": file.name, **about})
    return {"format": sharded.FORMAT, "version": sharded.VERSION, "state": state, "files": files}


@maker("sharded index")
def sharded_index(draw: random.Random, folder: Path, canary: Path) -> Path:
    """Mostly one part of the index is another one, so that the checks before it pass."""
    tree: Any = sharded_state(draw, folder)
    part = draw.choice(("all", "state", "state", "files", "tensors", "tensors"))
    if part == "all":
        tree = replaced(draw, tree, canary, 4)
    elif part == "tensors":
        tree["files"][0]["tensors"] = replaced(draw, tree["files"][0]["tensors"], canary, 2)
    else:
        tree[part] = replaced(draw, tree[part], canary, 3)
    path = folder / sharded.INDEX
    if draw.random() < 0.3 or "@raw" in dump(tree) or not isinstance(tree, dict):
        path.write_bytes(changed(draw, dump(tree).encode(errors="surrogatepass")))
        return path
    try:
        path.write_text(json.dumps(sharded.with_digest(tree)), encoding="utf-8", errors="surrogatepass")
    except (ValueError, TypeError):
        path.write_text(dump(tree), encoding="utf-8", errors="surrogatepass")
    return path


SHARDS = {
    "format": "bigmodel.tokens", "version": 1, "type": "uint16", "tokenizer": "byte", "vocabulary": [], "tokens": 10,
    "documents": 1, "bytes": 10,
}  # fmt: skip


@maker("token shards")
def token_shards(draw: random.Random, folder: Path, canary: Path) -> Path:
    from bigmodel_cli.data.token_shards import files

    held: dict[str, Any] = {**SHARDS, "format": files.FORMAT, "version": files.VERSION}
    for name, raw in (("00000.bin", bytes(20)), (files.ENDS, (10).to_bytes(8, "little"))):
        (folder / name).write_bytes(raw)
        held[name] = {"file": name, "sha256": hashlib.sha256(raw).hexdigest()}
    held |= {"ends": held.pop(files.ENDS), "shards": [{**held.pop("00000.bin"), "tokens": 10}]}
    path = folder / files.INDEX
    raw = dump(replaced(draw, held, canary, 3)).encode(errors="surrogatepass")
    path.write_bytes(changed(draw, raw) if draw.random() < 0.3 else raw)
    return path


YAML = (b"&a [*a,*a]", b"*a", b"!!python/object/apply:os.system ['x']", b"<<: *a", b"? ", b"- - - - ", b"{[",
        b"!!binary x",
        b"\xff\xfe", b"%YAML 9", b"|\n", b"1:30", b"0o7", b"${HOME}", b"\xc2\x85", b"\t", b"---\n")  # fmt: skip


@maker("recipe")
def recipe(draw: random.Random, folder: Path, canary: Path) -> Path:
    source = draw.choice(sorted((ROOT / "recipes").glob("*/*.yaml")))
    (folder / "x.yaml").write_bytes(changed(draw, source.read_bytes(), YAML))
    return folder / "x.yaml"


@maker("study")
def study(draw: random.Random, folder: Path, canary: Path) -> Path:
    runs: dict[str, Any] = {"a": {"optimizer": {"lr": 0.1}}, "b": {"start": {"checkpoint": "@a"}}}
    if draw.random() < 0.3:
        runs["../victim"] = {}
    base = {"model": {"name": "mlp"}, "data": {"name": "digits"}, "train": {"epochs": 1}}
    tree = {"title": "t", "base": base, "test": False, "runs": runs}
    raw = dump(replaced(draw, tree, canary, draw.choice((1, 3)))).encode(errors="surrogatepass")
    (folder / "x.yaml").write_bytes(changed(draw, raw, YAML) if draw.random() < 0.4 else raw)
    return folder / "x.yaml"


@maker("tokenizer")
def tokenizer(draw: random.Random, folder: Path, canary: Path) -> Path:
    base = json.loads(tokenizer_json(TextSpec("byte", (), 16)))
    parts: list[Any] = [
        {"type": "Replace", "pattern": {"Regex": "(a+)+$"}, "content": "x" * 500}, {"type": "Prepend",
        "prepend": "y" * 9000},
        {"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 40}, {"type": "Strip", "content": "a",
        "start": 1 << 40, "stop": 0},
        {"type": "Split", "pattern": {"Regex": "((a|aa)+)+b"}, "behavior": "Isolated", "invert": False},
    ]  # fmt: skip
    key = draw.choice(("normalizer", "pre_tokenizer", "decoder", "post_processor", "padding", "truncation"))
    tree = {**base, key: draw.choice(parts)} if draw.random() < 0.5 else base
    raw = dump(replaced(draw, tree, canary, 3)).encode(errors="surrogatepass")
    (folder / "tokenizer.json").write_bytes(changed(draw, raw) if draw.random() < 0.2 else raw)
    return folder / "tokenizer.json"


TEXT = "file,label\na.png,cat\nb.png,dog\n"


@maker("csv")
def csv(draw: random.Random, folder: Path, canary: Path) -> Path:
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(picture_bytes(random.Random(1)))
    cells = (
        b'"',
        b"\r\n",
        b"\n",
        b",",
        b"=cmd|' /C calc'!A0",
        b"/etc/passwd",
        b"../" * 50,
        b"x" * 100_000,
        b"\x1b]0;x\x07",
        b"\xff",
    )
    (folder / "labels.csv").write_bytes(changed(draw, TEXT.encode() * draw.choice((1, 50)), cells))
    return folder / "labels.csv"


@maker("jsonl")
def jsonl(draw: random.Random, folder: Path, canary: Path) -> Path:
    rows = [
        {"text": "a", "label": 1},
        {"messages": [{"role": "user", "content": "b"}]},
        {"prompt": "x", "chosen": ["y"]},
    ]
    lines = [dump(replaced(draw, row, canary)) for row in rows]
    raw = "\n".join(lines).encode(errors="surrogatepass")
    path = folder / draw.choice(("x.jsonl", "x.json"))
    path.write_bytes(changed(draw, raw) if draw.random() < 0.5 else raw)
    return path


@maker("text")
def plain_text(draw: random.Random, folder: Path, canary: Path) -> Path:
    raw = "Some text, naïve and 中文.\n".encode(draw.choice(("utf-8", "utf-16", "gb18030"))) * draw.choice((1, 1000))
    (folder / "x.txt").write_bytes(changed(draw, raw, (b"\xef\xbb\xbf", b"\xff\xfe\0\0", b"\0" * 9)))
    return folder / "x.txt"


def picture_bytes(draw: random.Random) -> bytes:
    """A small picture, or a flat one of many pixels, in a format of its own."""
    from PIL import Image

    size = draw.choice(((40, 30), (1, 1), (5000, 3000), (60_000, 3)))
    kind, mode = draw.choice(
        (("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "RGB"), ("GIF", "P"), ("BMP", "RGB"), ("TIFF", "L"), ("PPM", "RGB"))
    )
    buffer = io.BytesIO()
    Image.new(mode, size, draw.randrange(200)).save(buffer, kind)
    return buffer.getvalue()


@maker("picture")
def picture(draw: random.Random, folder: Path, canary: Path) -> Path:
    raw = picture_bytes(draw)
    (folder / "x.png").write_bytes(changed(draw, raw) if draw.random() < 0.8 else raw)
    return folder / "x.png"


@maker("tar")
def tar(draw: random.Random, folder: Path, canary: Path) -> Path:
    path = folder / draw.choice(("x.tar", "x.tar.gz"))
    names = (
        "train/cat/a.png",
        "train/dog/b.png",
        "../../out.png",
        "/abs.png",
        "train/cat/\x1b[31m.png",
        "val/cat/c.png",
    )
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz" if path.suffix == ".gz" else "w") as file:
        for name in draw.sample(names, 4):
            info, raw = tarfile.TarInfo(name), picture_bytes(random.Random(2))
            info.size, info.type = len(raw), draw.choice((tarfile.REGTYPE,) * 4 + (tarfile.SYMTYPE, tarfile.CHRTYPE))
            info.linkname = draw.choice(("", "/etc/passwd", "../../x"))
            file.addfile(info, io.BytesIO(raw))
    path.write_bytes(changed(draw, buffer.getvalue()) if draw.random() < 0.6 else buffer.getvalue())
    return path


@functools.cache
def export_parts() -> dict[str, bytes]:
    from attack_export import onnx_folder

    return onnx_folder()


@maker("export folder")
def export_folder(draw: random.Random, folder: Path, canary: Path) -> Path:
    """A sound one with a JSON file, the model, or all of it changed, and digests that are right again."""
    parts = dict(export_parts())
    name = draw.choice(sorted(parts))
    if name.endswith(".json") and draw.random() < 0.8:
        parts[name] = dump(replaced(draw, json.loads(parts[name]), canary, 3)).encode(errors="surrogatepass")
    else:
        parts[name] = changed(draw, parts[name], (b"../../etc/passwd", b"location"))
    for file, raw in parts.items():
        (folder / file).write_bytes(raw)
    if draw.random() < 0.8:
        if name != "proof.json":
            proof = {"files": digests(folder, [folder / "model.onnx"])}
            (folder / "proof.json").write_text(json.dumps(proof))
        (folder / "SHA256SUMS").write_text(sums_text(folder), encoding="utf-8")
    return folder / "export.json"


@maker("run folder")
def run_folder(draw: random.Random, folder: Path, canary: Path) -> Path:
    """A run with a hostile checkpoint, events and status beside a sound one, or links in their place."""
    raw = (GOLDEN / "v1.pt").read_bytes()
    (folder / "best.pt").write_bytes(raw if draw.random() < 0.5 else changed(draw, raw))
    (folder / "last.pt").write_bytes(changed(draw, raw) if draw.random() < 0.5 else raw)
    kind = draw.choice(("epoch", "epoch", "start", "end"))
    event = dump(replaced(draw, {"event": kind, "epoch": 1, "step": 3, "val_loss": 0.5, "seconds": 1.5}, canary))
    (folder / "metrics.jsonl").write_bytes(changed(draw, (event + "\n").encode(errors="surrogatepass") * 20))
    (folder / "status.json").write_text(dump(replaced(draw, {"state": "done", "step": 3}, canary)), errors="replace")
    if draw.random() < 0.2:
        link = folder / draw.choice(("best.pt", "last.pt", "metrics.jsonl"))
        link.unlink()
        link.symlink_to(draw.choice(("/etc/passwd", "/dev/zero", "last.pt", "../../x")))
    return folder / "best.pt"


@maker("control")
def control(draw: random.Random, folder: Path, canary: Path) -> Path:
    """Negative control: read by ``pickle``, it runs its code, which the canary and the audit hook must both notice."""
    (folder / "x.pkl").write_bytes(pickle.dumps(Calls(Path.touch, canary)))
    return folder / "x.pkl"


__all__ = ["MAKERS", "Raw", "traps"]
