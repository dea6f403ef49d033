"""Read a JSON file that holds an object, as other libraries' configurations are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapters.errors import CannotConvert
from adapters.header import lookalike
from adapters.spec import shortened


def read_object(path: Path, writer: str) -> dict[str, Any]:
    """Read a file that `writer` writes into its folder. Raises CannotConvert or OSError."""
    if not path.is_file():
        raise CannotConvert(
            f"{path.parent.name} has no {path.name}; expected a folder that {writer} wrote"
        )
    content = path.read_bytes()
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
