"""Prompts: templates and their tokens, what a file says of them, and the mask that no text can
move."""

from __future__ import annotations

import json
import struct
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from typer.testing import CliRunner

from adapters import backbone as backbones
from adapters.__main__ import app
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.errors import InvalidAdapter, InvalidPrompt
from adapters.file import parse, serialize
from adapters.text import TextInput, Tokens, encode
from tests.tiny import FAMILIES, WORDS, random_adapter, tiny_masked_lm

SINGLE = "{text} It was {mask}."
PAIR = "{text}? {mask}, {text_pair}"


@cache
def folder_of(family: str) -> Path:
    return tiny_masked_lm(Path(mkdtemp()), family)


@cache
def backbone_of(family: str) -> Backbone:
    return backbones.load(str(folder_of(family)))


def encoded(backbone: Backbone, template: str, text: TextInput, length: int = 64) -> Tokens:
    return encode(backbone.tokenizer, [text], length, backbone.prompt(template, length))[0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("template", "text"),
    [
        (SINGLE, ("a good film",)),
        (PAIR, ("a good film", "the plot was bad")),
        ("{mask}: {text_pair} and {text}", ("it is", "not very good")),
        ("This is {mask}. {text}", ("good",)),
        ("{text} {mask}", ("good",)),
    ],
)
def test_tokens_are_those_of_the_filled_template(
    family: str, template: str, text: TextInput
) -> None:
    """Where template and text meet at white space or punctuation, the ids are transformers' own for
    the whole sentence."""
    backbone, theirs = backbone_of(family), AutoTokenizer.from_pretrained(folder_of(family))
    sentence = template.format(text=text[0], text_pair=text[-1], mask=theirs.mask_token)
    tokens = encoded(backbone, template, text)
    assert tokens.ids == theirs(sentence)["input_ids"]
    assert tokens.types == [0] * len(tokens.ids)
    assert tokens.mask is not None
    assert tokens.ids[tokens.mask] == theirs.mask_token_id
    assert tokens.full_length == len(tokens.ids)


@settings(max_examples=100, deadline=None)
@given(
    family=st.sampled_from(["bert", "roberta"]),
    words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=80),
    length=st.integers(32, 64),
)
def test_only_the_text_is_cut(family: str, words: list[str], length: int) -> None:
    """However long the text is, the row keeps the length, begins with the text's tokens and ends
    with the template's."""
    backbone = backbone_of(family)
    whole, short = (
        encoded(backbone, SINGLE, (" ".join(some),), n)
        for some, n in ((words, 10_000), (words[:1], length))
    )
    tokens = encoded(backbone, SINGLE, (" ".join(words),), length)
    own = backbone.prompt(SINGLE, length)
    assert own is not None
    after = own.length - 1  # all but the first special token
    assert len(tokens.ids) == min(length, len(whole.ids))
    assert tokens.full_length == len(whole.ids)
    assert tokens.ids[-after:] == whole.ids[-after:] == short.ids[-after:]
    assert tokens.ids[:-after] == whole.ids[: len(tokens.ids) - after]
    assert tokens.ids[tokens.mask] == backbone.tokenizer.token_to_id(str(backbone.mask_token))  # type: ignore[index]


def test_the_longer_text_of_a_pair_is_cut_first() -> None:
    """A pair too long loses tokens of its longer text until both are of one length."""
    bert = backbone_of("bert")
    for first, second in ((50, 5), (5, 50), (50, 50)):
        tokens = encoded(bert, PAIR, ("good " * first, "bad " * second), 32)
        names = [bert.tokenizer.id_to_token(i) for i in tokens.ids]
        own = 5  # [CLS] ? [MASK] , [SEP]
        kept = names.count("good"), names.count("bad")
        assert sum(kept) + own == len(names) == 32
        assert min(kept) == min(first, second, 13)
        assert tokens.full_length == first + second + own


