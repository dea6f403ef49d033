"""Alive, ready, measured: what orchestrators and Prometheus ask."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from prometheus_client.exposition import choose_encoder

from service.http.examples import METRICS, READY, one
from service.http.openapi import KEY_PROBLEMS, answered, problems
from service.http.routes import MEASURE, guard_of, lists_of, service_of

router = APIRouter(tags=["operations"])


@router.get(
    "/health",
    summary="Alive",
    responses={200: answered("Alive", one({"status": "alive"})), **problems()},
)
async def health() -> dict[str, str]:
    """Whether the process is alive."""
    return {"status": "alive"}


@router.get(
    "/ready",
    summary="Ready to predict",
    responses={
        200: answered("Ready", READY),
        **problems("Stopping"),
    },
)
async def ready(request: Request) -> dict[str, str | int]:
    """Whether the service can predict: not once it has been asked to stop. With a keys file it does
    not say how many tasks there are."""
    service = service_of(request)
    service.check_ready()
    said: dict[str, str | int] = {
        "status": "ready",
        "backbone": service.backbone.reference.name,
    }
    if not guard_of(request).hides_tasks:
        said["tasks"] = len(service.store)
    return said


@router.get(
    "/fresh",
    summary="Up to date",
    responses={200: answered("Up to date", one({"status": "fresh"})), **problems("Stale")},
)
async def fresh(request: Request) -> dict[str, str]:
    """Whether the store's bucket was read within the lease; with a store in a folder, always. For a
    balancer that prefers replicas that are up to date: `/ready` does not ask for the bucket."""
    service_of(request).check_fresh()
    return {"status": "fresh"}


@router.get(
    "/metrics",
    summary="Prometheus metrics",
    response_class=Response,
    responses={
        200: answered("The samples", METRICS, media_type="text/plain"),
        **problems(*KEY_PROBLEMS),
    },
    openapi_extra={"security": [{}, {"api-key": []}, {"admin-key": []}]},  # open by default
    dependencies=MEASURE,
)
async def metrics(
    request: Request,
    names: Annotated[
        list[str],
        Query(
            alias="name[]",
            description=(
                "Only these samples of what is counted and timed; a page asks often, for few."
            ),
        ),
    ] = [],  # noqa: B006  # FastAPI copies it
) -> Response:
    """Prometheus' (or, if asked for, OpenMetrics') text format."""
    try:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
    except (TypeError, ValueError):  # prometheus_client, of a version in Accept that is no number
        encode, content_type = choose_encoder("")
    service = service_of(request)
    registry = service.metrics.registry
    shown = registry.restricted_registry(names) if names else registry
    content = await lists_of(request).run(request, len(service.store), lambda: encode(shown))
    return Response(content, media_type=content_type)
