"""The maths of adapters: one bottleneck, a routed mixture of them, and where they sit in a
backbone."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adapters import backbone as backbones
from adapters.attach import attached
from adapters.backbone import Backbone
from adapters.bottleneck import INITIAL_STD, Bottleneck, RoutedBottleneck
from adapters.classifier import Classifier, Head, collate, from_adapter
from adapters.errors import BackboneError
from adapters.file import parse
from adapters.mixture import draw_routes
from adapters.text import encode
from tests.tiny import FAMILIES, random_adapter, tiny_backbone

TEXTS = (("it is a good film",), ("the plot was awful and this is longer",))


def test_bottleneck_computes_the_formula() -> None:
    """A bottleneck computes x + U·gelu(D·x + b_D) + b_U with the exact, erf GELU."""
    site = Bottleneck(6, 3)
    nn.init.normal_(site.down.bias)
    nn.init.normal_(site.up.bias)
    x = torch.randn(4, 6)
    inner = x @ site.down.weight.T + site.down.bias
    gelu = 0.5 * inner * (1 + torch.erf(inner / math.sqrt(2)))
    torch.testing.assert_close(site(x), x + gelu @ site.up.weight.T + site.up.bias)


def test_initialisation() -> None:
    """Every expert starts at its own draw from N(0, 0.02²), with zero biases."""
    site = RoutedBottleneck(400, 100, 3, share_up=False)
    weights = [expert.weight for expert in (*site.downs, *site.ups)]
    for weight in weights:
        assert weight.std().item() == pytest.approx(INITIAL_STD, rel=0.05)
        assert weight.mean().item() == pytest.approx(0, abs=INITIAL_STD / 20)
    assert not any(
        torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i] if a.shape == b.shape
    )
    assert all(not expert.bias.any() for expert in (*site.downs, *site.ups))


def test_no_experts_is_refused() -> None:
    """A mixture without experts cannot be made."""
    with pytest.raises(ValueError, match="experts is 0; expected 1 or more"):
        RoutedBottleneck(4, 2, 0)


@pytest.mark.parametrize(
    ("share_down", "share_up", "downs", "ups"),
    [(False, True, 4, 1), (True, False, 1, 4), (False, False, 4, 4), (True, True, 1, 1)],
)
def test_sharing(share_down: bool, share_up: bool, downs: int, ups: int) -> None:
    """A shared projection exists once, the other one once an expert."""
    site = RoutedBottleneck(8, 2, 4, share_down=share_down, share_up=share_up)
    assert (len(site.downs), len(site.ups)) == (downs, ups)


def test_a_route_uses_one_expert() -> None:
    """A routed forward pass is exactly that of the expert pair on its route."""
    site = RoutedBottleneck(8, 2, 3, share_up=False)
    single = Bottleneck(8, 2)
    x = torch.randn(5, 8)
    for down in range(3):
        for up in range(3):
            site.route = (down, up)
            single.down, single.up = site.downs[down], site.ups[up]
            assert torch.equal(site(x), single(x))


def test_routes_are_uniform_and_independent() -> None:
    """Routes are drawn uniformly, and independently between down and up, between layers and between
    steps."""
    sites = [RoutedBottleneck(4, 2, 3, share_up=False) for _ in range(2)]
    rng = random.Random(1)
    draws = []
    for _ in range(8100):
        draw_routes(sites, rng)
        draws.append(sites[0].route + sites[1].route)
    joint = Counter(draws)  # 81 cells of 100: chi² has mean 80 and deviation √160
    steps = Counter(itertools.pairwise(draws))
    repeats = sum(count for (a, b), count in steps.items() if a == b)
    assert len(joint) == 81
    assert sum((count - 100) ** 2 / 100 for count in joint.values()) < 80 + 5 * math.sqrt(160)
    assert repeats == pytest.approx(100, abs=50)


def test_drawing_leaves_single_adapters_alone() -> None:
    """Sites that are no mixtures take part in a draw without a change and without using up
    randomness."""
    rng = random.Random(3)
    draw_routes([Bottleneck(4, 2)], rng)
    assert rng.random() == random.Random(3).random()


def _flops(backbone: Backbone, sites: nn.ModuleList) -> int:
    model = Classifier(
        backbone, sites, Head(backbone.config.hidden_size, 2, dense=False), "mean"
    ).train()
    draw_routes(model.sites, random.Random(0))
    with FlopCounterMode(display=False) as counter:
        model(collate(encode(backbone.tokenizer, TEXTS, 32))).sum().backward()
    return counter.get_total_flops()


def test_a_routed_step_costs_one_adapter(bert: Backbone) -> None:
    """Forward and backward through a mixture of eight take exactly the FLOPs of a single
    adapter."""
    d, layers = bert.config.hidden_size, bert.config.num_hidden_layers
    mixture = nn.ModuleList(RoutedBottleneck(d, 8, 8, share_up=False) for _ in range(layers))
    single = nn.ModuleList(Bottleneck(d, 8) for _ in range(layers))
    wider = nn.ModuleList(Bottleneck(d, 9) for _ in range(layers))
    assert _flops(bert, mixture) == _flops(bert, single) < _flops(bert, wider)


@pytest.mark.parametrize("family", FAMILIES)
def test_site_of_an_adapter(tmp_path: Path, family: str) -> None:
    """In each family an adapter changes what the layer's feed-forward output projection gives,
    before the residual."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, family)))
    batch = collate(encode(backbone.tokenizer, TEXTS, 32))
    layers = backbone.config.num_hidden_layers
    sites = nn.ModuleList(Bottleneck(backbone.config.hidden_size, 4) for _ in range(layers))
    for site in sites:
        nn.init.zeros_(site.up.weight)
        nn.init.normal_(site.up.bias)

    def hidden() -> torch.Tensor:
        return backbone.encoder(
            input_ids=batch.ids, token_type_ids=batch.types, attention_mask=batch.mask
        )[0]

    plain = hidden()
    with attached(backbone.encoder, sites):
        adapted = hidden()
    again = hidden()
    # With U = 0 an adapter adds b_U, which is the same as a change of the projection's own bias.
    for site, layer in zip(sites, backbone.encoder.encoder.layer, strict=True):
        layer.output.dense.bias.add_(site.up.bias.detach())
    torch.testing.assert_close(adapted, hidden())
    assert torch.equal(plain, again)
    assert not torch.allclose(plain, adapted, atol=0.1)


