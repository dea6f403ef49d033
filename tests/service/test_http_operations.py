"""Health, metrics, storage, keys, logs and stopping: what operators rely on."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import pytest
import structlog
import torch
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from adapters.backbone import Backbone
from adapters.file import parse, serialize
from adapters.store import Store
from service.http import answers
from service.http.middleware import RequestContext
from tests.service.conftest import ADMIN_KEY, TASKS, Server, running, until
from tests.tiny import random_adapter

FILM = {"inputs": "it is a good film"}
CONTRACT = {
    "adamix_requests": "counter",
    "adamix_request_duration_seconds": "histogram",
    "adamix_queue_duration_seconds": "histogram",
    "adamix_tokenization_duration_seconds": "histogram",
    "adamix_inference_duration_seconds": "histogram",
    "adamix_batch_rows": "histogram",
    "adamix_batch_tokens": "histogram",
    "adamix_batch_tasks": "histogram",
    "adamix_queue_rows": "gauge",
    "adamix_queue_max_rows": "gauge",
    "adamix_adapter_loaded": "gauge",
    "adamix_slots_used": "gauge",
    "adamix_slots_bytes": "gauge",
    "adamix_adapter_loads": "counter",
    "adamix_adapter_evictions": "counter",
    "adamix_adapter_load_failures": "counter",
    "adamix_out_of_memory": "counter",
    "adamix_adapter_load_duration_seconds": "histogram",
    "adamix_backbone_bytes": "gauge",
    "adamix_adapters_bytes": "gauge",
    "adamix_full_copies_bytes": "gauge",
    "adamix_saved_bytes": "gauge",
    "adamix_build_info": "gauge",
}


def families(client: httpx2.Client) -> dict[str, Any]:
    return {
        family.name: family
        for family in text_string_to_metric_families(client.get("/metrics").text)
    }


def value(client: httpx2.Client, family: str, sample: str, **labels: str) -> float:
    found = families(client)[family].samples
    return sum(s.value for s in found if s.name == sample and labels.items() <= s.labels.items())


def test_alive_and_ready(client: httpx2.Client) -> None:
    """A running server is alive and ready, says what it serves, and has a page and a documentation
    for people."""
    assert client.get("/health").json() == {"status": "alive"}
    assert client.get("/ready").json() == {
        "status": "ready",
        "backbone": "embedded",
        "tasks": len(TASKS),
    }
    assert client.get("/").headers["Content-Type"].startswith("text/html")
    assert client.get("/docs").status_code == 200


def test_the_schema_documents_every_route(client: httpx2.Client) -> None:
    """OpenAPI lists every route of the contract, with the errors each answers."""
    paths = client.get("/openapi.json").json()["paths"]
    wanted = {
        "/predict": {"post"},
        "/adapters": {"get", "post"},
        "/adapters/{task}": {"get", "delete"},
        "/adapters/{task}/activate": {"post"},
        "/adapters/{task}/traffic": {"get", "put", "delete"},
        "/adapters/{task}/versions/{version}": {"delete"},
        "/adapters/{task}/versions/{version}/file": {"get"},
        "/storage": {"get"},
        "/v2": {"get"},
        "/v2/health/live": {"get"},
        "/v2/health/ready": {"get"},
        "/v2/repository/index": {"post"},
        "/v2/models/{task}": {"get"},
        "/v2/models/{task}/ready": {"get"},
        "/v2/models/{task}/infer": {"post"},
        "/v2/models/{task}/versions/{version}": {"get"},
        "/v2/models/{task}/versions/{version}/ready": {"get"},
        "/v2/models/{task}/versions/{version}/infer": {"post"},
        "/fresh": {"get"},
        "/health": {"get"},
        "/ready": {"get"},
        "/metrics": {"get"},
    }
    assert {path: set(methods) for path, methods in paths.items()} == wanted
    for path in ("/predict", "/v2/models/{task}/infer"):
        assert {"400", "404", "413", "422", "429"} <= set(paths[path]["post"]["responses"])


def test_the_schema_refers_to_nothing_that_is_not_there(client: httpx2.Client) -> None:
    """Every reference in the OpenAPI document leads to one of its own components."""
    text = client.get("/openapi.json").text
    references = re.findall(r'"\$ref": ?"#/components/(\w+)/([^"]+)"', text)
    assert text.count('"$ref"') == len(references) > 0
    components = json.loads(text)["components"]
    assert all(name in components[kind] for kind, name in references)


def test_metrics_are_the_contracts(client: httpx2.Client) -> None:
    """Every metric of the contract is there, of its type, and no histogram has a task label."""
    client.post("/predict?task=sst2", json=FILM)
    found = families(client)
    assert {name: found[name].type for name in CONTRACT if name in found} == CONTRACT
    for family in found.values():
        if family.type == "histogram":
            assert all("task" not in sample.labels for sample in family.samples)


def test_metrics_count_what_happened(client: httpx2.Client) -> None:
    """Requests are counted by task and outcome, batches by rows; an unknown task makes no
    series."""
    ok = value(client, "adamix_requests", "adamix_requests_total", task="topics", outcome="ok")
    invalid = value(
        client, "adamix_requests", "adamix_requests_total", task="topics", outcome="invalid"
    )
    rows = value(client, "adamix_batch_rows", "adamix_batch_rows_sum")
    client.post("/predict?task=topics", json={"inputs": ["good", "bad", "awful"]})
    client.post("/predict?task=topics", json={"inputs": ""})
    client.post("/predict?task=nonesuch", json=FILM)
    assert (
        value(client, "adamix_requests", "adamix_requests_total", task="topics", outcome="ok")
        == ok + 1
    )
    assert (
        value(client, "adamix_requests", "adamix_requests_total", task="topics", outcome="invalid")
        == invalid + 1
    )
    assert value(client, "adamix_batch_rows", "adamix_batch_rows_sum") == rows + 3
    assert "nonesuch" not in client.get("/metrics").text
    assert (
        value(
            client, "adamix_adapter_loaded", "adamix_adapter_loaded", task="topics", tier="device"
        )
        == 1
    )


def test_few_metrics_can_be_asked_for(client: httpx2.Client) -> None:
    """`name[]` answers those samples alone, so that a page may ask often; other names answer
    nothing."""
    client.post("/predict?task=sst2", json=FILM)
    names = ["adamix_batch_rows_sum", "adamix_request_duration_seconds_count"]
    found = client.get("/metrics", params={"name[]": names}).text.splitlines()
    assert [line.split()[0] for line in sorted(found) if not line.startswith("#")] == names
    gauge = client.get("/metrics", params={"name[]": "adamix_saved_bytes"}).text
    assert float(gauge.split()[-1]) == client.get("/storage").json()["saved_bytes"]
    assert client.get("/metrics", params={"name[]": "nonesuch"}).text == ""


def test_storage_adds_up(client: httpx2.Client, server: Server) -> None:
    """The saving is what full copies would take less what the one backbone and all adapters
    take."""
    storage = client.get("/storage").json()
    files = sum(path.stat().st_size for path in server.store.glob("*/*.safetensors"))
    assert storage["backbone_bytes"] == 90_852_864  # 22,713,216 parameters of four bytes
    assert (
        storage["adapters_bytes"]
        == files
        == sum(adapter["bytes"] for adapter in storage["adapters"])
    )
    assert storage["full_copies_bytes"] == len(TASKS) * storage["backbone_bytes"]
    assert storage["saved_bytes"] == storage["full_copies_bytes"] - storage["total_bytes"]
    assert storage["ratio"] == pytest.approx(
        storage["full_copies_bytes"] / storage["total_bytes"], abs=1e-3
    )
    assert value(client, "adamix_saved_bytes", "adamix_saved_bytes") == storage["saved_bytes"]
    assert client.get("/storage?adapters=false").json() == {**storage, "adapters": []}


def test_each_request_leaves_one_line_of_json(client: httpx2.Client, server: Server) -> None:
    """The log holds one line for a request, with its id, path, status and milliseconds."""
    client.post("/predict?task=sst2", json=FILM, headers={"X-Request-ID": "look-for-me"})
    until(lambda: any(line.get("request_id") == "look-for-me" for line in list(server.lines)))
    client.get("/storage")  # its line comes after the other's
    (line,) = [line for line in list(server.lines) if line.get("request_id") == "look-for-me"]
    assert (line["event"], line["path"], line["status"]) == ("request", "/predict", 200)
    assert line["ms"] > 0


def test_keys_guard_writes_and_predictions(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """Off loopback a kept admin key is needed to write; ADAMIX_API_KEY guards /predict and infer;
    health stays open."""
    data = adapter_bytes("sst2")
    with running(tmp_path / "store", host="0.0.0.0", api_key="predict-key") as server:
        server.url = server.url.replace("0.0.0.0", "127.0.0.1")
        kept = tmp_path / "store.admin-key"
        made = kept.read_text().strip()
        assert not [line for line in server.lines if made in str(line)]
        assert stat.S_IMODE(kept.stat().st_mode) == 0o600
        with server.client() as client:
            for key in (None, "wrong", "predict-key"):
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                refused = client.post("/adapters", files={"file": data}, headers=headers)
                assert (refused.status_code, refused.json()["error_type"]) == (401, "MissingKey")
                assert client.delete("/adapters/sst2", headers=headers).status_code == 401
            admin = {"Authorization": f"Bearer {made}"}
            assert client.post("/adapters", files={"file": data}, headers=admin).status_code == 201
            assert client.post("/predict?task=sst2", json=FILM).status_code == 401
            assert client.post("/predict?task=sst2", json=FILM, headers=admin).status_code == 401
            infer = {
                "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]
            }
            mine = {"Authorization": "Bearer predict-key"}
            assert client.post("/v2/models/sst2/infer", json=infer).status_code == 401
            assert client.post("/v2/models/sst2/infer", json=infer, headers=mine).status_code == 200
            assert client.post("/predict?task=sst2", json=FILM, headers=mine).status_code == 200
            assert client.get("/health").status_code == client.get("/metrics").status_code == 200
        assert server.stop() == 0


def test_a_given_admin_key_is_the_one(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """ADAMIX_ADMIN_KEY is asked for wherever it is set, also on loopback, and no other key is
    made."""
    with running(tmp_path / "store", admin_key=ADMIN_KEY) as server, server.client() as client:
        assert not (tmp_path / "store.admin-key").exists()
        admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
        assert client.post("/adapters", files={"file": adapter_bytes("sst2")}).status_code == 401
        assert (
            client.post(
                "/adapters", files={"file": adapter_bytes("sst2")}, headers=admin
            ).status_code
            == 201
        )


def test_overload_answers_429_and_recovers(filled_store: Path) -> None:
    """More rows than the queue holds are refused with 429 and Retry-After, counted, and the rest is
    answered."""
    with (
        running(
            filled_store, read_only=True, max_queue_rows=4, max_inputs=4, max_batch_tokens=16
        ) as server,
        server.client() as client,
    ):
        together = threading.Barrier(16)

        def call(_: int) -> httpx2.Response:
            together.wait(timeout=60)
            return client.post("/predict?task=sst2", json={"inputs": ["good " * 12] * 4})

        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(call, range(16)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert {answer.status_code for answer in answers} == {200, 429}
        assert {answer.json()["error_type"] for answer in refused} == {"QueueFull"}
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert client.post("/predict?task=sst2", json={"inputs": ["good"] * 4}).status_code == 200
        overloaded = value(
            client, "adamix_requests", "adamix_requests_total", task="sst2", outcome="overloaded"
        )
        assert overloaded == len(refused)


def test_an_empty_store_is_seeded(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """An empty store starts with the seed folder's adapters that fit; one that does not is left out
    and logged."""
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "sst2.safetensors").write_bytes(adapter_bytes("sst2"))
    (seed / "broken.safetensors").write_bytes(b"no adapter")
    with running(tmp_path / "store", seed=seed) as server, server.client() as client:
        assert [entry["task"] for entry in client.get("/adapters").json()] == ["sst2"]
        assert any("broken.safetensors" in str(line.get("file")) for line in server.lines)


def test_a_rotten_file_fails_its_task_alone(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A task whose file rotted on disk answers 503 with the reason; the others go on."""
    store = Store(tmp_path / "store")
    rotten, _ = store.put(parse(adapter_bytes("sst2")))
    store.put(parse(adapter_bytes("topics")))
    store.close()
    path = store.path("sst2", rotten.digest)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with running(tmp_path / "store") as server, server.client() as client:
        answer = client.post("/predict?task=sst2", json=FILM)
        assert (answer.status_code, answer.json()["error_type"]) == (503, "DamagedAdapter")
        found = hashlib.sha256(data).hexdigest()[:12]
        reason = f"its sha256 is {found}…; expected {rotten.short}…"
        assert (
            answer.json()["error"]
            == f"version {rotten.short} of task 'sst2' is damaged on disk: {reason}"
        )
        assert (
            value(client, "adamix_adapter_load_failures", "adamix_adapter_load_failures_total") == 1
        )
        assert client.post("/predict?task=topics", json=FILM).status_code == 200
        assert client.get("/metrics").status_code == client.get("/adapters").status_code == 200


