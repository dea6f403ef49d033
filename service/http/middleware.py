"""Middleware around every request: its id and its log line, its host, its path, the limit of its
body. Plain ASGI, without the framework."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote

import structlog
from opentelemetry import trace
from starlette.responses import Response

from service.http.answers import refused
from service.http.auth import Guard
from service.refusals import BodyTooLarge, Closed, ForeignHost, OutcomeUnknown

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_ID_CHARACTERS = 128
MAX_LOGGED_CHARACTERS = 200  # of a path, which may be as long as a request's head
UPLOAD_PATH = "/adapters"
READS = ("GET", "HEAD", "OPTIONS")
# Asked every few seconds, for ever: logged at debug level only, and not traced.
PROBES = ("/health", "/ready", "/fresh", "/metrics", "/v2/health/live", "/v2/health/ready")
GENERATION = b"x-adamix-generation"

log = structlog.get_logger("service.access")


class RequestContext:
    """Gives each request an id: the client's X-Request-ID if it is printable and short, else a new
    one. Binds it and the trace's ids to the log, answers it in the header, and logs one line when
    the answer is sent."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_trace_ids())
        path, client = scope["path"][:MAX_LOGGED_CHARACTERS], (scope.get("client") or (None,))[0]
        log.debug("accepted", method=scope["method"], path=path)
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = status or 500  # answered further out, by Starlette
            raise
        except asyncio.CancelledError:
            # uvicorn ends what the drain time was too short for, with a 500 of its own if there is
            # no answer yet.
            if status:
                raise
            cut_off = OutcomeUnknown() if may_write(scope) else Closed()
            await refused(cut_off)(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            tell = log.debug if scope["path"] in PROBES else log.info
            tell(
                "request",
                method=scope["method"],
                path=path,
                client=client,
                status=status,
                ms=round(seconds * 1e3, 3),
            )


class OurHosts:
    """Refuses requests for hosts under which this service is not to be asked."""

    def __init__(self, app: App, guard: Guard) -> None:
        self._app, self._guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            host = header(scope, b"host")
            try:
                if host is not None:
                    self._guard.check_host(host)
            except ForeignHost as error:
                await refused(error, {"Connection": "close"})(scope, receive, send)
                return
        await self._app(scope, receive, send)


class PlainPaths:
    """Gives routes the method and path that they know: HEAD as GET, of which the server sends the
    head alone; without the prefix of a proxy that leaves it on (`root_path`); without a slash at
    the end. Such a GET is redirected, since a page's addresses are relative to its own. A POST is
    answered: clients repeat one elsewhere, or as a GET, or not at all."""

    def __init__(self, app: App, root_path: str) -> None:
        self._app, self._root_path = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            if self._root_path and f"{path}/".startswith(f"{self._root_path}/"):
                path = path.removeprefix(self._root_path) or "/"
            method = "GET" if scope["method"] == "HEAD" else scope["method"]
            if path.endswith("/") and path.strip("/"):
                if method == "GET":
                    await _without_last_slash(scope, path)(scope, receive, send)
                    return
                path = path.rstrip("/")
            if (path, method) != (scope["path"], scope["method"]):
                scope = {**scope, "path": path, "method": method}
        await self._app(scope, receive, send)


def _without_last_slash(scope: Scope, path: str) -> Response:
    """A redirect relative to the request: right under any prefix, host and scheme of a proxy."""
    plain = path.rstrip("/")
    up = "../" * (len(path) - len(plain))
    query = scope["query_string"].decode("latin-1")
    address = up + quote(plain.rpartition("/")[2]) + (f"?{query}" if query else "")
    return Response(status_code=307, headers={"Location": address})


class BodyLimit:
    """Refuses bodies that are too large: by the length that they announce or, without one, as they
    come in."""

    def __init__(self, app: App, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes, self._max_upload_bytes = max_body_bytes, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if scope["path"] == UPLOAD_PATH else self._max_body_bytes
        announced = announced_bytes(scope)
        if announced is not None and announced > limit:
            answer = refused(BodyTooLarge(announced, limit), {"Connection": "close"})
            await answer(scope, receive, send)
            return
        received = 0

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > limit:
                raise BodyTooLarge(received, limit)
            return message

        await self._app(scope, counted, send)


def may_write(scope: Scope) -> bool:
    """Whether a request may change the store; a prediction does not."""
    return scope["method"] not in READS and f"{UPLOAD_PATH}/" in f"{scope['path']}/"


def announced_bytes(scope: Scope) -> int | None:
    """The length that a request announces for its body, if it announces one."""
    value = header(scope, b"content-length") or ""
    return int(value[:20]) if value.isdecimal() and value.isascii() else None


def header(scope: Scope, name: bytes) -> str | None:
    """The first header of that name, which is in lower case."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return None


def _request_id(scope: Scope) -> str:
    text = header(scope, b"x-request-id") or ""
    usable = text.isascii() and text.isprintable() and 0 < len(text) <= MAX_ID_CHARACTERS
    return text if usable else uuid.uuid4().hex


def _trace_ids() -> dict[str, str]:
    """The ids of the request's span; none where tracing is off."""
    span = trace.get_current_span().get_span_context()
    if not span.is_valid:
        return {}
    return {
        "trace_id": trace.format_trace_id(span.trace_id),
        "span_id": trace.format_span_id(span.span_id),
    }