@pytest.mark.parametrize("family", ["bert", "roberta"])
@pytest.mark.parametrize("spelt", ["{0} a film", "good {0} film", "a {0} {0}", "{0}", "a{0}b"])
def test_a_mask_that_a_text_spells_is_not_the_mask(family: str, spelt: str) -> None:
    """A text may hold the mask token itself: the template's is the one that is read."""
    backbone = backbone_of(family)
    token = str(backbone.mask_token)
    for template, text in (
        (SINGLE, (spelt.format(token),)),
        (PAIR, (spelt.format(token), f"{token} b")),
    ):
        tokens = encoded(backbone, template, text)  # type: ignore[arg-type]
        plain = encoded(backbone, template, tuple("x" for _ in text))  # type: ignore[arg-type]
        own = backbone.prompt(template, 64)
        assert own is not None
        assert plain.mask is not None
        assert tokens.mask is not None
        assert tokens.ids.count(tokens.ids[tokens.mask]) > 1
        before = len(backbone.tokenizer.encode(text[0], add_special_tokens=False).ids)
        alone = len(backbone.tokenizer.encode("x", add_special_tokens=False).ids)
        assert tokens.mask - before == plain.mask - alone


def test_a_long_text_is_read_only_as_far_as_it_matters() -> None:
    """Of a text far too long only the head is tokenised, and the row is the one that the whole text
    gives."""
    bert = backbone_of("bert")
    tokens = encoded(bert, SINGLE, ("the plot was bad " * 5000,), 32)
    assert not tokens.exact
    assert tokens.full_length > 32
    assert tokens.ids == encoded(bert, SINGLE, ("the plot was bad " * 20,), 32).ids
    spaces = encoded(bert, SINGLE, ("good" + " " * 50_000 + "film",))
    assert spaces.exact
    assert spaces.ids == encoded(bert, SINGLE, ("good film",)).ids


TEMPLATES: list[tuple[str, bool, str]] = [
    ("{text} It was great.", False, "holds 0 {mask}; expected 1"),
    ("{text} {mask} {mask}", False, "holds 2 {mask}; expected 1"),
    ("It was {mask}.", False, "holds 0 {text}; expected 1"),
    ("{text} {text} {mask}", False, "holds 2 {text}; expected 1"),
    (
        "{text} {mask} {text_pair}",
        False,
        "holds 1 {text_pair}; expected 0; the task takes single texts",
    ),
    ("{text} {mask}", True, "holds 0 {text_pair}; expected 1; the task takes pairs"),
    ("{text} {Mask}", False, "holds '{Mask}'; expected no braces but {text}, {text_pair}, {mask}"),
    ("{text} {mask} }", False, "holds '}'; expected no braces but"),
    ("{{text}} {mask}", False, "holds '{'; expected no braces but"),
    ("", False, "the template '' holds 0 {mask}"),
    (
        "{text} {mask}" + "!" * 1000,
        False,
        "the template has 1013 characters; expected at most 1000",
    ),
]


