"""Writes to the store on behalf of a request, with a line in the audit log each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import structlog
from starlette.requests import Request

from service.audit import Write
from service.http.answers import error_type
from service.http.bearer import name_of
from service.service import Service

T = TypeVar("T")


async def audited(
    request: Request, service: Service, what: str, task: str, job: Callable[[Write], T]
) -> T:
    """Run a job that writes to the store, in a thread. It tells the write that it is given what it
    wrote. The line is written there too: also where nobody waits for the job any more. Raises what
    `job` raises."""
    write = Write(
        what,
        task,
        key=name_of(request),
        client=request.client.host if request.client is not None else None,
        request_id=structlog.contextvars.get_contextvars().get("request_id"),
    )

    def done() -> T:
        try:
            return job(write)
        except Exception as error:
            write.result = error_type(type(error))
            raise
        finally:
            service.audit(write)

    return await service.write(done)
