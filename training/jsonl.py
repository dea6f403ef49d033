"""A file of JSON lines that runs append to: each line is whole, and none stands there twice."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from adapters.regular import is_folder, is_there, read_bytes
from training.errors import TrainingError


def check_appendable(path: Path) -> None:
    """Find out before the training, not after it, that its line could not be written."""
    there = path if is_there(path) else path.parent
    if is_folder(path) or not is_folder(path.parent) or not os.access(there, os.W_OK):
        raise TrainingError(
            f"--scores {path} cannot be written; expected a file's path in a folder that exists"
        )


def recorded(path: Path, line: dict[str, Any]) -> bool:
    """Whether a file has that line already, of whatever duration and hardware."""
    try:
        there = read_bytes(path).splitlines()
    except OSError:
        return False
    return any(_lasting(found) == _lasting(json.dumps(line).encode()) for found in there)


def _lasting(line: bytes) -> Any:
    try:
        return {
            name: value
            for name, value in json.loads(line).items()
            if name not in ("seconds", "hardware")
        }
    except (ValueError, AttributeError):  # cut short by a kill, or somebody else's
        return None


def append(path: Path, line: dict[str, Any]) -> None:
    """Add one line; what a killed run left of its last one stays a line of its own."""
    try:
        with path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                torn = file.read(1) != b"\n"
            else:
                torn = False
            file.write(b"\n" * torn + json.dumps(line).encode() + b"\n")
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror or error}") from None
