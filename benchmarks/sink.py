"""An S3 server that throws packs away: what is left of a backup's time is the client's own.

Started as a program with a port. It answers PUT, GET, HEAD, DELETE and ListObjectsV2 of one bucket
in path style, without looking at credentials. Of a key with `/data/` only the size is kept, so a
repository in here can be filled and listed, but what is in a pack cannot be read again.
`GET /-/counts` tells requests and bytes that came in, as JSON.
"""

import hashlib
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

STEP = 1 << 20
XML = '<?xml version="1.0" encoding="UTF-8"?>'


class Sink(BaseHTTPRequestHandler):
    """One connection; the objects belong to all of them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: ClassVar[dict[str, tuple[int, bytes | None]]] = {}
    counts: ClassVar[dict[str, int]] = {"requests": 0, "bytes": 0}
    lock: ClassVar[threading.Lock] = threading.Lock()

    def do_PUT(self) -> None:
        """Store an object; the body of a pack is read and forgotten."""
        key, _ = self._asked()
        body = self._body(keep="/data/" not in key)
        size = int(self.headers.get("x-amz-decoded-content-length", self.headers["Content-Length"]))
        with self.lock:
            self.counts["bytes"] += size
            if self.headers.get("If-None-Match") == "*" and key in self.objects:
                status = 412
            else:
                self.objects[key], status = (size, body), 200
        if status == 200:
            self._answer(200, b"", ETag='"' + hashlib.md5(key.encode()).hexdigest() + '"')
        else:
            self._fail(412, "PreconditionFailed")

    def do_GET(self) -> None:
        """Return an object or a range of it, a listing, or the counts."""
        key, query = self._asked()
        if key == "-/counts":
            return self._answer(200, json.dumps(self.counts).encode())
        if "location" in query:
            return self._answer(200, f"{XML}<LocationConstraint/>".encode())
        if "/" not in key or key.endswith("/"):
            return self._list(query)
        body = self.objects.get(key, (0, None))[1]
        if body is None:
            return self._fail(404, "NoSuchKey")
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            part = body[int(first) : int(last or len(body)) + 1]
            place = f"bytes {first}-{int(first) + len(part) - 1}/{len(body)}"
            return self._answer(206, part, **{"Content-Range": place})
        return self._answer(200, body)

    def do_HEAD(self) -> None:
        """Return an object's size; a bucket always exists."""
        key, _ = self._asked()
        if "/" in key.strip("/") and key not in self.objects:
            return self._answer(404, b"")
        return self._answer(200, b"", length=self.objects.get(key, (0, None))[0])

    def do_DELETE(self) -> None:
        """Forget an object."""
        self.objects.pop(self._asked()[0], None)
        self._answer(204, b"")

    def _asked(self) -> tuple[str, dict[str, list[str]]]:
        url = urlsplit(self.path)
        key = unquote(url.path).lstrip("/")
        if not key.startswith("-/"):
            with self.lock:
                self.counts["requests"] += 1
        return key, parse_qs(url.query, keep_blank_values=True)

    def _body(self, *, keep: bool) -> bytes | None:
        left, parts, room = int(self.headers["Content-Length"]), [], bytearray(STEP)
        while left:
            with memoryview(room)[: min(STEP, left)] as view:
                got = self.rfile.readinto(view)  # type: ignore[attr-defined]
            if not got:
                raise ConnectionError("the client left")
            left -= got
            if keep:
                parts.append(bytes(room[:got]))
        body = b"".join(parts)
        if self.headers.get("x-amz-content-sha256", "").startswith("STREAMING"):
            body = _without_frames(body)
        return body if keep else None

    def _list(self, query: dict[str, list[str]]) -> None:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        bucket = unquote(urlsplit(self.path).path).strip("/") + "/"
        with self.lock:
            start = bucket + prefix
            keys = sorted(k for k in self.objects if k.startswith(start) and k > bucket + after)
            page = [(key.removeprefix(bucket), self.objects[key][0]) for key in keys[:1000]]
        rows = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z"
            f'</LastModified><ETag>"0"</ETag><Size>{size}</Size>'
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for key, size in page
        )
        more = len(keys) > len(page)
        last = escape(page[-1][0]) if more else ""
        token = f"<NextContinuationToken>{last}</NextContinuationToken>" if more else ""
        self._answer(
            200,
            f"{XML}<ListBucketResult><Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}"
            f"</KeyCount><MaxKeys>1000</MaxKeys><IsTruncated>{str(more).lower()}</IsTruncated>"
            f"{token}{rows}</ListBucketResult>".encode(),
        )

    def _fail(self, status: int, code: str) -> None:
        self._answer(status, f"{XML}<Error><Code>{code}</Code></Error>".encode())

    def _answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing: the counts tell what came."""


def _without_frames(body: bytes) -> bytes:
    """Return what an aws-chunked body carries."""
    parts, at = [], 0
    while at < len(body):
        end = body.index(b"\r\n", at)
        size = int(body[at:end].partition(b";")[0], 16)
        if size == 0:
            break
        parts.append(body[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
    return b"".join(parts)


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Sink)
    server.daemon_threads = True
    server.serve_forever()