def test_an_adapter_of_another_backbone_is_refused_each_time(
    tmp_path: Path, embedded: Backbone
) -> None:
    """A stored adapter that the backbone cannot run is a 422 for every request, whether its file is
    read or in memory, and each is counted as a failed load."""
    spec, tensors, _ = random_adapter(embedded, "sst2", **TASKS["sst2"])
    other = spec.backbone.model_copy(update={"fingerprint": "0" * 64})
    data = serialize(spec.model_copy(update={"backbone": other}), tensors)
    Store(tmp_path / "store").put(parse(data))
    with running(tmp_path / "store") as server, server.client() as client:
        for _ in range(3):
            answer = client.post("/predict?task=sst2", json=FILM)
            assert (answer.status_code, answer.json()["error_type"]) == (422, "BackboneMismatch")
        failures = "adamix_adapter_load_failures"
        assert value(client, failures, f"{failures}_total") == 3


def test_an_adapter_that_overflows_is_said_to(tmp_path: Path, embedded: Backbone) -> None:
    """Logits that are infinite or NaN are a 503 that names the version, from /predict and from
    infer, and counted."""
    spec, tensors, _ = random_adapter(embedded, "sst2", **TASKS["sst2"], dtype=torch.float32)
    tensors["head.out.weight"] = tensors["head.out.weight"].sign() * 3e38
    version, _ = Store(tmp_path / "store").put(parse(serialize(spec, tensors)))
    infer = {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]}
    with running(tmp_path / "store") as server, server.client() as client:
        for path, body in (("/predict?task=sst2", FILM), ("/v2/models/sst2/infer", infer)):
            answer = client.post(path, json=body)
            assert (answer.status_code, answer.json()["error_type"]) == (503, "NotFinite")
            for word in (version.short, "'sst2'", "NaN", "input 0", "float32", "ADAMIX_DTYPE"):
                assert word in answer.json()["error"]
        assert (
            value(
                client,
                "adamix_requests",
                "adamix_requests_total",
                task="sst2",
                outcome="unavailable",
            )
            == 2
        )


