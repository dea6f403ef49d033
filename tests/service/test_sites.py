"""Both kinds of adapter add to their sites what the formulas say, whatever shares their batch."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.header import site_sizes
from adapters.lora import MODULES
from adapters.spec import LoraSite
from adapters.text import Tokens
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.kinds.lora import Lora, Loras
from service.engine.native.library import Library
from service.engine.row import Row
from service.engine.sites import Add, Site
from service.engine.slots import Slots
from tests import formula
from tests.service.test_encoder import rows_of
from tests.tiny import random_adapter, tiny_backbone

CPU = torch.device("cpu")
LAYERS = 3
ALL: Mapping[LoraSite, int] = {
    "query": 16,
    "key": 1,
    "value": 64,
    "attention_out": 3,
    "up": 40,
    "down": 256,
}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbones.load(
        str(tiny_backbone(tmp_path_factory.mktemp("deep"), "bert", layers=LAYERS))
    )


def adapter_of(
    backbone: Backbone,
    task: str,
    seed: int,
    *,
    ranks: Mapping[LoraSite, int] | None = None,
    first_layer: int = 0,
    labels: int = 2,
    bottleneck: int = 8,
) -> Adapter:
    data = random_adapter(
        backbone,
        task,
        [f"label {i}" for i in range(labels)],
        seed=seed,
        ranks=ranks,
        scale=0.7,
        first_layer=first_layer,
        bottleneck=bottleneck,
    )[2]
    return parse(data)


def wanted(backbone: Backbone, row: Row) -> Tensor:
    """The row's logits by the papers' formulas, in float64."""
    tensors, spec = row.adapter.tensors, row.adapter.spec
    first = spec.first_layer
    sites = {module: site for site, module in MODULES.items()}

    def bottleneck(layer: int, x: Tensor) -> Tensor:
        if spec.kind != "bottleneck" or layer < first:
            return x
        names = ("down.weight", "down.bias", "up.weight", "up.bias")
        return formula.bottleneck(*(tensors[name][layer - first] for name in names), x)

    def update(layer: int, module: str) -> Tensor | None:
        a, b = (tensors.get(f"lora.{sites[module]}.{side}") for side in ("a", "b"))
        if a is None or b is None or layer < first:
            return None
        assert spec.scale is not None
        return formula.lora(spec.scale, a[layer - first], b[layer - first])

    states = formula.hidden(backbone.encoder, row.ids, row.types, bottleneck, update)
    return (
        tensors["head.out.weight"].double() @ states.mean(dim=0) + tensors["head.out.bias"].double()
    )


def engine_of(backbone: Backbone, dtype: torch.dtype = torch.float32) -> Engine:
    return Engine(backbone, Slots(16, CPU, torch.float32), CPU, dtype)


def check(
    backbone: Backbone, rows: list[Row], native: Library | Literal["auto"] | None = "auto"
) -> None:
    engine = Engine(backbone, Slots(16, CPU, torch.float32), CPU, torch.float32, native=native)
    for found, row in zip(engine.run(rows), rows, strict=True):
        torch.testing.assert_close(
            torch.tensor(found, dtype=torch.float64), wanted(backbone, row), rtol=1e-5, atol=2e-5
        )


def rows_for(adapters: Sequence[Adapter], tokens: Sequence[Tokens]) -> list[Row]:
    """Row after row, task after task, then shuffled."""
    rows = [Row(adapters[i % len(adapters)], row.ids, row.types) for i, row in enumerate(tokens)]
    random.Random(0).shuffle(rows)
    return rows


@pytest.mark.parametrize("site", MODULES)
def test_a_site(site: LoraSite, deep: Backbone, route: Library | None) -> None:
    """What LoRA adds at a site is added to that module's output, from its input, in the layers that
    the adapter has."""
    adapter = adapter_of(deep, "t", 1, ranks={site: 4}, first_layer=1)
    check(deep, [Row(adapter, r.ids, r.types) for r in rows_of(deep, [9, 3, 40])], route)


def mixed(backbone: Backbone) -> list[Adapter]:
    """Both kinds, several ranks, first layers and label counts."""
    return [
        adapter_of(backbone, "all", 1, ranks=ALL, labels=3),
        adapter_of(backbone, "some", 2, ranks={"query": 2, "value": 8}, labels=20),
        adapter_of(backbone, "late", 3, ranks={"down": 8, "key": 8}, first_layer=2),
        adapter_of(backbone, "from-0", 4, labels=5),
        adapter_of(backbone, "from-2", 5, first_layer=2, bottleneck=48),
    ]


def test_kinds_share_a_batch(deep: Backbone, route: Library | None) -> None:
    """Rows of both kinds, any sites, ranks and label counts get in one batch what the formulas
    say."""
    lengths = [9, 3, 40, 5, 5, 5, 64, 2, 17, 9, 33, 1, 8, 4, 30]
    check(deep, rows_for(mixed(deep), rows_of(deep, lengths)), route)


@settings(max_examples=25, deadline=None)
@given(batch=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40)), min_size=1, max_size=12))
def test_batch_mates_do_not_matter(batch: list[tuple[int, int]], deep: Backbone) -> None:
    """In any batch of both kinds a row gets what it gets alone."""
    engine, adapters = engine_of(deep), mixed(deep)
    texts = rows_of(deep, [length for _, length in batch])
    rows = [
        Row(adapters[i], text.ids, text.types) for (i, _), text in zip(batch, texts, strict=True)
    ]
    for together, row in zip(engine.run(rows), rows, strict=True):
        assert together == pytest.approx(engine.run([row])[0], rel=1e-5, abs=2e-5)


def test_kinds_share_a_trunk(deep: Backbone) -> None:
    """One text for tasks of both kinds is shared up to the first place that one of them changes:
    a layer's attention for LoRA, a layer's end for a bottleneck."""
    text = rows_of(deep, [11])[0]
    for low_rank in (0, 1, 2):
        for firsts in ((2, 2), (1, 2), (0, 1)):
            adapters = [
                adapter_of(deep, "low-rank", 0, ranks={"query": 2, "up": 2}, first_layer=low_rank)
            ]
            adapters += [
                adapter_of(deep, f"b-{first}", first, first_layer=first) for first in firsts
            ]
            check(deep, [Row(adapter, text.ids, text.types) for adapter in adapters])


@pytest.mark.parametrize(
    ("dtype", "slots", "error"),
    [
        (torch.int8, torch.float32, 0.15),
        (torch.float16, torch.float16, 0.01),
        (torch.bfloat16, torch.bfloat16, 0.05),
    ],
    ids=str,
)
def test_rough_backbones(
    dtype: torch.dtype, slots: torch.dtype, error: float, embedded: Backbone
) -> None:
    """On an int8 backbone and in half precision rows of both kinds, of the lowest rank and of the
    highest at all sites, are near the formulas: alone, in one batch and with a shared trunk."""
    adapters = [
        adapter_of(embedded, "rank-1", 1, ranks=dict.fromkeys(MODULES, 1), labels=3),
        adapter_of(embedded, "rank-256", 2, ranks=dict.fromkeys(MODULES, 256), labels=20),
        adapter_of(embedded, "bottleneck", 3, labels=5),
        adapter_of(embedded, "late", 4, ranks={"query": 8}, first_layer=4),
    ]
    exact = {}
    engine = Engine(embedded, Slots(16, CPU, slots), CPU, dtype)
    texts = rows_of(embedded, [9, 3, 40, 12])
    batches = [rows_for(adapters, texts), rows_for(adapters, texts[:1] * 4)]
    for batch in (*batches, *([row] for row in batches[0])):
        for found, row in zip(engine.run(batch), batch, strict=True):
            key = row.adapter.spec.task, tuple(row.ids)
            exact[key] = exact[key] if key in exact else wanted(embedded, row)
            scale = max(1.0, float(exact[key].abs().max()))
            assert (torch.tensor(found) - exact[key]).abs().max() < error * scale


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rank", [4, 16, 256])
@pytest.mark.parametrize("site", ["query", "up", "down"])
def test_lora_s_sums_are_each_row_s_own(site: LoraSite, rank: int, threads: int) -> None:
    """What LoRA adds to a token is to the bit the same for any number of tokens beside it, also in
    the columns of a common product, with one thread and with several."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    inputs, outputs = site_sizes(site, 384, 1536)
    a, b = torch.randn(1, rank, inputs) / inputs**0.5, torch.randn(1, outputs, rank) / rank**0.5
    adapter = Lora({site: (a, b)}, 0.7, 0)
    x, y = torch.randn(64, inputs), torch.randn(64, 3, outputs)

    def adapted(tokens: int) -> Tensor:
        columns = y[:tokens].clone()[:, 0]
        Loras([adapter], [slice(0, tokens)], tokens).at(0)[site](x[:tokens], columns)
        return columns

    try:
        whole = adapted(64)
        assert [n for n in range(1, 64) if not torch.equal(adapted(n), whole[:n])] == []
    finally:
        torch.set_num_threads(before)


def test_untouched_sites_cost_nothing(deep: Backbone) -> None:
    """Bottlenecks leave the feed-forward in its blocks: the inner layer of all tokens is never
    there at once."""
    encoder = PackedEncoder(deep, CPU, torch.float32, native=None)
    batch = encoder.pack([(row.ids, row.types) for row in rows_of(deep, [64] * 8)])
    if len(batch.blocks) == 1:
        pytest.skip("this CPU's linear layers take all rows at once")

    class Watching:
        inner_rows = len(batch.ids)

        def __init__(self, site: Site) -> None:
            self.site = site

        def at(self, _layer: int) -> Mapping[Site, Add]:
            return {self.site: lambda _x, _y: None}

    def whole_inner_layers(site: Site) -> int:
        with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
            encoder.forward(batch, Watching(site))
        inner = 4 * len(batch.ids) * deep.config.intermediate_size
        return [event.self_cpu_memory_usage for event in profile.events()].count(inner)

    assert whole_inner_layers("feed_forward") == 0
    assert whole_inner_layers("up") >= LAYERS
