"""/v2: the Open Inference Protocol, so that KServe's and Triton's clients work unchanged. A task is
a model."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from service.http import examples
from service.http.body import parse_body, read_body
from service.http.openapi import (
    ADMIT_PROBLEMS,
    KEY_PROBLEMS,
    PREDICT_PROBLEMS,
    VERSION_PROBLEMS,
    answered,
    body_of,
    problems,
)
from service.http.routes import (
    PREDICT,
    READ,
    Task,
    Version,
    as_json,
    guard_of,
    lists_of,
    seen,
    service_of,
)
from service.http.routes.prediction import (
    INLINE_NUMBERS,
    KEY,
    TRUNCATE,
    answered_by,
    check_answer,
    check_rows,
    counted,
    key_of,
    predicted,
    truncates,
)
from service.http.v2 import tensors
from service.http.v2.schemas import (
    EXTENSIONS,
    IndexEntry,
    IndexRequest,
    InferRequest,
    InferResponse,
    ModelMetadata,
    ModelReady,
    ServerMetadata,
    model_metadata,
)
from service.predictor import Admitted, Predictor, Signature
from service.refusals import MalformedBody
from service.scores import least_confidence

JSON_LENGTH = "Inference-Header-Content-Length"

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
model = APIRouter()  # included twice: for a task's active version, and for a pinned one

_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_BODY = body_of(InferRequest, examples.INFER)
_BODY["content"] |= _BINARY
_JSON_LENGTH = {
    "name": JSON_LENGTH,
    "in": "header",
    "required": False,
    "description": "Where the JSON ends and binary tensors begin.",
    "schema": {"type": "integer", "minimum": 0},
}
_INFERRED = answered("The tensors", examples.INFERRED, ("X-Adapter-Version", "Server-Timing"))
_INFERRED["content"] |= _BINARY
_INFERRED["headers"][JSON_LENGTH] = {
    "description": "Where the JSON ends, if binary tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}


@router.get(
    "",
    summary="Server metadata",
    response_model=ServerMetadata,
    responses={200: answered("The server", examples.SERVER), **problems()},
)
async def server_metadata(request: Request) -> ServerMetadata:
    """This server's name, version and extensions."""
    return ServerMetadata(
        name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS)
    )


@router.get(
    "/health/live",
    summary="Server live",
    responses={200: answered("Alive", examples.one({"live": True})), **problems()},
)
async def live() -> dict[str, bool]:
    """Whether the process is alive."""
    return {"live": True}


@router.get(
    "/health/ready",
    summary="Server ready",
    responses={200: answered("Ready", examples.one({"ready": True})), **problems("Stopping")},
)
async def ready(request: Request) -> dict[str, bool]:
    """Whether the service can predict."""
    service_of(request).check_ready()
    return {"ready": True}


@router.post(
    "/repository/index",
    summary="Repository index",
    response_model=list[IndexEntry],
    responses={
        200: answered("The versions", examples.INDEX),
        **problems(
            *KEY_PROBLEMS, "MalformedBody", "CompressedBody", "BodyTooLarge", "InvalidRequest"
        ),
    },
    dependencies=READ,
    openapi_extra={
        "requestBody": body_of(IndexRequest, examples.one({"ready": True})) | {"required": False}
    },
)
async def index(request: Request) -> Response:
    """Every version of every task: each can be asked for, so each is ready."""
    body = await read_body(request)
    if body.strip():
        parse_body(body, IndexRequest, "an index request", "an object, perhaps with 'ready'")
    store = service_of(request).store

    def listed() -> Response:
        return as_json(
            [
                IndexEntry(name=entry.task, version=name, state="READY", reason="")
                for entry in seen(request)
                for name in entry.names()
            ]
        )

    return await lists_of(request).run(request, len(store), listed)


def _asked_version(request: Request) -> str | None:
    return request.path_params.get("version")


def _pinned(version: Version) -> None:
    """Documents what `_asked_version` reads."""


AskedVersion = Annotated[str | None, Depends(_asked_version)]


