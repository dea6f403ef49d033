"""Who bears a request's key, once `service.http.auth` has checked it."""

from __future__ import annotations

from starlette.requests import HTTPConnection

from service.keys.key import Key


def bears(request: HTTPConnection, name: str, key: Key | None) -> None:
    """Remember whose key a request bears: its name, and the key where it is of the keys file."""
    request.state.bearer, request.state.key = name, key


def key_of(request: HTTPConnection) -> Key | None:
    """The key of the keys file that a request bears; None for one that may see every task."""
    key: Key | None = getattr(request.state, "key", None)
    return key


def name_of(request: HTTPConnection) -> str | None:
    """The name of the key that a request bears; None where none was needed."""
    name: str | None = getattr(request.state, "bearer", None)
    return name


def sees(request: HTTPConnection, task: str) -> bool:
    """Whether a request may know of a task, if there is one of that name."""
    key = key_of(request)
    return key is None or key.sees(task)
