"""Split a text that is longer than a row into rows: overlapping windows, as the tokenizers library
makes them."""

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
    first: int = 0,
) -> list[list[Tokens]]:
    """Return the rows of each input. An input that fits has the one row that `encode` gives.
    Otherwise its longer text is split, and each window is paired with the whole shorter text.

    Neighbouring windows share `stride` tokens; the default is a quarter of the tokens that a window
    has of the text. All inputs together may take `limit` rows, and a text is tokenised only as far
    as that many rows can hold. Raises InvalidWindow or TooManyWindows; `first` is the number that
    they give the first input.
    """
    spare = limit - len(inputs)  # rows left after one row for each input
    result = []
    for i, (text, row) in enumerate(
        zip(inputs, encode(tokenizer, inputs, max_length, prompt), strict=True), first
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
    """Count the tokens of a row that do not come from the texts."""
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
    """Split one input into windows. `room` is the number of tokens that both texts of a pair share
    in a row."""
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
    # Row by row, because the library gives wrong type ids to the further windows of a pair whose
    # second text overflows.
    row = tokenizer.post_process(parts[0], parts[1] if len(parts) > 1 else None)
    return Tokens(row.ids, row.type_ids, len(row.ids))
