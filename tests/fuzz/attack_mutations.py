"""Ways to make a file hostile: bytes changed at random, values of JSON replaced, and what is known to hurt."""

from __future__ import annotations

import copy
import random
import struct
from pathlib import Path
from typing import Any

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\0\0\0\0",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"-1",
    b"1e999",
    b"\\u0000",
)
LONG = 200_000


def values(draw: random.Random, canary: Path) -> Any:
    """A value that a reader may not expect at a place."""
    return draw.choice((
        None, True, -1, 0, 1 << 31, 1 << 63, 1 << 200, 1e308, float("nan"), "", "\0", "\x1b[31m", "../../x",
        str(canary),
        "/dev/zero", "/etc/passwd", "nan", "1" * 5000, "\ud800", "a" * LONG, [], {}, [[]] * 1000, [0] * 5000,
        {"": {"": {"": None}}}, nested(300), nested(100_000), [1 << 62, 1 << 62], "__reduce__", "os.system",
        "{0.__class__}",
        {"__class__": "os.system"}, {"_target_": "os.system", "args": [f"touch {canary}"]},
        "!!python/object/apply:os.system",
        f"$(touch {canary})", f"`touch {canary}`", "file:///etc/passwd", "https://127.0.0.1:9/x", "x" * 255 + "/y",
    ))  # fmt: skip


class Raw(str):
    """Text that :func:`dump` puts in as it is, since ``json`` cannot nest so deep."""


def nested(depth: int) -> Raw:
    return Raw("[" * depth + "]" * depth)


def replaced(draw: random.Random, tree: Any, canary: Path, count: int = 2) -> Any:
    """A copy of `tree` with up to `count` of its values replaced, removed, renamed or repeated."""
    result, repeated = copy.deepcopy(tree), False
    for _ in range(draw.randint(1, count)):
        places = list(_places(result))
        if not places:
            return values(draw, canary)
        holder, key = draw.choice(places)
        act = draw.randrange(6)
        if act < 3:
            holder[key] = values(draw, canary)
        elif act == 3:
            del holder[key]
        elif act == 4 and isinstance(holder, dict):
            holder[str(values(draw, canary))[:1000]] = holder.pop(key)
        elif isinstance(holder, list) and not repeated:  # once: it multiplies
            holder.extend([holder[key]] * draw.choice((1, 100, 5000)))
            repeated = True
    return result


def _places(tree: Any) -> Any:
    stack, seen = [tree], set()
    while stack:
        holder = stack.pop()
        if id(holder) in seen:
            continue
        seen.add(id(holder))
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        for key in keys:
            yield holder, key
            if isinstance(holder[key], (dict, list)):
                stack.append(holder[key])


def dump(tree: Any) -> str:
    """JSON, with keys twice now and then left to :func:`changed`; lone surrogates and NaN are written as they are."""
    import json

    marks: dict[str, str] = {}

    def mark(value: Any) -> Any:
        if isinstance(value, Raw):
            marks[f"@raw{len(marks)}@"] = str(value)
            return f"@raw{len(marks) - 1}@"
        if isinstance(value, dict):
            return {k: mark(v) for k, v in value.items()}
        return [mark(v) for v in value] if isinstance(value, list) else value

    text = json.dumps(mark(tree))
    for name, raw in marks.items():
        text = text.replace(f'"{name}"', raw)
    return text


def changed(draw: random.Random, raw: bytes, tokens: tuple[bytes, ...] = ()) -> bytes:
    """`raw` with some bytes flipped, overwritten, removed, repeated or cut off."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at, act = draw.randrange(len(data) + 1), draw.randrange(7)
        if act == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif act == 1:
            new = draw.choice(INTERESTING + tokens)
            data[at : at + len(new)] = new
        elif act == 2:
            data[at:at] = draw.choice(INTERESTING + tokens)
        elif act == 3:
            del data[at : at + draw.choice((1, 4, 64, 1000))]
        elif act == 4:
            data[at:at] = data[at : at + draw.choice((8, 100, 3000))] * draw.choice((1, 2, 30))
        elif act == 5:
            data[at : at + 4] = struct.pack(draw.choice(("<I", ">I")), draw.choice((0, 1, 2**31 - 1, 2**32 - 1)))
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)
