"""Text → tokens: the same as transformers' own tokenisers give, and what no tokeniser should
see."""

from __future__ import annotations

import string
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.errors import InvalidText
from adapters.text import TextInput, check_text, encode
from tests.tiny import WORDS, tiny_backbone

texts = st.one_of(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join),
    st.text(string.ascii_letters + " ,.éß中😀", min_size=1, max_size=40),
).filter(str.strip)


@cache
def tokenizers_of(family: str) -> tuple[Tokenizer, PreTrainedTokenizerBase]:
    """Ours and transformers' own, from the same folder."""
    folder = tiny_backbone(Path(mkdtemp()), family)
    return backbones.load(str(folder)).tokenizer, AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("family", ["bert", "roberta"])
@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.one_of(st.tuples(texts), st.tuples(texts, texts)), min_size=1, max_size=4),
    length=st.integers(8, 40),
)
def test_encode_is_transformers(family: str, rows: list[TextInput], length: int) -> None:
    """At every length single texts and pairs get transformers' ids, and type ids, with
    `longest_first` truncation."""
    ours, theirs = tokenizers_of(family)
    for row, tokens in zip(rows, encode(ours, rows, length), strict=True):
        cut = theirs(
            *row, truncation="longest_first", max_length=length, return_token_type_ids=True
        )
        whole = theirs(*row)
        assert tokens.ids == cut["input_ids"]
        assert tokens.types == cut["token_type_ids"]
        assert tokens.full_length == len(whole["input_ids"])


@settings(max_examples=50, deadline=None)
@given(first=st.integers(1, 40), second=st.integers(1, 40), length=st.integers(8, 60))
def test_lengths_of_a_cut_pair(first: int, second: int, length: int) -> None:
    """A pair is cut to exactly the length, and no text of it is cut below the other one's remainder
    by more than one."""
    ours, _ = tokenizers_of("bert")
    (tokens,) = encode(ours, [("good " * first, "bad " * second)], length)
    kept = [tokens.types.count(0) - 2, tokens.types.count(1) - 1]
    assert len(tokens.ids) == min(length, first + second + 3)
    assert kept[0] == first or kept[0] >= kept[1] - 1
    assert kept[1] == second or kept[1] >= kept[0] - 1


def test_encoding_leaves_no_state() -> None:
    """A batch that was cut does not change how the next one is tokenised."""
    ours, _ = tokenizers_of("bert")
    long = ("a good film " * 9,)
    whole = encode(ours, [long], 64)
    assert len(encode(ours, [long], 8)[0].ids) == 8
    assert encode(ours, [long], 64) == whole
    assert ours.truncation is None
    assert ours.padding is None


def test_no_rows() -> None:
    """An empty batch gives no rows."""
    assert encode(tokenizers_of("bert")[0], [], 8) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "inputs[3] is empty; expected a text"),
        (" \n\t\u3000", "inputs[3] is only white space; expected a text"),
        ("a\0b", "inputs[3] holds the control character U+0000 at position 1; expected text"),
        ("\x1b[31m", "inputs[3] holds the control character U+001B at position 0; expected text"),
        ("ab\x7f", "inputs[3] holds the control character U+007F at position 2; expected text"),
        ("x \ud83d y", "inputs[3] holds the lone surrogate U+D83D at position 2; expected text"),
    ],
)
def test_refused_texts(text: str, message: str) -> None:
    """A text without a visible character, or with what no text holds, is refused by its place and
    what is there."""
    with pytest.raises(InvalidText) as caught:
        check_text(text, "inputs[3]")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "text",
    [
        "a",
        "tab\tand\r\nline\x0bfeeds\x0c",
        "naïve 中文 😀 e\u0301",
        "\x93quoted\x94",
        ".",
        "\u200bx",
    ],
)
def test_accepted_texts(text: str) -> None:
    """Whatever people write is accepted: any script, emoji, line breaks, even C1 controls."""
    check_text(text, "text")


@pytest.mark.parametrize("pair", [False, True])
def test_a_long_text_is_cut_as_if_it_were_read_whole(embedded: Backbone, pair: bool) -> None:
    """Of a text far too long only the head is tokenised, and the row is the one that the whole text
    gives."""
    long = "the plot of this film is not very good and it was bad " * 2000
    text = ("a great film", long) if pair else (long,)
    (row,) = encode(embedded.tokenizer, [text], 64)
    whole = embedded.tokenizer.encode(*text)
    assert not row.exact
    assert 64 < row.full_length < len(whole.ids)
    assert row.ids == [*whole.ids[:63], whole.ids[-1]]


def test_a_long_text_of_few_tokens_is_read_whole(embedded: Backbone) -> None:
    """A long run of white space, or one endless word, hides no token that follows it."""
    for filler in (" " * 50_000, "x" * 50_000 + " "):
        (row,) = encode(embedded.tokenizer, [(f"good{filler}film",)], 64)
        assert row.ids == embedded.tokenizer.encode(f"good{filler}film").ids
