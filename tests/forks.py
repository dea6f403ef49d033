"""Processes that start within a second: the suite starts some two hundred.

`python -m service` takes four seconds of a core before it does anything, for imports. Here one
process imports what the programs do, and each process is forked from it before anything else has
run in it: no thread, no model, no socket. From then on it is what `python -m service` is, with its
own environment, its own streams and its own exit code.

What a fork cannot show is the start of the interpreter itself. Tests of the start run
`python -m service`.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from select import select
from typing import IO, Any

LARGEST = 1 << 20  # bytes of a command with its environment
# libgomp and the interpreter read these when they start, so all that is forked has the same.
READ_AT_START = ("OMP_", "GOMP_", "PYTHON")


class Process:
    """A forked process, as `subprocess.Popen`. `stderr` is the end of its pipe, if it has one."""

    def __init__(self, told: socket.socket, stderr: IO[str] | None = None) -> None:
        self.pid, self.stderr, self._told = int(told.recv(64)), stderr, told
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


def start(arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    """`python -m ARGUMENTS` with this environment, in this process's folder; its stderr is a pipe,
    its stdin is empty and its stdout goes nowhere."""
    for name in {*os.environ, *environment}:
        if name.startswith(READ_AT_START):
            assert os.environ.get(name) == environment.get(name), f"{name}: start an interpreter"
    read, write = os.pipe()
    with Path(os.devnull).open("r+b") as nothing:
        streams = [nothing.fileno(), nothing.fileno(), write]
        told = _asked(origin(), arguments, environment, streams)
    os.close(write)
    return Process(told, os.fdopen(read))


def run(
    arguments: Sequence[str], environment: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """The same, until it ends by itself."""
    process = start(arguments, environment)
    assert process.stderr is not None
    with process.stderr as stderr:
        said = stderr.read()
    return subprocess.CompletedProcess(arguments, process.wait(), stderr=said)


@functools.cache
def origin() -> socket.socket:
    """The way to the process that others are forked from; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.forks", "serve", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # numpy would start threads
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def interpreter(folder: Path) -> Path:
    """A `python` for a shell, in this folder: our three programs are forked, all else has an
    interpreter of its own. The shell must have inherited `origin()`."""
    script = folder / "python"
    ask = f'exec {sys.executable} -S -m tests.forks ask {origin().fileno()} "$@"'
    programs = "'-m adapters' | '-m service' | '-m training'"
    script.write_text(
        f'#!/bin/sh\ncase "$1 $2" in {programs}) shift; {ask};; esac\nexec {sys.executable} "$@"\n'
    )
    script.chmod(0o755)
    return script


def _asked(
    door: socket.socket,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    streams: Sequence[int],
) -> socket.socket:
    """Ask for a process. The answer tells its id, and at its end its exit code."""
    wanted = [list(arguments), dict(environment), str(Path.cwd())]
    told, tells = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with tells:
        socket.send_fds(door, [json.dumps(wanted).encode()], [tells.fileno(), *streams])
    return told


def _serve(door: socket.socket) -> str | None:
    """Fork a process for each message. Returns in each of them, with the module to run there; and
    None in this one, at the end."""
    from adapters.startup import without_collection
    from service.__main__ import begin_threads

    begin_threads()
    with without_collection():
        import transformers

        import service.app

        assert service.app
        assert transformers.BertModel  # loads its module, as the programs would
    gc.freeze()  # forks need not look through all of it
    # a fork would lack any other; what training imports beyond this, through pandas, starts one
    (_thread,) = Path("/proc/self/task").iterdir()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the tests end what they started
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets those that have ended
    while True:
        message, files, _, _ = socket.recv_fds(door, LARGEST, 4)
        if not message:
            return None
        if os.fork() == 0:
            tells, *streams = files
            return _kept(json.loads(message), tells, streams)
        for file in files:
            os.close(file)


def _kept(wanted: list[Any], tells: int, streams: list[int]) -> str:
    """Fork once more. Returns in the second process alone; this one waits for its end, to tell its
    exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    process = os.fork()
    if process == 0:
        return _become(*wanted, streams)
    for stream in streams:
        os.close(stream)
    with suppress(BrokenPipeError):  # nobody waits any more
        os.write(tells, str(process).encode())
        _, status = os.waitpid(process, 0)
        os.write(tells, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(
    arguments: list[str], environment: dict[str, str], folder: str, streams: list[int]
) -> str:
    """Take the surroundings that were asked for, and leave those of this module."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(len(streams), os.sysconf("SC_OPEN_MAX"))
    module, *sys.argv[1:] = arguments
    sys.modules.pop(f"{module}.__main__", None)  # it runs anew, as `__main__`
    return module


if __name__ == "__main__":
    what, number, *given = sys.argv[1:]
    door = socket.socket(fileno=int(number))
    if what == "serve":
        named = _serve(door)
        door.detach()
        if named is not None:  # at the top, so that the interpreter ends as it always does
            runpy.run_module(named, run_name="__main__", alter_sys=True)
    else:
        sys.exit(Process(_asked(door, given, os.environ, [0, 1, 2])).wait())
