"""HTTP/1.1 as uvicorn reads it, with our refusal of what it cannot read."""

from __future__ import annotations

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_BODY = orjson.dumps(
    {
        "error": "the connection sent what is no HTTP/1.1; expected a request line, headers, and a body as they say",
        "error_type": "MalformedRequest",
    }
)
_ANSWER = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Protocol(HttpToolsProtocol):
    """uvicorn answers broken HTTP by itself, before any application sees it, and in plain text."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's words for it
        self.transport.write(_ANSWER)
        self.transport.close()
