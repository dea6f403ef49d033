"""Traces by OpenTelemetry: what a request's time went into. Imported only where ADAMIX_TRACING asks
for it; the span of the request itself is FastAPI's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from service.batcher import Outcome


class Tracing:
    """Spans, sent where OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT …) say."""

    def __init__(self) -> None:
        resource = Resource.create(
            {"service.name": "adamix-serve", "service.version": version("adamix-serve")}
        )
        # The environment once more: OTEL_SERVICE_NAME must beat our name.
        resource = resource.merge(OTELResourceDetector().detect())
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self.provider.get_tracer("adamix")

    def stages(
        self,
        started: float,
        tokenized: float,
        rows: Sequence[tuple[str, int]],
        outcomes: Sequence[Outcome[Any]],
    ) -> None:
        """The stages of the request under way, now that they are over: spans below its own.

        `rows` are each one's task and tokens; times are time.monotonic's. Rows of one request may
        have gone into several batches: one `inference` each.
        """
        self._span("tokenize", started, tokenized - started, rows)
        arrived = outcomes[0].batch.started - outcomes[0].queued
        self._span("queue", arrived, max(outcome.queued for outcome in outcomes), rows)
        batches = {id(outcome.batch): outcome.batch for outcome in outcomes}
        for key, batch in batches.items():
            of_batch = [
                row for row, outcome in zip(rows, outcomes, strict=True) if id(outcome.batch) == key
            ]
            whole = {
                "adamix.batch.rows": batch.rows,
                "adamix.batch.tokens": batch.tokens,
                "adamix.batch.tasks": batch.tasks,
            }
            self._span("inference", batch.started, batch.seconds, of_batch, **whole)

    async def close(self) -> None:
        """Send what is left."""
        await asyncio.to_thread(self.provider.shutdown)

    def _span(
        self,
        name: str,
        started: float,
        seconds: float,
        rows: Sequence[tuple[str, int]],
        **batch: int,
    ) -> None:
        start = time.time_ns() - int((time.monotonic() - started) * 1e9)
        span = self._tracer.start_span(name, start_time=start, attributes=batch)
        span.set_attribute("adamix.tasks", list(dict.fromkeys(task for task, _ in rows)))
        span.set_attribute("adamix.rows", len(rows))
        span.set_attribute("adamix.tokens", sum(tokens for _, tokens in rows))
        span.end(start + int(seconds * 1e9))