def test_adapters_leave_when_a_pass_fails(bert: Backbone) -> None:
    """An exception within `attached` takes the adapters off again."""
    sites = nn.ModuleList(Bottleneck(32, 4) for _ in range(2))
    with pytest.raises(ZeroDivisionError), attached(bert.encoder, sites):
        raise ZeroDivisionError
    assert not any(module._forward_hooks for module in bert.encoder.modules())


def test_one_adapter_a_layer(bert: Backbone) -> None:
    """As many adapters as layers are wanted, no more and no fewer."""
    with (
        pytest.raises(ValueError, match="3 adapters for 2 layers"),
        attached(bert.encoder, nn.ModuleList([Bottleneck(32, 4)] * 3)),
    ):
        pass


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
@pytest.mark.parametrize("dense", [False, True])
def test_a_row_does_not_feel_its_batch(bert: Backbone, pooling: str, dense: bool) -> None:
    """Each pooling gives a row the same logits alone as padded in a batch."""
    _, _, data = random_adapter(bert, "t", ["a", "b", "c"], pooling=pooling, dense=dense)  # type: ignore[arg-type]
    model = from_adapter(bert, parse(data))
    rows = encode(bert.tokenizer, TEXTS, 32)
    alone = torch.cat([model(collate([row])) for row in rows])
    torch.testing.assert_close(model(collate(rows)), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("pooling", "reason"), [("pooler", "has none"), ("mask", "needs a prompt")]
)
def test_poolings_that_cannot_be(tmp_path: Path, pooling: str, reason: str) -> None:
    """A pooling that the backbone has not, or that needs a prompt, is refused by name."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, "roberta", pooler=False)))
    with pytest.raises(BackboneError, match=rf"pooling is '{pooling}'.*{reason}.*expected cls"):
        Classifier(backbone, nn.ModuleList(), Head(32, 2, dense=False), pooling)  # type: ignore[arg-type]
