"""The service with its device taken out: every batch is answered at once, with zeros. What is left is the front end.

    python -m benchmarks.null_server 8000

Started by `benchmarks.front_end`; all settings but the port come from the environment, as the service's do.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from service import logs
from service.__main__ import serve
from service.app import create_app
from service.batcher import Batcher
from service.desk import Logits
from service.engine import Row
from service.settings import read_settings


def main(port: int) -> int:
    settings = read_settings(port=port)
    logs.configure(settings.log_level, settings.log_format)
    application = create_app(settings)
    service = application.state.service
    service.batcher = Batcher(
        zeros,
        max_tokens=settings.max_batch_tokens or 1024,
        max_queue_rows=settings.max_queue_rows,
        max_adapters=settings.slots,
        observe=service.metrics.batch,
    )
    return serve(application, service, settings)


def zeros(rows: Sequence[Row]) -> list[Logits]:
    return [[0.0] * len(row.adapter.spec.labels) for row in rows]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
