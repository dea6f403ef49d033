"""Which experts the rows of a step go through, what a step costs, and what a recipe may not ask."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import collate
from adapters.merge import merge
from adapters.text import encode
from tests.training.killed import resumed
from tests.training.test_training import QUICK, SINGLE
from training.config import Recipe
from training.errors import TrainingError
from training.loss import step_loss, target_tensor
from training.methods import build
from training.one_run import measure
from training.routing import Router

USUAL = Recipe(epochs=1, batch_size=8, learning_rate=1e-3)
ROWS = dataclasses.replace(QUICK, routing="rows", task_loss="both", epochs=2)
RECIPES = [
    QUICK,
    dataclasses.replace(QUICK, second_pass="mean"),
    dataclasses.replace(QUICK, routing="rows"),
    dataclasses.replace(QUICK, routing="rows", second_pass="mean", task_loss="both"),
]


def mixture(experts: int = 4, *, share_up: bool = True) -> RoutedBottleneck:
    site = RoutedBottleneck(8, 3, experts, share_up=share_up)
    for parameter in site.parameters():
        nn.init.normal_(parameter)
    return site


def alone(site: RoutedBottleneck, down: int, up: int) -> Bottleneck:
    """One pair of the mixture's projections as a single adapter."""
    single = Bottleneck(8, 3)
    single.down.load_state_dict(site.downs[down].state_dict())
    single.up.load_state_dict(site.ups[up].state_dict())
    return single


@pytest.mark.parametrize("share_up", [True, False])
def test_rows_go_through_their_experts(share_up: bool) -> None:
    """A row's result is that of its own experts alone, whatever its neighbours go through."""
    site, x = mixture(share_up=share_up), torch.randn(5, 7, 8)
    downs, ups = (3, 0, 1, 1, 2), (0, 2, 1, 3, 3)
    site.route = (downs, ups)
    result = site(x)
    for row in range(5):
        expected = alone(site, downs[row], 0 if share_up else ups[row])(x[row])
        torch.testing.assert_close(result[row], expected)


@pytest.mark.parametrize("share_up", [True, False])
def test_the_mean_is_what_is_merged(share_up: bool) -> None:
    """The pass through the experts' mean computes what the merged adapter will, and its gradient
    reaches every expert alike."""
    site, x = mixture(share_up=share_up), torch.randn(5, 7, 8)
    site.route = ("mean", "mean")
    result = site(x)
    (merged,) = merge(nn.ModuleList([site]))
    torch.testing.assert_close(result, merged(x), atol=1e-5, rtol=1e-5)
    result.square().sum().backward()
    for experts in (site.downs, site.ups):
        first, *others = [expert.weight.grad for expert in experts]
        assert first is not None
        assert first.abs().max() > 0
        for other in others:
            torch.testing.assert_close(other, first)


@pytest.mark.parametrize("rows", [1, 3, 8, 10, 33])
def test_rows_are_spread_evenly(rows: int) -> None:
    """Rows are spread so that no expert has two rows more than another, and in the second pass
    every row has another expert."""
    recipe = dataclasses.replace(ROWS, share_up=False)
    router = Router([mixture(share_up=False), mixture(share_up=False)], recipe)
    first, second = router.draw(random.Random(3), rows)
    for routes in (first, second):
        for choice in (choice for route in routes for choice in route):
            assert isinstance(choice, tuple)
            counts = Counter(choice)
            assert len(choice) == rows
            assert max(counts.values()) - min(counts[e] for e in range(4)) <= 1
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(x != y for x, y in zip(a, b, strict=True))  # type: ignore[arg-type]


def test_draws_are_random() -> None:
    """Over the draws every row meets every expert, in each site by a draw of its own."""
    router, rng = Router([mixture(), mixture()], ROWS), random.Random(0)
    draws = [router.draw(rng, 6)[0] for _ in range(200)]
    for row in range(6):
        assert Counter(draw[0][0][row] for draw in draws).keys() == {0, 1, 2, 3}  # type: ignore[index]
    assert any(draw[0] != draw[1] for draw in draws)


def test_every_expert_learns_in_every_step(bert: Backbone) -> None:
    """With rows spread, each expert gets a gradient in each step; with the paper's routing, one."""
    rows = encode(bert.tokenizer, SINGLE.texts, 32)[:8]
    target = target_tensor(
        "single_label_classification", SINGLE.targets[:8], 2, torch.device("cpu")
    )
    for routing, learning in (("rows", 4), ("batch", 1)):
        recipe = dataclasses.replace(QUICK, routing=routing, consistency_weight=0.0)
        model = build(bert, 2, recipe)
        router = Router(model.sites, recipe)
        (routes,) = router.draw(random.Random(0), 8)
        router.use(routes, range(8))
        step_loss(SINGLE.problem_type, [model(collate(rows))], target, recipe).backward()
        for site in model.sites:
            grads = [expert.weight.grad for expert in site.downs]
            assert sum(grad is not None and bool(grad.any()) for grad in grads) == learning


