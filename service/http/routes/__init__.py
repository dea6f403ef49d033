"""The routes: thin, one file a subject. What they share stands here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Path, Request
from fastapi.security import HTTPBearer

from service.http.examples import VERSION

# a front end (service.workers.front_end) has a desk alone, and does without torch
if TYPE_CHECKING:
    from service.predictor import Desk
    from service.service import Service

Task = Annotated[str, Path(description="A task's name.", examples=["sst2"])]
Version = Annotated[str, Path(description="A version or the beginning of one.", examples=[VERSION])]

# They only document the keys: auto_error is off, and the guard decides, with a sentence of ours.
API_KEY = Depends(
    HTTPBearer(
        auto_error=False, scheme_name="api-key", description="ADAMIX_API_KEY, where one is set."
    )
)
ADMIN_KEY = Depends(
    HTTPBearer(
        auto_error=False,
        scheme_name="admin-key",
        description="ADAMIX_ADMIN_KEY, or the one made at first start.",
    )
)


def service_of(request: Request) -> Service:
    """The one Service of the app."""
    service: Service = request.app.state.service
    return service


def desk_of(request: Request) -> Desk[Any]:
    """Where the app's requests for predictions go: its Service, or a front end's Remote."""
    desk: Desk[Any] = request.app.state.service
    return desk
