"""An upload's form, and the memory that uploads may take at once."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import AsyncIterator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from adapters.spec import shown
from service.http.body import check_encoding
from service.refusals import InvalidRequest, MalformedBody

EXPECTED = "expected multipart/form-data, as curl -F file=@FILE sends it"


class UploadRoom:
    """Bytes of the bodies that are uploaded at once: as many as two of the largest. Each upload
    waits for its own, first come first served, before it is read."""

    def __init__(self, max_upload_bytes: int) -> None:
        self._largest, self._free = max_upload_bytes, 2 * max_upload_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @contextlib.asynccontextmanager
    async def taken(self, announced: int | None) -> AsyncIterator[None]:
        """Within, so many bytes are this upload's; the most that one may have, where it announces
        no length."""
        wanted = self._largest if announced is None else min(announced, self._largest)
        await self._take(wanted)
        try:
            yield
        finally:
            self._free += wanted
            self._serve()

    async def _take(self, wanted: int) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn came in this very moment
                self._free += wanted
            self._serve()
            raise

    def _serve(self) -> None:
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if wanted > self._free:
                    return
                self._free -= wanted
                turn.set_result(None)
            self._waiting.popleft()


class _InMemory(MultiPartParser):
    """A full disk of temporary files must not refuse an upload: its memory is bounded already."""

    spool_max_size = sys.maxsize


async def read_form(request: Request) -> tuple[bytes, bool]:
    """The upload's file, and its `activate`. Raises CompressedBody, MalformedBody or
    InvalidRequest. Limits of one file and a few fields end a flood of parts early."""
    check_encoding(request)
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise MalformedBody(f"the upload's Content-Type is {shown(content_type)}; {EXPECTED}")
    try:
        parser = _InMemory(request.headers, request.stream(), max_files=1, max_fields=4)
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
        return await file.read(), activate.lower() == "true"
    finally:
        await form.close()
