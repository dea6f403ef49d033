"""DistilBERT, MPNet, ModernBERT, DeBERTa, and XLM-R of 24 layers: the packed engine against
transformers' own padded models, with adapters of both kinds."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, parse
from adapters.spec import LoraSite
from adapters.text import Tokens
from service.engine.engine import Engine
from service.engine.native.choice import choose
from service.engine.quantized import lacking
from service.engine.row import Row
from service.engine.slots import Slots
from tests.tiny import FURTHER, random_adapter, tiny_backbone

CPU = torch.device("cpu")
LONGEST = 512
# Around a window of 64 and of 128 tokens, and around the edges of DeBERTa's buckets.
LENGTHS = (1, 2, 63, 64, 65, 66, 127, 128, 129, 255, 256, 257, 512)
# The sizes of real checkpoints, where they decide which formula holds at these lengths.
REAL: Mapping[str, dict[str, Any]] = {
    "modernbert": {"local_attention": 128},
    "deberta-v2": {"position_buckets": 256},
}
DEEP = "xlm-roberta, as deep as its large one"
# Other configs of the same family.
VARIANTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    **{family: (family, REAL.get(family, {})) for family in FURTHER},
    DEEP: ("xlm-roberta", {"num_hidden_layers": 24}),
    "distilbert with relu": ("distilbert", {"activation": "relu"}),
    "distilbert with sinusoidal positions": ("distilbert", {"sinusoidal_pos_embds": True}),
    "mpnet with gelu_new": ("mpnet", {"hidden_act": "gelu_new"}),
    "modernbert with biases": (
        "modernbert",
        {"attention_bias": True, "mlp_bias": True, "norm_bias": True, "local_attention": 100},
    ),
    "modernbert with relu": ("modernbert", {"hidden_activation": "relu"}),
    "deberta with modules for positions": ("deberta-v2", {"share_att_key": False}),
    "deberta without buckets": ("deberta-v2", {"position_buckets": -1}),
    "deberta of content to position": ("deberta-v2", {"pos_att_type": ["c2p"]}),
    "deberta of position to content": (
        "deberta-v2",
        {"pos_att_type": ["p2c"], "norm_rel_ebd": "none"},
    ),
    "deberta with positions and types": (
        "deberta-v2",
        {"position_biased_input": True, "type_vocab_size": 2, "max_relative_positions": 100},
    ),
}


@pytest.fixture(scope="module")
def backbone_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Backbone]:
    """A backbone by its variant, of four layers if that does not say otherwise, each built once."""

    @cache
    def build(variant: str) -> Backbone:
        family, changes = VARIANTS[variant]
        folder = tmp_path_factory.mktemp("backbone")
        made = tiny_backbone(folder, family, layers=4, positions=LONGEST, **changes)
        return backbones.load(str(made))

    return build


def tokens_of(backbone: Backbone, lengths: Sequence[int], seed: int = 0) -> list[Tokens]:
    """Rows of random ids, the second half of each of type 1 where there is such a type."""
    rng = random.Random(seed)
    second = 1 if backbone.encoder_config.token_types > 1 else 0
    return [
        Tokens(
            [rng.randrange(10, backbone.config.vocab_size) for _ in range(n)],
            [second * (i >= n / 2) for i in range(n)],
            n,
        )
        for n in lengths
    ]


def adapters_of(backbone: Backbone) -> list[Adapter]:
    """Both kinds, LoRA at every site that the family has, on all layers and on the upper ones."""
    ranks: dict[LoraSite, int] = dict.fromkeys(backbone.family.places, 4)
    some: dict[LoraSite, int] = {"query": 3, "value": 2}
    chosen: list[dict[str, Any]] = [
        {"pooling": "cls", "dense": True},
        {"pooling": "mean", "first_layer": 2},
        {"pooling": "cls", "normed": True, "ranks": ranks, "scale": 0.5},
        {"pooling": "mean", "ranks": some, "first_layer": 1},
    ]
    if backbone.has_pooler:
        chosen.append({"pooling": "pooler"})
    return [
        parse(
            random_adapter(
                backbone, f"task-{i}", ["a", "b", "c"], seed=i, max_length=LONGEST, **options
            )[2]
        )
        for i, options in enumerate(chosen)
    ]


def rows_for(adapters: Sequence[Adapter], tokens: Sequence[Tokens]) -> list[Row]:
    return [Row(adapters[i % len(adapters)], row.ids, row.types) for i, row in enumerate(tokens)]


@torch.no_grad()
def wanted(backbone: Backbone, rows: Sequence[Row]) -> Tensor:
    """transformers' model with the adapters as hooks: each adapter's rows in a padded batch."""
    found: dict[int, Tensor] = {}
    for adapter in {row.adapter.version: row.adapter for row in rows}.values():
        own = [i for i, row in enumerate(rows) if row.adapter is adapter]
        batch = collate([Tokens(rows[i].ids, rows[i].types, rows[i].tokens) for i in own])
        found |= zip(own, from_adapter(backbone, adapter)(batch), strict=True)
    return torch.stack([found[i] for i in range(len(rows))])


def engine_of(backbone: Backbone, dtype: torch.dtype = torch.float32) -> Engine:
    kept = torch.float32 if dtype == torch.int8 else dtype
    return Engine(backbone, Slots(16, CPU, kept), CPU, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits(variant: str, backbone_of: Callable[[str], Backbone]) -> None:
    """One batch of all lengths, with adapters of both kinds, has transformers' logits."""
    backbone = backbone_of(variant)
    adapters = adapters_of(backbone)
    # every length twice, so that most lengths meet two tasks
    rows = rows_for(adapters, tokens_of(backbone, [*LENGTHS, *reversed(LENGTHS[:-1])]))
    found = torch.tensor(engine_of(backbone).run(rows))
    torch.testing.assert_close(found, wanted(backbone, rows), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FURTHER)
