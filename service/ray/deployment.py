"""The replicas as a deployment of Ray Serve: https://docs.ray.io/en/latest/serve/."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from adapters.errors import AdaMixError, for_operators
from service.telemetry import logs

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

    from service.settings import Settings

NAME = "adamix"

log = structlog.get_logger("service")


def deployment(settings: Settings, replicas: int, threads: int) -> Application:
    """So many replicas, each with so many threads, which Ray counts as CPUs."""
    from ray import serve

    def build() -> FastAPI:
        return replica(settings, threads)

    return serve.deployment(
        serve.ingress(build)(),
        name=NAME,
        num_replicas=replicas,
        # the service itself refuses what is too much, and says for how long
        max_ongoing_requests=settings.max_queue_rows,
        graceful_shutdown_timeout_s=settings.drain_seconds,
        ray_actor_options={"num_cpus": threads},
    ).bind()


def replica(settings: Settings, threads: int) -> FastAPI:
    """The application of one replica, in its own process. Its copies of adapters are in a folder
    that no other replica of the machine has at the same time; who replaces it finds them there."""
    from ray import serve

    from service.app import create_app

    place = serve.get_replica_context().rank.local_rank
    own = settings.model_copy(
        update={"threads": threads, "cache": settings.cache / f"replica-{place}"}
    )
    logs.configure(own.log_level, own.log_format)
    try:
        return create_app(own)
    except AdaMixError as error:
        log.error("a replica cannot start", reason=for_operators(error))
        raise
