"""Which status an error has: the one place where errors become answers.

Every error is answered as `{"error": "<a sentence>", "error_type": "<Name>"}`. An error that is
nobody's fault but ours is a 500 that says so and nothing else; its traceback goes to the log.

    HTTPException
    └── RequestRefused
        ├── MalformedBody     not JSON, not a form
        ├── MissingKey        no or a wrong bearer token
        ├── ForeignPage       a browser page of another origin tries to write
        ├── BodyTooLarge
        ├── TooManyInputs
        ├── ClientClosed      the client left; nobody reads the answer
        └── Referred          a front end's: the engine process is given the request, and answers it
"""

from __future__ import annotations

from typing import Any

import orjson
import structlog
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from adapters import errors as adapter_errors
from adapters.errors import AdaMixError
from adapters.spec import shown
from service.batcher import Closed, QueueFull
from service.http.schemas import DeviceOutOfMemory, InvalidRequest, NotFinite
from service.tokenizer import InputTooLong

QUEUE_FULL = "the queue is full; expected fewer rows at once: try again in a second"
STOPPING = "the service is stopping; expected requests to go to another replica"

log = structlog.get_logger("service")


class RequestRefused(HTTPException):
    """An HTTPException, so that the frameworks between us and the route let it through."""

    status = 400

    def __init__(self, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(self.status, message, headers)


class MalformedBody(RequestRefused):
    status = 400


class MissingKey(RequestRefused):
    status = 401

    def __init__(self, message: str) -> None:
        super().__init__(message, {"WWW-Authenticate": "Bearer"})


class ForeignPage(RequestRefused):
    status = 403


class BodyTooLarge(RequestRefused):
    status = 413


class TooManyInputs(RequestRefused):
    status = 413


class ClientClosed(RequestRefused):
    status = 499


class Referred(RequestRefused):
    status = 421

    def __init__(self) -> None:
        super().__init__("this process cannot answer the request; expected the engine process to")


# Of all that are not a RequestRefused: the first entry that an error is an instance of decides.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (adapter_errors.UnknownTask, 404),
    (adapter_errors.UnknownVersion, 404),
    (adapter_errors.AmbiguousVersion, 409),
    (adapter_errors.NoActiveVersion, 409),
    (adapter_errors.VersionIsActive, 409),
    (adapter_errors.StoreError, 503),
    (adapter_errors.InvalidAdapter, 422),
    (adapter_errors.InvalidText, 422),
    (adapter_errors.InvalidWindow, 422),
    (adapter_errors.TooManyWindows, 413),
    (InvalidRequest, 422),
    # as a damaged adapter: no fault of the request, and another replica or dtype may answer it
    (NotFinite, 503),
    (DeviceOutOfMemory, 503),
    (InputTooLong, 413),
    (QueueFull, 429),
    (Closed, 503),
    (ClientDisconnect, 499),
)


def status_of(error: BaseException) -> int:
    """The HTTP status that an error is answered with."""
    return error.status_code if isinstance(error, HTTPException) else status_of_kind(type(error))


def status_of_kind(kind: type[BaseException]) -> int:
    """The same, of every error of a kind."""
    if issubclass(kind, RequestRefused):
        return kind.status
    return next((status for known, status in STATUS if issubclass(kind, known)), 500)


def at_fault(status: int) -> bool:
    """Whether a status says that the request is at fault: not the load, and no client that left."""
    return 400 <= status < 500 and status not in (429, 499)


def error_type(kind: type[BaseException]) -> str:
    """What an answer calls the errors of a kind."""
    return "Stopping" if kind is Closed else kind.__name__


def install(app: Starlette) -> None:
    """Answer every error of the app in our form."""
    for kind in (AdaMixError, InputTooLong, QueueFull, Closed, ClientDisconnect):
        app.add_exception_handler(kind, _answer_ours)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_unexpected)


def problem(
    status: int, message: str, error_type: str, headers: dict[str, str] | None = None
) -> Response:
    """An error's answer."""
    body = orjson.dumps({"error": message, "error_type": error_type})
    return Response(body, status, headers, media_type="application/json")


async def _answer_ours(_request: Request, error: Exception) -> Response:
    status, name = status_of(error), error_type(type(error))
    if isinstance(error, QueueFull):
        return problem(status, QUEUE_FULL, name, {"Retry-After": "1"})
    if isinstance(error, Closed):
        return problem(status, STOPPING, name)
    if status == 503:
        log.error("unavailable", error=str(error), error_type=name)
    return problem(status, str(error), name)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if isinstance(error, RequestRefused):
        return problem(
            error.status_code, error.detail, error_type(type(error)), dict(error.headers or {})
        )
    if error.status_code == 404:
        return problem(
            404,
            f"there is no {request.url.path!r}; expected a path that /docs lists",
            "UnknownPath",
        )
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        message = f"{request.method} is not for {request.url.path!r}; expected {allowed}"
        return problem(405, message, "WrongMethod", {"Allow": allowed})
    return problem(
        error.status_code, str(error.detail), "RequestRefused", dict(error.headers or {})
    )


def _allowed(request: Request) -> list[str]:
    """The methods of a path: the framework's own Allow names those of its first route alone, and a
    path may have several."""

    def fits(method: str) -> bool:
        scope = {**request.scope, "method": method}
        return any(route.matches(scope)[0] is Match.FULL for route in request.app.router.routes)

    allowed = [method for method in ("GET", "POST", "PUT", "PATCH", "DELETE") if fits(method)]
    return ["GET", "HEAD", *allowed[1:]] if "GET" in allowed else allowed


async def _answer_validation(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    where = " ".join(str(part) for part in first["loc"])
    found = "missing" if first["type"] == "missing" else shown(first.get("input"))
    return problem(422, f"{where} is {found}: {first['msg']}", "InvalidRequest")


async def _answer_unexpected(_request: Request, error: Exception) -> Response:
    log.error("internal error", exc_info=error)
    # This answer is Starlette's outermost: it does not pass the middleware that gives the others
    # their id.
    request_id = str(structlog.contextvars.get_contextvars().get("request_id", ""))
    message = "the service failed on this request; its log says why under the X-Request-ID"
    return problem(500, message, "InternalError", {"X-Request-ID": request_id})
