"""Downloads: files that are sent in pieces, few of them at once. However many clients ask for large
files, or stop reading them, the service holds a few pieces and a few open files."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from service.http.middleware import Message, Receive, Scope, Send

PLACES = 16  # each has one file open
# Each looks through whole files: more of them would leave the event loop too little of the cores.
THREADS = 2
PIECE_BYTES = 256 << 10
PATIENCE_SECONDS = 5.0  # for each piece, while other downloads wait

T = TypeVar("T")


class DownloadRoom:
    """Lets `places` downloads go on at once; the others wait for their turn. Meanwhile a download
    whose client takes longer than `patience_seconds` for a piece is cut: it may hold up the others.
    """

    def __init__(self, places: int = PLACES, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self._free, self._patience_seconds = places, patience_seconds
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._sending: dict[Place, asyncio.Timeout] = {}
        # of their own, so that a disk that hangs holds up downloads alone
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="download")

    @contextlib.asynccontextmanager
    async def place(self) -> AsyncIterator[Place]:
        """Within, one file may be sent."""
        await self._turn()
        place = Place(self)
        try:
            yield place
        finally:
            place.close()
            self._leave()

    async def run(self, job: Callable[[], T]) -> T:
        """What a job returns that waits for the disk."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, job)

    async def send(self, place: Place, send: Send, piece: Message) -> None:
        """Send a piece. Raises TimeoutError where its client is given up."""
        patience = self._patience_seconds if self._waiting else None
        try:
            async with asyncio.timeout(patience) as self._sending[place]:
                await send(piece)
        finally:
            self._sending.pop(place, None)

    async def _turn(self) -> None:
        if self._free:
            self._free -= 1
            return
        loop = asyncio.get_running_loop()
        for timeout in self._sending.values():
            if timeout.when() is None:  # nobody waited when it began
                timeout.reschedule(loop.time() + self._patience_seconds)
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():  # it had its turn in the same moment
                self._leave()
            raise

    def _leave(self) -> None:
        """Give a place to the next one."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Place:
    """One download's leave to go on."""

    def __init__(self, room: DownloadRoom) -> None:
        self.room = room
        self.file: BinaryIO | None = None

    async def open(self, job: Callable[[], BinaryIO]) -> None:
        """Open the file to send. Raises what `job` raises."""
        self.file = await self.room.run(job)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()


class Download(Response):
    """The answer with a place's file, of so many bytes. Where its client is given up, or the file
    is cut meanwhile, it ends there, and the server closes the connection."""

    media_type = "application/octet-stream"

    def __init__(self, place: Place, size: int, headers: dict[str, str]) -> None:
        super().__init__(headers={**headers, "Content-Length": str(size)})
        self._place, self._size = place, size

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        room, file = self._place.room, self._place.file
        assert file is not None, "it was opened"
        request = Request(scope, receive)
        head = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **head})
        left = self._size
        while left and not await request.is_disconnected():
            piece = await room.run(lambda: file.read(PIECE_BYTES))
            left -= len(piece)
            if not piece or left < 0:
                return
            body = {"body": piece, "more_body": left > 0}
            try:
                await room.send(self._place, send, {"type": "http.response.body", **body})
            except TimeoutError:
                return
