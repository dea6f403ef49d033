"""What a request may cost: no more than its size times a small constant, whatever it holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import psutil
import pytest

from adapters.backbone import Backbone
from adapters.file import parse
from adapters.store import Store
from service.http.uploads import UploadRoom
from tests.service.conftest import Server, running
from tests.tiny import random_adapter

TWO_MIB = (2 << 20) - 1000
SECONDS = 1.0  # of processor time: the slowest of these took ten, and takes 0.1
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}


def many(item: str) -> str:
    return ",".join([item] * (TWO_MIB // (len(item) + 1)))


def keys(room: int = TWO_MIB) -> str:
    return ",".join(f'"{i:07d}":0' for i in range(room // 12))


INFER = "/v2/models/sst2/infer"
PREDICT = "/predict?task=sst2"
INPUT = json.dumps({"inputs": [TENSOR]})[:-1]
EXPENSIVE: dict[str, tuple[str, str, int]] = {
    "inputs that are numbers": (INFER, f'{{"inputs":[{many("0")}]}}', 422),
    "inputs that are objects": (INFER, f'{{"inputs":[{many("{}")}]}}', 422),
    "a huge shape": (INFER, f'{{"inputs":[{{"name":"text","shape":[{many("1")}]}}]}}', 422),
    "a shape of texts": (
        INFER,
        f'{{"inputs":[{{"name":"text","shape":[{many(chr(34) * 2)}]}}]}}',
        422,
    ),
    "huge data": (
        INFER,
        f'{{"inputs":[{{"name":"text","datatype":"BYTES","shape":[1],"data":[{many("0")}]}}]}}',
        422,
    ),
    "outputs that are numbers": (INFER, f'{INPUT},"outputs":[{many("0")}]}}', 422),
    "unknown keys of infer": (INFER, f"{{{keys()}}}", 422),
    "unknown keys of a tensor": (INFER, f'{{"inputs":[{{{keys()}}}]}}', 422),
    "unknown parameters of infer": (INFER, f'{INPUT},"parameters":{{{keys()}}}}}', 200),
    "unknown keys of an index": ("/v2/repository/index", f"{{{keys()}}}", 422),
    "unknown keys of an activation": ("/adapters/sst2/activate", f"{{{keys()}}}", 422),
    "many inputs": (PREDICT, f'{{"inputs":[{many(chr(34) + "a" + chr(34))}]}}', 413),
    "many inputs that are numbers": (PREDICT, f'{{"inputs":[{many("0")}]}}', 413),
    "unknown keys of predict": (PREDICT, f"{{{keys()}}}", 422),
    "unknown keys of an input": (PREDICT, f'{{"inputs":{{{keys()}}}}}', 422),
    "unknown parameters of predict": (PREDICT, f'{{"inputs":"a","parameters":{{{keys()}}}}}', 422),
    "unknown keys of a window": (
        PREDICT,
        f'{{"inputs":"a","parameters":{{"window":{{{keys()}}}}}}}',
        422,
    ),
    "options": (PREDICT, f'{{"inputs":"a","options":{{{keys()}}}}}', 200),
    "nested options": (PREDICT, f'{{"inputs":"a","options":{{"a":[{many("[]")}]}}}}', 200),
    "a key of two megabytes": (PREDICT, f'{{"{"k" * TWO_MIB}":0}}', 422),
}


def processor_seconds(server: Server) -> float:
    """Of the server's processes so far."""
    root = psutil.Process(server.process.pid)
    times = [process.cpu_times() for process in (root, *root.children())]
    return sum(time.user + time.system for time in times)


@pytest.mark.parametrize("what", EXPENSIVE)
def test_a_body_costs_no_more_than_its_size(
    what: str, client: httpx2.Client, server: Server
) -> None:
    """A body of two megabytes that is wrong in a million places is refused at the first one: its
    parts are counted before they are read, and its refusal is short."""
    path, body, status = EXPENSIVE[what]
    client.post(PREDICT, json={"inputs": "a"})
    before = processor_seconds(server)
    answer = client.post(path, content=body.encode())
    assert answer.status_code == status, answer.text[:500]
    assert processor_seconds(server) - before < SECONDS
    assert status == 200 or len(answer.json()["error"]) <= 510