def with_template(data: bytes, changes: dict[str, Any]) -> bytes:
    """The file with another spec, its tensors as they were."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"]["spec"] = json.dumps(
        json.loads(header["__metadata__"]["spec"]) | changes
    )
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


@pytest.mark.parametrize(("template", "pair", "message"), TEMPLATES)
def test_templates_that_a_file_may_not_have(template: str, pair: bool, message: str) -> None:
    """A template without exactly one mask and the task's texts is refused with what it holds and
    what was expected."""
    made = PAIR if pair else SINGLE
    _, _, data = random_adapter(backbone_of("bert"), "t", ["a", "b"], template=made, text_pair=pair)
    with pytest.raises(InvalidPrompt) as caught:
        parse(with_template(data, {"template": template}))
    assert message in str(caught.value)


def test_a_template_stands_exactly_with_pooling_at_the_mask() -> None:
    """A template with another pooling, or that pooling without a template, is refused."""
    bert = backbone_of("bert")
    prompted, plain = (
        random_adapter(bert, "t", ["a", "b"], template=template)[2] for template in (SINGLE, None)
    )
    for data, changes, message in (
        (
            plain,
            {"template": SINGLE},
            "pooling is 'mean' with the template '{text} It was {mask}.'",
        ),
        (
            plain,
            {"pooling": "mask"},
            "pooling is 'mask' with no template; expected a template exactly where it is 'mask'",
        ),
        (prompted, {"template": 3}, "template is 3; expected a valid string"),
    ):
        with pytest.raises(InvalidAdapter) as caught:
            parse(with_template(data, changes))
        assert message in str(caught.value)


def test_the_norm_stands_exactly_with_pooling_at_the_mask() -> None:
    """The head's dense layer and its norm must be there with a template; the norm must not be there
    without one."""
    spec, tensors, _ = random_adapter(backbone_of("bert"), "t", ["a", "b"], template=SINGLE)
    for name in ("head.norm.weight", "head.norm.bias", "head.dense.weight"):
        with pytest.raises(InvalidAdapter, match=f"{name}' is missing|'head.dense.bias' alone"):
            parse(serialize(spec, {key: tensor for key, tensor in tensors.items() if key != name}))
    no_dense = {key: tensor for key, tensor in tensors.items() if not key.startswith("head.dense")}
    with pytest.raises(InvalidAdapter, match=r"'head\.dense\.weight' is missing"):
        parse(serialize(spec, no_dense))
    plain, _, _ = random_adapter(backbone_of("bert"), "t", ["a", "b"])
    with pytest.raises(InvalidAdapter, match=r"holds a tensor 'head\.norm\.(weight|bias)'"):
        parse(serialize(plain, tensors))


def test_files_without_a_template_do_not_name_it() -> None:
    """The spec of an adapter without a prompt is written as it was before there were prompts."""
    spec, _, _ = random_adapter(backbone_of("bert"), "t", ["a", "b"])
    assert "template" not in spec.model_dump_json()
    assert "template" not in spec.model_dump()
    prompted, _, data = random_adapter(backbone_of("bert"), "t", ["a", "b"], template=SINGLE)
    assert parse(data).spec == prompted
    assert list(json.loads(prompted.model_dump_json()))[5:7] == ["pooling", "template"]


@pytest.mark.parametrize(
    ("template", "length", "message"),
    [
        ("{text} [MASK] was {mask}", 64, "has 2 tokens '[MASK]'; expected only {mask} to be one"),
        (
            "{text} " + "very " * 30 + "{mask}",
            32,
            "takes 33 of the 32 tokens of a row; expected room for a text",
        ),
        (
            "{text} {text_pair} " + "very " * 28 + "{mask}",
            32,
            "takes 31 of the 32 tokens of a row; expected room for two texts",
        ),
    ],
)
def test_templates_that_do_not_fit_a_backbone(template: str, length: int, message: str) -> None:
    """A template that spells the mask token, or leaves a text no room, is refused."""
    with pytest.raises(InvalidPrompt) as caught:
        backbone_of("bert").prompt(template, length)
    assert message in str(caught.value)


def test_a_tokeniser_without_a_mask(tmp_path: Path) -> None:
    """A backbone whose tokeniser has no mask token takes no template."""
    folder = tiny_masked_lm(tmp_path, "bert")
    path = folder / "tokenizer_config.json"
    path.write_text(
        json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "mask_token"})
    )
    backbone = backbones.load(str(folder))
    assert backbone.mask_token is None
    with pytest.raises(InvalidPrompt, match="the backbone's tokeniser has no mask token for it"):
        backbone.prompt(SINGLE, 64)


def test_a_row_does_not_feel_its_batch() -> None:
    """A row of a prompt task has the same logits alone as padded in a batch."""
    roberta = backbone_of("roberta")
    spec, _, data = random_adapter(roberta, "t", ["a", "b"], template=PAIR, text_pair=True)
    model = from_adapter(roberta, parse(data))
    texts: list[TextInput] = [
        ("good", "bad"),
        ("a longer text is this", "it is"),
        ("a", "and the plot"),
    ]
    rows = encode(roberta.tokenizer, texts, 64, roberta.prompt(spec.template, 64))
    torch.testing.assert_close(
        model(collate(rows)),
        torch.cat([model(collate([row])) for row in rows]),
        atol=1e-5,
        rtol=1e-5,
    )


def test_inspect_and_validate(tmp_path: Path) -> None:
    """`adapters inspect` shows the template, `validate` replays the probe through it."""
    _, _, data = random_adapter(backbone_of("roberta"), "t", ["a", "b"], template=SINGLE)
    file = tmp_path / "t.safetensors"
    file.write_bytes(data)
    shown = CliRunner().invoke(app, ["inspect", str(file)])
    assert f"template      {SINGLE}\n" in shown.stdout
    checked = CliRunner().invoke(
        app, ["validate", str(file), "--backbone", str(folder_of("roberta"))]
    )
    assert checked.exit_code == 0, checked.output
