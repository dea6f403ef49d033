"""HTTP/1.1 on one connection: uvicorn's protocol, with limits of size and time, and with every
refusal in our form.

llhttp (by httptools) reads the bytes, in its strict mode: where one request ends and the next one
begins is its decision alone. This file adds what it leaves to its user:

- a head of at most MAX_HEAD_BYTES, a URL of MAX_URL_BYTES, MAX_HEADERS headers: 431 and 414;
- what RFC 9112 wants refused and llhttp takes: no Host or two, chunks in HTTP/1.0, other codings;
- an upgrade that is declined: RFC 9110, 7.8 has it ignored, and the request's body is its body;
- an answer to each request in its order, also where what follows cannot be read;
- time: `service.http.connections` says how long each phase may take;
- an end that lets the client read the last answer.
"""

from __future__ import annotations

import asyncio
import fcntl
import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import httptools
import orjson
import structlog
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.connections import Phase
from service.refusals import Closed

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
    from uvicorn.server import ServerState

    from service.http.server import Config

MAX_HEAD_BYTES = 64 << 10  # request line and headers; or a chunked body's trailers
MAX_URL_BYTES = 32 << 10
MAX_HEADERS = 100
MAX_PIPELINED = 64  # requests on one connection that wait for the answer to the one before
# What is given to the parser at once. It does not tell how far it has come, so its limits are
# looked at between two pieces.
PIECE_BYTES = 16 << 10
BODY_BYTES_PER_SECOND = 16 << 10  # each so many bytes of a body give it one more second
PROBE_SECONDS = 0.25
FORWARDED = (b"x-forwarded-for", b"x-forwarded-proto")
# Every request passes these: a global is found faster than an Enum's member.
IDLE, HEAD, BODY, OURS = Phase.IDLE, Phase.HEAD, Phase.BODY, Phase.OURS

log = structlog.get_logger("service")


@dataclass(frozen=True)
class LastAnswer:
    """What a connection is told before it is closed: bytes that are no request, or do not come in
    time."""

    status: int
    error_type: str
    message: str

    def response(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """All its bytes, with more headers before its own."""
        body = orjson.dumps({"error": self.message, "error_type": self.error_type})
        own = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
            *([(b"retry-after", b"1")] if self.status == 503 else []),
        ]
        lines = b"".join(b"%b: %b\r\n" % header for header in [*headers, *own])
        return STATUS_LINE[self.status] + lines + b"\r\n" + body


MALFORMED = partial(LastAnswer, 400, "MalformedRequest")
NO_HTTP = MALFORMED(
    "the connection sent what is no HTTP/1.1; expected a request line, headers, and a body as they"
    " say"
)
TUNNEL = MALFORMED("the method is CONNECT, which asks for a tunnel; expected another method")
IMPATIENT = MALFORMED(
    f"more than {MAX_PIPELINED} requests wait on one connection; expected fewer before an answer is"
    " read"
)
HEADERS_TOO_LARGE = LastAnswer(
    431,
    "HeadersTooLarge",
    f"the request's headers are too large; expected at most {MAX_HEAD_BYTES} bytes in at most"
    f" {MAX_HEADERS} headers",
)
URL_TOO_LONG = LastAnswer(
    414, "UrlTooLong", f"the request's URL is too long; expected at most {MAX_URL_BYTES} bytes"
)
HEAD_TOO_SLOW = LastAnswer(
    408, "RequestTooSlow", "the request's headers did not come in time; expected them at once"
)
BODY_TOO_SLOW = LastAnswer(
    408,
    "RequestTooSlow",
    "the request's body did not come in time; expected it without long breaks",
)
BODIES_TOO_LARGE = LastAnswer(
    503,
    "TooManyBodies",
    "unfinished bodies hold too many bytes, and this one has been on its way for the longest time;"
    " expected it at once: try again in a second",
)
TOO_MANY = LastAnswer(
    503,
    "TooManyConnections",
    "the service has as many connections as it can; expected fewer: try again in a second",
)
FAILED = LastAnswer(500, "InternalError", "the service failed on this request; its log says why")
STOPPING = LastAnswer(503, "Stopping", str(Closed()))


