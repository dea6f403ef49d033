"""Rows of one text share its trunk: their answers are what each gets alone, and the trunk is
computed once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, parse
from adapters.spec import Pooling
from adapters.text import Tokens, encode
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.packed import Packed, Split
from service.engine.row import Row
from service.engine.sites import Add, Branch, Site
from service.engine.slots import Slots
from service.engine.trunks import EMBEDDINGS, stages
from tests.tiny import random_adapter, tiny_backbone

CPU = torch.device("cpu")
LAYERS = 4
TEXTS = [("it is a good film",), ("the plot was awful and the film was not very good",), ("red",)]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def deep(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tiny_backbone(tmp_path_factory.mktemp("deep"), request.param, layers=LAYERS)
    return backbones.load(str(folder))


@pytest.fixture(scope="module")
def adapter_of(deep: Backbone) -> Callable[..., Adapter]:
    """An adapter from a layer on; two of the same layer differ by their seed."""

    def make(first_layer: int, seed: int = 0, pooling: Pooling = "mean") -> Adapter:
        task = f"from-{first_layer}-{seed}"
        made = random_adapter(
            deep, task, ["no", "yes"], first_layer=first_layer, seed=seed, pooling=pooling
        )
        return parse(made[2])

    return make


def rows_of(backbone: Backbone, text: tuple[str], adapters: list[Adapter]) -> list[Row]:
    (tokens,) = encode(backbone.tokenizer, [text], 64)
    return [Row(adapter, tokens.ids, tokens.types) for adapter in adapters]


@torch.no_grad()
def reference(backbone: Backbone, row: Row) -> Tensor:
    return from_adapter(backbone, row.adapter)(collate([Tokens(row.ids, row.types, row.tokens)]))[0]


def engine_of(backbone: Backbone) -> Engine:
    return Engine(backbone, Slots(16, CPU, torch.float32), CPU, torch.float32)


@pytest.mark.parametrize("layers", [[0, 0], [3, 3, 3], [1, 2, 3], [0, 3, 3, 1], [2]], ids=str)
def test_answers(layers: list[int], deep: Backbone, adapter_of: Callable[..., Adapter]) -> None:
    """One text for several tasks, whatever layers they leave bare, gives each the reference model's
    logits."""
    rows = rows_of(deep, TEXTS[0], [adapter_of(layer, seed) for seed, layer in enumerate(layers)])
    for found, row in zip(engine_of(deep).run(rows), rows, strict=True):
        torch.testing.assert_close(torch.tensor(found), reference(deep, row), rtol=0, atol=1e-5)


def test_batch_mates(deep: Backbone, adapter_of: Callable[..., Adapter]) -> None:
    """In a batch of several texts, shared by tasks that part at different layers, every row gets
    what it gets alone."""
    adapters = [
        adapter_of(0),
        adapter_of(1, pooling="cls"),
        adapter_of(3),
        adapter_of(3, 1, pooling="pooler"),
    ]
    rows = [row for i, text in enumerate(TEXTS) for row in rows_of(deep, text, adapters[i:])]
    rows.append(rows[0])  # the same text for the same task, from another client
    engine = engine_of(deep)
    together = torch.tensor(engine.run(rows))
    alone = torch.tensor([engine.run([row])[0] for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


def test_the_trunk_is_computed_once(deep: Backbone, adapter_of: Callable[..., Adapter]) -> None:
    """Up to the lowest adapted layer, and through that one's feed-forward, five tasks' text is
    there once."""
    rows = rows_of(deep, TEXTS[0], [adapter_of(2, seed) for seed in range(5)])
    first, second = stages(rows, [Branch(2, late=True)] * 5)
    assert (first.branch, first.rows) == (EMBEDDINGS, [0])
    assert (second.branch, second.rows) == (Branch(2, late=True), [0, 1, 2, 3, 4])
    encoder = PackedEncoder(deep, CPU, torch.float32)
    seen: list[int] = []

    def packed(places: list[int]) -> Packed:
        return encoder.pack([(rows[i].ids, rows[i].types) for i in places])

    class Watching:
        inner_rows = 0

        def at(self, _layer: int) -> dict[Site, Add]:
            return {"feed_forward": lambda _x, y: seen.append(len(y))}

    one, five = packed(first.rows), packed(second.rows)
    spare = [0] * (len(five.ids) - five.tokens)
    splits = {second.branch: Split(five, encoder.index(second.tokens + spare), Watching())}
    with torch.inference_mode():
        hidden = encoder.forward(one, Watching(), splits)
    assert seen == [len(one.ids), len(one.ids), len(five.ids), len(five.ids)]
    n = rows[0].tokens
    assert torch.allclose(hidden[:n], hidden[4 * n :], atol=1e-5)


def test_other_texts_are_not_shared(deep: Backbone, adapter_of: Callable[..., Adapter]) -> None:
    """Rows of different tokens are one stage, whatever their tasks leave bare."""
    adapters = [adapter_of(3)]
    rows = [row for text in TEXTS for row in rows_of(deep, text, adapters)]
    assert [stage.rows for stage in stages(rows, [Branch(3, late=True)] * 3)] == [[0, 1, 2]]