def step_flops(backbone: Backbone, recipe: Recipe) -> int:
    """Floating-point operations of a step's matrix products, forward and backward."""
    model = build(backbone, 2, recipe)
    rows = encode(backbone.tokenizer, SINGLE.texts, 32)[:8]
    target = target_tensor(
        "single_label_classification", SINGLE.targets[:8], 2, torch.device("cpu")
    )
    router = Router(model.sites, recipe)
    with FlopCounterMode(display=False) as counter:
        logits = []
        for routes in router.draw(random.Random(0), len(rows)):
            router.use(routes, range(len(rows)))
            logits.append(model(collate(rows)))
        step_loss(SINGLE.problem_type, logits, target, recipe).backward()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_costs_two_passes_of_a_single_adapter(bert: Backbone, recipe: Recipe) -> None:
    """Whatever the routes, a step's matrix products are those of a single adapter's two passes,
    and twice those of its one."""
    control = dataclasses.replace(QUICK, method="adapter-rdrop")
    single = dataclasses.replace(QUICK, method="adapter")
    assert step_flops(bert, recipe) == step_flops(bert, control) == 2 * step_flops(bert, single)


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_a_killed_run_draws_the_same(tmp_path: Path, bert: Backbone, recipe: Recipe) -> None:
    """A run that goes on from a checkpoint draws what it would have drawn: it ends with the same
    bits."""
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=10, learning_rate=1e-3)
    whole = measure(bert, SINGLE, SINGLE, recipe)
    again = resumed(bert, recipe, tmp_path / "checkpoint", killed=7)
    assert torch.equal(again.logits, whole.logits)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_draw(count: int) -> None:
    """Several processes route each row of a mini-batch as one process would."""
    from training.processes import Processes

    sites = [mixture(), mixture()]
    (whole, _) = Router(sites, ROWS).draw(random.Random(5), 7)
    seen: dict[int, Any] = {}
    for rank in range(count):
        router = Router(sites, ROWS)
        (first, _) = router.draw(random.Random(5), 7)
        places, share = Processes(rank, count).share(7)
        router.use(first, places)
        assert share == len(places) / 7
        for i, place in enumerate(places):
            seen[place] = tuple(site.route[0][i] for site in sites)  # type: ignore[index]
    assert seen == {row: tuple(route[0][row] for route in whole) for row in range(7)}  # type: ignore[index]
    assert Processes(2, 3).share(2) == ([0], 0.0)


def test_both_passes_carry_the_task_loss() -> None:
    """With `both` the task's loss is the mean of the passes', with `first` that of the first."""
    first, second = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    target = torch.tensor([0])
    losses = {
        choice: step_loss(
            "single_label_classification",
            [first, second],
            target,
            dataclasses.replace(QUICK, task_loss=choice, consistency_weight=0.0),  # type: ignore[arg-type]
        )
        for choice in ("first", "both")
    }
    each = [nn.functional.cross_entropy(logits, target) for logits in (first, second)]
    torch.testing.assert_close(losses["first"], each[0])
    torch.testing.assert_close(losses["both"], (each[0] + each[1]) / 2)


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_learn(embedded: Backbone, recipe: Recipe) -> None:
    """A separable task is learnt whatever the routing, and by the control too."""
    for method in ("adamix", "adapter-rdrop"):
        if method != "adamix":
            recipe = dataclasses.replace(QUICK, method=method)  # type: ignore[arg-type]
        found = measure(embedded, SINGLE, SINGLE, dataclasses.replace(recipe, epochs=5))
        assert found.scores["accuracy"] >= 0.97


def test_the_control_says_what_it_does() -> None:
    """The recipe of an R-Drop adapter says that both passes carry the task's loss."""
    assert (
        dataclasses.asdict(dataclasses.replace(QUICK, method="adapter-rdrop"))["task_loss"]
        == "both"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"second_pass": "mean", "experts": 1},
            "second_pass is 'mean', but experts is 1, whose mean is itself; expected 2 experts or",
        ),
        (
            {"second_pass": "mean", "consistency_weight": 0.0},
            "second_pass is 'mean', but there is no second pass: consistency_weight is 0",
        ),
        (
            {"routing": "rows", "method": "lora"},
            "routing is 'rows', which needs a mixture, but method is 'lora'; expected adamix",
        ),
        (
            {"second_pass": "mean", "method": "adapter-rdrop"},
            "second_pass is 'mean', which needs a mixture, but method is 'adapter-rdrop'",
        ),
        (
            {"task_loss": "both", "method": "full"},
            "task_loss is 'both', but a step of method 'full' has one pass; expected adamix or",
        ),
        (
            {"head_first": True, "prompt": "{text} {mask}", "label_words": {"a": "b"}},
            "head_first is true, but a prompt's head is frozen",
        ),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    """What contradicts itself is refused, with what was found and what was expected."""
    with pytest.raises(TrainingError) as refused:
        dataclasses.replace(USUAL, **changes)
    assert message in str(refused.value)