def test_mates(family: str, backbone_of: Callable[[str], Backbone]) -> None:
    """A row's logits are the same to the bit whatever the other rows say, and within 1e-5 whatever
    rows there are."""
    backbone = backbone_of(family)
    adapters, engine = adapters_of(backbone), engine_of(backbone)
    lengths = [65, 12, 129, 30]
    first, second = (
        rows_for(adapters, [*tokens_of(backbone, lengths), *tokens_of(backbone, lengths, seed)])
        for seed in (1, 2)
    )
    one = engine.run(first)
    assert one[:4] == engine.run(second)[:4]
    for row, logits in zip(first, one, strict=True):
        assert engine.run([row])[0] == pytest.approx(logits, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("family", FURTHER)
def test_shared_trunks(family: str, backbone_of: Callable[[str], Backbone]) -> None:
    """Tasks over one text, which share the layers below their adapters, have the logits that each
    has alone."""
    backbone = backbone_of(family)
    (text,) = tokens_of(backbone, [70])
    rows = [Row(adapter, text.ids, text.types) for adapter in adapters_of(backbone)]
    engine = engine_of(backbone)
    for row, together in zip(rows, engine.run(rows), strict=True):
        assert engine.run([row])[0] == pytest.approx(together, rel=1e-4, abs=1e-4)


HALF = [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", [*HALF, torch.int8], ids=str)
@pytest.mark.parametrize("family", [*FURTHER, DEEP])
def test_other_precisions(
    family: str, dtype: torch.dtype, backbone_of: Callable[[str], Backbone]
) -> None:
    """In half precision and int8 the logits stay near those of float32."""
    native = choose("auto", CPU, dtype).library
    if dtype == torch.int8 and native is None and (lack := lacking(CPU)) is not None:
        pytest.skip(lack)
    backbone = backbone_of(family)
    rows = rows_for(adapters_of(backbone), tokens_of(backbone, [5, 65, 129, 200]))
    exact = torch.tensor(engine_of(backbone).run(rows))
    found = torch.tensor(engine_of(backbone, dtype).run(rows))
    worst = (found - exact).abs().max() / exact.abs().max()
    assert worst < {torch.float16: 0.02, torch.bfloat16: 0.12, torch.int8: 0.2}[dtype]


def test_the_longest_rows_of_modernbert(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Rows of up to 8,192 tokens, longer and shorter than its window, with adapters of both kinds
    in one batch, have transformers' logits."""
    folder = tiny_backbone(
        tmp_path_factory.mktemp("long"),
        "modernbert",
        layers=4,
        hidden=16,
        positions=8192,
        num_attention_heads=1,
        local_attention=128,
    )
    backbone = backbones.load(str(folder))
    assert backbone.max_length == 8192
    rows = rows_for(adapters_of(backbone), tokens_of(backbone, [8192, 3, 65, 66, 129, 4097]))
    found = torch.tensor(engine_of(backbone).run(rows))
    torch.testing.assert_close(found, wanted(backbone, rows), rtol=1e-4, atol=1e-4)
