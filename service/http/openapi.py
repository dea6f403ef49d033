"""What /openapi.json says beyond the routes' signatures: errors with their sentences, headers,
keys, examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel

from adapters import errors as adapter_errors
from service import refusals
from service.http.answers import error_type, status_of_kind
from service.http.examples import VERSION
from service.http.schemas import Problem

Document = dict[str, Any]

DESCRIPTION = """
Every error is answered as `{"error", "error_type"}`: one sentence that names the thing, the value
found and the value expected. Every answer has an `X-Request-ID`: the request's own, or a new one.
The log has it too.

Writing needs the admin key (`Authorization: Bearer …`), unless the server listens on a loopback
address and no admin key is set. If an API key is set, predicting needs it, and reading needs either
key. A keys file has keys with scopes, tasks and limits: a task that is not one of a key's is
answered as one that does not exist.
"""
TAGS = [
    {"name": "predict", "description": "Texts in, labels and scores out."},
    {
        "name": "adapters",
        "description": "What is served: upload, list, roll back, download, delete.",
    },
    {"name": "storage", "description": "What one copy of the backbone takes and saves."},
    {"name": "operations", "description": "Alive, ready, measured."},
    {
        "name": "open inference protocol",
        "description": "KServe's and Triton's V2: a task is a model.",
    },
]

_WHY = {
    400: "The body is malformed",
    401: "No key, or a wrong one",
    403: "A web page of another site asks, or one under a foreign host name; or a key without the"
    " scope",
    404: "No such task or version",
    408: "It came too slowly",
    409: "It does not go with the task's state",
    413: "Too much: body, inputs or tokens",
    415: "The body is compressed",
    422: "A value is not what it should be",
    429: "Too much at once: try again after Retry-After seconds",
    503: "Not now: stopping, or the adapter or the store does not work",
}
# One sentence of each error, as the service answers it.
_SENTENCES: dict[type[Exception], str] = {
    refusals.MalformedBody: (
        "the body is not JSON: Input is a zero-length, empty document: line 1 column 1 (char 0); "
        "expected an object with 'inputs'"
    ),
    refusals.MissingKey: (
        "this request bears no key; expected the API key (ADAMIX_API_KEY) as 'Authorization:"
        " Bearer …'"
    ),
    refusals.ForeignPage: (
        "a page of 'https://example.com' asks to write; expected this service's own page"
    ),
    refusals.TooManyWrongKeys: str(refusals.TooManyWrongKeys(42)),
    refusals.MissingScope: ("the key 'team-a' has 'predict'; expected the scope 'write'"),
    refusals.KeyLimited: str(refusals.KeyLimited("team-a", "requests", 20, 1)),
    refusals.KeyUnchecked: str(refusals.KeyUnchecked()),
    refusals.ForeignHost: (
        "this request is for the host 'rebound.example'; expected localhost, or a name that"
        " ADAMIX_ALLOWED_HOSTS lists"
    ),
    refusals.CompressedBody: (
        "the body's Content-Encoding is 'gzip'; expected a body that is not compressed"
    ),
    refusals.AnswerTooLarge: (
        "the answer would have 134217728 bytes or more; expected at most 33554432: fewer inputs, or"
        " a smaller top_k"
    ),
    adapter_errors.UnknownTask: "there is no task 'sst'; the closest are 'sst2'",
    adapter_errors.UnknownVersion: (
        f"task 'sst2' has no version 'beef'; expected one of {VERSION}, by 4 digits or more"
    ),
    adapter_errors.AmbiguousVersion: (
        f"version '1c9a' of task 'sst2' fits {VERSION}, 1c9af0bd3e92; expected a longer prefix"
    ),
    adapter_errors.NoActiveVersion: (
        f"task 'sst2' has no active version; expected one of {VERSION} to be activated"
    ),
    adapter_errors.VersionIsActive: (
        f"version {VERSION} is the active one of task 'sst2'; "
        "expected another one to be activated first, or the whole task to be deleted"
    ),
    adapter_errors.VersionInTraffic: (
        f"version {VERSION} is the canary of task 'sst2'; expected that to be ended first, by"
        " DELETE /adapters/sst2/traffic or another PUT"
    ),
    adapter_errors.ActiveHasChanged: (
        f"version 1c9af0bd3e92 is not the active one of task 'sst2'; expected {VERSION}, or it"
        " activated first, by POST /adapters/sst2/activate"
    ),
    refusals.RequestTooSlow: str(refusals.RequestTooSlow()),
    refusals.BodyTooLarge: str(refusals.BodyTooLarge(10000014, 2097152)),
    refusals.TooManyInputs: (
        "the request has 300 inputs for 1 task; expected at most 256 rows in all"
    ),
    refusals.InputTooLong: (
        "input 0 has 302 tokens; expected at most 128 tokens (or truncate=true in the query or the"
        " body; for V2 in its parameters)"
    ),
    adapter_errors.TooManyWindows: (
        "input 0 has 30000 tokens or more and takes 322 windows or more; "
        "expected at most 256, the rows that the request has left for it"
    ),
    refusals.InvalidRequest: "inputs is an empty list; expected at least one text",
    adapter_errors.InvalidText: "inputs is empty; expected a text",
    adapter_errors.InvalidWindow: (
        "the window's stride is 126; expected less than 126, its tokens of the text"
    ),
    adapter_errors.InvalidAdapter: (
        "the file has 0 bytes; expected a safetensors file, which has at least 8"
    ),
    adapter_errors.BackboneMismatch: (
        "the adapter was made for backbone 'embedded' with fingerprint 000000000000; "
        "expected 'embedded' with fingerprint 8082ef5ee211"
    ),
    refusals.QueueFull: str(refusals.QueueFull()),
    refusals.Closed: str(refusals.Closed()),
    refusals.OutcomeUnknown: str(refusals.OutcomeUnknown()),
    adapter_errors.DamagedAdapter: (
        f"version {VERSION} of task 'sst2' is damaged on disk: its sha256 is 17f0bd3e92ac…;"
        f" expected {VERSION}…"
    ),
    adapter_errors.StoreUnreachable: (
        "could not read 'blobs/1c9a….safetensors' of the bucket s3://adapters/prod: operation timed"
        " out; expected an answer in time"
    ),
    adapter_errors.WriteUnknown: (
        "whether the change of task 'sst2' was written to 'log/00000000000000000007.json' of the"
        " bucket s3://adapters/prod is unknown: operation timed out; expected GET /adapters/sst2 to"
        " show it once the bucket answers"
    ),
    refusals.Stale: str(refusals.Stale(3.2, 1.0)),
    refusals.BehindGeneration: str(refusals.BehindGeneration(5, 7)),
    refusals.NotFinite: (
        f"version {VERSION} of task 'sst2' gives logits that are NaN or infinite for input 0, in"
        " float16; expected finite numbers: another version, or an ADAMIX_DTYPE with a wider range"
    ),
    refusals.DeviceOutOfMemory: (
        "the device has no memory for 1 row of 512 tokens; expected shorter texts, or fewer slots"
        " (ADAMIX_SLOTS) beside them"
    ),
    refusals.AdapterNotLoaded: (
        "version 1c9a3464a366 of task 'sst2' could not be put on the device: 'CUDA out of memory.';"
        " expected memory for it, or fewer slots (ADAMIX_SLOTS)"
    ),
    adapter_errors.StoreError: "the store var/store cannot be written: No space left on device",
}
# By error_type: its status and the sentence.
PROBLEMS = {
    error_type(kind): (status_of_kind(kind), sentence) for kind, sentence in _SENTENCES.items()
}

VERSION_PROBLEMS = ("UnknownTask", "UnknownVersion", "AmbiguousVersion", "NoActiveVersion")
ADMIT_PROBLEMS = (
    *(*VERSION_PROBLEMS, "BackboneMismatch", "DamagedAdapter", "Stopping"),
    *("StoreUnreachable", "BehindGeneration"),
)
KEY_PROBLEMS = ("MissingKey", "TooManyWrongKeys", "MissingScope", "KeyLimited", "KeyUnchecked")
PREDICT_PROBLEMS = (
    *KEY_PROBLEMS,
    *(
        "MalformedBody",
        "CompressedBody",
        *ADMIT_PROBLEMS,
        "BodyTooLarge",
        "TooManyInputs",
        "InputTooLong",
    ),
    *(
        "AnswerTooLarge",
        "TooManyWindows",
        "InvalidWindow",
        "InvalidRequest",
        "InvalidText",
        "QueueFull",
        "NotFinite",
        "DeviceOutOfMemory",
        "AdapterNotLoaded",
    ),
)
WRITE_PROBLEMS = (
    *(*KEY_PROBLEMS, "ForeignPage", "StoreError", "OutcomeUnknown"),
    *("StoreUnreachable", "WriteUnknown"),
)

_HEADERS = {
    "X-Adapter-Version": ("Which version answered, of each task.", f"sst2@{VERSION}"),
    "Server-Timing": (
        "Milliseconds of each stage.",
        "queue;dur=0.046, tokenize;dur=0.120, inference;dur=31.526",
    ),
    "Retry-After": ("Seconds to wait.", "1"),
    "WWW-Authenticate": ("How to bear a key.", "Bearer"),
    "Location": ("Where the file can be had again.", f"/adapters/sst2/versions/{VERSION}/file"),
    "X-Total-Count": ("How many tasks fit the search.", "10"),
    "ETag": ("The file's sha256.", f'"{VERSION}…"'),
    "Content-Disposition": (
        "A name for the file.",
        f'attachment; filename="sst2-{VERSION}.safetensors"',
    ),
    "X-Request-ID": (
        "The request's id: its own, or one that was made.",
        "e0fde5b36e0b4cc9a14af8f0104cceba",
    ),
}
_HEADERS_OF = {401: ("WWW-Authenticate",), 429: ("Retry-After",)}
JSON = "application/json"


def problems(*names: str) -> dict[int | str, Document]:
    """A route's documentation of the errors that it answers; `names` are their error_type."""
    answers: dict[int | str, Document] = {}
    for name in (*names, "ForeignHost"):  # which every route may answer
        status, sentence = PROBLEMS[name]
        answer = answers.setdefault(
            status, {"model": Problem, **answered(_WHY[status], {}, _HEADERS_OF.get(status, ()))}
        )
        answer["content"][JSON]["examples"][name] = {
            "value": {"error": sentence, "error_type": name}
        }
    return answers


