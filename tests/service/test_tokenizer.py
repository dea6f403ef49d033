"""The server's tokeniser: the same rows as of whole texts, and a bound to what is read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters.backbone import Backbone
from adapters.errors import TooManyWindows
from adapters.long_text import windows
from adapters.text import TextInput, Tokens, encode
from service.refusals import InputTooLong
from service.tokenizer import PIECE_CHARACTERS, READ_CHARACTERS, RequestTokenizer

WORDS = "the plot of this film is not very good, and it was bad. "


def tokenized(backbone: Backbone, texts: list[TextInput], *, truncate: bool = True) -> list[Tokens]:
    tokenizer = RequestTokenizer(backbone.tokenizer, backbone.mask_token)
    return asyncio.run(tokenizer.encode(texts, 64, None, truncate=truncate))


@pytest.mark.parametrize(
    "text",
    [
        WORDS,
        WORDS * 40_000,
        "电影很好看。" * 20_000,
        "фильм хороший, " * 10_000,
        "https://example.com/" + "a1" * 500 + " " + WORDS * 2_000,
        "good" + " " * 50_000 + "film",
        "x" * 50_000 + " " + WORDS,
        "😀 " * 40_000,
    ],
    ids=["short", "2MB", "Chinese", "Russian", "URL", "white space", "endless word", "emoji"],
)
def test_rows_are_those_of_whole_texts(embedded: Backbone, text: str) -> None:
    """Any text that people write gives the row that it gives where all of it is read, alone, in a
    pair and among others."""
    for texts in ([(text,)], [(text, WORDS)], [(WORDS, text)], [(WORDS,), (text,), (WORDS * 99,)]):
        found, whole = tokenized(embedded, texts), encode(embedded.tokenizer, texts, 64)
        assert [(row.ids, row.types) for row in found] == [(row.ids, row.types) for row in whole]


def test_an_endless_word_is_read_so_far(embedded: Backbone) -> None:
    """Of two million characters without a token's end only the first 65,536 are read: cut if the
    client allows it, else refused by the characters' number."""
    endless = "good " + "x" * (2 << 20)
    assert [row.ids for row in tokenized(embedded, [(endless,)])] == [
        row.ids for row in encode(embedded.tokenizer, [(endless[:READ_CHARACTERS],)], 64)
    ]
    with pytest.raises(InputTooLong, match="1 has 2097157 characters, of which 65536 are read; "):
        tokenized(embedded, [("good",), (endless,)], truncate=False)


def test_windows_lose_nothing(embedded: Backbone) -> None:
    """A text that is read only in part is refused where windows were to cover it, by its characters
    if it has few tokens."""
    tokenizer = RequestTokenizer(embedded.tokenizer, embedded.mask_token)

    def found(text: str, limit: int) -> Any:
        return asyncio.run(tokenizer.windows([(text,)], 64, None, stride=None, limit=limit))

    (rows,) = found(WORDS * 100, 99)
    assert len(rows) > 10
    with pytest.raises(TooManyWindows, match=r"tokens or more and takes .* windows or more"):
        found(WORDS * 40_000, 8)
    endless = "x" * (2 << 20)
    with pytest.raises(
        TooManyWindows, match="2097152 characters; expected at most 65536 for 8 windows"
    ):
        found(endless, 8)


def test_windows_of_many_texts_are_made_in_turns(embedded: Backbone) -> None:
    """Texts that take several turns of a thread have the windows, the shared limit and the number
    in a refusal that they have in one."""
    texts: list[TextInput] = [(WORDS * 500,), ("good",), (WORDS * 500,), (WORDS * 500,)]
    assert sum(len(text) for row in texts for text in row) > 2 * PIECE_CHARACTERS
    whole = windows(embedded.tokenizer, texts, 64, stride=4, limit=2000)
    rows = sum(map(len, whole))
    tokenizer = RequestTokenizer(embedded.tokenizer, embedded.mask_token)

    def found(limit: int) -> list[list[Tokens]]:
        return asyncio.run(tokenizer.windows(texts, 64, None, stride=4, limit=limit))

    assert [[row.ids for row in one] for one in found(rows)] == [
        [row.ids for row in one] for one in whole
    ]
    with pytest.raises(TooManyWindows, match=f"input 3 .* at most {len(whole[3]) - 1}, "):
        found(rows - 1)
