"""POST /predict: texts in, labels and scores out, for one task or several at once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from adapters.file import Adapter
from adapters.spec import first_problem
from service.batcher import Outcome
from service.engine import Row
from service.errors import ClientClosed, MalformedBody, TooManyInputs, status_of
from service.routes import problems, service_of
from service.schemas import InvalidRequest, Parameters, PredictRequest, Score, read_inputs, scored
from service.state import Logits, Service

router = APIRouter(tags=["predict"])
# Hugging Face's InferenceClient takes element 0 of what it gets, as its own API answers a list of lists for one text too;
# text-embeddings-inference and our contract do not.
HUGGING_FACE_CLIENT = "hf_hub/"
T = TypeVar("T")

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": PredictRequest.model_json_schema(ref_template="#/components/schemas/{model}"),
                "examples": {
                    "one text": {"value": {"inputs": "a charming and often affecting journey"}},
                    "a pair": {"value": {"inputs": {"text": "A man is eating.", "text_pair": "Somebody eats."}}},
                    "a batch": {"value": {"inputs": ["good", "bad"], "parameters": {"top_k": 1}}},
                },
            }
        },
    }
}


@router.post(
    "/predict",
    response_model=list[Score] | list[list[Score]] | dict[str, list[Score] | list[list[Score]]],
    responses=problems(400, 401, 404, 409, 413, 422, 429, 503),
    openapi_extra=_BODY,
)
async def predict(
    request: Request,
    task: Annotated[list[str], Query(description="The task; several answer an object of one answer each.")],
    version: Annotated[
        str | None, Query(description="A version or the beginning of one; by default the active one.")
    ] = None,
) -> Response:
    """Classify or score texts.

    The answer is `[{"label", "score"}, …]`, best first; for a list of inputs a list of those; for several tasks an object of
    answers by task. `X-Adapter-Version` says which version answered, `Server-Timing` where the time went.
    """
    service = service_of(request)
    started = time.perf_counter()
    service.guard.check_predict(request.headers)
    tasks = list(dict.fromkeys(task))
    for name in tasks:
        service.store.entry(name)  # an unknown task ends here, before it could make a series
    status = 200
    try:
        return await _predict(request, service, tasks, version)
    except BaseException as error:
        status = 499 if isinstance(error, asyncio.CancelledError) else status_of(error)
        raise
    finally:
        service.metrics.request(tasks, status, time.perf_counter() - started)


async def _predict(request: Request, service: Service, tasks: list[str], version: str | None) -> Response:
    if version is not None and len(tasks) > 1:
        raise InvalidRequest(f"version is {version!r} with {len(tasks)} tasks; expected one task where a version is pinned")
    body = _parse(await request.body())
    adapters = [await _adapter(service, name, version) for name in tasks]
    top_k = _top_k(body.parameters, adapters)

    tokenizing = time.perf_counter()
    rows: list[Row] = []
    shapes: list[tuple[int, bool]] = []  # of each task: how many rows, and whether they were a list
    for adapter in adapters:
        texts, several = read_inputs(body.inputs, adapter.spec)
        if len(texts) * len(tasks) > service.max_inputs:
            raise TooManyInputs(
                f"the request has {len(texts)} inputs for {len(tasks)} task{'s'[: len(tasks) - 1]}; "
                f"expected at most {service.max_inputs} rows in all"
            )
        rows += await service.rows(adapter, texts, truncate=bool(body.truncate))
        shapes.append((len(texts), several))
    tokenized = time.perf_counter() - tokenizing
    service.metrics.tokenization.observe(tokenized)

    outcomes = await _unless_client_leaves(request, service.batcher.submit(rows))
    answers: dict[str, Any] = {}
    rest = iter(outcomes)
    always_nested = HUGGING_FACE_CLIENT in request.headers.get("user-agent", "")
    for adapter, (count, several) in zip(adapters, shapes, strict=True):
        function = body.function(adapter.spec.problem_type)
        scores = [scored(next(rest).value, adapter.spec.labels, function, top_k) for _ in range(count)]
        answers[adapter.spec.task] = scores if several or always_nested else scores[0]
    content = orjson.dumps(answers if len(tasks) > 1 else answers[tasks[0]])
    return Response(content, headers=_headers(adapters, tokenized, outcomes), media_type="application/json")


def _parse(body: bytes) -> PredictRequest:
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}; expected an object with 'inputs'") from None
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body is a JSON {type(content).__name__}; expected an object with 'inputs'")
    try:
        return PredictRequest.model_validate(content)
    except ValidationError as error:
        raise InvalidRequest(f"the body is not a predict request: {first_problem(error)}") from None


async def _adapter(service: Service, task: str, version: str | None) -> Adapter:
    """The adapter that this request is admitted with; read off the event loop if it is not in memory."""
    found = service.store.find(task, version)
    load = service.store.get
    if service.store.cached(found.digest):
        adapter = load(task, found.digest)
    else:
        adapter = await asyncio.to_thread(load, task, found.digest)
    service.check_fits(adapter)
    return adapter


def _top_k(parameters: Parameters | None, adapters: list[Adapter]) -> int | None:
    top_k = parameters.top_k if parameters is not None else None
    most = max(len(adapter.spec.labels) for adapter in adapters)
    if top_k is not None and not 1 <= top_k <= most:
        raise InvalidRequest(f"parameters.top_k is {top_k}; expected 1 to {most}, the number of labels")
    return top_k


async def _unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Wait for `work`, but give it up when the connection closes: nobody would read the answer."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientClosed("the client closed the connection before its answer was ready")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _headers(adapters: list[Adapter], tokenized: float, outcomes: list[Outcome[Logits]]) -> dict[str, str]:
    queued = max(outcome.queued for outcome in outcomes)
    ran = max(outcome.ran for outcome in outcomes)
    stages = {"queue": queued, "tokenize": tokenized, "inference": ran}
    return {
        "X-Adapter-Version": ", ".join(f"{adapter.spec.task}@{adapter.version}" for adapter in adapters),
        "Server-Timing": ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in stages.items()),
    }
