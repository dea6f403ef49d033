"""Downloads: files of any size, for any number of clients, in little memory."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from adapters.backbone import Backbone
from adapters.spec import LoraSite
from service.http.downloads import DownloadRoom
from tests.service.clock import on_a_clock, passes
from tests.service.conftest import Server, running
from tests.service.sockets import connected
from tests.tiny import random_adapter

DEAF = 20  # clients
MOST_BYTES = 128 << 20  # of memory for them; the files have 380 MB
RANKS: dict[LoraSite, int] = {"query": 256, "key": 256, "value": 256, "attention_out": 256}


def held(server: Server) -> int:
    """Bytes of the server's processes."""
    root = psutil.Process(server.process.pid)
    return sum(process.memory_info().rss for process in (root, *root.children()))


@pytest.mark.parametrize("workers", [1, 2])
def test_many_downloads_take_little_memory(
    workers: int, tmp_path: Path, embedded: Backbone
) -> None:
    """Many clients ask for a large file and do not read it: they take little memory, hold up no
    other request, and another client that wants the file gets it whole."""
    data = random_adapter(embedded, "large", ["no", "yes"], ranks=RANKS, dtype=torch.float32)[2]
    assert len(data) > 16 << 20
    settings: dict[str, Any] = {"workers": workers, "host_cache_bytes": 0}
    with (
        running(tmp_path / "store", **settings) as server,
        server.client() as client,
        contextlib.ExitStack() as stack,
    ):
        version = client.post("/adapters", files={"file": data}).json()["version"]
        path = f"/adapters/large/versions/{version}/file"
        assert client.get(path).content == data
        before, most, done = held(server), 0, threading.Event()

        def watch() -> None:
            nonlocal most
            while not done.wait(0.01):
                most = max(most, held(server))

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for _ in range(DEAF):
                deaf = stack.enter_context(connected(server, receive_bytes=4096))
                deaf.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            assert client.get("/health").status_code == 200
            assert client.get(path).content == data
        finally:
            done.set()
            watching.join()
        assert most - before < MOST_BYTES


PATIENCE = 5.0  # seconds of a test's own clock


class Reader:
    """A client with a download; the test says when it reads a piece."""

    def __init__(self, room: DownloadRoom) -> None:
        self._room, self._read = room, asyncio.Semaphore(0)
        self.sends = self.cut = False
        self.task = asyncio.create_task(self._download())

    def reads(self) -> None:
        self._read.release()

    async def _send(self, _piece: Any) -> None:
        await self._read.acquire()

    async def _download(self) -> None:
        async with self._room.place() as place:
            self.sends = True
            for _ in range(2):  # pieces
                try:
                    await self._room.send(place, self._send, {})
                except TimeoutError:
                    self.cut = True
                    return


async def settle() -> None:
    """All tasks go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_downloads_wait_for_their_turn() -> None:
    """As many as there are places go on at once; the next one begins when one of them has ended,
    and one whose client left while it waited takes no place."""

    async def scenario() -> None:
        room = DownloadRoom(2, PATIENCE)
        readers = [Reader(room) for _ in range(5)]
        await settle()
        assert [reader.sends for reader in readers] == [True, True, False, False, False]
        readers[2].task.cancel()
        for _ in range(2):
            readers[1].reads()
            await settle()
        assert [reader.sends for reader in readers] == [True, True, False, True, False]
        readers[0].task.cancel()
        await settle()
        assert readers[4].sends
        for reader in (readers[3], readers[4]):
            reader.reads()
            reader.reads()
            await reader.task
        last = Reader(room)
        await settle()
        assert last.sends
        last.task.cancel()

    on_a_clock(scenario)


def test_a_download_that_is_not_read_is_cut_where_others_wait() -> None:
    """A client may take any time for a piece while nobody waits; then it has some seconds for each
    piece, and one that goes on is not cut."""

    async def scenario() -> None:
        room = DownloadRoom(2, PATIENCE)
        deaf, slow = Reader(room), Reader(room)
        await settle()
        passes(PATIENCE * 3)
        await settle()
        assert not deaf.task.done()
        waiting = Reader(room)
        await settle()
        passes(PATIENCE / 2)
        slow.reads()
        await settle()
        passes(PATIENCE * 0.75)
        await settle()
        assert deaf.cut
        assert waiting.sends
        slow.reads()
        await slow.task
        assert not slow.cut
        waiting.reads()
        waiting.reads()
        await waiting.task

    on_a_clock(scenario)
