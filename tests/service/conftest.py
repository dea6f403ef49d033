"""A real server in a process of its own, on the embedded backbone, with tasks of every kind in its
store."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx2
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from adapters.backbone import Backbone
from adapters.file import parse
from adapters.store import Store
from service.engine.native.library import Library, NativeError, kinds, load_kind
from tests import forks
from tests.service.front_ends import client_of, front_ends
from tests.service.interpreter import interpreted
from tests.tiny import TASKS, random_adapter

ADMIN_KEY = "a-key-for-tests"


@dataclass
class Server:
    """A running `python -m service`; `lines` are its log events so far, each a dictionary."""

    process: subprocess.Popen[str] | forks.Process
    url: str
    store: Path
    lines: list[dict[str, Any]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def client(self, **options: Any) -> httpx2.Client:
        return httpx2.Client(base_url=self.url, timeout=60, **options)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Signal the server, wait for its end and for the rest of its log; returns its exit
        code."""
        self.process.send_signal(how)
        code = self.process.wait(timeout=60)
        self.stopped.wait(timeout=10)
        return code


def sample(client: httpx2.Client, name: str, **labels: str) -> float:
    """The metric's first sample with these labels; 0 if it has none, as before its first event."""
    text = client.get("/metrics", params={"name[]": name}).text
    for family in text_string_to_metric_families(text):
        for found in family.samples:
            if found.name == name and labels.items() <= found.labels.items():
                return found.value
    return 0.0


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Ask again and again until it is so: for what follows an answer, or a client that left."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"it was not so within {seconds:g} seconds"


@contextmanager
def running(store: Path | str, *, forked: bool = True, **settings: Any) -> Iterator[Server]:
    """Start a server on a free port with `settings` (names as in ADAMIX_…), wait until it listens,
    stop it at the end. It is forked (tests/forks.py), or else an interpreter of its own.

    `WORKERS=2 pytest tests/service` asks the same of front ends.
    """
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ADAMIX_")
    }
    given: dict[str, Any] = {"port": 0, "store": store, "log_format": "json", "seed": "none"}
    if forked:
        given["threads"] = 1  # several servers and tests share the cores
    # a busy machine is slow, and few tests ask what is refused then
    given |= {"workers": os.environ.get("WORKERS", "1"), "max_wait_seconds": 100, **settings}
    environment |= {f"ADAMIX_{name.upper()}": str(value) for name, value in given.items()}
    process = (
        forks.start(["service"], environment)
        if forked
        else subprocess.Popen(
            [sys.executable, "-m", "service"], env=environment, stderr=subprocess.PIPE, text=True
        )
    )
    assert process.stderr is not None
    server = Server(process, "", Path(store))
    listening: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read_log, args=(server, listening), daemon=True)
    reader.start()
    try:
        url = listening.get(timeout=120)
        assert url is not None, f"the server did not start: {server.lines}"
        server.url = url
        yield server
    finally:
        if process.poll() is None:
            server.stop(signal.SIGKILL)
        reader.join(timeout=10)
        process.stderr.close()


def _read_log(server: Server, listening: queue.Queue[str | None]) -> None:
    assert server.process.stderr is not None
    for line in server.process.stderr:
        event = json.loads(line) if line.startswith("{") else {"event": line.rstrip()}
        server.lines.append(event)
        if event["event"] == "listening":
            listening.put(event["url"])
    listening.put(None)
    server.stopped.set()


@contextmanager
def threads(number: int) -> Iterator[None]:
    """So many for torch's operators and for the native kernels."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="session")
def library() -> Library:
    """The native kernels, which are there wherever there is a C++ compiler."""
    return loaded(kinds()[0])


def loaded(kind: str) -> Library:
    """The kernels for that kind of processor; skips the test where there is no compiler."""
    try:
        return load_kind(kind)
    except NativeError as error:
        if shutil.which("c++") is not None:
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["torch", "native"])
def route(request: pytest.FixtureRequest) -> Library | None:
    """What computes on the CPU: torch's operators, then the native kernels."""
    if request.param == "torch":
        return None
    library: Library = request.getfixturevalue("library")
    return library


@pytest.fixture(scope="session")
def adapter_bytes(embedded: Backbone) -> Callable[..., bytes]:
    """Make one more adapter file for the embedded backbone: `adapter_bytes(task, seed=…)`, options
    as in TASKS."""

    def make(task: str, seed: int = 0, **options: Any) -> bytes:
        chosen = TASKS.get(task, {"labels": ["no", "yes"]}) | options
        return random_adapter(embedded, task, seed=seed, **chosen)[2]

    return make


@pytest.fixture(scope="session")
def filled_store(
    tmp_path_factory: pytest.TempPathFactory, adapter_bytes: Callable[..., bytes]
) -> Path:
    """A store that holds one version of each task of TASKS."""
    folder = tmp_path_factory.mktemp("filled") / "store"
    with Store(folder) as store:
        for task in TASKS:
            store.put(parse(adapter_bytes(task)))
    return folder


@pytest.fixture(scope="session")
def server(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that leave it as they found it. Its store is a copy: a store has one
    writer, and other servers of the tests open the original."""
    store = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(filled_store, store)
    with running(store, max_inputs=64) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="module")
def workers(filled_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same as the one process of `server`, with two front ends and a store of its own."""
    store = tmp_path_factory.mktemp("workers") / "store"
    shutil.copytree(filled_store, store)
    with running(store, max_inputs=64, workers=2) as server:
        yield server


@pytest.fixture
def clients(workers: Server) -> Iterator[list[httpx2.Client]]:
    """A client of each front end of `workers`."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(client_of(workers, front_end)) for front_end in front_ends(workers)
        ]


@pytest.fixture(scope="module")
def fused() -> Iterator[ModuleType]:
    """The one way for tests to `service.engine.gpu.fused` and the kernels that it imports; nothing
    else in the suite imports them."""
    with pytest.MonkeyPatch.context() as patch:
        interpreted(patch)
        from service.engine.gpu import fused

        yield fused
