"""A request for predictions, whatever its form: its key, its count, its body, its adapters, its rows, its headers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.errors import BackboneMismatch, DamagedAdapter
from adapters.file import Adapter
from adapters.spec import first_problem
from adapters.text import TextInput
from service.batcher import Outcome
from service.engine import Row
from service.errors import ClientClosed, MalformedBody, TooManyInputs, status_of
from service.routes import service_of
from service.schemas import InvalidRequest, NotFinite
from service.state import Logits, Service
from service.windows import Window, joined

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Prediction:
    """The logits of each adapter's rows, in the order asked for, and the answer's headers."""

    logits: list[list[Logits]]
    headers: dict[str, str]


@contextlib.contextmanager
def counted(request: Request, tasks: Sequence[str]) -> Iterator[Service]:
    """Around a request for predictions: checks its key and its tasks' names, then times and counts it by its outcome."""
    service = service_of(request)
    started = time.perf_counter()
    service.guard.check_predict(request.headers)
    if not tasks:
        raise InvalidRequest(f"the request names no task; expected {service.expected_path()}")
    for task in tasks:
        service.store.entry(task)  # an unknown task ends here, before it could make a series
    status = 200
    try:
        yield service
    except BaseException as error:
        status = 499 if isinstance(error, asyncio.CancelledError) else status_of(error)
        raise
    finally:
        # A task that was deleted meanwhile must not get its series back.
        service.metrics.request([task for task in tasks if task in service.store], status, time.perf_counter() - started)


async def read_body(request: Request) -> bytes:
    """The body as it came. Raises MalformedBody for a compressed one: what it would become has no limit."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MalformedBody(f"the body's Content-Encoding is {encoding[:40]!r}; expected a body that is not compressed")
    return await request.body()


def parse(body: bytes, model: type[Model], what: str, expected: str) -> Model:
    """A JSON body as `model`; `what` and `expected` name it in the refusals."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}; expected {expected}") from None
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body is a JSON {type(content).__name__}; expected {expected}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InvalidRequest(f"the body is not {what}: {first_problem(error)}") from None


async def admit(service: Service, task: str, version: str | None) -> Adapter:
    """The adapter that this request is admitted with."""
    digest = service.store.find(task, version).digest
    try:
        adapter = await service.loader.load(task, digest)
        service.check_fits(adapter)
    except (DamagedAdapter, BackboneMismatch):
        service.metrics.load_failures.inc()
        raise
    await service.loader.prefetch(adapter)
    return adapter


def check_rows(service: Service, inputs: int, tasks: int = 1) -> None:
    """Raises TooManyInputs."""
    if inputs * tasks > service.max_inputs:
        raise TooManyInputs(
            f"the request has {inputs} inputs for {tasks} task{'s'[: tasks - 1]}; "
            f"expected at most {service.max_inputs} rows in all"
        )


async def predicted(
    request: Request,
    service: Service,
    wanted: Sequence[tuple[Adapter, Sequence[TextInput]]],
    *,
    truncate: bool,
    window: Window | None,
) -> Prediction:
    """Tokenise each adapter's texts, queue all rows together and wait for their logits. Raises InputTooLong, InvalidWindow,
    TooManyWindows, QueueFull, Closed, NotFinite, or ClientClosed when nobody waits for the answer any more."""
    started = time.monotonic()
    nested = await _rows(service, wanted, truncate=truncate, window=window)
    rows = [row for texts in nested for windows in texts for row in windows]
    tokenized = time.monotonic()
    service.metrics.tokenization.observe(tokenized - started)
    outcomes = await _unless_client_leaves(request, service.batcher.submit(rows))
    if service.tracing is not None:
        service.tracing.stages(started, tokenized, rows, outcomes)
    rest = iter(outcomes)
    aggregate = "mean" if window is None else window.aggregate
    logits: list[list[Logits]] = []
    for (adapter, _), texts in zip(wanted, nested, strict=True):
        answers = [[next(rest).value for _ in windows] for windows in texts]
        _check_finite(adapter, answers, service.backbone.dtype)
        logits.append([joined(windows, aggregate, adapter.spec.problem_type) for windows in answers])
    return Prediction(logits, _headers([adapter for adapter, _ in wanted], tokenized - started, outcomes))


async def _rows(
    service: Service, wanted: Sequence[tuple[Adapter, Sequence[TextInput]]], *, truncate: bool, window: Window | None
) -> list[list[list[Row]]]:
    """Of each adapter, each text's rows: one, or its windows, in all at most as many as a request may have inputs."""
    if window is None:
        return [[[row] for row in await service.rows(adapter, texts, truncate=truncate)] for adapter, texts in wanted]
    spare = service.max_inputs - sum(len(texts) for _, texts in wanted)
    rows = []
    for adapter, texts in wanted:
        rows.append(await service.windows(adapter, texts, window.stride, spare + len(texts)))
        spare -= sum(map(len, rows[-1])) - len(texts)
    return rows


def _check_finite(adapter: Adapter, answers: list[list[Logits]], dtype: str) -> None:
    """JSON has no NaN and no infinity: they would be answered as null."""
    for i, rows in enumerate(answers):
        if not all(math.isfinite(value) for row in rows for value in row):
            raise NotFinite(
                f"version {adapter.version} of task {adapter.spec.task!r} gives logits that are NaN or infinite "
                f"for input {i}, in {dtype}; expected finite numbers: another version, or an ADAMIX_DTYPE with a wider range"
            )


async def _unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work`, but give it up when the connection closes: nobody would read the answer."""
    waiting = asyncio.current_task()
    assert waiting is not None
    answered = False

    def give_up(left: asyncio.Future[None]) -> None:
        if not answered and not left.cancelled():
            waiting.cancel()

    leaving = asyncio.ensure_future(_disconnected(request))
    leaving.add_done_callback(give_up)
    try:
        return await work
    except asyncio.CancelledError:
        if leaving.done() and waiting.uncancel() == 0:  # else somebody else wants an end, too
            raise ClientClosed("the client closed the connection before its answer was ready") from None
        raise
    finally:
        answered = True
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(adapters: list[Adapter], tokenized: float, outcomes: list[Outcome[Logits]]) -> dict[str, str]:
    queued = max(outcome.queued for outcome in outcomes)
    ran = max(outcome.batch.seconds for outcome in outcomes)
    stages = {"queue": queued, "tokenize": tokenized, "inference": ran}
    return {
        "X-Adapter-Version": ", ".join(f"{adapter.spec.task}@{adapter.version}" for adapter in adapters),
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in stages.items()),
    }
