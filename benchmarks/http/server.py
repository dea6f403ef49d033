"""A server in a process of its own, from its start until it is ready, for as long as it is
measured."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

ROOT = Path(__file__).parents[2]
START_SECONDS = 300


@dataclass(frozen=True)
class Server:
    """One that is ready; `seconds` is how long that took, `log` where it writes."""

    url: str
    seconds: float
    process: psutil.Process
    log: Path

    def processes(self) -> list[psutil.Process]:
        """It and its front ends."""
        return [self.process, *self.process.children()]

    def said(self) -> str:
        """Its log so far."""
        return self.log.read_text(errors="replace")

    def memory(self) -> dict[str, int]:
        """Bytes: resident, the same with shared pages divided, and what is this process's alone."""
        info = self.process.memory_full_info()
        return {"rss": info.rss, "pss": info.pss, "uss": info.uss}


Start = Callable[[list[str], dict[str, str], IO[str]], psutil.Process]


def started(command: list[str], environment: dict[str, str], log: IO[str]) -> psutil.Process:
    """A process of its own."""
    return psutil.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT)


@contextlib.contextmanager
def running(
    command: list[str], environment: dict[str, str], ready: str, start: Start = started
) -> Iterator[Server]:
    """Start `command` with `{port}` filled in, wait until `ready` answers 200, stop it at the end.
    Raises RuntimeError with the end of its log if it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w+") as log:
        began = time.perf_counter()
        process = start([part.replace("{port}", port) for part in command], environment, log)
        try:
            while not answers(url + ready):
                if _ended(process) or time.perf_counter() > began + START_SECONDS:
                    log.seek(0)
                    raise RuntimeError(
                        f"{' '.join(command)} is not ready; the end of its log:"
                        f" {log.read()[-2000:]}"
                    )
                time.sleep(0.01)
            yield Server(url, time.perf_counter() - began, process, Path(log.name))
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
                try:
                    process.wait(timeout=20)
                except psutil.TimeoutExpired:
                    process.kill()
                    process.wait()


def service(
    store: Path | str, backbone: str, start: Start = started, **settings: object
) -> contextlib.AbstractContextManager[Server]:
    """This repository's service on a store, with `settings` (names as in ADAMIX_…)."""
    given = {f"ADAMIX_{name.upper()}": str(value) for name, value in settings.items()}
    return running(
        [sys.executable, "-m", "service", "--port", "{port}"],
        _settings(store, backbone, "warning") | given,
        "/ready",
        start,
    )


def front_end(
    store: Path, backbone: str, workers: int = 1, device_ms: float = 0.0
) -> contextlib.AbstractContextManager[Server]:
    """The same with its device taken out, and with the log as it is by default."""
    command = [sys.executable, "-m", "benchmarks.http.null_server", "{port}", str(device_ms)]
    return running(
        command, _settings(store, backbone, "info") | {"ADAMIX_WORKERS": str(workers)}, "/ready"
    )


def _settings(store: Path | str, backbone: str, log_level: str) -> dict[str, str]:
    settings = {
        "STORE": str(store),
        "SEED": "none",
        "BACKBONE": backbone,
        "LOG_LEVEL": log_level,
        "MAX_WAIT_SECONDS": "100",  # what is measured is how long answers take, not what is refused
    }
    return surroundings({f"ADAMIX_{name}": value for name, value in settings.items()})


def surroundings(more: dict[str, str]) -> dict[str, str]:
    """The same for all that is measured: as many threads as cores, no hub, no path to this
    repository's packages."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("ADAMIX_", "PYTHON"))
    }
    threads = str(len(os.sched_getaffinity(0)))
    return {
        **kept,
        "OMP_NUM_THREADS": threads,
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
        **more,
    }


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False
