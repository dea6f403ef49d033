"""A request for predictions, whatever its form: its key, its count, its body, its adapters, its
rows, its headers."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.spec import first_problem
from adapters.text import TextInput, Tokens
from service.batcher import Outcome
from service.http.answers import status_of
from service.http.routes import desk_of
from service.predictor import A, Admitted, Desk, Logits
from service.refusals import ClientClosed, InvalidRequest, MalformedBody, NotFinite, TooManyInputs
from service.windows import Window, joined

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Prediction:
    """The logits of each adapter's rows, in the order asked for, and the answer's headers."""

    logits: list[list[Logits]]
    headers: dict[str, str]


@contextlib.contextmanager
def counted(request: Request, tasks: Sequence[str]) -> Iterator[Desk[Any]]:
    """Around a request for predictions: checks its key and its tasks' names, then times and counts
    it by its outcome."""
    desk = desk_of(request)
    started = time.perf_counter()
    desk.guard.check_predict(request.headers)
    desk.check_tasks(tasks)  # an unknown one ends here, before it could make a series
    status = 200
    try:
        yield desk
    except BaseException as error:
        status = 499 if isinstance(error, asyncio.CancelledError) else status_of(error)
        raise
    finally:
        desk.count(tasks, status, time.perf_counter() - started)


async def read_body(request: Request) -> bytes:
    """The body as it came. Raises MalformedBody for a compressed one: what it would become has no
    limit."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise MalformedBody(
            f"the body's Content-Encoding is {encoding[:40]!r}; expected a body that is not"
            " compressed"
        )
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


def check_rows(desk: Desk[Any], inputs: int, tasks: int = 1) -> None:
    """Raises TooManyInputs."""
    if inputs * tasks > desk.max_inputs:
        raise TooManyInputs(
            f"the request has {inputs} inputs for {tasks} task{'s'[: tasks - 1]}; "
            f"expected at most {desk.max_inputs} rows in all"
        )


async def predicted(
    request: Request,
    desk: Desk[A],
    wanted: Sequence[tuple[A, Sequence[TextInput]]],
    *,
    truncate: bool,
    window: Window | None,
) -> Prediction:
    """Tokenise each adapter's texts, queue all rows together and wait for their logits. Raises
    InputTooLong, InvalidWindow, TooManyWindows, QueueFull, Closed, NotFinite, or ClientClosed when
    nobody waits for the answer any more."""
    started = time.monotonic()
    nested = await _rows(desk, wanted, truncate=truncate, window=window)
    rows = [
        (adapter, row)
        for (adapter, _), texts in zip(wanted, nested, strict=True)
        for row in chain.from_iterable(texts)
    ]
    tokenized = time.monotonic()
    desk.tokenized(tokenized - started)
    outcomes = await _unless_client_leaves(request, desk.run(rows))
    if desk.tracing is not None:
        desk.tracing.stages(
            started,
            tokenized,
            [(adapter.spec.task, len(row.ids)) for adapter, row in rows],
            outcomes,
        )
    rest = iter(outcomes)
    aggregate = "mean" if window is None else window.aggregate
    logits: list[list[Logits]] = []
    for (adapter, _), texts in zip(wanted, nested, strict=True):
        answers = [[next(rest).value for _ in windows] for windows in texts]
        _check_finite(adapter, answers, desk.dtype)
        logits.append(
            [joined(windows, aggregate, adapter.spec.problem_type) for windows in answers]
        )
    return Prediction(
        logits, _headers([adapter for adapter, _ in wanted], tokenized - started, outcomes)
    )


async def _rows(
    desk: Desk[A],
    wanted: Sequence[tuple[A, Sequence[TextInput]]],
    *,
    truncate: bool,
    window: Window | None,
) -> list[list[list[Tokens]]]:
    """Of each adapter, each text's rows: one, or its windows, in all at most as many as a request
    may have inputs."""
    tokenizer, found = desk.tokenizer, []
    spare = desk.max_inputs - sum(len(texts) for _, texts in wanted)
    for adapter, texts in wanted:
        length, template = adapter.spec.max_length, adapter.spec.template
        if window is None:
            found.append(
                [
                    [row]
                    for row in await tokenizer.encode(texts, length, template, truncate=truncate)
                ]
            )
            continue
        limit = spare + len(texts)
        found.append(
            await tokenizer.windows(texts, length, template, stride=window.stride, limit=limit)
        )
        spare -= sum(map(len, found[-1])) - len(texts)
    return found


def _check_finite(adapter: Admitted, answers: list[list[Logits]], dtype: str) -> None:
    """JSON has no NaN and no infinity: they would be answered as null."""
    for i, rows in enumerate(answers):
        if not all(math.isfinite(value) for row in rows for value in row):
            raise NotFinite(
                f"version {adapter.version} of task {adapter.spec.task!r} gives logits that are NaN"
                f" or infinite for input {i}, in {dtype}; expected finite numbers: another version,"
                " or an ADAMIX_DTYPE with a wider range"
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
            raise ClientClosed(
                "the client closed the connection before its answer was ready"
            ) from None
        raise
    finally:
        answered = True
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(
    adapters: Sequence[Admitted], tokenized: float, outcomes: list[Outcome[Logits]]
) -> dict[str, str]:
    queued = max(outcome.queued for outcome in outcomes)
    ran = max(outcome.batch.seconds for outcome in outcomes)
    stages = {"queue": queued, "tokenize": tokenized, "inference": ran}
    return {
        "X-Adapter-Version": ", ".join(
            f"{adapter.spec.task}@{adapter.version}" for adapter in adapters
        ),
        "Server-Timing": ", ".join(
            f"{name};dur={seconds * 1e3:.3f}" for name, seconds in stages.items()
        ),
    }