def test_no_accepted_request_is_lost_when_stopping(filled_store: Path) -> None:
    """SIGTERM under load: every request that the server's log says it accepted got its whole
    answer."""
    answered: set[str] = set()
    enough = threading.Event()

    def call_until_refused(server: Server, worker: int) -> None:
        with server.client() as client:
            for i in range(10_000):
                name = f"{worker}-{i}"
                try:
                    answer = client.post(
                        "/predict?task=sst2",
                        json={"inputs": ["good"] * 8},
                        headers={"X-Request-ID": name},
                    )
                except httpx2.TransportError:
                    # the listening socket or an idle connection was closed: not accepted, to be
                    # retried elsewhere
                    return
                assert answer.status_code in (200, 503), answer.text
                assert answer.json()
                answered.add(name)
                if len(answered) > 50:
                    enough.set()

    with running(filled_store, read_only=True, log_level="debug") as server:
        with ThreadPoolExecutor(16) as pool:
            workers = [pool.submit(call_until_refused, server, worker) for worker in range(16)]
            assert enough.wait(timeout=60)
            code = server.stop()
            for worker in workers:
                worker.result(timeout=60)
        accepted = {
            line["request_id"]
            for line in server.lines
            if line["event"] == "accepted" and line["path"] == "/predict"
        }
        assert code == 0
        assert server.lines[-1]["event"] == "stopped"
        assert len(accepted) > 50
        assert accepted <= answered


