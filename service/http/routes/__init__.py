"""The routes, one file a subject, and what they share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Path, Request, Response
from fastapi.security import HTTPBearer
from pydantic_core import to_json

from adapters.lookup import unknown
from service.http.bearer import key_of, sees
from service.http.examples import VERSION

# A front end (service.workers.front_end) has a predictor and a guard, but neither a Service nor
# torch.
if TYPE_CHECKING:
    from adapters.adapter_store import AdapterStore
    from adapters.entry import Entry
    from service.http.auth import Guard
    from service.http.lists import Lists
    from service.predictor import Predictor
    from service.service import Service

Task = Annotated[str, Path(description="A task's name.", examples=["sst2"])]
Version = Annotated[str, Path(description="A version or the beginning of one.", examples=[VERSION])]

# These only document the keys: auto_error is off, and the guard decides.
_API_KEY = Depends(
    HTTPBearer(
        auto_error=False, scheme_name="api-key", description="ADAMIX_API_KEY, where one is set."
    )
)
_ADMIN_KEY = Depends(
    HTTPBearer(
        auto_error=False,
        scheme_name="admin-key",
        description="ADAMIX_ADMIN_KEY, or the one made at first start.",
    )
)


def as_json(value: Any) -> Response:
    """Models as an answer. FastAPI would make its JSON on the event loop, which a list of ten
    thousand tasks would hold up: this is for a job of `Lists`."""
    return Response(to_json(value, inf_nan_mode="null"), media_type="application/json")


def lists_of(request: Request) -> Lists:
    """Where the app's answers are made that go through all tasks."""
    lists: Lists = request.app.state.lists
    return lists


def service_of(request: Request) -> Service:
    """The one Service of the app."""
    service: Service = request.app.state.service
    return service


def predictor_of(request: Request) -> Predictor:
    """Where the app's requests for predictions go."""
    predictor: Predictor = request.app.state.predictor
    return predictor


def guard_of(request: Request) -> Guard:
    """Who may write and predict."""
    guard: Guard = request.app.state.guard
    return guard


def check_seen(request: Request, task: str) -> None:
    """Raises UnknownTask where a request may not know of a task, or there is none: with a key that
    may not see every task, both are found here, so that nothing else can tell them apart."""
    if key_of(request) is not None and not (sees(request, task) and task in stored(request)):
        raise unknown(task, ())  # the answer names those that the key sees


def seen(request: Request) -> list[Entry]:
    """The tasks that a request may know of, by name."""
    entries = service_of(request).store.entries()
    key = key_of(request)
    return entries if key is None else [entry for entry in entries if key.sees(entry.task)]


def stored(request: Request) -> AdapterStore:
    """The one store of the app."""
    return service_of(request).store


async def _may_write(request: Request) -> None:
    await guard_of(request).check_write(request)
    _check_path(request)


async def _may_read(request: Request) -> None:
    await guard_of(request).check_read(request)
    _check_path(request)


async def _may_measure(request: Request) -> None:
    await guard_of(request).check_metrics(request)


def _check_path(request: Request) -> None:
    """Raises UnknownTask as `check_seen`, of the task in a path."""
    task = request.path_params.get("task")
    if task is not None:
        check_seen(request, task)


# Of routes: dependencies that check a key before anything else of the request is looked at.
WRITE = [_ADMIN_KEY, Depends(_may_write)]
READ = [_API_KEY, _ADMIN_KEY, Depends(_may_read)]
MEASURE = [Depends(_may_measure)]
PREDICT = [_API_KEY]  # documented only: `routes.prediction.counted` checks it
