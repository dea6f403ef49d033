"""Alive, ready, measured: what orchestrators and Prometheus ask."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from prometheus_client.exposition import choose_encoder

from service.routes import problems, service_of

router = APIRouter(tags=["operations"])


@router.get("/", include_in_schema=False)
async def home() -> RedirectResponse:
    """The API's documentation."""
    return RedirectResponse("/docs")


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
def metrics(request: Request) -> Response:
    """Prometheus' (or, if asked for, OpenMetrics') text format."""
    encode, content_type = choose_encoder(request.headers.get("accept", ""))
    return Response(encode(service_of(request).metrics.registry), media_type=content_type)