@pytest.mark.parametrize(
    ("name", "wrong", "word"),
    [
        (
            "MAX_INPUTS",
            "4096",
            "ADAMIX_MAX_INPUTS is 4096; expected at most MAX_QUEUE_ROWS, which is 2048",
        ),
        ("SLOTS", "0", "ADAMIX_SLOTS is '0'; expected greater than or equal to 1"),
        ("SLOTS", "-1", "ADAMIX_SLOTS is '-1'; expected greater than or equal to 1"),
        ("DTYPE", "int4", "int4"),
        ("BACKBONE", "/nowhere", "/nowhere"),
    ],
)
def test_a_wrong_setting_is_one_sentence(name: str, wrong: str, word: str) -> None:
    """A setting that cannot be is named in one sentence, with exit code 2 and no traceback."""
    environment = {**os.environ, f"ADAMIX_{name}": wrong}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert word in line


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\nno colon\r\n\r\n",
        (
            b"POST /predict?task=sst2 HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding:"
            b" chunked\r\n\r\nzz\r\n"
        ),
    ],
)
def test_broken_http_is_answered_in_our_form(server: Server, request_bytes: bytes) -> None:
    """A connection that sends no HTTP gets a 400 with the error's JSON, and is closed."""
    with socket.create_connection(
        ("127.0.0.1", urlsplit(server.url).port or 0), timeout=10
    ) as connection:
        connection.sendall(request_bytes)
        head, _, body = b"".join(iter(lambda: connection.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    assert json.loads(body)["error_type"] == "MalformedRequest"


def test_a_client_that_leaves_within_its_body_is_no_error_of_ours(server: Server) -> None:
    """A connection that closes before its request's body is whole is counted as cancelled and logs
    no traceback."""
    port = urlsplit(server.url).port
    assert port is not None
    for path in ("/predict?task=sst2", "/adapters"):
        with socket.create_connection(("127.0.0.1", port)) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data;"
                " boundary=x\r\n"
            )
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n--x".encode())
    with server.client() as client:
        wanted = 'adamix_requests_total{outcome="cancelled",task="sst2"}'
        # each asks the server, which learns of the closed connection on its own time
        for _ in range(2000):
            text = client.get("/metrics").text
            if wanted in text:
                break
        assert wanted in text
        assert 'outcome="error"' not in text
    assert not [line for line in server.lines if line.get("level") == "error"]


def test_a_fault_of_ours_is_answered_with_its_request_id() -> None:
    """A 500 says nothing of its cause, carries the id that its log line has, and is logged as a
    500."""
    app = FastAPI()
    answers.install(app)
    app.add_middleware(RequestContext)

    @app.get("/")
    async def broken() -> None:
        raise RuntimeError("a secret")

    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [(b"x-request-id", b"mine")],
    }
    with pytest.raises(RuntimeError), structlog.testing.capture_logs() as logged:
        asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 500
    assert (b"x-request-id", b"mine") in sent[0]["headers"]
    assert b"secret" not in sent[1]["body"]
    assert [line["status"] for line in logged if line["event"] == "request"] == [500]


def test_any_accept_gets_metrics(client: httpx2.Client) -> None:
    """An Accept that prometheus_client cannot read is answered in the plain format."""
    answer = client.get("/metrics", headers={"Accept": "application/openmetrics-text;version=zz"})
    assert answer.status_code == 200
    assert "adamix_backbone_bytes" in answer.text
