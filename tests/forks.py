"""Servers that start within a second: the suite starts more than a hundred.

`python -m service` takes four seconds of a core before it does anything, for imports. Here one
process imports what the service does, and each server is forked from it before anything else has
run in it: no thread, no model, no socket. From then on it is what `python -m service` is, with its
own environment, its own streams and its own exit code.

What a fork cannot show is the start of the interpreter itself. Tests of the start run
`python -m service`.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from select import select
from typing import IO, Any

LARGEST = 1 << 20  # bytes of a command with its environment
# libgomp and the interpreter read these when they start, so all that is forked has the same.
READ_AT_START = ("OMP_", "GOMP_", "PYTHON")


class Process:
    """A forked process, as `subprocess.Popen`: its `stderr` is a pipe, its stdout goes nowhere."""

    def __init__(self, pid: int, stderr: IO[str], told: socket.socket) -> None:
        self.pid, self.stderr, self._told = pid, stderr, told
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative if a signal ended it; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            if not select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0)
            self.returncode = int(self._told.recv(64))
            self._told.close()
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Nothing happens if it has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def start(module: str, environment: dict[str, str]) -> Process:
    """`python -m MODULE` with this environment, in this process's folder."""
    for name in {*os.environ, *environment}:
        if name.startswith(READ_AT_START):
            assert os.environ.get(name) == environment.get(name), f"{name}: start an interpreter"
    wanted = {"module": module, "environment": environment, "folder": str(Path.cwd())}
    told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    read, write = os.pipe()
    with tells:
        message = json.dumps(wanted).encode()
        socket.send_fds(_origin(), [message], [tells.fileno(), write])
        os.close(write)
    return Process(int(told.recv(64)), os.fdopen(read), told)


@functools.cache
def _origin() -> socket.socket:
    """The way to the process that others are forked from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(door: socket.socket) -> str | None:
    """Fork a process for each message. Returns in each of them, with the module to run there; and
    None in this one, at the end."""
    from service.__main__ import begin_threads

    begin_threads()
    import transformers

    import service.app

    assert service.app
    assert transformers.BertModel  # loads its module, as the service would
    (_thread,) = Path("/proc/self/task").iterdir()  # a fork would lack any other
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the tests end what they started
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that have ended
    while True:
        message, files, _, _ = socket.recv_fds(door, LARGEST, 2)
        if not message:
            return None
        if os.fork() == 0:
            return _kept(json.loads(message), *files)
        for file in files:
            os.close(file)


def _kept(wanted: dict[str, Any], tells: int, stderr: int) -> str:
    """Fork once more. Returns in the second process alone; this one waits for its end, to tell its
    exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        return _become(wanted, stderr)
    os.close(stderr)
    os.write(tells, str(process).encode())
    _, status = os.waitpid(process, 0)
    with suppress(BrokenPipeError):  # nobody waits any more
        os.write(tells, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(wanted: dict[str, Any], stderr: int) -> str:
    """Take the surroundings that were asked for, and leave those of this module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(wanted["environment"])
    os.chdir(wanted["folder"])
    os.dup2(stderr, sys.stderr.fileno())
    os.closerange(sys.stderr.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
    sys.argv = ["python"]
    module: str = wanted["module"]
    return module


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as entrance:
        named = _serve(entrance)
        entrance.detach()
    if named is not None:  # at the top, so that the interpreter ends as it always does
        runpy.run_module(named, run_name="__main__", alter_sys=True)