def test_many_tasks_are_refused_before_the_body_is_read(server: Server) -> None:
    """More tasks than a request may have rows are refused without waiting for its body, or loading
    an adapter."""
    query = "&".join(f"task=t{i}" for i in range(900))
    with socket.create_connection(
        ("127.0.0.1", urlsplit(server.url).port or 0), timeout=30
    ) as connection:
        head = f"POST /predict?{query} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head.encode())
        answer = connection.recv(1 << 16)
    assert answer.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 413 "))


def test_more_tasks_than_rows_are_not_loaded(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A request for more existing tasks than it may have rows is refused by their number, and none
    of them is read."""
    store = Store(tmp_path / "store")
    for i in range(5):
        store.put(parse(adapter_bytes(f"task{i}")))
    query = "&".join(f"task=task{i}" for i in range(5))
    store.close()
    with running(tmp_path / "store", max_inputs=4) as server, server.client() as client:
        answer = client.post(f"/predict?{query}", content=b"")
        assert (answer.status_code, answer.json()["error_type"]) == (413, "TooManyInputs")
        assert {entry["tier"] for entry in client.get("/adapters").json()} == {"disk"}


LONG = "x" * 20_000
ECHOES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "a path": ("GET", f"/{LONG}", {}),
    "a path of a wrong method": ("PATCH", f"/adapters/{LONG}", {}),
    "a task": ("POST", f"/predict?task={LONG}", {"json": {"inputs": "a"}}),
    "a version": ("POST", f"/predict?task=sst2&version={LONG}", {"json": {"inputs": "a"}}),
    "a version with tasks": ("POST", f"/predict?task=mrpc&task=mnli&version={LONG}", {}),
    "a version in a path": ("GET", f"/adapters/sst2/versions/{LONG}/file", {}),
    "a search": ("GET", f"/adapters?search={LONG}", {}),
    "a limit": ("GET", f"/adapters?limit={LONG}", {}),
    "truncate": ("POST", f"/predict?task=sst2&truncate={LONG}", {"json": {"inputs": "a"}}),
    "a key": ("POST", "/predict?task=sst2", {"json": {LONG: 1}}),
    "a key of an input": ("POST", "/predict?task=sst2", {"json": {"inputs": {LONG: 1}}}),
    "a function": (
        "POST",
        "/predict?task=sst2",
        {"json": {"inputs": "a", "parameters": {"function_to_apply": LONG}}},
    ),
    "a tensor's name": ("POST", INFER, {"json": {"inputs": [{**TENSOR, "name": LONG}]}}),
    "a tensor's datatype": ("POST", INFER, {"json": {"inputs": [{**TENSOR, "datatype": LONG}]}}),
    "an output": ("POST", INFER, {"json": {"inputs": [TENSOR], "outputs": [{"name": LONG}]}}),
    "an origin": ("POST", "/adapters", {"headers": {"Origin": LONG}}),
    "an encoding": ("POST", "/predict?task=sst2", {"headers": {"Content-Encoding": LONG}}),
    "a content type": ("POST", "/adapters", {"headers": {"Content-Type": LONG}}),
    "a field": ("POST", "/adapters", {"files": {"file": b""}, "data": {LONG[:4000]: "1"}}),
    "activate": ("POST", "/adapters", {"files": {"file": b""}, "data": {"activate": LONG}}),
    "a version to activate": ("POST", "/adapters/sst2/activate", {"json": {"version": LONG}}),
}


@pytest.mark.parametrize("what", ECHOES)
def test_a_refusal_echoes_little(what: str, client: httpx2.Client) -> None:
    """However long the wrong part of a request is, the sentence shows a piece of it and still says
    what was expected."""
    method, path, options = ECHOES[what]
    answer = client.request(method, path, **options)
    assert 400 <= answer.status_code < 500, answer.text[:500]
    sentence = answer.json()["error"]
    assert sentence.count("x") <= 300
    assert len(sentence) <= 510
    assert answer.status_code == 404 or "expected" in sentence or "should" in sentence


def test_an_answer_is_bounded_by_its_labels(tmp_path: Path, embedded: Backbone) -> None:
    """Long labels times many inputs would be a huge answer: it is refused, and fewer inputs or
    labels are answered."""
    labels = [f"{i:03d}" + "\U0001d4b3" * 62 for i in range(1000)]  # of four bytes each
    data = random_adapter(embedded, "wordy", labels)[2]
    with Store(tmp_path / "store") as store:
        store.put(parse(data))
    texts = ["good"] * 160
    tensor = {"name": "text", "shape": [160], "datatype": "BYTES", "data": texts}
    with running(tmp_path / "store") as server, server.client() as client:
        path = "/predict?task=wordy"
        refused = client.post(path, json={"inputs": texts})
        assert (refused.status_code, refused.json()["error_type"]) == (413, "AnswerTooLarge")
        for body in ({"inputs": texts[:10]}, {"inputs": texts, "parameters": {"top_k": 3}}):
            assert client.post(path, json=body).status_code == 200
        path = "/v2/models/wordy/infer"
        assert client.post(path, json={"inputs": [tensor]}).status_code == 200
        outputs = [{"name": "score", "parameters": {"classification": 1000}}]
        refused = client.post(path, json={"inputs": [tensor], "outputs": outputs})
        assert (refused.status_code, refused.json()["error_type"]) == (413, "AnswerTooLarge")


def test_many_labels_are_answered_alike_off_the_event_loop(
    tmp_path: Path, embedded: Backbone
) -> None:
    """An answer of many numbers, which is made in a thread, is that of its texts one by one."""
    labels = [f"label-{i}" for i in range(500)]
    Store(tmp_path / "store").put(parse(random_adapter(embedded, "wide", labels)[2]))
    texts = ["good", "bad", "awful"] * 4
    with running(tmp_path / "store") as server, server.client() as client:
        path = "/predict?task=wide"
        together = client.post(path, json={"inputs": texts}).json()
        for text, scores in zip(texts[:3], together, strict=False):
            (alone,) = client.post(path, json={"inputs": [text]}).json()
            assert [entry["label"] for entry in alone[:3]] == [
                entry["label"] for entry in scores[:3]
            ]
            assert alone[0]["score"] == pytest.approx(scores[0]["score"], abs=1e-5)


def test_an_upload_needs_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: Backbone
) -> None:
    """A file of megabytes is uploaded although the folder of temporary files is full, or not
    there."""
    monkeypatch.setenv("TMPDIR", "/nonexistent")
    monkeypatch.setenv("TMP", "/nonexistent")
    data = random_adapter(embedded, "large", ["no", "yes"], bottleneck=256)[2]
    assert len(data) > 2 << 20
    with running(tmp_path / "store") as server, server.client() as client:
        assert client.post("/adapters", files={"file": data}).status_code == 201


@contextlib.contextmanager
def ordered(*names: str) -> Iterator[list[str]]:
    found: list[str] = []
    yield found
    assert found == list(names)


def test_uploads_wait_for_room() -> None:
    """Uploads take as much at once as two of the largest; the others wait, first come first served,
    and one that leaves makes room."""

    async def scenario() -> list[str]:
        room, events = UploadRoom(10), []
        leave = {name: asyncio.Event() for name in "abcd"}

        async def upload(name: str, size: int | None) -> None:
            async with room.taken(size):
                events.append(f"{name} begins")
                await leave[name].wait()
            events.append(f"{name} ends")

        tasks = {}
        for name, size in (("a", 10), ("b", 4), ("c", None), ("d", 5)):
            tasks[name] = asyncio.create_task(upload(name, size))
            await asyncio.sleep(0)
        assert events == ["a begins", "b begins"]  # c is as large as can be, and d waits behind it
        tasks["c"].cancel()
        await asyncio.wait([tasks["c"]])
        await asyncio.sleep(0)
        assert events[2:] == ["d begins"]
        for name in "abd":
            leave[name].set()
        await asyncio.gather(*(tasks[name] for name in "abd"))
        async with room.taken(1000), room.taken(1000):  # all of it is free again
            events.append("done")
        return events

    assert asyncio.run(scenario())[-1] == "done"
