"""uvicorn as it runs here: with our HTTP protocol, our limits, and told when it listens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from service.http.connections import Connections, ConnectionSettings
from service.http.protocol import Protocol

if TYPE_CHECKING:  # it takes the web framework, which help and completion do not wait for
    from uvicorn._types import ASGI3Application

    from service.http.middleware import App


class Config(uvicorn.Config):
    """Every choice of uvicorn's that differs here, or that it would take from the environment:
    `workers` from WEB_CONCURRENCY, `forwarded_allow_ips` from FORWARDED_ALLOW_IPS."""

    def __init__(self, app: App, drain_seconds: int, settings: ConnectionSettings) -> None:
        super().__init__(
            app,
            loop="uvloop",
            http=Protocol,
            ws="none",
            workers=1,
            proxy_headers=False,
            forwarded_allow_ips=settings.trusted_proxies,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=drain_seconds,
            server_header=False,
        )
        self.connections = Connections(settings)
        self.app_behind_proxies: ASGI3Application

    def load(self) -> None:
        """What a proxy says of its client is looked at where it says something: most requests have
        no such header."""
        super().load()
        trusted = self.forwarded_allow_ips
        self.app_behind_proxies = ProxyHeadersMiddleware(self.loaded_app, trusted)


class Server(uvicorn.Server):
    """`listening` is told once it answers."""

    config: Config

    def __init__(self, config: Config, listening: Callable[[], None]) -> None:
        super().__init__(config)
        self._listening = listening

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.config.connections.watch(asyncio.get_running_loop())
            self._listening()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.connections.stopping = True
        await super().shutdown(sockets)
