"""The service with its device taken out: every batch is answered with zeros, at once or after so
many milliseconds. What is left is the front end.

    python -m benchmarks.http.null_server 8000 [3]

Started by `benchmarks.http.front_end`; all settings but the port come from the environment, as the
service's do.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial

from service.__main__ import placed, serve
from service.app import create_app
from service.batcher import Batcher
from service.engine.row import Row
from service.predictor import Logits
from service.settings import read_settings
from service.telemetry import logs


def main(port: int, device_ms: float = 0.0) -> int:
    settings = read_settings(port=port)
    logs.configure(settings.log_level, settings.log_format)
    application = create_app(settings)
    service = application.state.service
    service.batcher = Batcher(
        partial(zeros, device_ms / 1000),
        max_tokens=settings.max_batch_tokens or 1024,
        max_queue_rows=settings.max_queue_rows,
        max_adapters=settings.slots,
        max_wait=settings.max_wait_seconds,
        observe=service.metrics.batch,
    )
    with placed(settings) as place:
        return serve(application, service, settings, place)


def zeros(seconds: float, rows: Sequence[Row]) -> list[Logits]:
    if seconds:
        time.sleep(seconds)  # as a GPU's batch: the interpreter is free
    return [[0.0] * len(row.adapter.spec.labels) for row in rows]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), *map(float, sys.argv[2:])))
