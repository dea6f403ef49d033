"""Adapters add to the sites that their kind names, whatever other kinds share the batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.file import Adapter, parse
from adapters.spec import AdapterSpec
from adapters.text import Tokens
from service.engine.encoder import PackedEncoder
from service.engine.engine import Engine
from service.engine.kinds import registry
from service.engine.row import Row
from service.engine.sites import Add, Branch, Site
from service.engine.slots import Slots
from tests.service.test_encoder import rows_of
from tests.tiny import random_adapter, tiny_backbone

CPU = torch.device("cpu")
LAYERS = 3
FIRST = 1
# where transformers' BERT has each site
MODULES: dict[Site, str] = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_out": "attention.output.dense",
    "up": "intermediate.dense",
    "down": "output.dense",
}


@dataclass(frozen=True, eq=False)
class LowRank:
    """A second kind of adapter, whole in these thirty lines: `y += B·A·x` at some sites of the
    layers from FIRST on."""

    weights: Mapping[Site, tuple[Tensor, Tensor]]  # A [r, inputs], B [outputs, r]

    @property
    def branch(self) -> Branch:
        return Branch(FIRST, late=False)


class LowRanks:
    def __init__(self, adapters: Sequence[LowRank], tokens: Sequence[slice], _rows: int) -> None:
        self._parts = list(zip(adapters, tokens, strict=True))

    def at(self, layer: int) -> Mapping[Site, Add]:
        if layer < FIRST:
            return {}
        sites = {site for adapter, _ in self._parts for site in adapter.weights}
        return {site: partial(self._add, site) for site in sites}

    def _add(self, site: Site, x: Tensor, y: Tensor) -> None:
        for adapter, tokens in self._parts:
            if site in adapter.weights:
                a, b = adapter.weights[site]
                y[tokens] += x[tokens] @ a.T @ b.T


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return backbones.load(
        str(tiny_backbone(tmp_path_factory.mktemp("deep"), "bert", layers=LAYERS))
    )


@pytest.fixture
def low_rank(monkeypatch: pytest.MonkeyPatch) -> dict[str, LowRank]:
    """The tasks whose adapters are of the second kind, with their weights."""
    known: dict[str, LowRank] = {}
    load = registry.load

    def loading(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> registry.Weights:
        return known.get(spec.task) or load(spec, tensors)

    monkeypatch.setattr(registry, "load", loading)
    monkeypatch.setitem(registry.ON_CPU, LowRank, LowRanks)
    return known


def adapter_of(backbone: Backbone, task: str, seed: int, first_layer: int = 0) -> Adapter:
    return parse(
        random_adapter(backbone, task, ["no", "yes"], seed=seed, first_layer=first_layer)[2]
    )


def weights_of(backbone: Backbone, sites: Sequence[Site], rank: int, seed: int) -> LowRank:
    generator = torch.Generator().manual_seed(seed)

    def pair(site: Site) -> tuple[Tensor, Tensor]:
        outputs, inputs = backbone.encoder.get_parameter(
            f"encoder.layer.0.{MODULES[site]}.weight"
        ).shape
        return (
            torch.randn(rank, inputs, generator=generator) / inputs**0.5,
            torch.randn(outputs, rank, generator=generator) / rank**0.5,
        )

    return LowRank({site: pair(site) for site in sites})


@contextmanager
def hooked(backbone: Backbone, adapter: LowRank) -> Iterator[None]:
    """transformers' modules with the adapter's products added to their outputs."""

    def adding(a: Tensor, b: Tensor) -> Any:
        return lambda _module, inputs, y: y + inputs[0] @ a.T @ b.T

    handles = [
        backbone.encoder.get_submodule(f"encoder.layer.{i}.{MODULES[site]}").register_forward_hook(
            adding(*pair)
        )
        for i in range(FIRST, LAYERS)
        for site, pair in adapter.weights.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def wanted(backbone: Backbone, row: Row, kinds: Mapping[str, LowRank]) -> Tensor:
    """The reference's logits: transformers with hooks, or our reference model of bottlenecks."""
    if row.task not in kinds:
        tokens = Tokens(row.ids, row.types, row.tokens)
        return from_adapter(backbone, row.adapter)(collate([tokens]))[0]
    with hooked(backbone, kinds[row.task]):
        output = backbone.encoder(
            input_ids=torch.tensor([row.ids]), token_type_ids=torch.tensor([row.types])
        )
    tensors = row.adapter.tensors
    pooled = output.last_hidden_state[0].mean(dim=0)
    return F.linear(pooled, tensors["head.out.weight"].float(), tensors["head.out.bias"].float())


def check(backbone: Backbone, rows: list[Row], kinds: Mapping[str, LowRank]) -> None:
    engine = Engine(backbone, Slots(16, CPU, torch.float32), CPU, torch.float32)
    for found, row in zip(engine.run(rows), rows, strict=True):
        torch.testing.assert_close(
            torch.tensor(found), wanted(backbone, row, kinds), rtol=1e-5, atol=2e-5
        )


@pytest.mark.parametrize("site", MODULES)
def test_a_site(site: Site, deep: Backbone, low_rank: dict[str, LowRank]) -> None:
    """What a kind adds at a site is added to that module's output, from its input."""
    low_rank["low-rank"] = weights_of(deep, [site], 4, 1)
    adapter = adapter_of(deep, "low-rank", 1)
    check(deep, [Row(adapter, r.ids, r.types) for r in rows_of(deep, [9, 3, 40])], low_rank)


def test_kinds_share_a_batch(deep: Backbone, low_rank: dict[str, LowRank]) -> None:
    """Rows of two kinds, any sites and any ranks get in one batch what each gets from its own
    reference."""
    low_rank["all"] = weights_of(deep, list(MODULES), 16, 1)
    low_rank["some"] = weights_of(deep, ["query", "value"], 2, 2)
    tasks = ("all", "some", "from-0", "from-2")
    adapters = [adapter_of(deep, task, i, 2 * (task == "from-2")) for i, task in enumerate(tasks)]
    tokens = rows_of(deep, [9, 3, 40, 5, 5, 5, 64, 2, 17, 9, 33, 1])
    rows = [Row(adapters[i % 4], row.ids, row.types) for i, row in enumerate(tokens)]
    random.Random(0).shuffle(rows)
    check(deep, rows, low_rank)


def test_kinds_share_a_trunk(deep: Backbone, low_rank: dict[str, LowRank]) -> None:
    """One text for tasks of two kinds is shared up to the first place that one of them changes:
    a layer's attention for one kind, a layer's end for the other."""
    low_rank["low-rank"] = weights_of(deep, ["query", "value"], 2, 2)
    for firsts in ((2, 2), (1, 2), (0, 1)):
        adapters = [adapter_of(deep, "low-rank", 0)]
        adapters += [adapter_of(deep, f"from-{first}", first, first) for first in firsts]
        text = rows_of(deep, [11])[0]
        check(deep, [Row(adapter, text.ids, text.types) for adapter in adapters], low_rank)


def test_untouched_sites_cost_nothing(deep: Backbone) -> None:
    """Bottlenecks leave the feed-forward in its blocks: the inner layer of all tokens is never
    there at once."""
    encoder = PackedEncoder(deep, CPU, torch.float32)
    batch = encoder.pack([(row.ids, row.types) for row in rows_of(deep, [64] * 8)])
    if len(batch.blocks) == 1:
        pytest.skip("this CPU's linear layers take all rows at once")

    class Watching:
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
