"""/v2: the Open Inference Protocol, so that KServe's and Triton's clients work unchanged. A task is a model."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from service import tensors
from service.errors import MalformedBody
from service.routes import problems, schema_of, service_of
from service.routes.prediction import admit, check_rows, counted, parse, predicted, read_body
from service.state import Service
from service.v2 import (
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

JSON_LENGTH = "Inference-Header-Content-Length"

router = APIRouter(prefix="/v2", tags=["open inference protocol"])
model = APIRouter()  # of one task: included once for its active version and once for a pinned one

_EXAMPLE = {"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES", "data": ["good", "bad"]}]}
_BODY = {
    "parameters": [
        {
            "name": JSON_LENGTH,
            "in": "header",
            "required": False,
            "description": "Where the JSON ends and binary tensors begin.",
            "schema": {"type": "integer", "minimum": 0},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": schema_of(InferRequest), "examples": {"two texts": {"value": _EXAMPLE}}},
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
        },
    },
}
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", response_model=ServerMetadata)
async def server_metadata(request: Request) -> ServerMetadata:
    """This server's name, version and extensions."""
    return ServerMetadata(name=request.app.title, version=request.app.version, extensions=list(EXTENSIONS))


@router.get("/health/live")
async def live() -> dict[str, bool]:
    """Whether the process is alive."""
    return {"live": True}


@router.get("/health/ready", responses=problems(503))
async def ready(request: Request) -> dict[str, bool]:
    """Whether the service can predict."""
    service_of(request).check_ready()
    return {"ready": True}


@router.post("/repository/index", response_model=list[IndexEntry], responses=problems(400, 413, 422))
async def index(request: Request) -> list[IndexEntry]:
    """Every version of every task: each can be asked for, so each is ready."""
    body = await read_body(request)
    if body.strip():
        parse(body, IndexRequest, "an index request", "an object, perhaps with 'ready'")
    return [
        IndexEntry(name=entry.task, version=version.short, state="READY", reason="")
        for entry in service_of(request).store.entries()
        for version in entry.versions
    ]


def _version(request: Request) -> str | None:
    return request.path_params.get("version")


def _pinned(version: Annotated[str, Path(description="A version or the beginning of one.")]) -> None:
    """Documents what `_version` reads."""


Version = Annotated[str | None, Depends(_version)]


@model.get("", response_model=ModelMetadata, responses=problems(404, 409, 503))
def metadata(request: Request, task: str, version: Version) -> ModelMetadata:
    """What a task takes and answers; its labels, in the order of the logits, are among the parameters."""
    store = service_of(request).store
    found = store.find(task, version)
    versions = [known.short for known in store.entry(task).versions]
    return model_metadata(store.summary(task, found.digest).spec, found.short, versions)


@model.get("/ready", response_model=ModelReady, responses=problems(404, 409, 422, 503))
async def model_ready(request: Request, task: str, version: Version) -> ModelReady:
    """Whether a task can predict: its file is read if it is not in memory yet."""
    service = service_of(request)
    service.check_ready()
    await admit(service, task, version)
    return ModelReady(name=task, ready=True)


@model.post(
    "/infer",
    response_model=InferResponse,
    responses=problems(400, 401, 404, 409, 413, 422, 429, 503) | {200: {"content": _BINARY}},
    openapi_extra=_BODY,
)
async def infer(request: Request, task: str, version: Version) -> Response:
    """Classify or score the texts of `text`, or the pairs of `text` and `text_pair`.

    `label` and `score` are each row's best; `logits` has all. For a regression task `score` is the value, `label` its name.
    For a multi-label task every label has a probability of its own: ask for `score` as a `classification`, or take `logits`.
    """
    with counted(request, [task]) as service:
        return await _infer(request, service, task, version)


async def _infer(request: Request, service: Service, task: str, version: str | None) -> Response:
    content, binary = _split(await read_body(request), request.headers.get(JSON_LENGTH))
    body = parse(content, InferRequest, "an infer request", "an object with 'inputs'")
    adapter = await admit(service, task, version)
    wanted = tensors.wanted_outputs(body, adapter.spec)
    check_rows(service, tensors.count_rows(body, adapter.spec))
    texts = tensors.read_texts(body, binary, adapter.spec)
    prediction = await predicted(request, service, [(adapter, texts)], truncate=body.truncate)

    (logits,) = prediction.logits
    head = {"model_name": task, "model_version": adapter.version} | ({} if body.id is None else {"id": body.id})
    outputs = [tensors.output(output, logits, adapter.spec) for output in wanted]
    answer, json_length = tensors.encode(head, wanted, outputs)
    if json_length is None:
        return Response(answer, headers=prediction.headers, media_type="application/json")
    headers = {**prediction.headers, JSON_LENGTH: str(json_length)}
    return Response(answer, headers=headers, media_type="application/octet-stream")


def _split(body: bytes, json_length: str | None) -> tuple[bytes, bytes | None]:
    """A body's JSON, and the binary data after it; None where no header says that there may be any."""
    if json_length is None:
        return body, None
    length = int(json_length) if json_length.isascii() and json_length.isdigit() and len(json_length) < 16 else None
    if length is None or length > len(body):
        raise MalformedBody(
            f"{JSON_LENGTH} is {json_length[:40]!r}; expected the length of the body's JSON, at most {len(body)} bytes"
        )
    return body[:length], body[length:]


router.include_router(model, prefix="/models/{task}")
router.include_router(model, prefix="/models/{task}/versions/{version}", dependencies=[Depends(_pinned)])
