"""DeBERTa-v2 and -v3 (transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`): BERT's layer,
whose attention knows a text's order by the distances of its tokens alone."""

from __future__ import annotations

from typing import Any

from tokenizers import Regex, normalizers
from torch import nn
from transformers import DebertaV2Tokenizer

from adapters.errors import BackboneError
from adapters.families.family import EncoderConfig, Family, MaskedHead, Place
from adapters.spec import shown

POSITION_TERMS = ("c2p", "p2c")  # content to position, position to content


def read(name: str, config: Any) -> EncoderConfig:
    """The config's values. Raises BackboneError."""
    _check(name, config)
    return EncoderConfig(
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
        intermediate_size=config.intermediate_size,
        max_length=config.max_position_embeddings,
        dropout=config.hidden_dropout_prob,
        positions="disentangled",
        token_types=config.type_vocab_size,
        further={
            "pos_att_type": sorted(config.pos_att_type),
            "position_buckets": getattr(config, "position_buckets", -1),
            "max_relative_positions": config.max_relative_positions,
            "norm_rel_ebd": getattr(config, "norm_rel_ebd", "none"),
        },
    )


def masked_head(model: Any) -> MaskedHead:
    """The parts of `DebertaV2ForMaskedLM`, of either of its two forms."""
    activation = model.config.hidden_act
    if model.legacy:
        head = model.cls.predictions
        dense, norm = head.transform.dense, head.transform.LayerNorm
        return MaskedHead(dense, activation, norm, head.decoder.weight, head.decoder.bias)
    head = model.lm_predictions.lm_head
    words = model.get_input_embeddings().weight
    return MaskedHead(head.dense, activation, head.LayerNorm, words, head.bias)


def prepare(encoder: Any) -> None:
    """Give the projections of positions modules of their own. With `share_att_key` transformers
    projects positions by the modules of queries and keys: an adapter there would change the
    positions, too, which are the same for all tasks. The parameters stay shared."""
    for layer in encoder.encoder.layer:
        attention = layer.attention.self
        if attention.share_att_key:
            attention.share_att_key = False
            attention.pos_key_proj = _same(attention.key_proj)
            attention.pos_query_proj = _same(attention.query_proj)


class WithCharacterMap(DebertaV2Tokenizer):
    """DeBERTa's tokeniser with the checkpoint's own map of characters, by which `…` is three full
    stops, and a no-break space is a space. transformers 5.23 drops the map, so that these become
    unknown tokens; transformers 4 has it (`convert_slow_tokenizer.py`, `DebertaV2Converter`)."""

    def __init__(
        self, *args: Any, _spm_precompiled_charsmap: bytes | None = None, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        if _spm_precompiled_charsmap is not None:
            steps = [
                normalizers.Strip(),
                normalizers.Precompiled(_spm_precompiled_charsmap),
                normalizers.Replace(Regex(" {2,}"), " "),
            ]
            if self.do_lower_case:
                steps.insert(0, normalizers.Lowercase())
            self.backend_tokenizer.normalizer = normalizers.Sequence(steps)


def _same(linear: nn.Linear) -> nn.Linear:
    """Another module with the same parameters."""
    other = nn.Linear(linear.in_features, linear.out_features, device="meta")
    other.weight, other.bias = linear.weight, linear.bias
    return other


def _check(name: str, config: Any) -> None:
    heads = config.hidden_size // config.num_attention_heads
    needed = {
        # name: (default, the value that is needed, why)
        "relative_attention": (False, True, "without which positions are not disentangled"),
        "conv_kernel_size": (0, 0, "a convolution beside the first layer, as in deberta-v2-xlarge"),
        "embedding_size": (config.hidden_size, config.hidden_size, "a projection of embeddings"),
        "attention_head_size": (heads, heads, "heads of another size than the hidden size's"),
    }
    for field, (default, value, what) in needed.items():
        found = getattr(config, field, default)
        if found != value:
            raise BackboneError(
                f"backbone {name!r} has {field} {shown(found)}, {what}; expected {value!r}"
            )
    terms = config.pos_att_type or []
    if not terms or not set(terms) <= set(POSITION_TERMS):
        raise BackboneError(
            f"backbone {name!r} has pos_att_type {shown(terms)}; expected"
            f" {' or '.join(POSITION_TERMS)}, or both"
        )
    norm = getattr(config, "norm_rel_ebd", "none")
    if norm not in ("none", "layer_norm"):
        raise BackboneError(
            f"backbone {name!r} has norm_rel_ebd {shown(norm)}; expected 'none' or 'layer_norm'"
        )


FAMILY = Family(
    model_types=("deberta-v2",),
    layers="encoder.layer",
    places={
        "query": Place("attention.self.query_proj"),
        "key": Place("attention.self.key_proj"),
        "value": Place("attention.self.value_proj"),
        "attention_out": Place("attention.output.dense"),
        "up": Place("intermediate.dense"),
        "down": Place("output.dense"),
    },
    read=read,
    masked_head=masked_head,
    prepare=prepare,
    tokenizers={DebertaV2Tokenizer: WithCharacterMap},
)
