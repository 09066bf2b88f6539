"""``bigmodel checkpoint``: inspect, verify and convert checkpoint files without running code in them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bigmodel_cli.commands.arguments import options as opt
from bigmodel_cli.commands.checkpoint_adapter import adapter
from bigmodel_cli.commands.display import console
from bigmodel_cli.commands.display.pages import require_place
from bigmodel_cli.commands.training.dry_run import size
from bigmodel_cli.core.errors import InputError
from bigmodel_cli.core.registry import commands

if TYPE_CHECKING:
    from bigmodel_cli.engine.checkpoint.inspect import Contents

app = typer.Typer(no_args_is_help=True)
File = Annotated[Path, typer.Argument(metavar="FILE", help="A .pt, .pt2 or .safetensors file, or a run folder.")]
MAX_SHOWN = 40  # tensors in the table; --json lists them all
app.command()(adapter)


@app.callback()
@commands.register("checkpoint", order=200, app=app)
def checkpoint_command() -> None:
    """Look into anyone's checkpoint, verify it, bring it up to date."""


@app.command()
def show(file: File, json: opt.Json = False) -> None:
    """Show what a .pt, .pt2 or .safetensors file from any source holds, without running code in it.

    Examples:

        bigmodel checkpoint show runs/resnet18-digits-1

        bigmodel checkpoint show downloaded.safetensors --json
    """
    found = _inspect(file)
    facts = describe(found)
    if json:
        console.print_json(facts)
        return
    rows = [
        (k.replace("_", " "), _text(v)) for k, v in facts.items() if k not in ("parts", "tensors") and v is not None
    ]
    console.show(console.table(None, ("", "value"), rows))
    parts = [(p["part"], f"{p['tensors']:,}", f"{p['elements']:,}", size(p["bytes"])) for p in facts["parts"]]
    console.show(console.table(None, ("part", "tensors", "elements", "size"), parts, right=True))
    # The table lists the model's tensors; those of the optimizer are in the totals above.
    weights = [t for t in facts["tensors"] if t["name"].startswith("model.")] if _ours(found) else facts["tensors"]
    _show_tensors(weights)


def _show_tensors(tensors: list[dict[str, Any]]) -> None:
    cells = [(t["name"], t["dtype"], _shape(t["shape"]), size(t["bytes"])) for t in tensors[:MAX_SHOWN]]
    console.show(console.table(None, ("tensor", "type", "shape", "size"), cells))
    if len(tensors) > MAX_SHOWN:
        console.note(f"and {len(tensors) - MAX_SHOWN:,} more tensors; --json lists them all")


@app.command()
def verify(file: File, json: opt.Json = False) -> None:
    """Verify that a file is intact, and say what could not be checked.

    Exit code 0: intact. 2: damaged.

    Example:

        bigmodel checkpoint verify runs/resnet18-digits-1
    """
    from bigmodel_cli.engine.checkpoint import checkpoint

    found = _inspect(file)
    checks = [("form", "good", "no bytes outside the tensors and metadata, every tensor within the file")]
    if _ours(found):
        checkpoint.load(found.path)
        checks += [
            ("checksums", "good", "CRC-32 of every entry"),
            ("digest", "good", "SHA-256 of every value: unchanged since it was saved"),
            ("maker", "not checked", "a digest is not a signature: whoever changes a file can compute a new one"),
        ]
    else:
        checkpoint.read(found.path)
        sums = found.kind != "safetensors"
        how = "CRC-32 of every entry" if sums else "safetensors has none: a flipped bit in a weight is not detected"
        checks += [
            ("checksums", "good" if sums else "not there", how),
            ("digest", "not there", "not a bigmodel checkpoint: compare the file's SHA-256 with the published one"),
        ]
    if json:
        console.print_json({"file": str(found.path), "whole": True, "checks": {n: s for n, s, _ in checks}})
        return
    console.show(console.table(str(found.path), ("check", "result", "meaning"), checks))


@app.command()
def migrate(
    file: File,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="New file to write; needed for an old checkpoint.")
    ] = None,
    json: opt.Json = False,
) -> None:
    """Convert a checkpoint of an older version to the current one, in a new file.

    Example:

        bigmodel checkpoint migrate old.pt --out new.pt
    """
    from bigmodel_cli.engine.build.locate import checkpoint_file
    from bigmodel_cli.engine.checkpoint import checkpoint

    require_place(out)
    path = checkpoint_file(file)
    was, state = checkpoint.load_with_version(path)
    changed = was != checkpoint.VERSION
    if changed:
        if out is None:
            raise InputError(f"{path}: version {was}", "expected --out for the new file", f"add --out {path}.new")
        if out.exists():
            raise InputError(f"{out}: already exists", "expected a new file", "choose another --out")
        checkpoint.save(out, state)
    written = str(out) if changed else None
    if json:
        console.print_json({"file": str(path), "version": was, "current": checkpoint.VERSION, "written": written})
    elif changed:
        console.say(f"{path}: version {was} converted to version {checkpoint.VERSION}: {out}")
    else:
        console.say(f"{path}: version {was} is current, nothing to do")


