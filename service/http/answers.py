"""Errors become answers here, and only here: the status of each one, and the form of all.

The form is `{"error": "<a sentence>", "error_type": "<Name>"}`. An exception that is no refusal is
a 500 that says only that; its traceback goes to the log. `service.refusals` draws the tree of the
errors.
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
from adapters.lookup import unknown
from adapters.spec import shown
from service import refusals
from service.http.bearer import key_of

MAX_SENTENCE = 500  # characters
HEAD = 300  # of them; the rest is the end, which says what was expected

log = structlog.get_logger("service")

# The first entry that an error is an instance of has its status.
STATUS: tuple[tuple[type[Exception], int], ...] = (
    (refusals.MalformedBody, 400),
    (refusals.MissingKey, 401),
    (refusals.ForeignPage, 403),
    (refusals.MissingScope, 403),
    (refusals.ForeignHost, 403),
    (adapter_errors.UnknownTask, 404),
    (adapter_errors.UnknownVersion, 404),
    (refusals.RequestTooSlow, 408),
    (adapter_errors.AmbiguousVersion, 409),
    (adapter_errors.NoActiveVersion, 409),
    (adapter_errors.VersionIsActive, 409),
    (adapter_errors.VersionInTraffic, 409),
    (adapter_errors.ActiveHasChanged, 409),
    (adapter_errors.StoreError, 503),
    (refusals.BodyTooLarge, 413),
    (refusals.TooManyInputs, 413),
    (refusals.InputTooLong, 413),
    (refusals.AnswerTooLarge, 413),
    (adapter_errors.TooManyWindows, 413),
    (refusals.CompressedBody, 415),
    (refusals.Referred, 421),
    (refusals.InvalidRequest, 422),
    (adapter_errors.InvalidAdapter, 422),
    (adapter_errors.InvalidText, 422),
    (adapter_errors.InvalidWindow, 422),
    (refusals.QueueFull, 429),
    (refusals.TooManyWrongKeys, 429),
    (refusals.KeyLimited, 429),
    (refusals.KeyUnchecked, 429),
    (refusals.ClientClosed, 499),
    (ClientDisconnect, 499),
    (refusals.Closed, 503),
    (refusals.OutcomeUnknown, 503),
    (refusals.Stale, 503),
    (refusals.BehindGeneration, 503),
    # As a damaged adapter: the request is not to blame, and another replica or dtype may answer it.
    (refusals.NotFinite, 503),
    (refusals.DeviceOutOfMemory, 503),
    (refusals.AdapterNotLoaded, 503),
)

WITH_RETRY = (
    refusals.QueueFull,
    refusals.TooManyWrongKeys,
    refusals.KeyLimited,
    refusals.KeyUnchecked,
)


def status_of(error: BaseException) -> int:
    """The HTTP status that an error is answered with."""
    return error.status_code if isinstance(error, HTTPException) else status_of_kind(type(error))


def status_of_kind(kind: type[BaseException]) -> int:
    """The same, of every error of a kind."""
    return next((status for known, status in STATUS if issubclass(kind, known)), 500)


def at_fault(status: int) -> bool:
    """Whether a status blames the request, and neither the load nor a client that left."""
    return 400 <= status < 500 and status not in (429, 499)


def error_type(kind: type[BaseException]) -> str:
    """The `error_type` of the errors of a kind."""
    return "Stopping" if kind is refusals.Closed else kind.__name__


def install(app: Starlette) -> None:
    """Answer every error of the app in our form."""
    for kind in (AdaMixError, ClientDisconnect):
        app.add_exception_handler(kind, _answer_ours)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(Exception, _answer_unexpected)


def problem(
    status: int, message: str, error_type: str, headers: dict[str, str] | None = None
) -> Response:
    """An error's answer. Of a sentence that echoes much of a request, the middle is left out."""
    if len(message) > MAX_SENTENCE:
        message = f"{message[:HEAD]} … {message[HEAD - MAX_SENTENCE :]}"
    body = orjson.dumps({"error": message, "error_type": error_type})
    return Response(body, status, headers, media_type="application/json")


def refused(error: AdaMixError, headers: dict[str, str] | None = None) -> Response:
    """The answer to one of our own errors."""
    status, name = status_of(error), error_type(type(error))
    return problem(status, str(error), name, {**headers_of(error), **(headers or {})})


async def _answer_ours(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it
    assert isinstance(error, AdaMixError)
    key = key_of(request)
    if key is not None and isinstance(error, adapter_errors.UnknownTask):
        # whoever found that there is none may have named tasks that are not this key's
        error = unknown(error.task, filter(key.sees, request.app.state.predictor.tasks()))
    answer = refused(error)
    if answer.status_code == 503 and not isinstance(error, refusals.Closed | refusals.Stale):
        log.error(
            "unavailable",
            error=adapter_errors.for_operators(error),
            error_type=error_type(type(error)),
        )
    return answer


def headers_of(error: BaseException) -> dict[str, str]:
    """The headers of an error's answer."""
    if isinstance(error, refusals.MissingKey):
        return {"WWW-Authenticate": "Bearer"}
    if isinstance(error, WITH_RETRY):
        return {"Retry-After": str(error.retry_after)}
    soon = (refusals.Closed, refusals.BehindGeneration, adapter_errors.StoreUnreachable)
    return {"Retry-After": "1"} if isinstance(error, soon) else {}


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return problem(
            404,
            f"there is no {shown(request.scope['path'])}; expected a path that /docs lists",
            "UnknownPath",
        )
    if error.status_code == 405:
        allowed = ", ".join(_allowed(request))
        path = shown(request.scope["path"])
        message = f"{request.method} is not for {path}; expected {allowed}"
        return problem(405, message, "WrongMethod", {"Allow": allowed})
    return problem(
        error.status_code, str(error.detail), "RequestRefused", dict(error.headers or {})
    )


def _allowed(request: Request) -> list[str]:
    """The methods of a path, of all its routes: the framework's own Allow has those of the first
    one alone."""

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
    # Starlette sends this answer outside of all middleware, also of that which adds the id.
    request_id = str(structlog.contextvars.get_contextvars().get("request_id", ""))
    message = "the service failed on this request; its log says why under the X-Request-ID"
    headers = {"X-Request-ID": request_id}
    return problem(500, message, "InternalError", headers)
