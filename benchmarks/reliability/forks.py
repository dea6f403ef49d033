"""Servers that start within a second, for runs that start hundreds.

A start of `python -m service` takes seconds, nearly all of them for imports. Here one process
imports what the service does, and each server is forked from it before anything else has run in it:
no thread, no model, no socket. From then on it is what `python -m service` is, with its own
environment and its own log.

    python -m benchmarks.reliability.forks    # reads one JSON line a server, answers its process id
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import psutil

from benchmarks.http.server import ROOT, Server, service, surroundings


@functools.cache
def forks() -> Forks:
    """The one process that this one's servers are forked from, until it ends."""
    return Forks()


class Forks:
    """The process that servers are forked from, until this one ends."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.reliability.forks"],
            env=surroundings({}), cwd=ROOT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        atexit.register(self._process.communicate)  # it ends with its input

    def service(
        self, store: Path, backbone: str, **settings: object
    ) -> AbstractContextManager[Server]:
        """As `benchmarks.http.server.service`."""
        return service(store, backbone, start=self.start, **settings)

    def start(
        self, command: list[str], environment: dict[str, str], log: IO[str]
    ) -> psutil.Process:
        """As `benchmarks.http.server.started`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        wanted = {"arguments": command[3:], "environment": environment, "log": log.name}
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        return psutil.Process(int(self._process.stdout.readline()))


def main() -> None:
    """Import everything, then fork a server for each line of stdin."""
    import transformers

    import service.app
    from service.__main__ import app

    assert service.app
    assert transformers.BertModel  # loads its module, as the service would
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets servers that have ended
    for line in sys.stdin:
        wanted = json.loads(line)
        process = os.fork()
        if process:
            sys.stdout.write(f"{process}\n")
            sys.stdout.flush()
            continue
        code: object = 1
        try:
            _become(wanted["environment"], wanted["log"])
            app(wanted["arguments"], prog_name="python -m service")
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stderr.flush()
            os._exit(code if isinstance(code, int) else 1)


def _become(environment: dict[str, str], log: str) -> None:
    """Take a server's surroundings."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.environ.clear()
    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)


if __name__ == "__main__":
    main()
