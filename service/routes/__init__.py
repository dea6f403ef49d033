"""The routes: thin, one file a subject. What they share stands here."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel

from service.schemas import Problem
from service.state import Service

_WHY = {
    400: "The body is malformed",
    401: "No key, or a wrong one",
    403: "A page of another origin asks to write",
    404: "No such task or version",
    409: "It does not go with the task's state",
    413: "Too much: body, inputs or tokens",
    422: "A value is not what it should be",
    429: "The queue is full: try again after Retry-After seconds",
    503: "Not now: stopping, or the store does not work",
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route's documentation says of the errors that it answers."""
    return {status: {"model": Problem, "description": _WHY[status]} for status in statuses}


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """A body's JSON schema for the documentation of a route that reads it by itself: whole, so without references."""
    schema = model.model_json_schema()
    parts = schema.pop("$defs", {})

    def whole(node: Any) -> Any:
        if isinstance(node, list):
            return [whole(item) for item in node]
        if not isinstance(node, dict):
            return node
        rest = {key: whole(value) for key, value in node.items() if key != "$ref"}
        return whole(parts[node["$ref"].removeprefix("#/$defs/")]) | rest if "$ref" in node else rest

    answer: dict[str, Any] = whole(schema)
    return answer


def service_of(request: Request) -> Service:
    """The one Service of the app."""
    service: Service = request.app.state.service
    return service
