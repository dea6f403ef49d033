"""Tokenise texts. The trainer and the server share this code, so that both see the same tokens."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

from adapters.errors import InvalidText
from adapters.prompt import Prompt

TextInput = tuple[str] | tuple[str, str]

# C0 controls and DEL, except tab, line feed, vertical tab, form feed and carriage return. C1
# controls are allowed, because real corpora hold them (Windows-1252 read as Latin-1) and the
# tokenisers drop them.
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f]")
_SURROGATE = re.compile("[\ud800-\udfff]")


# A text is tokenised only as far as it can matter, so that a million words cost no more than the
# tokens that are kept. No language has eight characters per token on average. The spare tokens keep
# the cut away from the tokens that are kept.
CHARACTERS_PER_TOKEN = 8
SPARE_TOKENS = 100


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row, special tokens included. `full_length` is its length before truncation, or a lower
    bound of it unless `exact`. `mask` is the position of a prompt's mask."""

    ids: list[int]
    types: list[int]
    full_length: int
    exact: bool = True
    mask: int | None = None


def check_text(text: str, name: str) -> None:
    """Check a client's text: as `check_encodable`, and that it holds no control character, which
    only a broken client sends.

    `name` says where the text stands ("inputs[3]"). Raises InvalidText.
    """
    check_encodable(text, name)
    _refuse(_CONTROL, "control character", text, name)


def check_encodable(text: str, name: str) -> None:
    """Check that a tokeniser can take a text: it is not empty and holds no lone surrogate. Raises
    InvalidText.

    Control characters are allowed. Real training data hold some (STS-B does), and the tokenisers
    drop them.
    """
    if not text.strip():
        raise InvalidText(f"{name} is {'only white space' if text else 'empty'}; expected a text")
    _refuse(_SURROGATE, "lone surrogate", text, name)


def _refuse(kind: re.Pattern[str], what: str, text: str, name: str) -> None:
    found = kind.search(text)
    if found:
        raise InvalidText(
            f"{name} holds the {what} U+{ord(found.group()):04X} at position {found.start()};"
            " expected text"
        )


def encode(
    tokenizer: Tokenizer, inputs: Sequence[TextInput], max_length: int, prompt: Prompt | None = None
) -> list[Tokens]:
    """Tokenise a batch in one call. Cuts rows to `max_length` tokens: of a pair the longer text
    first, of a prompt nothing.

    `tokenizer` must have neither padding nor truncation set. A row was cut if `full_length` is more
    than `len(ids)`.
    """
    if prompt is not None:
        return _prompted(tokenizer, inputs, max_length, prompt)
    heads = [tuple(_head(part, max_length) for part in text) for text in inputs]
    encodings = tokenizer.encode_batch_fast([head if len(head) > 1 else head[0] for head in heads])
    rows = []
    for text, head, encoding in zip(inputs, heads, encodings, strict=True):
        if head != text and not _enough(encoding, text, head, max_length):
            head, encoding = (
                text,
                tokenizer.encode_batch_fast([text if len(text) > 1 else text[0]])[0],
            )
        if len(encoding.ids) <= max_length:
            rows.append(Tokens(encoding.ids, encoding.type_ids, len(encoding.ids)))
        else:
            rows.append(_cut(tokenizer, head, max_length, exact=head == text))
    return rows


def _head(text: str, max_length: int) -> str:
    """Return as much of a text as `max_length` tokens can need, up to a space if there is one."""
    limit = CHARACTERS_PER_TOKEN * (max_length + SPARE_TOKENS)
    if len(text) <= limit:
        return text
    return text[: text.rfind(" ", 0, limit) + 1 or limit]


def _enough(
    encoding: Encoding, text: tuple[str, ...], head: tuple[str, ...], max_length: int
) -> bool:
    """Whether each part that was shortened still gives more tokens than a row can keep of it."""
    counts = Counter(encoding.sequence_ids)
    return all(
        whole == part or counts[i] >= max_length + SPARE_TOKENS // 2
        for i, (whole, part) in enumerate(zip(text, head, strict=True))
    )


def _prompted(
    tokenizer: Tokenizer, inputs: Sequence[TextInput], max_length: int, prompt: Prompt
) -> list[Tokens]:
    """Tokenise each text by itself and put it between the template's tokens, in one segment, as
    masked language models read their input."""
    parts, whole = read(
        tokenizer, [part for text in inputs for part in prompt.spaced(text)], max_length
    )
    rows = []
    for first in range(0, len(parts), len(prompt.spaces)):
        row = slice(first, first + len(prompt.spaces))
        lengths = [len(part.ids) for part in parts[row]]
        kept = _kept(lengths, max_length - prompt.length)
        ids, mask = prompt.fill([part.ids[:n] for part, n in zip(parts[row], kept, strict=True)])
        rows.append(
            Tokens(ids, [0] * len(ids), prompt.length + sum(lengths), all(whole[row]), mask)
        )
    return rows


def read(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> tuple[list[Encoding], list[bool]]:
    """Tokenise each text by itself, without special tokens, as far as its first `length` tokens
    need it. Returns the encodings, and for each whether it is the whole text."""
    heads = [_head(text, length) for text in texts]
    parts: list[Encoding] = tokenizer.encode_batch_fast(heads, add_special_tokens=False)
    for i, (text, head) in enumerate(zip(texts, heads, strict=True)):
        if head != text and len(parts[i].ids) < length + SPARE_TOKENS // 2:
            parts[i], heads[i] = (
                tokenizer.encode_batch_fast([text], add_special_tokens=False)[0],
                text,
            )
    return parts, [head == text for head, text in zip(heads, texts, strict=True)]


def _cut(tokenizer: Tokenizer, text: tuple[str, ...], max_length: int, *, exact: bool) -> Tokens:
    """Truncate as the tokenizers library's `longest_first` does, without setting a length in the
    tokeniser that threads share."""
    parts: list[Encoding] = tokenizer.encode_batch_fast(list(text), add_special_tokens=False)
    special = tokenizer.num_special_tokens_to_add(len(parts) == 2)
    lengths = [len(part.ids) for part in parts]
    for part, kept in zip(parts, _kept(lengths, max_length - special), strict=True):
        part.truncate(kept)
    whole = tokenizer.post_process(parts[0], parts[1] if len(parts) > 1 else None)
    return Tokens(whole.ids, whole.type_ids, sum(lengths) + special, exact)


def _kept(lengths: list[int], room: int) -> list[int]:
    """Return how many tokens of each text are kept; the longer text of a pair loses tokens
    first."""
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    short, long = sorted(lengths)
    long = max(short, room - short)
    if short + long > room:
        short, long = room // 2, room // 2 + room % 2
    first, second = (short, long) if lengths[0] <= lengths[1] else (long, short)
    return [min(first, lengths[0]), min(second, lengths[1])]
