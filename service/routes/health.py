"""Alive, ready, measured: what orchestrators and Prometheus ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from service.routes import problems, service_of

router = APIRouter(tags=["operations"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "alive"}


@router.get("/ready", responses=problems(503))
async def ready(request: Request) -> dict[str, str | int]:
    """Whether the service can predict: not once it has been asked to stop."""
    service = service_of(request)
    service.check_ready()
    return {"status": "ready", "backbone": service.backbone.reference.name, "tasks": len(service.store)}


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(
    request: Request,
    names: Annotated[
        list[str] | None,
        Query(alias="name[]", description="Only these samples of what is counted and timed; a page asks often, for few."),
    ] = None,
) -> Response:
    """Prometheus' (or, if asked for, OpenMetrics') text format."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # prometheus_client, of a version in Accept that is no number
        encode, content_type = choose_encoder("")
    registry = service_of(request).metrics.registry
    shown = registry if names is None else registry.restricted_registry(names)
    return Response(encode(shown), media_type=content_type)
