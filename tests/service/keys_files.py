"""Keys files for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from service.keys.file import block
from service.keys.hashes import hashed
from service.keys.key import Key


def key(
    name: str,
    scopes: Sequence[str] = ("predict",),
    tasks: Sequence[str] = ("*",),
    requests: float | None = None,
    rows: float | None = None,
) -> Key:
    """A key whose secret is `secret`."""
    return Key(name, _HASH, frozenset(scopes), tuple(tasks), requests, rows)


def write(path: Path, *keys: Key) -> Path:
    """A keys file, put in place at once."""
    return write_text(path, "\n".join(map(block, keys)))


def write_text(path: Path, text: str) -> Path:
    """The same, of a text."""
    new = path.with_name(f"{path.name}.new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(path)
    return path


def bearing(name: str) -> dict[str, str]:
    """The headers of a request that bears a key of `key`."""
    return {"Authorization": f"Bearer {name}.secret"}


_HASH = hashed("secret")
