"""What /predict and V2's infer share: the key, the count, the rows, the logits, the headers."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

import orjson
from fastapi import Request, Response

from adapters.lookup import unknown
from adapters.spec import shown
from adapters.text import TextInput, Tokens
from service.aggregation import aggregated
from service.batcher import Outcome
from service.http.answers import status_of
from service.http.bearer import sees
from service.http.leaving import unless_client_leaves
from service.http.routes import guard_of, predictor_of
from service.http.schemas import CUT_AND_WINDOWED, Window
from service.http.sentences import plural
from service.predictor import Admitted, Logits, Predictor
from service.refusals import (
    AnswerTooLarge,
    ClientClosed,
    Closed,
    InvalidRequest,
    KeyLimited,
    QueueFull,
    Referred,
    TooManyInputs,
)
from service.scores import check_finite

NAMED = 5  # tasks in a sentence, of all that there are
MAX_ANSWER_BYTES = 32 << 20  # a label may have as many as an adapter file's header
SCORE_BYTES = 40  # of {"label":…,"score":0.0019916133044318757}
INLINE_NUMBERS = 4096  # of an answer; more of them are made off the event loop: a few milliseconds
REQUEST_KEY = "X-Request-Key"
KEY = {
    "name": REQUEST_KEY,
    "in": "header",
    "required": False,
    "description": (
        "The caller's own id of what it asks for, such as a user's. While a task has a canary, the"
        " same key always gets the same version; without a key the first text decides."
    ),
    "schema": {"type": "string"},
}
TRUNCATE = {
    "name": "truncate",
    "in": "query",
    "description": "The body's truncate, for clients that cannot set it there.",
    "schema": {"type": "boolean"},
}

Wanted = Sequence[tuple[Admitted, Sequence[TextInput]]]
Nested = list[list[list[Tokens]]]  # rows, by adapter and text


@dataclass(frozen=True)
class Prediction:
    """The logits of each adapter's rows, in the order asked for, and the answer's headers."""

    logits: list[list[Logits]]
    headers: dict[str, str]


@contextlib.asynccontextmanager
async def counted(request: Request, tasks: Sequence[str]) -> AsyncIterator[Predictor]:
    """Around a request for predictions: check its key and its tasks' names, then time it and count
    it by its outcome. Raises as `Guard.check_predict`, InvalidRequest where no task is named,
    UnknownTask."""
    predictor = predictor_of(request)
    started = time.perf_counter()
    await guard_of(request).check_predict(request)
    if not tasks:
        expected = expected_path(request, predictor)
        raise InvalidRequest(f"the request names no task; expected {expected}")
    for task in tasks:
        if not sees(request, task):
            raise unknown(task, ())  # the answer names those that the key sees
    predictor.check_tasks(tasks)  # before the count: an unknown name must not make a series
    status: int | None = 200
    try:
        yield predictor
    except KeyLimited:
        status = None  # which says nothing of the service's load
        raise
    except BaseException as error:
        status = 499 if isinstance(error, asyncio.CancelledError) else status_of(error)
        raise
    finally:
        if status is not None:
            predictor.count(tasks, status, time.perf_counter() - started)


def expected_path(request: Request, predictor: Predictor) -> str:
    """What a request that names no task should have asked, with some of the tasks that exist."""
    names = [task for task in predictor.tasks() if sees(request, task)]
    some = [*map(repr, names[:NAMED]), *("…" for _ in names[NAMED : NAMED + 1])]
    tasks = f"{plural(len(names), 'task')}{': ' if some else ''}{', '.join(some)}"
    return f"POST /predict?task=NAME ({tasks})"


def truncates(
    request: Request, predictor: Predictor, asked: bool | None, window: Window | None
) -> bool:
    """Whether texts that are too long are cut: as the body asked, else the query's `truncate`, else
    as the server is set. Raises InvalidRequest."""
    query = request.query_params.get("truncate")
    if query is not None and query.lower() not in ("true", "false"):
        raise InvalidRequest(f"truncate is {shown(query)} in the query; expected true or false")
    if asked is None and query is not None:
        asked = query.lower() == "true"
        if asked and window is not None:
            raise InvalidRequest(CUT_AND_WINDOWED)
    return asked if asked is not None else predictor.auto_truncate and window is None


def check_rows(predictor: Predictor, inputs: int, tasks: int = 1) -> None:
    """Raises TooManyInputs."""
    if inputs * tasks > predictor.max_inputs:
        raise TooManyInputs(
            f"the request has {plural(inputs, 'input')} for {plural(tasks, 'task')}; "
            f"expected at most {predictor.max_inputs} rows in all"
        )


def check_answer(wanted: Wanted, top_k: int | None) -> int:
    """How many numbers the answer will have at most. Raises AnswerTooLarge, by the length of the
    labels."""
    numbers = found = 0
    for adapter, texts in wanted:
        labels = adapter.signature.labels
        total, longest = _label_bytes(labels)
        numbers += len(texts) * len(labels)
        found += len(texts) * (total if top_k is None else min(total, top_k * longest))
    if found > MAX_ANSWER_BYTES:
        raise AnswerTooLarge(
            f"the answer would have {found} bytes or more; expected at most {MAX_ANSWER_BYTES}:"
            " fewer inputs, or a smaller top_k"
        )
    return numbers


@lru_cache(256)
def _label_bytes(labels: tuple[str, ...]) -> tuple[int, int]:
    """Bytes of all labels in JSON, each with its score, and of the longest."""
    sizes = [len(orjson.dumps(label)) + SCORE_BYTES for label in labels]
    return sum(sizes), max(sizes)


def key_of(request: Request, texts: Sequence[TextInput]) -> bytes:
    """What decides which version answers while a task has a canary: the request's own key, else
    its first text, without its pair. One version answers all of a request's texts."""
    key = request.headers.get(REQUEST_KEY)
    # as the bytes that came
    return key.encode("latin-1") if key else texts[0][0].encode()


