"""Small real things for tests: a backbone folder of each family with its tokeniser, and adapters
with random weights."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from adapters.backbone import Backbone
from adapters.classifier import collate, from_tensors
from adapters.file import serialize
from adapters.header import expected_shapes
from adapters.spec import AdapterSpec, LoraSite, Pooling, Probe, ProblemType
from adapters.text import TextInput, encode

FAMILIES = ("bert", "electra", "roberta", "xlm-roberta", "camembert")  # of BERT's layer
FURTHER = ("distilbert", "mpnet", "modernbert", "deberta-v2")
POSITIONS = 64  # tokens that a tiny backbone takes in a row
WORDS = [
    "the",
    "a",
    "an",
    "is",
    "was",
    "it",
    "this",
    "that",
    "good",
    "bad",
    "great",
    "awful",
    "film",
    "plot",
    "not",
    "very",
    "and",
    "or",
    "of",
    "to",
    "in",
    "on",
    "at",
    "red",
    "green",
    "blue",
]

# One task of every kind, as `random_adapter` makes it.
TASKS: dict[str, dict[str, Any]] = {
    "sst2": {"labels": ["negative", "positive"], "max_length": 64},
    "mrpc": {"labels": ["equivalent", "not_equivalent"], "text_pair": True, "dense": True},
    "mnli": {
        "labels": ["contradiction", "entailment", "neutral"],
        "text_pair": True,
        "pooling": "cls",
    },
    "stsb": {
        "labels": ["score"],
        "text_pair": True,
        "problem_type": "regression",
        "pooling": "pooler",
    },
    "topics": {
        "labels": ["art", "law", "money", "sport", "war"],
        "problem_type": "multi_label_classification",
        "bottleneck": 4,
    },
}

_CONFIGS: dict[str, Any] = {
    "bert": transformers.BertConfig,
    "electra": transformers.ElectraConfig,
    "roberta": transformers.RobertaConfig,
    "xlm-roberta": transformers.XLMRobertaConfig,
    "camembert": transformers.CamembertConfig,
}
_POOLERLESS = ("electra", "distilbert", "modernbert", "deberta-v2")
# What the configs of the further families say beside, or under other names. Weights are large, so
# that a wrong formula shows.
_FURTHER: dict[str, tuple[Any, dict[str, Any]]] = {
    "distilbert": (transformers.DistilBertConfig, {}),
    "mpnet": (transformers.MPNetConfig, {}),
    "modernbert": (
        transformers.ModernBertConfig,
        {"local_attention": 32, "initializer_cutoff_factor": 3.0},
    ),
    "deberta-v2": (
        transformers.DebertaV2Config,
        {
            "relative_attention": True,
            "position_buckets": 16,
            "max_relative_positions": -1,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "position_biased_input": False,
            "type_vocab_size": 0,
        },
    ),
}
_OWN_NAMES = {
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
    },
}


def tiny_backbone(
    folder: Path,
    family: str,
    *,
    layers: int = 2,
    hidden: int = 32,
    pooler: bool = True,
    positions: int = POSITIONS,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a random encoder of `family` and its tokeniser to `folder`, as `save_pretrained` lays
    them out. `changes` are the configuration's."""
    config, tokenizer = _sizes(family, layers, hidden, positions)
    config.update(changes)
    options = {} if family in _POOLERLESS else {"add_pooling_layer": pooler}
    return _write(
        folder, transformers.MODEL_MAPPING[type(config)], config, tokenizer, seed, options
    )


def tiny_masked_lm(folder: Path, family: str, **changes: Any) -> Path:
    """The same with the family's masked-language-model head; `changes` are the configuration's."""
    config, tokenizer = _sizes(family, 2, 32, POSITIONS)
    config.update(changes)
    return _write(
        folder, transformers.MODEL_FOR_MASKED_LM_MAPPING[type(config)], config, tokenizer, 0, {}
    )


def _sizes(
    family: str, layers: int, hidden: int, positions: int
) -> tuple[Any, PreTrainedTokenizerFast]:
    if family in FURTHER:
        return _further_sizes(family, layers, hidden, positions)
    roberta = family not in ("bert", "electra")
    tokenizer = _byte_pairs() if roberta else _word_pieces()
    sizes = {"embedding_size": hidden} if family == "electra" else {}
    config = _CONFIGS[family](
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=2 * hidden,
        max_position_embeddings=positions + (2 if roberta else 0),
        type_vocab_size=1 if roberta else 2,
        # ten times the usual: different texts give visibly different vectors
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **sizes,
    )
    return config, tokenizer


def _further_sizes(
    family: str, layers: int, hidden: int, positions: int
) -> tuple[Any, PreTrainedTokenizerFast]:
    made = {"mpnet": _byte_pairs, "deberta-v2": _sentence_pieces}.get(family, _word_pieces)
    tokenizer = made()
    kind, further = _FURTHER[family]
    names = _OWN_NAMES.get(family, {})
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 2 * hidden,
    }
    config = kind(
        vocab_size=len(tokenizer),
        max_position_embeddings=positions + (2 if family == "mpnet" else 0),
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **{names.get(name, name): size for name, size in sizes.items()},
        **further,
    )
    return config, tokenizer