@app.command()
def consolidate(
    file: File,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="File to write.")],
    json: opt.Json = False,
) -> None:
    """Combine a sharded checkpoint into one verified file; the shards are kept.

    Example:

        bigmodel checkpoint consolidate runs/big/last.pt --out big.pt
    """
    from bigmodel_cli.engine.build.locate import checkpoint_file
    from bigmodel_cli.engine.checkpoint import checkpoint

    require_place(out)
    path = checkpoint_file(file)
    if out.exists():
        raise InputError(f"{out}: already exists", "expected a new file", "choose another --out")
    checkpoint.save(out, checkpoint.load(path))
    if json:
        console.print_json({"file": str(path), "written": str(out)})
    else:
        console.say(f"written: {out}, {size(out.stat().st_size)}")


def _inspect(file: Path) -> Contents:
    from bigmodel_cli.engine.checkpoint.inspect import inspect_file
    from bigmodel_cli.engine.checkpoint.sharded import is_sharded

    if file.is_dir() and not is_sharded(file):
        held = ("best.pt", "last.pt", "model.safetensors", "model.pt2")
        found = next((file / name for name in held if (file / name).exists()), None)
        if found is None:
            raise InputError(f"{file}: no checkpoint in this folder", "expected best.pt or last.pt")
        file = found
    if is_sharded(file):
        hint = f"bigmodel checkpoint consolidate {file} --out whole.pt"
        raise InputError(f"{file}: a sharded checkpoint", "expected one file", hint)
    return inspect_file(file)


def _ours(found: Contents) -> bool:
    return isinstance(found.values, dict) and found.values.get("format") == "bigmodel.checkpoint"


def describe(found: Contents) -> dict[str, Any]:
    """The metadata and tensors of a checkpoint as plain values; of a foreign file, its container and tensors."""
    tensors: list[dict[str, Any]] = [
        {"name": name, "dtype": t.dtype, "shape": list(t.shape), "bytes": t.nbytes, "elements": t.count}
        for name, t in found.tensors()
    ]
    parts: dict[str, dict[str, Any]] = {}
    nested = isinstance(found.values, dict) and any(isinstance(v, dict) for v in found.values.values())
    for tensor in tensors:
        name = tensor["name"].partition(".")[0] if nested else "all"
        part = parts.setdefault(name, {"part": name, "tensors": 0, "elements": 0, "bytes": 0})
        part["tensors"] += 1
        part["elements"] += tensor.pop("elements")
        part["bytes"] += tensor["bytes"]
    facts: dict[str, Any] = {"file": str(found.path), "bytes": found.size, "container": found.kind}
    exported = "an export: its metadata is not verified" if "arch" in found.metadata else None
    foreign = {"format": exported or "foreign: bigmodel did not make it"}
    facts |= _saved_facts(found.values) if _ours(found) else foreign
    facts |= {"metadata": found.metadata or None, "never_run": found.opaque_names() or None}
    return {**facts, "parts": list(parts.values()), "tensors": tensors}


def _saved_facts(values: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a bigmodel checkpoint. The file is untrusted: any value may be missing."""

    def part(*path: str) -> Any:
        value: Any = values
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    source, progress = part("meta", "input"), part("progress")
    shape = [part("meta", "input", k) for k in ("channels", "height", "width")]
    return {
        "format": part("format"),
        "version": part("version"),
        "architecture": part("meta", "arch"),
        "architecture_options": part("meta", "arch_args"),
        "task": part("meta", "task"),
        "classes": part("meta", "classes"),
        "input": "x".join(map(str, shape)) if None not in shape else source,
        "preprocessing": {"mean": part("meta", "input", "mean"), "std": part("meta", "input", "std")},
        "data": part("meta", "data"),
        "progress": progress,
        "environment": part("meta", "env"),
        "origin": part("meta", "origin"),
        "created": _date(part("meta", "created")),
        "digest": part("integrity", "digest"),
    }


def _date(seconds: Any) -> str | None:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(sep=" ", timespec="seconds")
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items() if v is not None)
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_text(v) for v in value[:20])
        return shown + (f" and {len(value) - 20:,} more" if len(value) > 20 else "")
    return f"{value:.6g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _shape(sides: list[int]) -> str:
    return "x".join(map(str, sides)) or "scalar"