async def answered_by(
    predictor: Predictor,
    adapters: Sequence[Admitted],
    answer: Callable[[Sequence[Admitted]], Awaitable[Response]],
) -> Response:
    """What `answer` makes of the adapters. If it fails with a canary among them, it is asked again
    with the active version in its place: what only the canary cannot answer is no client's error.
    Raises what `answer` raises."""
    try:
        return await answer(adapters)
    except (QueueFull, Closed, ClientClosed, Referred):
        raise
    except Exception as error:
        canaries = [adapter for adapter in adapters if adapter.role == "canary"]
        if not canaries:
            raise
        safe = [
            await predictor.fall_back(adapter) if adapter.role == "canary" else adapter
            for adapter in adapters
        ]
        response = await answer(safe)
        for canary in _at_fault(canaries, error):
            predictor.failed(canary, error)
        return response


def _at_fault(canaries: Sequence[Admitted], error: Exception) -> list[Admitted]:
    """Those of a request's canaries that an error is counted for: of several, the one that it
    names. Else a broken canary of one task would end a sound one of another."""
    if len(canaries) == 1:
        return list(canaries)
    named = getattr(error, "adapter_key", None)
    return [canary for canary in canaries if canary.digest == named]


async def predicted(
    request: Request, predictor: Predictor, wanted: Wanted, *, truncate: bool, window: Window | None
) -> Prediction:
    """Tokenise each adapter's texts, queue all rows together and wait for their logits. Raises
    InputTooLong, InvalidWindow, TooManyWindows, QueueFull, Closed, NotFinite, or ClientClosed when
    nobody waits for the answer any more."""
    started = time.monotonic()
    nested, rows, tokenized, outcomes = await unless_client_leaves(
        request, _run(request, predictor, wanted, started, truncate=truncate, window=window)
    )
    if predictor.tracing is not None:
        predictor.tracing.stages(
            started,
            tokenized,
            [(adapter.signature.task, len(row.ids)) for adapter, row in rows],
            outcomes,
        )
    rest = iter(outcomes)
    aggregate = "mean" if window is None else window.aggregate
    logits: list[list[Logits]] = []
    for (adapter, _), texts in zip(wanted, nested, strict=True):
        answers = [[next(rest).value for _ in windows] for windows in texts]
        for i, windows in enumerate(answers):
            check_finite(adapter, windows, predictor.dtype, i)
        problem_type = adapter.signature.problem_type
        logits.append([aggregated(windows, aggregate, problem_type) for windows in answers])
    return Prediction(
        logits, _headers([adapter for adapter, _ in wanted], tokenized - started, outcomes)
    )


async def _run(
    request: Request,
    predictor: Predictor,
    wanted: Wanted,
    started: float,
    *,
    truncate: bool,
    window: Window | None,
) -> tuple[Nested, list[tuple[Admitted, Tokens]], float, list[Outcome[Logits]]]:
    """The rows, by adapter and text and all together; when they were tokenised, and their
    outcomes."""
    nested = await _rows(predictor, wanted, truncate=truncate, window=window)
    rows = [
        (adapter, row)
        for (adapter, _), texts in zip(wanted, nested, strict=True)
        for row in chain.from_iterable(texts)
    ]
    windows = len(rows) - sum(len(texts) for _, texts in wanted)
    if windows:
        guard_of(request).owe_rows(request, windows)
    tokenized = time.monotonic()
    predictor.tokenized(tokenized - started)
    return nested, rows, tokenized, await predictor.run(rows)


async def _rows(
    predictor: Predictor, wanted: Wanted, *, truncate: bool, window: Window | None
) -> Nested:
    """By adapter and text: one row, or the text's windows. In all at most as many rows as a request
    may have inputs."""
    tokenizer = predictor.tokenizer
    found: Nested = []
    spare = predictor.max_inputs - sum(len(texts) for _, texts in wanted)
    for adapter, texts in wanted:
        length, template = adapter.signature.max_length, adapter.signature.template
        if window is None:
            rows = await tokenizer.encode(texts, length, template, truncate=truncate)
            found.append([[row] for row in rows])
            continue
        limit = spare + len(texts)
        found.append(
            await tokenizer.windows(texts, length, template, stride=window.stride, limit=limit)
        )
        spare -= sum(map(len, found[-1])) - len(texts)
    return found


def _headers(
    adapters: Sequence[Admitted], tokenized: float, outcomes: list[Outcome[Logits]]
) -> dict[str, str]:
    queued = max(outcome.queued for outcome in outcomes)
    ran = max(outcome.batch.seconds for outcome in outcomes)
    stages = {"queue": queued, "tokenize": tokenized, "inference": ran}
    return {
        "X-Adapter-Version": ", ".join(
            f"{adapter.signature.task}@{adapter.version}" for adapter in adapters
        ),
        "Server-Timing": ", ".join(
            f"{name};dur={seconds * 1e3:.3f}" for name, seconds in stages.items()
        ),
    }
