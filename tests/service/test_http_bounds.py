"""What a request may cost: no more than its size times a small constant, whatever it holds."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Callable
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
from service.refusals import RequestTooSlow
from tests.service.clock import on_a_clock, passes
from tests.service.conftest import Server, running
from tests.service.sockets import connected, first_answer, seen
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


ROOM = 10  # bytes
PATIENCE = 5.0  # seconds of a test's own clock
LEAST = 2  # bytes within them


class Slow:
    """A client's body; the test says when its next piece comes."""

    def __init__(self, room: UploadRoom) -> None:
        self._pieces: asyncio.Queue[bytes] = asyncio.Queue()
        self._room = room
        self.read = 0
        self.left = asyncio.Event()
        self.task = asyncio.create_task(self._upload())

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self._pieces.put_nowait(piece)

    async def has(self, size: int) -> bool:
        """Whether so much of it is read, once all tasks have gone as far as they can."""
        for _ in range(20):
            await asyncio.sleep(0)
        return self.read == size

    async def _receive(self) -> dict[str, Any]:
        return {"type": "http.request", "body": await self._pieces.get()}

    async def _upload(self) -> None:
        with self._room.upload(self._receive) as receive:
            while piece := (await receive())["body"]:
                self.read += len(piece)
            await self.left.wait()


def test_uploads_share_room_by_what_has_come() -> None:
    """The oldest upload goes on whatever the others hold; these wait once they hold the room
    together, and one that ends makes room for the next."""

    async def scenario() -> None:
        room = UploadRoom(ROOM, PATIENCE, LEAST)
        first, second, third = Slow(room), Slow(room), Slow(room)
        first.send(b"1" * 8)
        second.send(b"2" * 4, b"2" * 4)
        assert await second.has(8)
        third.send(b"3" * 4)
        assert await third.has(0)  # 8 and 4 are more than the room
        first.send(b"1" * 80, b"")
        assert await first.has(88)
        first.left.set()
        assert await third.has(4)  # the second is the oldest now, and the room is the third's
        second.task.cancel()
        third.send(b"3" * 80, b"")
        assert await third.has(84)
        third.left.set()
        await third.task

    on_a_clock(scenario)


def test_uploads_that_stall_are_refused_where_others_wait() -> None:
    """While uploads wait for room, those whose clients send nothing are refused, the oldest among
    them; those that are read whole, those that wait for room and those that go on are not."""

    async def scenario() -> None:
        room = UploadRoom(ROOM, PATIENCE, LEAST)
        stalled, whole, holder = Slow(room), Slow(room), Slow(room)
        whole.send(b"w", b"")
        holder.send(b"h" * 9)
        assert await whole.has(1)
        assert await holder.has(9)
        passes(PATIENCE * 3)
        assert await stalled.has(0)
        waiting = Slow(room)
        waiting.send(b"5" * 5, b"")
        assert await waiting.has(0)
        passes(PATIENCE / 2)
        assert await stalled.has(0)
        assert not stalled.task.done(), "refused before its time"
        passes(PATIENCE)
        with pytest.raises(RequestTooSlow):
            await stalled.task
        with pytest.raises(RequestTooSlow):
            await holder.task
        assert await waiting.has(5)
        for upload in (whole, waiting):
            upload.left.set()
            await upload.task

    on_a_clock(scenario)


def test_a_slow_upload_that_goes_on_is_not_refused() -> None:
    """Where others wait for room, an upload of which enough comes in time is read to its end."""

    async def scenario() -> None:
        room = UploadRoom(ROOM, PATIENCE, LEAST)
        steady, holder, waiting = Slow(room), Slow(room), Slow(room)
        holder.send(b"h" * ROOM, b"")
        assert await holder.has(ROOM)
        waiting.send(b"w", b"")
        for i in range(1, 6):
            steady.send(b"s" * LEAST)
            assert await steady.has(LEAST * i)
            assert await waiting.has(0)
            passes(PATIENCE)
        steady.send(b"")
        assert await steady.has(LEAST * 5)
        for upload in (steady, holder, waiting):
            upload.left.set()
            await upload.task

    on_a_clock(scenario)


def test_two_slow_uploads_hold_up_no_other(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """Uploads that announce as much as they may and send a little take only the room of what they
    have sent."""
    largest = 4 << 20
    with running(tmp_path / "store", max_upload_bytes=largest) as server:
        head = (
            "POST /adapters HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data;"
            f" boundary=b\r\nContent-Length: {largest}\r\n\r\n--b\r\n"
        )
        with contextlib.ExitStack() as stack:
            for _ in range(4):
                stack.enter_context(connected(server)).sendall(head.encode())
            seen(server)
            client = stack.enter_context(server.client())
            answer = client.post("/adapters", files={"file": adapter_bytes("sst2")}, timeout=20)
            assert answer.status_code == 201


def test_a_stalled_upload_is_told_why(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """Uploads that fill the room and then stall get 408 with a sentence once another one waits,
    and that one is stored."""
    largest = 1 << 20
    with running(tmp_path / "store", max_upload_bytes=largest) as server:
        head = (
            "POST /adapters HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data;"
            f" boundary=b\r\nContent-Length: {largest}\r\n\r\n"
            '--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
        )
        with contextlib.ExitStack() as stack:
            stalled = []
            for _ in range(3):
                stalled.append(stack.enter_context(connected(server)))
                stalled[-1].sendall(head.encode() + bytes(largest - 2000))
                seen(server)
            client = stack.enter_context(server.client())
            answer = client.post("/adapters", files={"file": adapter_bytes("sst2")}, timeout=60)
            assert answer.status_code == 201
            refused = [first_answer(connection) for connection in stalled[:2]]
            assert [answer.status for answer in refused] == [408, 408]
            assert {answer.error_type for answer in refused} == {"RequestTooSlow"}
