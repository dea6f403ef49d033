"""An S3 server in memory, in a thread, whose answers go wrong as it is told."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

# What may become of a request. `503`: an error, nothing was done. `500`: it was done, and then an
# error. `lost`: it was done, and the connection ended without an answer. `gone`: the connection
# ended, nothing was done. `slow`: it is answered, but by what was there before `meanwhile`.
Fault = Literal["503", "500", "lost", "gone", "slow"]
# And of a conditional write alone. `409`: S3's answer to two writers at once, nothing was done.
# `412`: refused, though there is no such object. `late`: as `gone`, but it is done when the next
# request of `deliver` comes. `overtaken`: another writer's object is there first.
WriteFault = Literal["503", "500", "lost", "gone", "slow", "409", "412", "late", "overtaken"]
MODIFIED = "Sat, 28 Nov 2026 12:00:00 GMT"


class FaultyS3:
    """The objects by key, and what is to go wrong: the next fault of `faults` meets the next
    request, that of `write_faults` the next conditional write; None lets one pass.

    `rival` makes the content of an object by which a write is overtaken, from its key. `asked` is
    called at each request, `meanwhile` with the key of one whose answer is slow.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.faults: deque[Fault | None] = deque()
        self.write_faults: deque[WriteFault | None] = deque()
        self.rival: Callable[[str], bytes] = lambda _: b""
        self.asked: Callable[[], None] = lambda: None
        self.meanwhile: Callable[[str], None] = lambda _: None
        self._late: list[tuple[str, bytes]] = []
        self.lock = threading.Lock()

    def deliver(self) -> None:
        """Do what came too late, in its order."""
        with self.lock:
            for key, data in self._late:
                self.objects.setdefault(key, data)
            self._late.clear()

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        with self.lock:
            self.faults.clear()
            self.write_faults.clear()

    def get(self, key: str) -> tuple[int | None, bytes]:
        """The status, or None for no answer, and the body."""
        fault = self._next(self.faults)
        if fault not in (None, "slow"):
            return _failed(fault), b""
        data = self.objects.get(key)
        if fault == "slow":
            self.meanwhile(key)
        return (404, b"") if data is None else (200, data)

    def put(self, key: str, data: bytes, *, conditional: bool) -> int | None:
        """As `get`, for a write."""
        fault = self._next(self.write_faults if conditional else self.faults)
        if fault == "late":
            self._late.append((key, data))
        if fault in ("503", "gone", "409", "412", "late"):
            return _failed(fault)
        if fault == "overtaken":
            self.objects.setdefault(key, self.rival(key))
        if conditional and key in self.objects:
            status = 412
        else:
            self.objects[key] = data
            status = 200
        if fault == "slow":
            self.meanwhile(key)
        return _failed(fault) if fault in ("500", "lost") else status

    def listed(self, prefix: str, after: str) -> tuple[int | None, bytes]:
        """As `get`, for ListObjectsV2."""
        fault = self._next(self.faults)
        if fault not in (None, "slow"):
            return _failed(fault), b""
        found = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.objects[key])}</Size>"
            '<LastModified>2026-11-28T12:00:00.000Z</LastModified><ETag>"e"</ETag></Contents>'
            for key in sorted(self.objects)
            if key.startswith(prefix) and key > after
        )
        body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
        return 200, body.encode()

    @staticmethod
    def _next(faults: deque[Fault | None] | deque[WriteFault | None]) -> WriteFault | None:
        return faults.popleft() if faults else None


def _failed(fault: WriteFault | None) -> int | None:
    return int(fault) if fault is not None and fault.isdecimal() else None


@contextlib.contextmanager
def served(server: FaultyS3) -> Iterator[str]:
    """The server's endpoint; any bucket's name is its one bucket's."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            key, query = self._asked()
            with server.lock:
                if "list-type" in query:
                    prefix, after = (query.get(name, [""])[0] for name in ("prefix", "start-after"))
                    self._answer(*server.listed(prefix, after))
                else:
                    self._answer(*server.get(key))

        def do_PUT(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            conditional = self.headers["If-None-Match"] == "*"
            key, _ = self._asked()
            with server.lock:
                self._answer(server.put(key, data, conditional=conditional), b"")

        def _asked(self) -> tuple[str, dict[str, list[str]]]:
            server.asked()
            place = urlsplit(self.path)
            return unquote(place.path.lstrip("/").partition("/")[2]), parse_qs(place.query)

        def _answer(self, status: int | None, body: bytes) -> None:
            if status is None:
                self.close_connection = True
                return
            self.send_response(status)
            self.send_header("ETag", '"e"')
            self.send_header("Last-Modified", MODIFIED)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Threads(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    with Threads(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
