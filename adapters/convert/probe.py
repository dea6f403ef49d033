"""Choose the texts of a converted adapter's probe: the user's, or neutral ones."""

from __future__ import annotations

import json
from pathlib import Path

from adapters.errors import CannotConvert
from adapters.regular import opened_input
from adapters.spec import shortened, shown
from adapters.text import TextInput, check_encodable

MAX_ROWS = 8
MAX_LINE_BYTES = 1 << 20

# Long and short texts about nothing in particular.
NEUTRAL_PAIRS = (
    ("The meeting starts at nine o'clock.", "It begins in the morning."),
    ("She put the book back on the shelf.", "The shelf is empty."),
    (
        "This is by far the best soup that I have had in years, and I would order it again.",
        "The soup was good.",
    ),
    ("No.", "Nobody knows why the lights went out last night."),
)


def neutral_probe(text_pair: bool) -> tuple[TextInput, ...]:
    """Return the neutral texts, as pairs if `text_pair`."""
    return tuple(pair if text_pair else pair[:1] for pair in NEUTRAL_PAIRS)


def read_probe(path: Path, text_pair: bool) -> tuple[TextInput, ...]:
    """Read the first rows of a file of JSON lines. Other keys, such as labels, are ignored. Raises
    CannotConvert, InvalidText or OSError."""
    keys = ("text", "text_pair") if text_pair else ("text",)
    rows: list[TextInput] = []
    with opened_input(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
            if len(line) > MAX_LINE_BYTES:  # it may be larger than the memory
                raise CannotConvert(
                    f"{path.name}:{number} has more than {MAX_LINE_BYTES} bytes; expected shorter"
                    " texts"
                )
            if not line.strip():
                continue
            rows.append(_row(line, keys, f"{path.name}:{number}"))
            if len(rows) == MAX_ROWS:
                break
    if not rows:
        raise CannotConvert(
            f"the probe {path.name} is empty; expected JSON lines with {' and '.join(keys)}"
        )
    return tuple(rows)


def _row(line: bytes, keys: tuple[str, ...], where: str) -> TextInput:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise CannotConvert(
            f"{where} is not JSON: {shortened(error)}; expected an object with {' and '.join(keys)}"
        ) from None
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in keys):
        raise CannotConvert(
            f"{where} is {shown(row)}; expected an object with {' and '.join(keys)}"
        )
    for key in keys:
        check_encodable(row[key], f"{where}: {key}")
    return (row["text"], row["text_pair"]) if len(keys) == 2 else (row["text"],)
