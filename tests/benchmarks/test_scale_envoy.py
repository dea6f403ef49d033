"""The simulation's bounded load beside the real Envoy, request by request."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.scale.routing import Counts, Maglev, hashed
from benchmarks.scale.setup import FACTORS, SHIPPED
from tests.envoy import envoy

HOSTS = 10
TASKS = ["task-0", "task-1", "task-2"]


class Backends:
    """Servers that keep each prediction until `let_go`, and note which of them got it."""

    def __init__(self) -> None:
        self.got: queue.Queue[int] = queue.Queue()
        self.let_go = threading.Event()

    @contextlib.contextmanager
    def serving(self) -> Iterator[list[str]]:
        """Their addresses, as "IP:port"."""
        servers = [self._server(number) for number in range(HOSTS)]
        for server in servers:
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield ["{}:{}".format(*server.server_address) for server in servers]
        finally:
            self.let_go.set()
            for server in servers:
                server.shutdown()
                server.server_close()

    def _server(self, number: int) -> ThreadingHTTPServer:
        backends = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # the library's name
                if self.path.startswith("/predict"):
                    backends.got.put(number)
                    backends.let_go.wait(60)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.mark.timeout(120)
def test_envoy_s_choices(tmp_path: Path) -> None:
    """While forty requests for three tasks stay unanswered, the real Envoy sends each to the very
    replica that the simulation says: to its home, and past the bound to the others in the same
    order."""
    backends = Backends()
    with (
        backends.serving() as addresses,
        envoy([f"http://{address}" for address in addresses], tmp_path) as url,
        contextlib.ExitStack() as clients,
    ):
        balancer = urlsplit(url)
        policy = Maglev(range(HOSTS), addresses, [hashed(task) for task in TASKS], FACTORS[SHIPPED])
        counts = Counts([0] * HOSTS)
        real, simulated = [], []
        for number in range(40):
            task = number % 3 if number % 4 else 0
            client = socket.create_connection((balancer.hostname, balancer.port), 20)
            clients.enter_context(client)  # kept, for a client that is gone ends its request
            client.sendall(f"GET /predict?task={TASKS[task]} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            real.append(backends.got.get(timeout=20))
            simulated.append(policy.choose(task, counts))
            counts.active[simulated[-1]] += 1
            counts.total += 1
        backends.let_go.set()
    assert real == simulated
    assert len(set(real)) > 3  # requests went past the bound
