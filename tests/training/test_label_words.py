"""Prompt-based training: label words through the backbone's own masked-language-model head."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, AutoTokenizer
from typer.testing import CliRunner, Result

from adapters import backbone as backbones
from adapters.attach import attached
from adapters.classifier import collate, from_adapter, from_tensors
from adapters.file import Adapter, load
from adapters.text import encode
from tests.tiny import tiny_backbone, tiny_masked_lm
from tests.training.test_training_cli import ROWS, arguments, assert_refused, jsonl
from training.__main__ import app

PROMPT = "{text} It was {mask}."
WORDS = {
    "bert": "positive=great,negative=awful",
    "electra": "positive=great,negative=awful",
    "roberta": "positive=good,negative=the",
    "xlm-roberta": "positive=good,negative=the",
    "camembert": "positive=good,negative=the",
}
TEXTS = ["the film is good", "awful plot, very very bad"]


@cache
def folder_of(family: str) -> Path:
    return tiny_masked_lm(Path(mkdtemp()), family)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "data.jsonl", ROWS)


def train(rows: Path, out: Path, folder: Path | str, *more: str) -> Result:
    return CliRunner().invoke(app, arguments(rows, out, folder, *more))


def word_ids(family: str, labels: tuple[str, ...]) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(folder_of(family))
    words = dict(pair.split("=") for pair in WORDS[family].split(","))
    ids = [tokenizer(f" {words[label]}", add_special_tokens=False)["input_ids"] for label in labels]
    assert all(len(pieces) == 1 for pieces in ids)
    return [pieces[0] for pieces in ids]


@torch.no_grad()
def masked_lm_logits(
    family: str, adapter: Adapter, texts: list[str], *, zero: bool = False
) -> Tensor:
    """What transformers' whole masked language model, with the adapters hooked in, gives the label
    words at the mask."""
    model = AutoModelForMaskedLM.from_pretrained(folder_of(family)).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder_of(family))
    sites = from_adapter(backbones.load(str(folder_of(family))), adapter).sites
    if zero:
        for parameter in sites.parameters():
            parameter.zero_()
    found = []
    for text in texts:
        inputs = tokenizer(
            f"{text} It was {tokenizer.mask_token}.",
            return_tensors="pt",
            return_token_type_ids=False,
        )
        with attached(model.base_model, sites):
            logits = model(**inputs).logits[inputs["input_ids"] == tokenizer.mask_token_id][0]
        found.append(logits[word_ids(family, adapter.spec.labels)])
    return torch.stack(found)


@pytest.mark.parametrize("family", WORDS)
def test_logits_are_the_masked_language_models(family: str, rows: Path, tmp_path: Path) -> None:
    """A trained adapter's logits are transformers' own masked-LM logits of the words at the mask,
    with the adapters hooked in; an adapter of zeros gives those of the plain model."""
    out = tmp_path / "out.safetensors"
    options = (
        "--prompt",
        PROMPT,
        "--label-words",
        WORDS[family],
        "--learning-rate",
        "0.02",
        "--dtype",
        "float32",
    )
    result = train(rows, out, folder_of(family), *options)
    assert result.exit_code == 0, result.output
    adapter = load(out)
    assert adapter.spec.pooling == "mask"
    assert adapter.spec.template == PROMPT
    backbone = backbones.load(str(folder_of(family)))
    batch = collate(
        encode(backbone.tokenizer, [(text,) for text in TEXTS], 64, backbone.prompt(PROMPT, 64))
    )
    nothing = {
        n: t if n.startswith("head.") else torch.zeros_like(t) for n, t in adapter.tensors.items()
    }
    for zero, model in (
        (False, from_adapter(backbone, adapter)),
        (True, from_tensors(backbone, nothing, "mask")),
    ):
        expected = masked_lm_logits(family, adapter, TEXTS, zero=zero)
        with torch.no_grad():
            torch.testing.assert_close(model(batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_prompt_learns(family: str, tmp_path: Path) -> None:
    """Adapters alone, around a frozen head of words, learn a separable task."""
    texts = [" ".join([word] * n) for n in (3, 4, 5, 6) for word in ("red", "very")]
    data = jsonl(
        tmp_path / "d.jsonl",
        [{"text": t, "label": "positive" if "red" in t else "negative"} for t in texts],
    )
    out = tmp_path / "out.safetensors"
    more = (
        "--method",
        "adapter",
        "--epochs",
        "50",
        "--learning-rate",
        "0.01",
        "--bottleneck",
        "16",
    )
    result = train(
        data, out, folder_of(family), "--prompt", PROMPT, "--label-words", WORDS[family], *more
    )
    assert result.exit_code == 0, result.output
    scores: Any = load(out).spec.training["dev_scores"]
    assert scores["accuracy"] == 1.0


def test_the_recipe_tells_of_the_prompt(rows: Path, tmp_path: Path) -> None:
    """The file's provenance holds the template and the words, and what trained are the adapters
    alone."""
    out, scores = tmp_path / "out.safetensors", tmp_path / "scores.jsonl"
    words = json.dumps({"positive": "great", "negative": "awful"})
    assert (
        train(
            rows,
            out,
            folder_of("bert"),
            "--prompt",
            PROMPT,
            "--label-words",
            words,
            "--scores",
            str(scores),
        ).exit_code
        == 0
    )
    recipe: Any = load(out).spec.training["recipe"]
    assert recipe["prompt"] == PROMPT
    assert recipe["label_words"] == {"positive": "great", "negative": "awful"}
    line = json.loads(scores.read_text())
    assert line["parameters"] == 2 * (2 * 32 * 4 + 4 + 32)
    assert line["recipe"] == recipe


def test_labels_of_several_words(tmp_path: Path) -> None:
    """As JSON, labels may hold commas, spaces and equal signs."""
    data = jsonl(
        tmp_path / "d.jsonl",
        [{"text": "a film", "label": "no, not at all"}, {"text": "it is", "label": "a=b"}],
    )
    out, words = (
        tmp_path / "out.safetensors",
        json.dumps({"no, not at all": "awful", "a=b": "great"}),
    )
    result = train(data, out, folder_of("bert"), "--prompt", PROMPT, "--label-words", words)
    assert result.exit_code == 0, result.output
    assert load(out).spec.labels == ("a=b", "no, not at all")


@pytest.mark.parametrize("method", ["adamix", "adapter", "houlsby", "lora", "bitfit", "full"])
def test_every_method_leaves_the_words_alone(method: str, rows: Path, tmp_path: Path) -> None:
    """Any method that trains something is trained and scored with a prompt, few-shot and over
    seeds."""
    scores = tmp_path / "scores.jsonl"
    options = [
        "--train",
        str(rows),
        "--dev",
        str(rows),
        "--backbone",
        str(folder_of("bert")),
        "--task",
        "toy",
    ]
    options += [
        "--prompt",
        PROMPT,
        "--label-words",
        WORDS["bert"],
        "--method",
        method,
        "--epochs",
        "1",
        "--scores",
        str(scores),
    ]
    result = CliRunner().invoke(app, [*options, "--few-shot", "4", "--seeds", "0,1"])
    assert result.exit_code == 0, result.output
    first, second = map(json.loads, scores.read_text().splitlines())
    assert (first["rows"], first["seed"], second["seed"]) == (4, 0, 1)
    assert first["recipe"]["prompt"] == PROMPT


@pytest.mark.parametrize("evaluate", ["random", "fixed", "ensemble"])
def test_ablations_and_checkpoints(evaluate: str, rows: Path, tmp_path: Path) -> None:
    """A finished prompt run is judged again from its checkpoint, as a mixture not yet merged; other
    words are refused."""
    options = [
        "--train",
        str(rows),
        "--dev",
        str(rows),
        "--backbone",
        str(folder_of("bert")),
        "--task",
        "toy",
        "--epochs",
        "1",
    ]
    options += ["--prompt", PROMPT, "--run-dir", str(tmp_path / "run")]
    assert CliRunner().invoke(app, [*options, "--label-words", WORDS["bert"]]).exit_code == 0
    again = CliRunner().invoke(
        app, [*options, "--label-words", WORDS["bert"], "--resume", "--evaluate", evaluate]
    )
    assert again.exit_code == 0, again.output
    other = CliRunner().invoke(
        app, [*options, "--label-words", "positive=good,negative=bad", "--resume"]
    )
    assert other.exit_code == 2
    assert "is of a run with another label_words" in other.stderr


REFUSED: list[tuple[list[str], str]] = [
    (["--prompt", PROMPT], "prompt stands alone; expected a prompt and its label words"),
    (["--label-words", "a=b"], "label_words stands alone; expected a prompt and its label words"),
    (["--label-words", "positive"], "--label-words is 'positive'; expected label=word,label=word…"),
    (["--label-words", "positive=a=b"], "--label-words is 'positive=a=b'; expected label=word"),
    (
        ["--label-words", "positive=,negative=bad"],
        "--label-words is 'positive=,negative=bad'; expected label=word",
    ),
    (["--label-words", "{positive}"], "which is not JSON"),
    (["--label-words", '{"positive": 1}'], "expected label=word"),
    (["--label-words", "positive=a,positive=b"], "names a label twice; expected one word for each"),
    (["--label-words", '{"positive": "a", "positive": "b"}'], "names a label twice"),
    (
        ["--label-words", "positive=great"],
        "label_words lacks a word for label 'negative'; expected one for each of 'negative',"
        " 'positive'",
    ),
    (
        ["--label-words", "positive=great,negative=bad,so=it"],
        "label_words has a word for 'so', which is no label; expected one for each",
    ),
    (
        ["--label-words", "positive=good,negative=good"],
        "labels 'negative' and 'positive' have the same word, 'good'",
    ),
    (
        ["--label-words", "positive=Good,negative=good"],
        "labels 'negative' and 'positive' have the same word",
    ),
    (
        ["--label-words", "positive=superb,negative=bad"],
        "the word 'superb' is 6 tokens at the prompt's mask, 's', '##u', '##p',",
    ),
    (
        ["--label-words", "positive=not good,negative=bad"],
        "the word 'not good' is 2 tokens at the prompt's mask, 'not', 'good'",
    ),
    (
        ["--label-words", "positive=\u4e2d,negative=bad"],
        "the word '\u4e2d' is the special token '[UNK]' to this backbone",
    ),
    (
        ["--label-words", "positive=[SEP],negative=bad"],
        "the word '[SEP]' is the special token '[SEP]'",
    ),
    (["--prompt", "{text} It was great."], "holds 0 {mask}; expected 1"),
    (["--prompt", "{text} {mask} {mask}"], "holds 2 {mask}; expected 1"),
    (["--prompt", "It was {mask}."], "holds 0 {text}; expected 1"),
    (
        ["--prompt", "{text} {mask} {text_pair}"],
        "holds 1 {text_pair}; expected 0; the task takes single texts",
    ),
    (["--prompt", "{text} {mask} [MASK]"], "has 2 tokens '[MASK]'"),
    (["--prompt", "{text} very{mask}"], "the word 'awful' is 5 tokens at the prompt's mask, '##"),
    (
        ["--prompt", "{text} " + "very " * 70 + "{mask}"],
        "takes 73 of the 64 tokens of a row; expected room for a text",
    ),
    (["--prompt", "{text} {mask} \udcff"], "holds the lone surrogate U+DCFF"),
    (
        ["--pooling", "cls"],
        "a prompt brings its own head and pooling; expected neither pooling nor dense_head",
    ),
    (
        ["--problem-type", "multi_label_classification"],
        "a prompt is for single_label_classification, but the data are multi_",
    ),
    (
        ["--backbone", "embedded"],
        (
            "backbone 'embedded' has no masked-language-model head, which a prompt needs (its"
            " checkpoint"
        ),
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refusals(options: list[str], message: str, rows: Path, tmp_path: Path) -> None:
    """A prompt or words that cannot be used end the program with one sentence, before any
    training."""
    if not message.startswith(("prompt stands", "label_words stands")):
        given = {"--prompt": PROMPT, "--label-words": WORDS["bert"]} | dict(
            zip(options[::2], options[1::2], strict=True)
        )
        options = [part for option in given.items() for part in option]
    out = tmp_path / "out.safetensors"
    result = train(rows, out, folder_of("bert"), *options)
    assert_refused(result, message, out)
    assert "step" not in result.stdout


def test_a_pair_without_its_second_text(tmp_path: Path) -> None:
    """Data of pairs want a template with both texts, and train with one."""
    pairs = [row | {"text_pair": "it is"} for row in ROWS]
    data, out = jsonl(tmp_path / "data.jsonl", pairs), tmp_path / "out.safetensors"
    more = ("--label-words", WORDS["bert"])
    refused = train(data, out, folder_of("bert"), "--prompt", PROMPT, *more)
    assert_refused(refused, "holds 0 {text_pair}; expected 1; the task takes pairs", out)
    assert (
        train(
            data, out, folder_of("bert"), "--prompt", "{text}? {mask}, {text_pair}", *more
        ).exit_code
        == 0
    )


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "bert",
            {"hidden_act": "gelu_new"},
            "has 'gelu_new' in its masked-language-model head; expected the exact 'gelu'",
        ),
        (
            "electra",
            {"embedding_size": 16},
            "scores words at its embeddings' size 16; expected its hidden size 32",
        ),
    ],
)
def test_heads_that_a_file_cannot_tell(
    family: str, changes: dict[str, Any], message: str, rows: Path, tmp_path: Path
) -> None:
    """A head with another activation, or of another width, is refused with what it has."""
    folder = tiny_masked_lm(tmp_path / "other", family, **changes)
    out = tmp_path / "out.safetensors"
    assert_refused(
        train(rows, out, folder, "--prompt", PROMPT, "--label-words", WORDS[family]), message, out
    )


@pytest.mark.parametrize("family", WORDS)
def test_checkpoints_without_a_head(family: str, rows: Path, tmp_path: Path) -> None:
    """An encoder's checkpoint without the head is refused by name, whatever its family."""
    folder, out = tiny_backbone(tmp_path / "bare", family), tmp_path / "out.safetensors"
    result = train(rows, out, folder, "--prompt", PROMPT, "--label-words", WORDS[family])
    assert_refused(
        result, f"backbone '{folder}' has no masked-language-model head, which a prompt needs", out
    )


def test_a_word_that_only_begins_a_sentence(rows: Path, tmp_path: Path) -> None:
    """A byte-level tokeniser's word in mid-sentence has its space: one that it has not is refused
    with its pieces."""
    out = tmp_path / "out.safetensors"
    result = train(
        rows,
        out,
        folder_of("roberta"),
        "--prompt",
        PROMPT,
        "--label-words",
        "positive=good,negative=bad",
    )
    assert_refused(
        result,
        "the word 'bad' is 4 tokens at the prompt's mask, 'Ġ', 'b', 'a', 'd'; expected a word"
        " of one",
        out,
    )
