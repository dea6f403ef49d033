"""The native kernels' adapters against those of torch's operators, whose formulas other tests hold:
several adapters of any ranks in one call, and rows of nobody."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from adapters.header import site_sizes
from adapters.lora import MODULES
from adapters.spec import LoraSite
from service.engine.kinds.bottleneck import Bottleneck, Bottlenecks
from service.engine.kinds.lora import Lora, Loras
from service.engine.native.adapters import NativeBottlenecks, NativeLoras
from service.engine.native.library import Library
from tests.service.conftest import threads

RANKS = (1, 5, 16, 48, 100)
LAYERS = 3
WIDTH, INNER = 36, 100
TOKENS = 240
# of each adapter, in ascending order; rows between and behind them are nobody's
PARTS = [slice(0, 1), slice(1, 7), slice(10, 60), slice(60, 167), slice(200, 231)]
NOBODY = [*range(7, 10), *range(167, 200), *range(231, TOKENS)]
NEAR = {"rtol": 1e-5, "atol": 1e-5}


def bottleneck(rank: int, first_layer: int) -> Bottleneck:
    layers = LAYERS - first_layer
    shapes = ((layers, rank, WIDTH), (layers, rank), (layers, WIDTH, rank), (layers, WIDTH))
    return Bottleneck(*(torch.randn(shape) / shape[-1] ** 0.5 for shape in shapes), first_layer)


def lora(rank: int, first_layer: int, sites: Mapping[LoraSite, int]) -> Lora:
    """With `sites`, each with the factor of its rank."""
    pairs = {}
    for site, factor in sites.items():
        inputs, outputs = site_sizes(site, WIDTH, INNER)
        shapes = (LAYERS - first_layer, factor * rank, inputs), (outputs, factor * rank)
        a = torch.randn(shapes[0]) / inputs**0.5
        pairs[site] = a, torch.randn(LAYERS - first_layer, *shapes[1]) / rank**0.5
    return Lora(pairs, 0.7, first_layer)


def bottlenecks_of() -> list[Bottleneck]:
    return [bottleneck(rank, i % LAYERS) for i, rank in enumerate(RANKS)]


def loras_of(site: LoraSite) -> list[Lora]:
    """Two have other sites too, one has other sites alone."""
    other: LoraSite = "value" if site == "down" else "down"
    sites: list[Mapping[LoraSite, int]] = [{site: 1}, {other: 1, site: 2}, {other: 1}, {site: 1}]
    return [lora(rank, i % LAYERS, sites[i % len(sites)]) for i, rank in enumerate(RANKS)]


def copied(y: Tensor) -> Tensor:
    """A copy of columns, with other numbers between its rows too."""
    space = torch.randn(len(y), 3, y.shape[1])
    space[:, 1] = y
    return space[:, 1]


def test_bottlenecks(library: Library) -> None:
    """At each layer the bottlenecks that it has add to their own rows what torch's operators add;
    all other rows stay as they are, to the bit."""
    adapters = bottlenecks_of()
    native, other = (
        NativeBottlenecks(library, adapters, PARTS, TOKENS),
        Bottlenecks(adapters, PARTS, TOKENS),
    )
    assert native.inner_rows == other.inner_rows
    for layer in range(LAYERS):
        y = torch.randn(TOKENS, WIDTH)
        found, wanted = y.clone(), y.clone()
        native.at(layer)["feed_forward"](found, found)
        other.at(layer)["feed_forward"](wanted, wanted)
        torch.testing.assert_close(found, wanted, **NEAR)
        assert torch.equal(found[NOBODY], y[NOBODY])
        for adapter, part in zip(adapters, PARTS, strict=True):
            assert torch.equal(found[part], y[part]) == (layer < adapter.first_layer)


def test_no_bottleneck_yet(library: Library) -> None:
    """Below the first layer of all bottlenecks nothing is called."""
    native = NativeBottlenecks(library, [bottleneck(5, 2)], [slice(0, 9)], 9)
    assert [set(native.at(layer)) for layer in range(LAYERS)] == [set(), set(), {"feed_forward"}]


@pytest.mark.parametrize("site", MODULES)
def test_loras(site: LoraSite, library: Library) -> None:
    """At each site and layer the LoRA adapters that it has add to their own rows what torch's
    operators add; all other rows stay as they are, to the bit."""
    adapters = loras_of(site)
    native, other = (
        NativeLoras(library, adapters, PARTS, TOKENS),
        Loras(adapters, PARTS, TOKENS),
    )
    assert native.inner_rows == other.inner_rows
    for layer in range(LAYERS):
        assert set(native.at(layer)) == set(other.at(layer))
        inputs, outputs = site_sizes(site, WIDTH, INNER)
        x, y = torch.randn(TOKENS, inputs), torch.randn(TOKENS, outputs)
        found, wanted = copied(y), copied(y)
        native.at(layer)[site](x, found)
        other.at(layer)[site](x, wanted)
        torch.testing.assert_close(found, wanted, **NEAR)
        assert torch.equal(found[NOBODY], y[NOBODY])
        for adapter, part in zip(adapters, PARTS, strict=True):
            absent = site not in adapter.pairs or layer < adapter.first_layer
            assert torch.equal(found[part], y[part]) == absent


def test_columns_of_a_common_product(library: Library) -> None:
    """What LoRA adds to the keys goes to their columns and to no others."""
    adapter = lora(5, 0, {"key": 1})
    x, qkv = torch.randn(9, WIDTH), torch.randn(9, 3, WIDTH)
    before = qkv.clone()
    NativeLoras(library, [adapter], [slice(2, 8)], 9).at(1)["key"](x, qkv[:, 1])
    a, b = (each[1].double() for each in adapter.pairs["key"])
    added = 0.7 * x[2:8].double() @ a.T @ b.T
    torch.testing.assert_close(qkv[2:8, 1], (before[2:8, 1] + added).float(), **NEAR)
    qkv[2:8, 1] = before[2:8, 1]
    assert torch.equal(qkv, before)


@pytest.mark.parametrize("rank", RANKS)
def test_a_row_s_sums_are_its_own(rank: int, library: Library) -> None:
    """What an adapter adds to a token is to the bit the same for any number of tokens beside it,
    beside other adapters, and with any number of threads."""
    own, low_rank = bottleneck(rank, 0), lora(rank, 0, {"up": 1})
    others = bottlenecks_of(), [lora(3, 0, {"up": 1})]
    x, y = torch.randn(110, WIDTH), torch.randn(110, INNER)

    def adapted(tokens: int, number: int) -> tuple[Tensor, Tensor]:
        through, low = x[:tokens].clone(), y[:tokens].clone()
        part = [slice(0, tokens)]
        with threads(number):
            NativeBottlenecks(library, [own], part, tokens).at(0)["feed_forward"](through, through)
            NativeLoras(library, [low_rank], part, tokens).at(0)["up"](x[:tokens], low)
        return through, low

    whole = adapted(110, 1)
    for number in (1, 2, 3):
        for tokens in (1, 2, 5, 6, 7, 47, 48, 49, 96, 110):
            for found, wanted in zip(adapted(tokens, number), whole, strict=True):
                assert torch.equal(found, wanted[:tokens]), (tokens, number)
    through, low = (torch.cat([each[:20], each[:50]]) for each in (x, y))
    parts = [slice(0, 20), slice(20, 70)]
    NativeBottlenecks(library, [others[0][0], own], parts, 70).at(0)["feed_forward"](
        through, through
    )
    NativeLoras(library, [others[1][0], low_rank], parts, 70).at(0)["up"](
        torch.cat([x[:20], x[:50]]), low
    )
    assert torch.equal(through[20:], whole[0][:50])
    assert torch.equal(low[20:], whole[1][:50])


def test_an_adapter_that_overflows(library: Library) -> None:
    """An adapter whose numbers overflow leaves its own rows not finite, and others to the bit what
    they are without it."""
    parts = [slice(0, 9), slice(9, 20), slice(20, 33)]
    adapters = [bottleneck(5, 0), bottleneck(16, 0), bottleneck(48, 0)]
    loras = [lora(rank, 0, {"query": 1}) for rank in (5, 16, 48)]
    x = torch.randn(33, WIDTH)

    def adapted() -> list[Tensor]:
        through, low = x.clone(), x.clone()
        NativeBottlenecks(library, adapters, parts, 33).at(0)["feed_forward"](through, through)
        NativeLoras(library, loras, parts, 33).at(0)["query"](x, low)
        return [through, low]

    before = adapted()
    for tensor in (adapters[1].down, adapters[1].up, *loras[1].pairs["query"]):
        tensor.fill_(3e38)
    for found, wanted in zip(adapted(), before, strict=True):
        assert not found[parts[1]].isfinite().any()
        assert torch.equal(found[parts[0]], wanted[parts[0]])
        assert torch.equal(found[parts[2]], wanted[parts[2]])