class Unreadable(Exception):
    """Raised to the parser, which stops at it; its argument is the answer."""


class Protocol(HttpToolsProtocol):
    """One connection. `phase` says whose turn it is, `since` (loop time) since when; None: since
    now, which the next `check` writes down, so that no request asks for the time. `body_bytes` are
    those of the request's body that have come."""

    config: Config

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.phase = Phase.NEW
        self.since: float | None = None
        self._connections = config.connections
        self._socket: asyncio.Transport
        self._view: _Transport
        self._unread_bytes = 0  # of a head or of trailers, that the parser has and we do not
        self.body_bytes = 0
        self._answering: RequestResponseCycle | None = None  # uvicorn's own `cycle` is the newest
        self._refusal: LastAnswer | None = None  # to be sent after the answers that come first
        self._client_ended = False  # it has closed its side, and may read on
        self._unsent_bytes, self._unsent_since = 0, 0.0

    # The connection's beginning and end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is one by its methods alone
        self._socket = cast("asyncio.Transport", transport)
        self._view = _Transport(self._socket, self.close)
        super().connection_made(cast("asyncio.Transport", self._view))
        if self.client is not None and self.client[0].startswith("::ffff:"):
            # an IPv4 client of a socket that takes both, under the name that others know it by
            self.client = (self.client[0].removeprefix("::ffff:"), self.client[1])
        if self._connections.add(self):
            self._connections.waiting[self] = None
        else:
            self.phase = HEAD  # which may be under way: it is left time to read the answer
            self._refuse(TOO_MANY)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._leave(self._answering)
        super().connection_lost(exc)
        self._view.close = self._socket.close  # or the two would hold each other in memory

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio's own type, which uvicorn narrows
        """Whether the connection stays open: the client has closed its side of it, and may yet
        read."""
        self._client_ended = True
        if self.phase in (HEAD, BODY):
            self._refuse(NO_HTTP)
        elif self.phase is OURS and not self._view.closing:
            self.cycle.keep_alive = False
            self._probe()
        else:
            return False
        return True

    def _probe(self) -> None:
        """A client that has gone looks like one that has only closed its side, until it is sent
        something: then its machine resets the connection. An interim answer may be sent at any
        time (RFC 9110, 15.2), and clients skip it."""
        if self._view.closing or self._answering is None or self._socket.is_closing():
            return
        if not self._answering.response_started and self._answering.scope["http_version"] == "1.1":
            self._socket.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.loop.call_later(PROBE_SECONDS, self._probe)

    def close(self) -> None:
        """No more answers. What the client still sends is read for a while: to close at once would
        reset the connection, and take the last answer from who has not read it yet."""
        if self._view.closing or self._socket.is_closing():
            return
        self._view.closing = True
        self.pipeline.clear()
        sends = self.phase in (HEAD, BODY, Phase.REST)
        if sends and not self._client_ended and not self._connections.stopping:
            self._enter(Phase.LINGER)
            self._connections.waiting[self] = None
            self._socket.write_eof()
            self.flow.resume_reading()
        else:
            self._socket.close()

    def drop(self) -> None:
        """Close at once, without a word."""
        self._view.closing = True
        self._connections.waiting.pop(self, None)
        self._socket.close()

    def shutdown(self) -> None:
        """The server stops: what is being read or answered is the last."""
        if self._answering is None and self.phase is not BODY:
            self.drop()
        else:
            self.cycle.keep_alive = False

    # Bytes that come

    def data_received(self, data: bytes | memoryview) -> None:
        if len(data) > PIECE_BYTES:
            whole = memoryview(data)
            for start in range(0, len(data), PIECE_BYTES):
                self.data_received(whole[start : start + PIECE_BYTES])
            return
        self._unread_bytes += len(data)
        while not self._view.closing and self._refusal is None:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = memoryview(data)[upgrade.args[0] :]
                self._read_on()
                continue
            except httptools.HttpParserError as error:
                cause = error.__context__  # of a callback's
                self._refuse(cause.args[0] if isinstance(cause, Unreadable) else NO_HTTP)
            else:
                if self._unread_bytes > MAX_HEAD_BYTES + PIECE_BYTES:
                    self._refuse(self._too_large())
            return

    def _read_on(self) -> None:
        """httptools ends a request that asks for an upgrade at its head, and would take its body
        for the next request. A fresh parser gets as much of the head as says where the body
        ends."""
        framing = (b"content-length", b"transfer-encoding")
        kept = [header for header in self.scope["headers"] if header[0] in framing]
        if not self.cycle.keep_alive:
            kept.append((b"connection", b"close"))
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's
        lines = b"".join(b"%b: %b\r\n" % header for header in kept)
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + lines + b"\r\n")

    # What the parser calls

    def on_message_begin(self) -> None:
        if self.phase is BODY:  # of `_read_on`
            return
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Unreadable(IMPATIENT)
        super().on_message_begin()
        self.phase, self.since = HEAD, None

    def on_headers_complete(self) -> None:
        if self.phase is BODY:  # of `_read_on`
            return
        self._check_head()
        self._unread_bytes = self.body_bytes = 0
        super().on_headers_complete()
        # Trailers come as headers do, when the application has the request already: they are
        # dropped.
        self.headers = []
        self.phase, self.since = BODY, None
        self._connections.waiting.pop(self, None)

    def _check_head(self) -> None:
        """What the parser does not look at; and which app the request is for. Raises
        Unreadable."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            raise Unreadable(NO_HTTP)
        if self.parser.should_upgrade() and self.parser.get_method() == b"CONNECT":
            raise Unreadable(TUNNEL)
        hosts = 0
        self.app = self.config.loaded_app
        for name, value in self.headers:
            if name == b"host":
                hosts += 1
            elif name in FORWARDED:
                self.app = self.config.app_behind_proxies
            elif name == b"transfer-encoding":
                if version == "1.0":
                    raise Unreadable(
                        MALFORMED("HTTP/1.0 with a Transfer-Encoding; expected HTTP/1.1")
                    )
                if value.strip().lower() != b"chunked":
                    raise Unreadable(
                        MALFORMED(f"Transfer-Encoding is {_shown(value)}; expected chunked")
                    )
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Unreadable(MALFORMED(f"the request has {hosts} Host headers; expected one"))
        if len(self.headers) > MAX_HEADERS:
            raise Unreadable(HEADERS_TOO_LARGE)
        if self._unread_bytes > MAX_URL_BYTES:  # some of them may be the body's
            lines = sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)
            if len(self.url) > MAX_URL_BYTES or len(self.url) + lines > MAX_HEAD_BYTES:
                raise Unreadable(self._too_large())

    def _too_large(self) -> LastAnswer:
        too_long = self.phase is HEAD and len(self.url) > MAX_URL_BYTES
        return URL_TOO_LONG if too_long else HEADERS_TOO_LARGE

    def on_body(self, body: bytes) -> None:
        self._unread_bytes = 0
        self.body_bytes += len(body)
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        cycle.message_event.set()

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():  # its body comes by `_read_on`
            return
        self._unread_bytes = 0
        if self.cycle.response_complete:
            self._rest()
        else:
            self.phase = OURS
            self.cycle.more_body = False
            self.cycle.message_event.set()

    # Requests and their answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        if cycle.waiting_for_100_continue:
            # A client that is refused before it sends its body may send it, or the next request.
            cycle.keep_alive = False
        task = self.loop.create_task(self._answer(cycle, app))
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    async def _answer(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Let the application answer. In place of uvicorn's `run_asgi`, which answers a fault in
        plain text, also one at the end of the time to stop, and closes a connection after a whole
        answer without saying so."""
        instead = FAILED
        try:
            await app(cycle.scope, cycle.receive, cycle.send)
        except asyncio.CancelledError:
            instead = STOPPING
        except Exception as error:
            # Starlette raises again what it has answered, and logged
            if not cycle.response_complete:
                log.error("the app failed on a request", exc_info=error)
        if not cycle.response_complete and not cycle.disconnected:
            self._leave(cycle)
            if not cycle.response_started:
                self._write(instead)
            self.close()
        cycle.on_response = lambda: None  # or the two would hold each other in memory

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._answering = None
        if self._view.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif self._refusal is not None:
            self._write(self._refusal)
            self.close()
        elif self.phase is OURS:
            self._rest()
        elif self.phase is BODY:
            self._enter(Phase.REST)
            self._connections.waiting[self] = None

    def _rest(self) -> None:
        self.phase, self.since = IDLE, None
        self._connections.waiting[self] = None

    def _enter(self, phase: Phase) -> None:
        self.phase, self.since = phase, None

    def _refuse(self, refusal: LastAnswer) -> None:
        """Read no more, and say why, once the requests before have been answered."""
        broken = self.cycle if self.phase is BODY else None
        if broken is not None and broken is self._answering:
            self._leave(broken)
            self._answering = None
            if not broken.response_started:
                self._write(refusal)
            self.close()
            return
        if broken is not None:
            self.pipeline.popleft()
        if self._answering is not None:
            self._refusal = refusal
        elif self.phase is not Phase.REST:
            self._write(refusal)
            self.close()
        else:
            self.close()

    def _write(self, refusal: LastAnswer) -> None:
        if refusal is not TOO_MANY:  # which `Connections` counts
            log.info(
                "connection refused",
                status=refusal.status,
                error_type=refusal.error_type,
                client=self.client and self.client[0],
            )
        self._socket.write(refusal.response(self.server_state.default_headers))

    def _leave(self, cycle: RequestResponseCycle | None) -> None:
        """The application that answers it hears that its client has gone, and sends no more."""
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()

    # Time

    def check(self, now: float) -> None:
        """Give up on a client that lets us wait for too long."""
        self._check_unsent(now)
        if self.since is None or self.flow.read_paused:  # then it waits for us
            self.since = now
        seconds = self._connections.seconds.get(self.phase)
        if seconds is None:
            return
        if self.phase is BODY:
            seconds += self.body_bytes / BODY_BYTES_PER_SECOND
        if now - self.since < seconds or self._refusal is not None:
            return
        if self.phase is HEAD:
            self._refuse(HEAD_TOO_SLOW)
        elif self.phase is BODY:
            self._refuse(BODY_TOO_SLOW)
        else:
            self.drop()

    def refuse_body(self) -> None:
        """Make room for others' bodies."""
        self._refuse(BODIES_TOO_LARGE)

    def _check_unsent(self, now: float) -> None:
        """An answer that its client does not read is dropped with its connection."""
        unsent = self._socket.get_write_buffer_size()
        if unsent:  # and what the kernel has of it, which goes on where the client is slow
            descriptor = self._socket.get_extra_info("socket").fileno()
            unsent += int.from_bytes(
                fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder
            )
        if unsent != self._unsent_bytes:
            self._unsent_bytes, self._unsent_since = unsent, now
        elif unsent and now - self._unsent_since >= self._connections.write_seconds:
            self._socket.abort()


class _Transport:
    """The socket as uvicorn sees it: to close it is the protocol's affair."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write = transport.write
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info
        self.close = close
        self.closing = False
        self._transport = transport

    def is_closing(self) -> bool:
        return self.closing or self._transport.is_closing()


def _shown(value: bytes) -> str:
    return repr(value[:40].decode("latin-1"))
