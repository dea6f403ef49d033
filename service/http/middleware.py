"""What surrounds every request: an id, a line in the log, HEAD as GET, a limit on its body. Plain
ASGI: no framework."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import structlog
from opentelemetry import trace

from service.http.answers import error_type, problem, status_of
from service.refusals import BodyTooLarge

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_ID_CHARACTERS = 128
UPLOAD_PATH = "/adapters"
# Asked every few seconds, for ever: logged at debug level only, and not traced.
PROBES = ("/health", "/ready", "/metrics", "/v2/health/live", "/v2/health/ready")

log = structlog.get_logger("service.access")


class RequestContext:
    """Gives each request an id (the client's X-Request-ID if it is printable and short), binds it
    and its trace's to the log, answers it in the header, and logs one line when the answer is
    sent."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id, **_trace_ids())
        log.debug("accepted", method=scope["method"], path=scope["path"])
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
        finally:
            seconds = time.perf_counter() - started
            tell = log.debug if scope["path"] in PROBES else log.info
            tell(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round(seconds * 1e3, 3),
            )


class HeadAsGet:
    """Answers HEAD wherever there is a GET, as that one: the server sends the head of the answer
    alone."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        as_get = scope["type"] == "http" and scope["method"] == "HEAD"
        await self._app({**scope, "method": "GET"} if as_get else scope, receive, send)


class BodyLimit:
    """Refuses bodies that are too large, by their announced length or, where there is none, as they
    come in."""

    def __init__(self, app: App, max_body_bytes: int, max_upload_bytes: int) -> None:
        self._app = app
        self._max_body_bytes, self._max_upload_bytes = max_body_bytes, max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._max_upload_bytes if scope["path"] == UPLOAD_PATH else self._max_body_bytes
        announced = next(
            (value for name, value in scope["headers"] if name == b"content-length"), b""
        )
        if announced.isdigit() and int(announced) > limit:
            refusal = BodyTooLarge(int(announced), limit)
            answer = problem(
                status_of(refusal), str(refusal), error_type(BodyTooLarge), {"Connection": "close"}
            )
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


def _request_id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    text: str = given.decode("latin-1")
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
