"""A request's body: read, and parsed as JSON."""

from __future__ import annotations

from typing import TypeVar

import orjson
from fastapi import Request
from pydantic import BaseModel, ValidationError

from adapters.spec import first_problem
from service.refusals import CompressedBody, InvalidRequest, MalformedBody

Model = TypeVar("Model", bound=BaseModel)


async def read_body(request: Request) -> bytes:
    """The body as it came. Raises CompressedBody."""
    check_encoding(request)
    return await request.body()


def check_encoding(request: Request) -> None:
    """Raises CompressedBody: what a compressed body would become has no limit."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise CompressedBody(
            f"the body's Content-Encoding is {encoding[:40]!r}; expected a body that is not"
            " compressed"
        )


def parse_body(body: bytes, model: type[Model], what: str, expected: str) -> Model:
    """A JSON body as `model`; `what` and `expected` name it in the refusals. Raises MalformedBody
    or InvalidRequest."""
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise MalformedBody(f"the body is not JSON: {error}; expected {expected}") from None
    if not isinstance(content, dict):
        raise InvalidRequest(f"the body is a JSON {type(content).__name__}; expected {expected}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise InvalidRequest(f"the body is not {what}: {first_problem(error)}") from None
