"""/openapi.json read by a stranger: it is whole, its examples are true, and its errors are the
sentences that are said."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import jsonschema_rs
import pytest
from fastapi import FastAPI

from service.http import openapi
from service.http.recorded import ANSWERS
from service.http.routes import docs, health
from tests.service.record_examples import record

Document = dict[str, Any]
OPEN = {
    "GET /health",
    "GET /ready",
    "GET /fresh",
    "GET /v2",
    "GET /v2/health/live",
    "GET /v2/health/ready",
}


@pytest.fixture
def document(client: httpx2.Client) -> Document:
    found: Document = client.get("/openapi.json").json()
    return found


def operations(document: Document) -> Iterator[tuple[str, Document]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def contents(operation: Document) -> Iterator[tuple[str, Document]]:
    """Every body of an operation, request and answers: its media type and what is said of it."""
    for part in (operation.get("requestBody", {}), *operation["responses"].values()):
        yield from part.get("content", {}).items()


def test_every_operation_says_what_it_is(document: Document) -> None:
    """Each operation has a summary, a description, a known tag and a name of its own; each
    parameter is described."""
    known = {tag["name"] for tag in document["tags"]}
    ids = [operation["operationId"] for _, operation in operations(document)]
    assert len(set(ids)) == len(ids)
    for name, operation in operations(document):
        assert operation["summary"], name
        assert operation["description"], name
        assert set(operation["tags"]) <= known, name
        assert all(parameter["description"] for parameter in operation.get("parameters", [])), name
        guarded = name not in OPEN
        assert bool(operation.get("security")) == ("401" in operation["responses"]) == guarded, name


def test_every_json_body_has_examples_that_fit_its_schema(document: Document) -> None:
    """Each request and each answer in JSON, errors included, has examples, and all of them are
    valid by its schema."""
    for name, operation in operations(document):
        for media_type, content in contents(operation):
            if media_type != "application/json":
                continue
            assert content["examples"], name
            validator = jsonschema_rs.validator_for(
                {**content["schema"], "components": document["components"]}
            )
            for example in content["examples"].values():
                validator.validate(example["value"])


def test_headers_are_documented(document: Document) -> None:
    """The headers that clients are promised stand with the answers that bear them."""
    said = dict(operations(document))
    for path in ("/predict", "/v2/models/{task}/infer"):
        answers = said[f"POST {path}"]["responses"]
        assert {"X-Adapter-Version", "Server-Timing", "X-Request-ID"} <= set(
            answers["200"]["headers"]
        )
        assert "Retry-After" in answers["429"]["headers"]
        assert "WWW-Authenticate" in answers["401"]["headers"]
    assert "Location" in said["POST /adapters"]["responses"]["201"]["headers"]


def test_examples_are_what_the_service_answers(tmp_path: Path, document: Document) -> None:
    """A service with the shipped adapters answers each example request as the documentation shows:
    the same but for times, and the third digit of scores."""
    found = record(tmp_path / "store")
    assert set(found) == set(ANSWERS)
    for name, answer in found.items():
        assert comparable(answer, name) == comparable(ANSWERS[name], name), name
    listed = dict(operations(document))["GET /adapters"]["responses"]["200"]["headers"]
    assert listed["X-Total-Count"]["example"] == str(found["ready"]["tasks"])


def comparable(value: Any, key: str = "") -> Any:
    """An answer without what differs from run to run: times, and digits of numbers."""
    if isinstance(value, dict):
        return {key: comparable(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner, key) for inner in value]
    if key in ("created", "p50", "p99"):
        return type(value)
    if key == "metrics":  # in no order
        return sorted(value.splitlines())
    if key == "data" and isinstance(value, str):  # "score:index:label"
        score, colon, rest = value.partition(":")
        return (pytest.approx(float(score), abs=1e-3), rest) if colon else value
    return pytest.approx(value, abs=1e-3) if isinstance(value, float) else value


def masked(sentence: str) -> str:
    """A sentence without what differs from server to server: digests, lengths, which tasks there
    are."""
    return re.sub(r"\b[0-9a-f]{12}\b|\d+", "n", sentence).replace(
        "are 'sstn', 'stsb'", "are 'sstn'"
    )


Provoke = Callable[[httpx2.Client, str, bytes], httpx2.Response]
PROVOKED: dict[str, Provoke] = {
    "MalformedBody": lambda c, *_: c.post("/predict?task=sst2", content=b""),
    "CompressedBody": lambda c, *_: c.post(
        "/predict?task=sst2", content=b"a", headers={"Content-Encoding": "gzip"}
    ),
    "ForeignHost": lambda c, *_: c.get("/adapters", headers={"Host": "rebound.example"}),
    "ForeignPage": lambda c, *_: c.post("/adapters", headers={"Origin": "https://example.com"}),
    "UnknownTask": lambda c, *_: c.get("/adapters/sst"),
    "UnknownVersion": lambda c, *_: c.get("/v2/models/sst2/versions/beef"),
    "VersionIsActive": lambda c, version, _: c.delete(f"/adapters/sst2/versions/{version}"),
    "BodyTooLarge": lambda c, *_: c.post("/predict?task=sst2", content=b"x" * 10_000_014),
    "TooManyInputs": lambda c, *_: c.post("/predict?task=sst2", json={"inputs": ["a"] * 300}),
    "InputTooLong": lambda c, *_: c.post("/predict?task=sst2", json={"inputs": "go " * 300}),
    "TooManyWindows": lambda c, *_: c.post(
        "/predict?task=sst2", json={"inputs": "good " * 100_000, "parameters": {"window": {}}}
    ),
    "InvalidWindow": lambda c, *_: c.post(
        "/predict?task=sst2", json={"inputs": "a", "parameters": {"window": {"stride": 126}}}
    ),
    "InvalidRequest": lambda c, *_: c.post("/predict?task=sst2", json={"inputs": []}),
    "InvalidText": lambda c, *_: c.post("/predict?task=sst2", json={"inputs": ""}),
    "InvalidAdapter": lambda c, *_: c.post("/adapters", files={"file": b""}),
    "BackboneMismatch": lambda c, _, data: c.post(
        "/adapters",
        files={"file": re.sub(rb'(fingerprint\\":\\")[0-9a-f]{12}', rb"\g<1>000000000000", data)},
    ),
}
# What a single client cannot bring about here; each has a test of its own that looks at its
# error_type.
OTHERS = {
    *("TooManyWrongKeys", "AnswerTooLarge", "RequestTooSlow"),
    *("MissingKey", "AmbiguousVersion", "NoActiveVersion", "QueueFull"),
    *("Stopping", "DamagedAdapter", "NotFinite", "DeviceOutOfMemory", "AdapterNotLoaded"),
    *("StoreError", "OutcomeUnknown", "MissingScope", "KeyLimited", "KeyUnchecked"),
    *("VersionInTraffic", "ActiveHasChanged"),  # of a task with several versions
    *("StoreUnreachable", "WriteUnknown", "Stale", "BehindGeneration"),  # of a bucket
}


@pytest.mark.parametrize("name", PROVOKED)
def test_errors_are_the_sentences_that_are_shown(
    name: str, client: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """Each error that one client can bring about has the status and the sentence that the document
    shows of it."""
    status, sentence = openapi.PROBLEMS[name]
    answer = PROVOKED[name](
        client, client.get("/adapters/sst2").json()["version"], adapter_bytes("sst2")
    )
    assert (answer.status_code, answer.json()["error_type"]) == (status, name)
    assert masked(answer.json()["error"]) == masked(sentence)


def test_every_error_is_shown_somewhere(document: Document) -> None:
    """The document shows every error of the catalogue, and the tests know of each."""
    shown = {
        name
        for _, operation in operations(document)
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
        for name, example in content.get("examples", {}).items()
        if "error_type" in str(example["value"])
    }
    assert shown == set(openapi.PROBLEMS) == set(PROVOKED) | OTHERS


def test_the_document_does_not_hold_up_others() -> None:
    """While the document is made, which takes long the first time, other requests are answered."""
    answered = threading.Event()

    class App(FastAPI):
        @property
        def document(self) -> bytes:
            return b"true" if answered.wait(30) else b"false"

    async def scenario() -> None:
        app = App(openapi_url=None)
        app.include_router(docs.router)
        app.include_router(health.router)
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            document = asyncio.create_task(client.get("/openapi.json"))
            await asyncio.sleep(0)  # it begins
            assert (await client.get("/health")).status_code == 200
            answered.set()
            assert (await document).json() is True

    asyncio.run(scenario())
