"""GET /storage: what one copy of the backbone takes and saves."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from service.http import examples
from service.http.openapi import KEY_PROBLEMS, answered, problems
from service.http.routes import READ, as_json, lists_of, seen, service_of
from service.http.schemas import Storage
from service.http.views import stored

router = APIRouter(tags=["storage"])


@router.get(
    "/storage",
    summary="What one backbone saves",
    response_model=Storage,
    responses={
        200: answered("Bytes, and how they add up", examples.STORAGE),
        **problems(*KEY_PROBLEMS, "InvalidRequest"),
    },
    dependencies=READ,
)
async def storage(
    request: Request,
    adapters: Annotated[
        bool, Query(description="Whether to list each adapter: ten thousand are 700 KB.")
    ] = True,
) -> Response:
    """Bytes of the backbone, of each adapter and in all; what a full copy per task would take; what
    is saved."""
    service = service_of(request)
    return await lists_of(request).run(
        request,
        len(service.store),
        lambda: as_json(stored(service.storage(seen(request), listed=adapters))),
    )
