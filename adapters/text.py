"""Text → token ids: the one way that the trainer and the server share, so that both see the same tokens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from adapters.errors import InvalidText

TextInput = tuple[str] | tuple[str, str]

# C0 controls and DEL but for tab, line feed, vertical tab, form feed and carriage return. C1 controls stay allowed: real
# corpora hold them (Windows-1252 read as Latin-1), and the tokenisers drop them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row, special tokens included. `full_length` is what it had before truncation."""

    ids: list[int]
    types: list[int]
    full_length: int


def check_text(text: str, name: str) -> None:
    """What a client may ask: as `check_encodable`, and no control character, which only a broken client sends.

    `name` says where the text stands ("inputs[3]"). Raises InvalidText.
    """
    check_encodable(text, name)
    _refuse(_CONTROL, "control character", text, name)


def check_encodable(text: str, name: str) -> None:
    """What a tokeniser can take: not empty, no lone surrogate. Raises InvalidText.

    Real training data hold a stray control character here and there (STS-B does); the tokenisers drop it.
    """
    if not text.strip():
        raise InvalidText(f"{name} is {'only white space' if text else 'empty'}; expected a text")
    _refuse(_SURROGATE, "lone surrogate", text, name)


def _refuse(kind: re.Pattern[str], what: str, text: str, name: str) -> None:
    found = kind.search(text)
    if found:
        raise InvalidText(f"{name} holds the {what} U+{ord(found.group()):04X} at position {found.start()}; expected text")


def encode(tokenizer: Tokenizer, inputs: Sequence[TextInput], max_length: int) -> list[Tokens]:
    """Tokenise a batch in one call; rows beyond `max_length` tokens are cut, the longer text of a pair first.

    `tokenizer` must have neither padding nor truncation set. A row was cut if `full_length > len(ids)`.
    """
    encodings = tokenizer.encode_batch([text if len(text) > 1 else text[0] for text in inputs])
    return [
        Tokens(e.ids, e.type_ids, len(e.ids)) if len(e.ids) <= max_length else _cut(tokenizer, text, max_length)
        for e, text in zip(encodings, inputs, strict=True)
    ]


def _cut(tokenizer: Tokenizer, text: TextInput, max_length: int) -> Tokens:
    """The tokenizers library's `longest_first`, without putting a length into the shared tokeniser's state."""
    parts: list[Encoding] = tokenizer.encode_batch(list(text), add_special_tokens=False)
    special = tokenizer.num_special_tokens_to_add(len(parts) == 2)
    lengths = [len(part.ids) for part in parts]
    room = max_length - special
    if len(parts) == 1:
        parts[0].truncate(room)
    else:
        short, long = sorted(lengths)
        long = max(short, room - short)
        if short + long > room:
            short, long = room // 2, room // 2 + room % 2
        first, second = (short, long) if lengths[0] <= lengths[1] else (long, short)
        parts[0].truncate(min(first, lengths[0]))
        parts[1].truncate(min(second, lengths[1]))
    whole = tokenizer.post_process(parts[0], parts[1] if len(parts) == 2 else None)
    return Tokens(whole.ids, whole.type_ids, sum(lengths) + special)