def _write(
    folder: Path,
    kind: Any,
    config: Any,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    options: dict[str, Any],
) -> Path:
    torch.manual_seed(seed)
    model = kind(config, **options)
    # transformers starts biases at 0 and LayerNorms at 1: let each be told from its default
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    transformers.utils.logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def random_adapter(
    backbone: Backbone,
    task: str,
    labels: Sequence[str],
    *,
    problem_type: ProblemType = "single_label_classification",
    text_pair: bool = False,
    pooling: Pooling = "mean",
    template: str | None = None,
    bottleneck: int = 8,
    ranks: Mapping[LoraSite, int] | None = None,
    scale: float = 2.0,
    first_layer: int = 0,
    dense: bool = False,
    normed: bool = False,
    dtype: torch.dtype = torch.float16,
    max_length: int = POSITIONS,
    seed: int = 0,
) -> tuple[AdapterSpec, dict[str, Tensor], bytes]:
    """An adapter that moves the logits visibly, with a true probe: its spec, its tensors and its
    file's bytes. It is a LoRA adapter if it has `ranks`, else a bottleneck."""
    inputs: tuple[TextInput, ...] = (
        ("it is a good film", "the plot was awful"),
        ("not very good", "red or blue"),
    )
    spec = AdapterSpec(
        task=task,
        labels=tuple(labels),
        problem_type=problem_type,
        text_pair=text_pair,
        max_length=min(max_length, backbone.max_length),
        pooling="mask" if template is not None else pooling,
        template=template,
        normed_head=normed,
        backbone=backbone.reference,
        first_layer=first_layer,
        **_of_kind(bottleneck, ranks, scale, backbone),
        training={"recipe": {"method": "random", "seed": seed}},
        probe=Probe(
            inputs=inputs if text_pair else tuple(text[:1] for text in inputs),
            logits=((0.0,) * len(labels),) * len(inputs),
        ),
    )
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)
        for name, shape in expected_shapes(spec).items()
        if dense or normed or template is not None or not name.startswith("head.dense")
    }
    logits = reference_logits(backbone, spec, tensors, spec.probe.inputs)
    probe = Probe(
        inputs=spec.probe.inputs, logits=tuple(tuple(row) for row in logits.double().tolist())
    )
    spec = spec.model_copy(update={"probe": probe})
    return spec, tensors, serialize(spec, tensors)


def _of_kind(
    bottleneck: int, ranks: Mapping[LoraSite, int] | None, scale: float, backbone: Backbone
) -> dict[str, Any]:
    if ranks is None:
        return {"bottleneck": bottleneck, "activation": "gelu"}
    inner = {"up", "gate", "down"} & ranks.keys()
    return {
        "kind": "lora",
        "ranks": dict(ranks),
        "scale": scale,
        "intermediate_size": backbone.encoder_config.intermediate_size if inner else None,
    }


def reference_logits(
    backbone: Backbone, spec: AdapterSpec, tensors: dict[str, Tensor], inputs: Sequence[TextInput]
) -> Tensor:
    """The logits `[N, C]` of the reference model, one padded batch, in float32."""
    model = from_tensors(backbone, tensors, spec.pooling, spec.scale or 1.0)
    with torch.no_grad():
        prompt = backbone.prompt(spec.template, spec.max_length)
        return model(collate(encode(backbone.tokenizer, inputs, spec.max_length, prompt)))


def _word_pieces() -> PreTrainedTokenizerFast:
    """BERT's: `[CLS] a [SEP] b [SEP]`, type ids 0 and 1; lower case; words above, else letters."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = list(string.ascii_lowercase + string.digits)
    pieces = [*special, *string.punctuation, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys([*pieces, *WORDS]))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


def _sentence_pieces() -> PreTrainedTokenizerFast:
    """DeBERTa-v3's, by SentencePiece's unigram model: `[CLS] a [SEP] b [SEP]`, type ids 0 and 1."""
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = [*string.ascii_letters, *string.digits, *string.punctuation]
    pieces = ["▁", *letters, *("▁" + word for word in WORDS)]
    scored = [(piece, -1.0 - len(letters) * (len(piece) < 3)) for piece in dict.fromkeys(pieces)]
    vocabulary = [*((piece, 0.0) for piece in special), *scored, ("[MASK]", 0.0)]
    return transformers.DebertaV2Tokenizer(vocab=vocabulary, unk_id=3)


def _byte_pairs() -> PreTrainedTokenizerFast:
    """RoBERTa's: `<s> a </s></s> b </s>`, all type ids 0; every byte has a token, `the` and `good`
    have merges."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    merges = [
        ("Ġ", "t"),
        ("h", "e"),
        ("Ġt", "he"),
        ("o", "o"),
        ("oo", "d"),
        ("g", "ood"),
        ("Ġ", "good"),
    ]
    merged = [left + right for left, right in merges]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *merged, "<mask>"]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", vocabulary["</s>"]), ("<s>", vocabulary["<s>"]), add_prefix_space=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
    )
