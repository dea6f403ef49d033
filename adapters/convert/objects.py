"""Read a JSON file that holds an object, as other libraries' configurations are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapters.errors import CannotConvert
from adapters.header import lookalike
from adapters.regular import opened
from adapters.spec import shortened

MAX_BYTES = 1 << 20


def read_object(path: Path, writer: str) -> dict[str, Any]:
    """Read a file that `writer` writes into its folder. Raises CannotConvert or OSError."""
    if not path.is_file():
        raise CannotConvert(
            f"{path.parent.name} has no {path.name}; expected a folder that {writer} wrote"
        )
    content = read_start(path)
    if len(content) > MAX_BYTES:
        raise CannotConvert(
            f"{path.name} has more than {MAX_BYTES} bytes; expected what {writer} writes"
        )
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        if (kind := lookalike(content[:8])) is not None:
            raise CannotConvert(
                f"{path.name} looks like {kind}; expected what {writer} writes"
            ) from None
        raise CannotConvert(
            f"{path.name} is not JSON: {shortened(error)}; expected what {writer} writes"
        ) from None
    if not isinstance(value, dict):
        raise CannotConvert(f"{path.name} is a JSON {type(value).__name__}; expected an object")
    return value


def read_start(path: Path) -> bytes:
    """Read one byte more than such a file may have, at most: it may be larger than the memory.
    Raises OSError."""
    with opened(path) as file:
        return file.read(MAX_BYTES + 1)
