"""Label words: the head of a prompt is the backbone's own masked-language-model head, cut down to
one word a label."""

from __future__ import annotations

import json
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM

from adapters.backbone import Backbone, pretrained
from adapters.classifier import WordHead
from adapters.families.family import MaskedHead
from adapters.prompt import split
from adapters.spec import MASK
from training.config import Recipe
from training.data import Dataset
from training.errors import TrainingError

EXPECTED = (
    'expected label=word,label=word… or a JSON object, such as {"not, at all": "no", "yes": "yes"}'
)


def read(text: str) -> dict[str, str]:
    """`positive=great,negative=terrible`, or JSON where labels hold commas, spaces or equal
    signs."""
    if text.lstrip().startswith("{"):
        try:
            pairs = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError) as error:
            raise TrainingError(
                f"--label-words is {text!r}, which is not JSON: {error}; {EXPECTED}"
            ) from None
    else:
        pairs = [[part.strip() for part in entry.split("=")] for entry in text.split(",")]
    if not all(
        len(pair) == 2 and all(isinstance(part, str) and part.strip() for part in pair)
        for pair in pairs
    ):
        raise TrainingError(f"--label-words is {text!r}; {EXPECTED}")
    words = {label: word.strip() for label, word in pairs}
    if len(words) != len(pairs):
        raise TrainingError(
            f"--label-words is {text!r}, which names a label twice; expected one word for each"
        )
    return words


def head(backbone: Backbone, recipe: Recipe, data: Dataset) -> WordHead | None:
    """The frozen head that scores each label by its word at the prompt's mask; None where the
    recipe has no prompt.

    Raises TrainingError.
    """
    if recipe.prompt is None or recipe.label_words is None:
        return None
    words = recipe.label_words
    if data.problem_type != "single_label_classification":
        raise TrainingError(
            f"a prompt is for single_label_classification, but the data are {data.problem_type}"
        )
    if set(words) != set(data.labels):
        lacking, unknown = (
            sorted(set(data.labels) - set(words)),
            sorted(set(words) - set(data.labels)),
        )
        found = (
            f"lacks a word for label {lacking[0]!r}"
            if lacking
            else f"has a word for {unknown[0]!r}, which is no label"
        )
        raise TrainingError(
            f"label_words {found}; expected one for each of {', '.join(map(repr, data.labels[:8]))}"
        )
    chosen: dict[int, str] = {}
    for label in data.labels:
        token = _token(backbone.tokenizer, recipe.prompt, words[label])
        if token in chosen:
            raise TrainingError(
                f"labels {chosen[token]!r} and {label!r} have the same word, {words[label]!r};"
                " expected different ones"
            )
        chosen[token] = label
    own = _masked_head(backbone)
    result = WordHead(
        backbone.config.hidden_size, len(chosen), backbone.encoder_config.norm_eps
    ).requires_grad_(False)
    tokens = list(chosen)
    for part, weight, bias in (
        (result.dense, own.dense.weight, own.dense.bias),
        (result.norm, own.norm.weight, own.norm.bias),
        (result.out, own.rows[tokens], None if own.biases is None else own.biases[tokens]),
    ):
        # a bias that the checkpoint's head lacks is 0
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        part.load_state_dict({"weight": weight, "bias": bias})
    return result


def _token(tokenizer: Tokenizer, template: str, word: str) -> int:
    """The word's one token, as it stands in the mask's place: in mid-sentence a byte-level one
    begins with its space."""
    around = next(literal.rstrip() for literal in split(template)[0] if MASK in literal)
    before, after = around.split(MASK)
    text = before + word + after
    encoding = tokenizer.encode(text, add_special_tokens=False)
    start, end = len(before.rstrip()), len(before) + len(word)
    found = [i for i, (first, last) in enumerate(encoding.offsets) if last > start and first < end]
    pieces = ", ".join(repr(encoding.tokens[i]) for i in found)
    if len(found) != 1:
        raise TrainingError(
            f"the word {word!r} is {len(found)} tokens at the prompt's mask, {pieces}; expected a"
            " word of one"
        )
    first, last = encoding.offsets[found[0]]
    if text[first:last].strip() != word:
        raise TrainingError(
            f"the word {word!r} runs together with what stands beside the prompt's mask, as"
            f" {pieces}; expected it apart"
        )
    token: int = encoding.ids[found[0]]
    if any(
        token == special and added.special
        for special, added in tokenizer.get_added_tokens_decoder().items()
    ):
        raise TrainingError(
            f"the word {word!r} is the special token {pieces} to this backbone; expected a word"
            " that it knows"
        )
    return token


@torch.no_grad()
def _masked_head(backbone: Backbone) -> MaskedHead:
    """The checkpoint's masked-language-model head, if an adapter file can tell it."""
    model: Any
    model, report = AutoModelForMaskedLM.from_pretrained(
        **pretrained(backbone.name), dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise TrainingError(
            f"backbone {backbone.name!r} has no masked-language-model head, which a prompt needs"
            f" (its checkpoint lacks {min(report['missing_keys'])!r}); expected one with it, such"
            " as bert-base-uncased or roberta-base"
        )
    head = backbone.family.masked_head(model)
    if head.activation not in ("gelu", "gelu_python"):
        raise TrainingError(
            f"backbone {backbone.name!r} has {head.activation!r} in its masked-language-model head;"
            " expected the exact 'gelu', which is all that an adapter file can tell"
        )
    if head.dense.out_features != backbone.config.hidden_size:
        raise TrainingError(
            f"backbone {backbone.name!r} scores words at its embeddings' size"
            f" {head.dense.out_features}; expected its hidden size {backbone.config.hidden_size},"
            " which is all that an adapter file can tell"
        )
    return head
