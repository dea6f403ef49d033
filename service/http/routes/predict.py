"""POST /predict: texts in, labels and scores out, for one task or several at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from adapters.spec import shown
from adapters.text import TextInput
from service.http import examples
from service.http.body import parse_body, read_body
from service.http.inputs import count_inputs, read_inputs
from service.http.openapi import PREDICT_PROBLEMS, answered, body_of, problems
from service.http.routes import PREDICT, guard_of, predictor_of
from service.http.routes.prediction import (
    INLINE_NUMBERS,
    KEY,
    TRUNCATE,
    answered_by,
    check_answer,
    check_rows,
    counted,
    expected_path,
    key_of,
    predicted,
    truncates,
)
from service.http.schemas import (
    CUT_ON_THE_LEFT,
    PredictRequest,
    Score,
)
from service.predictor import Admitted, Predictor
from service.refusals import InvalidRequest
from service.scores import answer_of, least_confidence


class _Direct(APIRoute):
    """A route that FastAPI only documents. The function reads the query itself: what FastAPI does
    around a function (dependencies, exit stacks, validation by fields) took a third of a short
    text's time."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)  # refuses it
            return
        response = await self.endpoint(Request(scope, receive, send))
        await response(scope, receive, send)


router = APIRouter(tags=["predict"], route_class=_Direct)
# Hugging Face's InferenceClient takes element 0 of what it gets, as its own API answers a list of
# lists for one text too; text-embeddings-inference and our contract do not.
HUGGING_FACE_CLIENT = "hf_hub/"
_QUERY = [
    {
        "name": "task",
        "in": "query",
        "required": True,
        "description": "The task; several answer an object of one answer each.",
        "schema": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "examples": examples.TASKS,
    },
    {
        "name": "version",
        "in": "query",
        "description": (
            "A version or the beginning of one, of a single task; by default the active one."
        ),
        "schema": {"type": "string"},
    },
    TRUNCATE,
    KEY,
]


@router.post(
    "/predict",
    operation_id="predict",
    summary="Classify or score texts",
    response_model=list[Score] | list[list[Score]] | dict[str, list[Score] | list[list[Score]]],
    responses={
        200: answered(
            "Labels and scores", examples.PREDICTED, ("X-Adapter-Version", "Server-Timing")
        ),
        **problems(*PREDICT_PROBLEMS),
    },
    openapi_extra={"parameters": _QUERY, "requestBody": body_of(PredictRequest, examples.PREDICT)},
    dependencies=PREDICT,
)
async def predict(request: Request) -> Response:
    """The answer is `[{"label", "score"}, …]`, best first; for a list of inputs a list of those;
    for several tasks an object of answers by task. `X-Adapter-Version` says which version answered,
    `Server-Timing` where the time went.
    """
    tasks = list(dict.fromkeys(request.query_params.getlist("task")))
    async with counted(request, tasks) as predictor:
        return await _predict(request, predictor, tasks, request.query_params.get("version"))


@router.post("/", include_in_schema=False)
async def without_a_path(request: Request) -> Response:
    """For clients that were given the server's address alone: raises InvalidRequest with the path
    that they want."""
    await guard_of(request).check_predict(request)
    expected = expected_path(request, predictor_of(request))
    raise InvalidRequest(f"POST / predicts nothing; expected {expected}")


async def _predict(
    request: Request, predictor: Predictor, tasks: list[str], version: str | None
) -> Response:
    if version is not None and len(tasks) > 1:
        raise InvalidRequest(
            f"version is {shown(version)} with {len(tasks)} tasks; expected one task where a"
            " version is pinned"
        )
    check_rows(predictor, 1, len(tasks))  # before anything is read, or loaded
    body = parse_body(
        await read_body(request), PredictRequest, "a predict request", "an object with 'inputs'"
    )
    check_rows(predictor, count_inputs(body.inputs), len(tasks))
    truncate = truncates(request, predictor, body.truncate, body.window)
    if truncate and body.cut_on_the_left:
        raise InvalidRequest(CUT_ON_THE_LEFT)

    adapters = [await predictor.admit(name, version) for name in tasks]
    rows: list[list[TextInput]] = []
    lists: list[bool] = []  # of each task: whether its inputs were a list
    # Once for the tasks of texts and once for those of pairs: a body of 2 MiB for 256 tasks must
    # not cost as much as 256 bodies.
    read: dict[bool, tuple[list[TextInput], bool]] = {}
    for adapter in adapters:
        pairs = adapter.signature.text_pair
        if pairs not in read:
            check_rows(predictor, count_inputs(body.inputs, adapter.signature), len(tasks))
            read[pairs] = read_inputs(body.inputs, adapter.signature)
        texts, several = read[pairs]
        rows.append(texts)
        lists.append(several)
    guard_of(request).take_rows(request, sum(map(len, rows)))
    top_k = body.parameters.top_k if body.parameters is not None else None
    always_nested = HUGGING_FACE_CLIENT in request.headers.get("user-agent", "")

    async def answer(adapters: Sequence[Admitted]) -> Response:
        wanted = list(zip(adapters, rows, strict=True))
        least = [
            None if body.abstain is None else least_confidence(adapter.signature, body.abstain)
            for adapter in adapters
        ]
        numbers = check_answer(wanted, top_k)
        prediction = await predicted(
            request, predictor, wanted, truncate=truncate, window=body.window
        )

        def encoded() -> bytes:
            answers: dict[str, Any] = {}
            for adapter, several, found, lowest in zip(
                adapters, lists, prediction.logits, least, strict=True
            ):
                signature = adapter.signature
                function = body.function(signature.problem_type)
                scores = [answer_of(logits, signature, function, top_k, lowest) for logits in found]
                answers[signature.task] = scores if several or always_nested else scores[0]
            return orjson.dumps(answers if len(tasks) > 1 else answers[tasks[0]])

        content = encoded() if numbers < INLINE_NUMBERS else await asyncio.to_thread(encoded)
        return Response(content, headers=prediction.headers, media_type="application/json")

    routed = [
        await predictor.route(adapter, key_of(request, texts)) if adapter.places else adapter
        for adapter, texts in zip(adapters, rows, strict=True)
    ]
    return await answered_by(predictor, routed, answer)
