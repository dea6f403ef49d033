"""All connections of one process: how many there may be, and how long each may let us wait."""

from __future__ import annotations

import asyncio
import math
import resource
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from service.http.protocol import Protocol

CHECK_SECONDS = 0.5  # how often the time of each connection is looked at
LOG_SECONDS = 10  # between two lines of the same kind
MOST_CONNECTIONS = 16_384  # by default; a connection that says nothing takes some ten kilobytes
SPARE_DESCRIPTORS = 64  # for files, for other processes' sockets, and for connections refused
REFUSED_AT_ONCE = 8
LINGER_SECONDS = 30  # for which a client is heard that still sends what is not read any more

log = structlog.get_logger("service")


@dataclass(frozen=True)
class ConnectionSettings:
    """Of each process that speaks HTTP; the names are those of the settings.

    `trusted_proxies` are addresses and networks with commas between, or `*`. `max_connections`
    None: what the limit of open files leaves.
    """

    keep_alive_seconds: float = 75
    header_seconds: float = 10
    body_seconds: float = 30
    max_connections: int | None = None
    max_arriving_bytes: int = 256 << 20
    trusted_proxies: str = "127.0.0.1,::1"


class Phase(Enum):
    """Whose turn it is on a connection, and what comes next."""

    NEW = "the client has sent nothing yet"
    IDLE = "the last request is answered, the next one has not begun"
    HEAD = "a request's line and headers are on their way"
    BODY = "its body is on its way"
    OURS = "it is read; the next step is ours"
    REST = "it is answered; the rest of its body is still to come, and is dropped"
    LINGER = "nothing is answered any more; what still comes is dropped"


class Connections:
    """`waiting` are those that may be closed to make room, the one that waits longest first: on
    them no request is being read or answered."""

    def __init__(self, settings: ConnectionSettings) -> None:
        self.limit = settings.max_connections or descriptors_left()
        self.max_arriving_bytes = settings.max_arriving_bytes
        self.seconds = {
            Phase.NEW: settings.header_seconds,
            Phase.IDLE: settings.keep_alive_seconds,
            Phase.HEAD: settings.header_seconds,
            Phase.BODY: settings.body_seconds,
            Phase.REST: LINGER_SECONDS,
            Phase.LINGER: LINGER_SECONDS,
        }
        self.write_seconds = settings.body_seconds
        self.waiting: dict[Protocol, None] = {}
        self.stopping = False
        self._all: dict[Protocol, None] = {}  # in the order of their beginning
        self._closed = self._refused = 0
        self._logged = float("-inf")

    def add(self, connection: Protocol) -> bool:
        """Whether there is room for it. If there is none, the connection that has waited for the
        longest time is closed. A connection that must be refused counts as waiting: it stays open,
        so that its client can read why, until some more have come."""
        self._all[connection] = None
        room = len(self._all) - len(self.waiting) <= self.limit
        if len(self._all) > self.limit + (0 if room else REFUSED_AT_ONCE) and self.waiting:
            self._closed += 1
            next(iter(self.waiting)).drop()
        self._refused += not room
        return room

    def discard(self, connection: Protocol) -> None:
        """It is closed."""
        self._all.pop(connection, None)
        self.waiting.pop(connection, None)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Look after all of them from now on. One timer for each would cost every request more
        than this costs all of them."""
        now = loop.time()
        for connection in list(self._all):
            connection.check(now)
        self._bound_arriving()
        if (self._closed or self._refused) and now >= self._logged + LOG_SECONDS:
            log.warning(
                "too many connections; expected fewer, or a higher limit of open files (ulimit -n)",
                limit=self.limit,
                closed_while_waiting=self._closed,
                refused=self._refused,
            )
            self._closed = self._refused = 0
            self._logged = now
        loop.call_later(CHECK_SECONDS, self.watch, loop)

    def _bound_arriving(self) -> None:
        """Where bodies on their way hold more than they may all together, refuse those that have
        been on their way for the longest time: a client in earnest sends its own at once."""
        arriving = [connection for connection in self._all if connection.phase is Phase.BODY]
        held = sum(connection.body_bytes for connection in arriving)
        if held > self.max_arriving_bytes:
            for connection in sorted(arriving, key=lambda one: one.since or math.inf):
                held -= connection.body_bytes
                connection.refuse_body()
                if held <= self.max_arriving_bytes:
                    break


def descriptors_left() -> int:
    """How many connections the limit of open files leaves room for, some of it kept for files."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    taken = len(list(Path("/dev/fd").iterdir())) + min(SPARE_DESCRIPTORS, soft // 4)
    return max(1, min(soft - taken, MOST_CONNECTIONS))
