"""A small S3 of this process at 127.0.0.1: objects, their listing, whole and in parts. Signatures are not checked."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.etree import ElementTree
from xml.sax.saxutils import escape

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Objects(ThreadingHTTPServer):
    """The server. `objects` is what it holds by "bucket/key", `writes` the keys in the order of their writing.

    While `fails` is set, it refuses to write.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects, self.writes, self.fails = dict[str, bytes](), list[str](), False
        self.parts: dict[str, dict[int, bytes]] = {}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *how: Any) -> None:
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Objects

    def log_message(self, format: str, *args: Any) -> None: ...

    def _asked(self) -> tuple[str, dict[str, str], bytes]:
        split = urlsplit(self.path)
        options = {key: values[0] for key, values in parse_qs(split.query, keep_blank_values=True).items()}
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in (self.headers.get("Transfer-Encoding") or ""):
            body = self._chunks()
        if "aws-chunked" in (self.headers.get("Content-Encoding") or ""):
            body = unchunked(body)
        return unquote(split.path).strip("/"), options, body

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _answer(self, body: bytes = b"", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _xml(self, name: str, inner: str, status: int = 200) -> None:
        self._answer(f'<?xml version="1.0"?><{name} xmlns="{NAMESPACE}">{inner}</{name}>'.encode(), status)

    def _missing(self) -> None:
        self._xml("Error", "<Code>NoSuchKey</Code><Message>none</Message>", 404)

    def do_GET(self) -> None:
        key, options, _ = self._asked()
        if "/" not in key:
            self._list(key, options)
        elif key not in self.server.objects:
            self._missing()
        else:
            found = self.server.objects[key]
            if given := self.headers.get("Range"):
                first, _, last = given.removeprefix("bytes=").partition("-")
                end = min(int(last or len(found)), len(found) - 1)
                part = found[int(first) : end + 1]
                self._answer(part, 206, Content_Range=f"bytes {first}-{end}/{len(found)}", ETag=etag(found))
            else:
                self._answer(found, ETag=etag(found), Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")

    def do_HEAD(self) -> None:
        key, _, _ = self._asked()
        if key not in self.server.objects:
            self.send_response(200 if "/" not in key else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        found = self.server.objects[key]
        self.send_response(200)
        for name, value in (("ETag", etag(found)), ("Content-Length", str(len(found))),
                            ("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()

    def _list(self, bucket: str, options: dict[str, str]) -> None:
        prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
        inner, folders = "", set()
        for full in sorted(self.server.objects):
            owner, _, key = full.partition("/")
            if owner != bucket or not key.startswith(prefix):
                continue
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                folders.add(prefix + rest.partition(delimiter)[0] + delimiter)
                continue
            found = self.server.objects[full]
            inner += (f"<Contents><Key>{escape(key)}</Key><Size>{len(found)}</Size><ETag>{escape(etag(found))}</ETag>"
                      "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>")  # fmt: skip
        inner += "".join(f"<CommonPrefixes><Prefix>{escape(f)}</Prefix></CommonPrefixes>" for f in sorted(folders))
        self._xml("ListBucketResult", f"<IsTruncated>false</IsTruncated>{inner}")

    def do_PUT(self) -> None:
        key, options, body = self._asked()
        if self.server.fails:
            self._xml("Error", "<Code>AccessDenied</Code><Message>no writing today</Message>", 403)
            return
        if "uploadId" in options:
            self.server.parts[options["uploadId"]][int(options["partNumber"])] = body
        elif "/" in key:
            self._put(key, body)
        self._answer(ETag=etag(body))

    def do_POST(self) -> None:
        key, options, body = self._asked()
        if "delete" in options:
            for found in ElementTree.fromstring(body).iter(f"{{{NAMESPACE}}}Key"):
                self.server.objects.pop(f"{key}/{found.text}", None)
            self._xml("DeleteResult", "")
        elif "uploads" in options:
            self.server.parts[key] = {}
            self._xml("InitiateMultipartUploadResult", f"<UploadId>{escape(key)}</UploadId>")
        else:
            parts = self.server.parts.pop(options["uploadId"])
            self._put(key, b"".join(parts[number] for number in sorted(parts)))
            self._xml("CompleteMultipartUploadResult", f"<Key>{escape(key)}</Key>")

    def do_DELETE(self) -> None:
        key, _, _ = self._asked()
        self.server.objects.pop(key, None)
        self._answer(status=204)

    def _put(self, key: str, body: bytes) -> None:
        self.server.objects[key] = body
        self.server.writes.append(key)


def etag(body: bytes) -> str:
    return f'"{hashlib.md5(body).hexdigest()}"'


def unchunked(body: bytes) -> bytes:
    """The payload of aws-chunked: ``size;signature``, the bytes, and so on, then trailers."""
    found = b""
    while body:
        head, _, body = body.partition(b"\r\n")
        size = int(head.split(b";")[0], 16)
        if not size:
            break
        found, body = found + body[:size], body[size + 2 :]
    return found
