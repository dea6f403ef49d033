"""DeBERTa-v2 and -v3: transformers 5.23, `models/deberta_v2/modeling_deberta_v2.py`,
`DebertaV2Layer`, `DisentangledSelfAttention` and `build_relative_position`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from adapters.backbone import Backbone
from service.engine.architecture import (
    Architecture,
    DisentangledPositions,
    Embeddings,
    Layer,
    LearnedPositions,
    Numbering,
)

MODEL_TYPES = ("deberta-v2",)


@torch.no_grad()
def describe(backbone: Backbone) -> Architecture:
    """The encoder's modules. The keys and queries of the distances come from frozen weights alone,
    so they are computed here, once."""
    encoder: Any = backbone.encoder
    embeddings, said = encoder.embeddings, backbone.encoder_config
    positions = embeddings.position_embeddings
    rows = _rows(encoder.encoder.layer[0].attention.self, said.max_length)
    relative = encoder.encoder.get_rel_embedding()
    return Architecture(
        name=backbone.name,
        width=backbone.config.hidden_size,
        heads=backbone.config.num_attention_heads,
        norm_eps=said.norm_eps,
        positions=None if positions is None else LearnedPositions(positions),
        numbering=Numbering(),
        embeddings=Embeddings(
            embeddings.word_embeddings, embeddings.token_type_embeddings, embeddings.LayerNorm
        ),
        layers=tuple(
            _layer(layer, said.activation, relative, rows) for layer in encoder.encoder.layer
        ),
        pooler=None,
    )


def _rows(attention: Any, longest: int) -> Tensor:
    """The relative embedding of each distance of the longest row's tokens."""
    distances = torch.arange(longest - 1, -longest, -1)  # of the query from the key
    buckets, most = attention.position_buckets, attention.max_relative_positions
    if buckets > 0 and most > 0:
        distances = make_log_bucket_position(distances, buckets, most).long()
    span = attention.pos_ebd_size
    rows: Tensor = (distances + span).clamp(0, 2 * span - 1)
    return rows


def _layer(layer: Any, activation: str, relative: Tensor, rows: Tensor) -> Layer:
    attention, output = layer.attention.self, layer.attention.output

    def projected(term: str, projection: str) -> Tensor | None:
        if term not in attention.pos_att_type:
            return None
        project: nn.Linear = getattr(attention, projection)
        heads: Tensor = project(relative).view(len(relative), attention.num_attention_heads, -1)
        return heads.transpose(0, 1)

    return Layer(
        query=attention.query_proj,
        key=attention.key_proj,
        value=attention.value_proj,
        attention_out=output.dense,
        attention_norm=output.LayerNorm,
        up=layer.intermediate.dense,
        down=layer.output.dense,
        feed_forward_norm=layer.output.LayerNorm,
        activation=activation,
        positions=DisentangledPositions(
            keys=projected("c2p", "pos_key_proj"),
            queries=projected("p2c", "pos_query_proj"),
            rows=rows,
        ),
    )
