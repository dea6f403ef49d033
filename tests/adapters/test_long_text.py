"""A long text as windows: those of transformers' own overflow, within a bound, and refusals by
name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.backbone import Backbone
from adapters.errors import InvalidWindow, TooManyWindows
from adapters.long_text import windows
from adapters.prompt import fitted
from adapters.text import TextInput, encode
from tests.adapters.test_text import texts, tokenizers_of

long_texts = st.lists(texts, min_size=1, max_size=8).map(" ".join)
LIMIT = 1000


@pytest.mark.parametrize("family", ["bert", "roberta"])
@settings(max_examples=150, deadline=None)
@given(
    row=st.one_of(
        st.tuples(long_texts), st.tuples(long_texts, texts), st.tuples(texts, long_texts)
    ),
    length=st.integers(12, 40),
    stride=st.integers(0, 12),
)
def test_windows_are_transformers(family: str, row: TextInput, length: int, stride: int) -> None:
    """Windows are transformers' overflow with that stride, of the longer text of a pair, each with
    the pair's type ids."""
    ours, theirs = tokenizers_of(family)
    lengths = [len(theirs(text, add_special_tokens=False)["input_ids"]) for text in row]
    around = len(theirs(*row)["input_ids"]) - sum(lengths)
    fits = sum(lengths) + around <= length
    if stride >= length - around or (
        not fits and length - around - sum(lengths) + max(lengths) <= stride
    ):
        with pytest.raises(InvalidWindow):
            windows(ours, [row], length, stride=stride, limit=LIMIT)
        return
    longer = "only_first" if len(row) == 1 or lengths[0] >= lengths[1] else "only_second"
    wanted = theirs(
        *row, truncation=longer, max_length=length, stride=stride, return_overflowing_tokens=True
    )["input_ids"]
    (found,) = windows(ours, [row], length, stride=stride, limit=LIMIT)
    assert [window.ids for window in found] == (wanted if isinstance(wanted[0], list) else [wanted])
    ends = ours.token_to_id("[SEP]")
    for window in found:
        first = len(window.ids) if family == "roberta" else window.ids.index(ends) + 1
        assert window.types == [0] * first + [1] * (len(window.ids) - first)


def test_a_text_that_fits_is_the_row_of_encode(embedded: Backbone) -> None:
    """Of several texts those that fit are one row each, as without windows; a quarter is shared
    where nothing is said."""
    rows: list[TextInput] = [("good",), ("red " * 100,), ("good " * 30,)]
    found = windows(embedded.tokenizer, rows, 32, stride=None, limit=LIMIT)
    assert [found[0], found[2]] == [
        [row] for row in encode(embedded.tokenizer, [rows[0], rows[2]], 32)
    ]
    assert found[1] == windows(embedded.tokenizer, [rows[1]], 32, stride=7, limit=LIMIT)[0]
    assert len(found[1]) == 5


@pytest.mark.parametrize("template", ["{text} It was {mask}.", "{text_pair}? {mask}, {text}"])
def test_every_window_stands_in_the_template(bert: Backbone, template: str) -> None:
    """A prompt's windows are the template around parts of the longer text, with the mask where it
    then is."""
    pair = "{text_pair}" in template
    prompt = fitted(template, bert.tokenizer, bert.mask_token, 24)
    row: TextInput = ("good film " * 30, "not bad") if pair else ("good film " * 30,)
    (found,) = windows(bert.tokenizer, [row], 24, stride=3, limit=LIMIT, prompt=prompt)
    ids = [bert.tokenizer.encode(text, add_special_tokens=False).ids for text in row]
    room = 24 - prompt.length - sum(map(len, ids[1:]))
    parts = [ids[0][start : start + room] for start in range(0, len(ids[0]) - 3, room - 3)]
    assert [(window.ids, window.mask) for window in found] == [
        prompt.fill([part, *ids[1:]]) for part in parts
    ]
    assert {len(window.ids) for window in found[:-1]} == {24}


def test_no_more_windows_than_are_left(embedded: Backbone) -> None:
    """Windows beyond the limit are refused with the numbers, whichever text brings them; a book is
    not read to its end."""
    rows: list[TextInput] = [("red " * 100,), ("good",), ("blue " * 100,)]
    assert sum(map(len, windows(embedded.tokenizer, rows, 32, stride=10, limit=11))) == 11
    with pytest.raises(
        TooManyWindows,
        match=r"^input 2 has 100 tokens and takes 5 windows; expected at most 4, the rows",
    ):
        windows(embedded.tokenizer, rows, 32, stride=10, limit=10)
    with pytest.raises(
        TooManyWindows, match=r"input 0 has \d{3} tokens or more and takes \d\d windows or more"
    ):
        windows(embedded.tokenizer, [("good " * 400_000,)], 32, stride=0, limit=8)


def test_white_space_hides_no_window(embedded: Backbone) -> None:
    """A text that is read whole because its beginning has few tokens has its windows of all of
    it."""
    (found,) = windows(
        embedded.tokenizer, [("red" + " " * 50_000 + "blue " * 40,)], 32, stride=0, limit=8
    )
    assert [len(window.ids) for window in found] == [32, 13]


def test_windows_without_room_are_refused(embedded: Backbone) -> None:
    """A stride as long as a window's text, and a pair whose shorter text leaves nothing for it, are
    refused by number."""
    with pytest.raises(
        InvalidWindow, match=r"stride is 30; expected less than 30, its tokens of the text"
    ):
        windows(embedded.tokenizer, [("good",)], 32, stride=30, limit=8)
    for stride, most in ((None, 29), (4, 25)):
        with pytest.raises(
            InvalidWindow, match=rf"without room for .* its shorter one has 29 .* less than {most}$"
        ):
            windows(embedded.tokenizer, [("good " * 40, "bad " * 29)], 32, stride=stride, limit=8)
