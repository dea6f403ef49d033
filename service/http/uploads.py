"""An upload's form, and the memory that uploads may take at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.spec import shown
from service.http.body import check_encoding
from service.http.middleware import Message, Receive
from service.refusals import InvalidRequest, MalformedBody, RequestTooSlow

# While uploads wait for room: what a client must send within what time, to be waited for.
PATIENCE_SECONDS = 5.0
LEAST_BYTES = 256 << 10
LEAST_PIECE_BYTES = 64 << 10
EXPECTED = "expected multipart/form-data, as curl -F file=@FILE sends it"


class UploadRoom:
    """The memory of the bodies that are uploaded at once: at most two of the largest. It counts
    what has come, not what is announced.

    The oldest upload is always read on. The others share as many bytes as the largest upload may
    have, and wait while they hold all of them. Meanwhile an upload that waits for its client, and
    of which fewer than `least_bytes` came within `patience_seconds`, is refused: it may hold up
    the others.
    """

    def __init__(
        self,
        max_upload_bytes: int,
        patience_seconds: float = PATIENCE_SECONDS,
        least_bytes: int = LEAST_BYTES,
    ) -> None:
        self._shared_bytes = max_upload_bytes
        self._patience_seconds, self._least_bytes = patience_seconds, least_bytes
        self._uploads: list[_Upload] = []  # in the order of their beginning
        self._timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def upload(self, receive: Receive) -> Iterator[Receive]:
        """Within, what the returned `receive` gives is held by this upload. It raises
        RequestTooSlow."""
        upload = _Upload()
        self._uploads.append(upload)

        async def counted() -> Message:
            try:
                async with asyncio.timeout(None) as upload.receiving:
                    message = await receive()
            except TimeoutError:
                raise RequestTooSlow from None
            finally:
                upload.receiving = None
            await self._take(upload, len(message.get("body", b"")))
            return message

        try:
            yield counted
        finally:
            self._uploads.remove(upload)
            self._admit()

    async def _take(self, upload: _Upload, wanted: int) -> None:
        upload.wanted, upload.turn = wanted, asyncio.get_running_loop().create_future()
        self._admit()
        if not upload.turn.done():
            if self._timer is None:
                self._look()
            await upload.turn
            upload.seen_bytes = None  # what came meanwhile was not its client's to say

    def _admit(self) -> None:
        """Let all go on for whom there is room, the oldest first."""
        shared = sum(upload.bytes for upload in self._uploads[1:])
        for upload in self._uploads:
            if upload.turn is None or upload.turn.done():
                continue
            oldest = upload is self._uploads[0]
            if oldest or shared + upload.wanted <= self._shared_bytes:
                shared += 0 if oldest else upload.wanted
                upload.bytes += upload.wanted
                upload.turn.set_result(None)

    def _look(self) -> None:
        """Refuse those that stall, and look again later, as long as any wait for room."""
        waits = any(upload.waits for upload in self._uploads)
        for upload in self._uploads:
            seen, upload.seen_bytes = upload.seen_bytes, upload.bytes if waits else None
            if not waits or upload.receiving is None or seen is None:
                continue
            if upload.bytes - seen < self._least_bytes:
                upload.receiving.reschedule(0)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._patience_seconds, self._look) if waits else None


class _Upload:
    """One body: the bytes that it holds."""

    def __init__(self) -> None:
        self.bytes = 0
        self.receiving: asyncio.Timeout | None = None  # while its client is waited for
        self.wanted = 0  # bytes that came, and are not held yet
        self.turn: asyncio.Future[None] | None = None  # done once they are
        # What it held at the last look; None if it waited for room since, or began since.
        self.seen_bytes: int | None = None

    @property
    def waits(self) -> bool:
        """Whether it waits for room."""
        return self.turn is not None and not self.turn.done()


class _Form(MultiPartParser):
    """A form whose one file stays in memory, in pieces as it came: a full disk of temporary files
    must not refuse an upload, and a buffer that grows would be copied again and again."""

    def __init__(self, request: Request) -> None:
        super().__init__(request.headers, request.stream(), max_files=1, max_fields=4)
        self.pieces: list[bytearray] = []

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            super().on_part_data(data, start, end)
        elif self.pieces and len(self.pieces[-1]) < LEAST_PIECE_BYTES:
            self.pieces[-1] += data[start:end]  # of a client that sends byte by byte
        else:
            self.pieces.append(bytearray(data[start:end]))


async def read_form(request: Request) -> tuple[list[bytearray], bool]:
    """The upload's file in pieces, and its `activate`. Raises CompressedBody, MalformedBody or
    InvalidRequest, and what the request's `receive` raises. Limits of one file and a few fields end
    a flood of parts early."""
    check_encoding(request)
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise MalformedBody(f"the upload's Content-Type is {shown(content_type)}; {EXPECTED}")
    try:
        parser = _Form(request)
        form = await parser.parse()
    except (MultiPartException, LookupError, UnicodeError) as error:
        reason = getattr(error, "message", None) or error
        raise MalformedBody(f"the body is not a form: {reason}; {EXPECTED}") from None
    try:
        file, activate = form.get("file"), form.get("activate", "true")
        unknown = sorted(set(form) - {"file", "activate"})
        if unknown:  # else a misspelt 'activate' would be ignored
            raise InvalidRequest(
                f"the form has the field {shown(unknown[0])}; expected 'file' and perhaps"
                " 'activate'"
            )
        if not isinstance(file, UploadFile):
            raise MalformedBody(f"the form has no file 'file'; {EXPECTED}")
        if not isinstance(activate, str) or activate.lower() not in ("true", "false"):
            raise InvalidRequest(f"activate is {shown(activate)}; expected true or false")
        return parser.pieces, activate.lower() == "true"
    finally:
        await form.close()
