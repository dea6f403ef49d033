"""uvicorn as it runs here: HTTP/1.1 with our refusal of what it cannot read, and told when it
listens."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

if TYPE_CHECKING:  # it takes the web framework, which help and completion do not wait for
    from service.http.middleware import App

_BODY = orjson.dumps(
    {
        "error": (
            "the connection sent what is no HTTP/1.1; expected a request line, headers, and a body"
            " as they say"
        ),
        "error_type": "MalformedRequest",
    }
)
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Server(uvicorn.Server):
    """`listening` is told the first socket's address: with port 0 only the operating system knows
    it before."""

    def __init__(
        self, config: uvicorn.Config, listening: Callable[[tuple[str, int]], None]
    ) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening(self.servers[0].sockets[0].getsockname()[:2])


def configured(app: App, drain_seconds: int, host: str = "", port: int = 0) -> uvicorn.Config:
    """An address is only for who binds one."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=Protocol,
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=drain_seconds,
        server_header=False,
    )


class Protocol(HttpToolsProtocol):
    """uvicorn answers broken HTTP by itself, before any application sees it, and in plain text."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words for it
        self.transport.write(_ANSWER)
        self.transport.close()