@model.get(
    "",
    summary="Model metadata",
    response_model=ModelMetadata,
    responses={
        200: answered("The model", examples.MODEL),
        **problems(*KEY_PROBLEMS, *VERSION_PROBLEMS, "DamagedAdapter"),
    },
    dependencies=READ,
)
def metadata(request: Request, task: Task, version: AskedVersion) -> ModelMetadata:
    """What a task takes and answers; its labels, in the order of the logits, are among the
    parameters."""
    store = service_of(request).store
    found = store.find(task, version)
    entry = store.entry(task)
    spec = store.summary(task, found.digest).spec
    return model_metadata(Signature.of(spec), spec.kind, entry.shown(found), entry.names())


@model.get(
    "/ready",
    summary="Model ready",
    response_model=ModelReady,
    responses={
        200: answered("Ready", examples.one({"name": "sst2", "ready": True})),
        **problems(*KEY_PROBLEMS, *ADMIT_PROBLEMS),
    },
    dependencies=READ,
)
async def model_ready(request: Request, task: Task, version: AskedVersion) -> ModelReady:
    """Whether a task can predict: its file is read if it is not in memory yet."""
    service = service_of(request)
    service.check_ready()
    await service.admit(task, version)
    return ModelReady(name=task, ready=True)


@model.post(
    "/infer",
    summary="Infer",
    response_model=InferResponse,
    responses={200: _INFERRED, **problems(*PREDICT_PROBLEMS)},
    openapi_extra={"parameters": [_JSON_LENGTH, TRUNCATE, KEY], "requestBody": _BODY},
    dependencies=PREDICT,
)
async def infer(request: Request, task: Task, version: AskedVersion) -> Response:
    """Classify or score the texts of `text`, or the pairs of `text` and `text_pair`.

    `label` and `score` are each row's best; `logits` has all. For a regression task `score` is the
    value, `label` its name. For a multi-label task every label has a probability of its own: ask
    for `score` as a `classification`, or take `logits`.
    """
    async with counted(request, [task]) as predictor:
        return await _infer(request, predictor, task, version)


async def _infer(
    request: Request, predictor: Predictor, task: str, version: str | None
) -> Response:
    content, binary = _split(await read_body(request), request.headers.get(JSON_LENGTH))
    body = parse_body(content, InferRequest, "an infer request", "an object with 'inputs'")
    admitted = await predictor.admit(task, version)
    tensors.wanted_outputs(body, admitted.signature)  # what is wrong with them comes first
    check_rows(predictor, tensors.count_rows(body, admitted.signature))
    texts = tensors.read_texts(body, binary, admitted.signature)
    guard_of(request).take_rows(request, len(texts))
    truncate = truncates(request, predictor, body.truncate, body.window)

    async def answer(adapters: Sequence[Admitted]) -> Response:
        (adapter,) = adapters
        wanted = tensors.wanted_outputs(body, adapter.signature)
        least = None if body.abstain is None else least_confidence(adapter.signature, body.abstain)
        numbers = check_answer([(adapter, texts)], max(output.classes or 1 for output in wanted))
        prediction = await predicted(
            request, predictor, [(adapter, texts)], truncate=truncate, window=body.window
        )
        (logits,) = prediction.logits
        head = {"model_name": task, "model_version": adapter.version} | (
            {} if body.id is None else {"id": body.id}
        )

        def encoded() -> tuple[bytes, int | None]:
            outputs = [
                tensors.output(output, logits, adapter.signature, least) for output in wanted
            ]
            return tensors.encode(head, wanted, outputs)

        inline = numbers < INLINE_NUMBERS
        content, json_length = encoded() if inline else await asyncio.to_thread(encoded)
        if json_length is None:
            return Response(content, headers=prediction.headers, media_type="application/json")
        headers = {**prediction.headers, JSON_LENGTH: str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    if admitted.places:
        admitted = await predictor.route(admitted, key_of(request, texts))
    return await answered_by(predictor, [admitted], answer)


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes | None]:
    """A body's JSON, and the binary data after it; None where no header says that there may be
    any."""
    if json_length is None:
        return body, None
    length = (
        int(json_length)
        if json_length.isascii() and json_length.isdigit() and len(json_length) < 16
        else None
    )
    if length is None or length > len(body):
        raise MalformedBody(
            f"{JSON_LENGTH} is {json_length[:40]!r}; expected the length of the body's JSON, at"
            f" most {len(body)} bytes"
        )
    return body[:length], body[length:]


router.include_router(model, prefix="/models/{task}")
router.include_router(
    model, prefix="/models/{task}/versions/{version}", dependencies=[Depends(_pinned)]
)
