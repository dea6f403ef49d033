"""A text that is longer than a row, as rows: windows of it that overlap, cut as the tokenizers
library cuts them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Encoding, Tokenizer

from adapters.errors import InvalidWindow, TooManyWindows
from adapters.prompt import Prompt
from adapters.text import TextInput, Tokens, encode, read


def windows(
    tokenizer: Tokenizer,
    inputs: Sequence[TextInput],
    max_length: int,
    *,
    stride: int | None,
    limit: int,
    prompt: Prompt | None = None,
) -> list[list[Tokens]]:
    """The rows of each input: that of `encode` where it fits, else windows of its longer text, each
    beside the other one.

    Neighbouring windows share `stride` tokens, or a quarter of those that a window has of the text.
    No text is read much further than `limit` rows of all inputs together can hold. Raises
    InvalidWindow, or TooManyWindows.
    """
    spare = limit - len(inputs)  # beside the one row that each input surely takes
    result = []
    for i, (text, row) in enumerate(
        zip(inputs, encode(tokenizer, inputs, max_length, prompt), strict=True)
    ):
        room = max_length - _around(tokenizer, text, prompt)
        if stride is not None and stride >= room:
            raise InvalidWindow(
                f"the window's stride is {stride}; expected less than {room}, its tokens of the"
                " text"
            )
        fits = row.full_length <= max_length
        result.append(
            [row]
            if fits
            else _split(tokenizer, text, f"input {i}", room, stride, spare + 1, prompt)
        )
        spare -= len(result[-1]) - 1
    return result


def _around(tokenizer: Tokenizer, text: TextInput, prompt: Prompt | None) -> int:
    """Tokens of a row that are not the texts'."""
    return tokenizer.num_special_tokens_to_add(len(text) == 2) if prompt is None else prompt.length


def _split(
    tokenizer: Tokenizer,
    text: TextInput,
    name: str,
    room: int,
    stride: int | None,
    limit: int,
    prompt: Prompt | None,
) -> list[Tokens]:
    """`room` is for both texts of a pair."""
    shared = _shared(stride, room)
    parts, whole = read(
        tokenizer, text if prompt is None else prompt.spaced(text), limit * (room - shared) + shared
    )
    lengths = [len(part.ids) for part in parts]
    place = lengths.index(max(lengths))
    long, more = parts[place], "" if whole[place] else " or more"

    left = room - sum(lengths) + lengths[place]
    shared = _shared(stride, left)
    if left <= shared:
        raise InvalidWindow(
            f"{name} leaves a window without room for the pair's other text: its shorter one has"
            f" {min(lengths)} tokens; expected less than {room - (stride or 0)}"
        )
    count = 1 + -(-(lengths[place] - left) // (left - shared))
    if count > limit:
        raise TooManyWindows(
            f"{name} has {lengths[place]} tokens{more} and takes {count} windows{more}; "
            f"expected at most {limit}, the rows that the request has left for it"
        )
    long.truncate(left, stride=shared)
    rows = [[*parts[:place], piece, *parts[place + 1 :]] for piece in (long, *long.overflowing)]
    return [_row(tokenizer, row, prompt) for row in rows]


def _shared(stride: int | None, room: int) -> int:
    return room // 4 if stride is None else stride


def _row(tokenizer: Tokenizer, parts: list[Encoding], prompt: Prompt | None) -> Tokens:
    if prompt is not None:
        ids, mask = prompt.fill([part.ids for part in parts])
        return Tokens(ids, [0] * len(ids), len(ids), mask=mask)
    # One by one: of a pair whose second text has overflow, the library gives its further windows
    # wrong type ids.
    row = tokenizer.post_process(parts[0], parts[1] if len(parts) > 1 else None)
    return Tokens(row.ids, row.type_ids, len(row.ids))