def answered(
    description: str,
    examples: Document | None = None,
    names: Iterable[str] = (),
    media_type: str = JSON,
) -> Document:
    """A route's documentation of one answer: its examples by name, and the headers that it always
    has."""
    answer: Document = {
        "description": description,
        "headers": {name: _header(name) for name in names},
    }
    return (
        answer if examples is None else answer | {"content": {media_type: {"examples": examples}}}
    )


def body_of(model: type[BaseModel], examples: Document) -> Document:
    """A route's documentation of a JSON body that the route reads itself."""
    return {"required": True, "content": {JSON: {"schema": schema_of(model), "examples": examples}}}


def schema_of(model: type[BaseModel]) -> Document:
    """A model's JSON schema without references: only models that FastAPI knows become components
    to refer to."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(item) for item in node]
        if not isinstance(node, dict):
            return node
        rest = {key: whole(value) for key, value in node.items() if key != "$ref"}
        return (
            whole(parts[node["$ref"].removeprefix("#/$defs/")]) | rest if "$ref" in node else rest
        )

    answer: Document = whole(schema)
    return answer


def finished(document: Document) -> Document:
    """FastAPI's document, corrected. It promises a 422 of its own form for each route with a
    parameter; no route here answers that. It does not know the header that the middleware adds."""
    document["components"].setdefault("headers", {})["X-Request-ID"] = _header("X-Request-ID")
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)
    for operation in (
        operation for path in document["paths"].values() for operation in path.values()
    ):
        answers = operation["responses"]
        if "HTTPValidationError" in str(answers.get("422")):
            del answers["422"]
        for answer in answers.values():
            answer.setdefault("headers", {})["X-Request-ID"] = {
                "$ref": "#/components/headers/X-Request-ID"
            }
    return document


def _header(name: str) -> Document:
    description, example = _HEADERS[name]
    return {
        "description": description,
        "required": True,
        "schema": {"type": "string"},
        "example": example,
    }
