"""Uploads that are wrong, each with the statuses that it may get: from a list, and mutated without end."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving import form, image


@dataclass
class Upload:
    what: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    statuses: tuple[int, ...] = (400,)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few hundred bytes that says it is large, with pixels for its first rows."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")


def noise(draw: random.Random) -> bytes:
    """A PNG of 64x48 random pixels, which no compression makes small."""
    rows = b"".join(b"\0" + draw.randbytes(64) for _ in range(48))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 64, 48, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def known() -> list[Upload]:
    """What is known to trip decoders and form parsers; the limits are those of the `service` fixture."""
    png, jpeg = image(), image(kind="JPEG")
    good, headers = form(("a.png", png))
    several = form(*((f"{i}.png", png) for i in range(9)))
    plain = {"content-type": "multipart/form-data; boundary=cut"}
    found = [
        Upload("empty", b""),
        Upload("text", b"hello", {"content-type": "text/plain"}, (415,)),
        Upload("json", b'{"text": "hello"}', {"content-type": "application/json"}, (415,)),
        Upload("html", b"<html><script>alert(1)</script>", {}, (415,)),
        Upload("svg", b'<svg onload="alert(1)"/>', {"content-type": "image/svg+xml"}, (415,)),
        Upload("zip", b"PK\x03\x04" + bytes(100), {}, (415,)),
        Upload("pickle", b"\x80\x04\x95\x0b\x00\x00\x00", {}, (415,)),
        Upload("eps, which runs a program", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", {}, (415,)),
        Upload("icns", b"icns\x00\x00\x00\x10ic07\x00\x00\x00\x08", {}, (415,)),
        Upload("zeros", bytes(1000), {}, (415,)),
        Upload("head of png alone", png[:8], {}, (400, 415)),
        Upload("cut png", png[: len(png) // 2]),
        Upload("cut jpeg", jpeg[: len(jpeg) // 2], {}, (400, 415)),
        Upload("bomb of pixels", bomb(60_000, 60_000), {}, (413,)),
        Upload("largest png", bomb(0x7FFFFFFF, 0x7FFFFFFF), {}, (400, 413, 415)),
        Upload("a bit too many pixels", bomb(2001, 1000), {}, (413,)),
        Upload("no pixels", bomb(0, 10), {}, (400, 415)),
        Upload("rows that are missing", bomb(1000, 1000)),
        Upload("gif without images", b"GIF89a\xff\xff\xff\xff\x00\x00\x00;", {}, (400, 413, 415)),
        Upload("tiff in a loop", b"II*\0\x08\0\0\0\x01\0" + bytes(12) + b"\x08\0\0\0", {}, (400, 415)),
        Upload("too large", bytes(1_000_001), {}, (413,)),
        Upload("far too large", bytes(7_000_000), {}, (413,)),
        Upload("too large a form", form(("a", bytes(1_000_000)))[0], plain, (413,)),
        Upload("no boundary", good, {"content-type": "multipart/form-data"}),
        Upload("empty boundary", good, {"content-type": "multipart/form-data; boundary="}),
        Upload("another boundary", good, {"content-type": "multipart/form-data; boundary=other"}),
        Upload("a boundary that is no text", good, {"content-type": "multipart/form-data; boundary=\xff\xfe"}),
        Upload("a huge boundary", good, {"content-type": "multipart/form-data; boundary=" + "x" * 5000}),
        Upload("form without its end", good[:-9], headers),
        Upload("form that ends in a file", good[:-40], headers),
        Upload("form of its first line", good[:20], headers),
        Upload("not a form", png, headers),
        Upload("form without parts", b"--cut--\r\n", plain),
        Upload("form without a file", good.replace(b"filename", b"size"), headers),
        Upload("part without a head", b"--cut\r\n\r\nx\r\n--cut--\r\n", plain),
        Upload("part with a bad head", b"--cut\r\n\x00\x01: y\r\n\r\nx\r\n--cut--\r\n", plain),
        Upload("part with an endless head", b"--cut\r\nA: " + b"x" * 200_000 + b"\r\n\r\nx\r\n--cut--\r\n", plain),
        Upload("form with an empty file", *form(("a.png", b""))),
        Upload("form with a file of text", *form(("<script>.png", b"no image")), (415,)),
        Upload("form with one bad of two", *form(("a.png", png), ("b.png", png[:50]))),
        Upload("a name of control characters", *form(("\x1b[31m\x07.png", b"x")), (400, 415)),
        Upload("a name of 10,000 characters", *form(("n" * 10_000, b"x")), (400, 415)),
        Upload("too many files", *several, (413,)),
        Upload("40,000 parts", b"--cut\r\nA: b\r\n\r\n\r\n" * 40_000 + b"--cut--\r\n", plain, (413,)),
    ]  # fmt: skip
    return found


def mutated(count: int, seed: int = 0) -> Iterator[Upload]:
    """Forms and images with bytes changed, cut, doubled: images that then decode are left out.

    What decodes is not malformed, and libjpeg decodes nearly anything: so PNG, whose chunks have checksums.
    """
    draw = random.Random(seed)
    png = noise(draw)
    good, headers = form(("a.png", png))
    rounds = known()
    for i in range(count):
        if i % 3 == 0:
            yield rounds[(i // 3) % len(rounds)]
        elif i % 3 == 1:
            place = draw.randrange(8, len(png) * 9 // 10)  # the last bytes are checksums, which nothing needs
            yield Upload("cut png", png[:place], {}, (400, 415))
        else:
            place = draw.randrange(len(good) - 10)
            yield Upload("cut form", good[:place], headers)
