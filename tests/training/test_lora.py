"""LoRA and mixtures of it: what is trained, merged, written and served, and what is refused."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters import backbone as backbones
from adapters.backbone import Backbone, fingerprint
from adapters.file import Adapter, load, parse, serialize
from adapters.lora import MODULES, Lora, RoutedLora
from adapters.merge import merge
from adapters.mixture import layers_of
from adapters.parity import check_parity
from adapters.text import encode
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from tests.tiny import random_adapter, tiny_backbone
from tests.training.killed import resumed
from tests.training.test_methods import run
from tests.training.test_routing import step_flops
from tests.training.test_training import QUICK, SINGLE
from tests.training.test_training_cli import assert_refused
from training.config import Recipe
from training.errors import TrainingError
from training.fit import fit
from training.methods import build
from training.one_run import Trained, measure, train
from training.routing import Router
from training.scoring import predict, predict_unmerged

SHARING = [(False, True), (True, False), (False, False), (True, True)]
CPU = torch.device("cpu")
LORA = dataclasses.replace(QUICK, bottleneck=Recipe.bottleneck, adaptation="lora", rank=4)
SINGLE_LORA = dataclasses.replace(LORA, method="lora")
RECIPES = [
    LORA,
    dataclasses.replace(LORA, second_pass="mean"),
    dataclasses.replace(LORA, routing="rows"),
    dataclasses.replace(LORA, routing="rows", second_pass="mean", task_loss="both"),
]


def mixture(*, share_down: bool = False, share_up: bool = True, experts: int = 4) -> RoutedLora:
    site = RoutedLora(8, 6, 3, 0.5, experts, share_down=share_down, share_up=share_up)
    for parameter in site.parameters():
        nn.init.normal_(parameter)
    return site


def alone(site: RoutedLora, down: int, up: int) -> Lora:
    """One pair of the mixture's A and B as a single LoRA."""
    return Lora.of(site.a[down].detach(), site.b[up].detach(), site.scale)


def run_of(backbone: Backbone, recipe: Recipe, **more: Any) -> Trained:
    return train("toy", backbone, SINGLE, SINGLE, recipe, **more)


def test_experts_begin_alike() -> None:
    """As in the released code all experts begin as one draw of A with B at 0, which adds
    nothing."""
    site = RoutedLora(8, 6, 3, 0.5, 4, share_up=False)
    assert all(torch.equal(expert, site.a[0]) for expert in site.a)
    assert site.a[0].abs().max() > 0
    assert not any(expert.any() for expert in site.b)
    assert len({expert.data_ptr() for expert in (*site.a, *site.b)}) == 8
    assert not site(torch.randn(2, 5, 8)).any()
    with pytest.raises(ValueError, match="experts is 0; expected 1 or more"):
        RoutedLora(8, 6, 3, 0.5, 0)


@pytest.mark.parametrize(("share_down", "share_up"), SHARING)
def test_routes(share_down: bool, share_up: bool) -> None:
    """A mini-batch, or each row of it, goes through its own A and B alone; a shared side exists
    once."""
    site, x = mixture(share_down=share_down, share_up=share_up), torch.randn(5, 7, 8)
    assert (len(site.a), len(site.b)) == (1 if share_down else 4, 1 if share_up else 4)
    downs = (0,) * 5 if share_down else (3, 0, 1, 1, 2)
    ups = (0,) * 5 if share_up else (0, 2, 1, 3, 3)
    site.route = (downs[0], ups[1])
    torch.testing.assert_close(site(x), alone(site, downs[0], ups[1])(x))
    site.route = (downs, ups)
    result = site(x)
    for row in range(5):
        torch.testing.assert_close(result[row], alone(site, downs[row], ups[row])(x[row]))


@pytest.mark.parametrize(("share_down", "share_up"), SHARING)
@pytest.mark.parametrize("experts", [1, 3])
def test_merged_is_the_mean(experts: int, share_down: bool, share_up: bool) -> None:
    """The merged LoRA has the mean of the experts' A and the mean of their B, which is what a pass
    through the mean computes; the experts stay as they are."""
    site = mixture(share_down=share_down, share_up=share_up, experts=experts)
    before = [parameter.clone() for parameter in site.parameters()]
    (layer,) = merge([nn.ModuleDict({"query": site})])
    merged = layer["query"]
    for found, parts in ((merged.a, site.a), (merged.b, site.b)):
        mean = torch.stack([part.double() for part in parts]).mean(dim=0)
        torch.testing.assert_close(found, mean.float(), rtol=1e-6, atol=1e-7)
    x = torch.randn(5, 7, 8)
    site.route = ("mean", "mean")
    torch.testing.assert_close(site(x), merged(x), rtol=1e-5, atol=1e-5)
    nn.init.zeros_(merged.a)
    assert all(torch.equal(a, b) for a, b in zip(before, site.parameters(), strict=True))


def test_merging_copies_changes_nothing() -> None:
    """The merger of copies of one LoRA is that LoRA to the bit, as is that of a single one; other
    modules are refused."""
    single = Lora.of(torch.randn(3, 8), torch.randn(6, 3), 0.5)
    site = mixture(share_up=False, experts=7)
    with torch.no_grad():
        for expert in site.a:
            expert.copy_(single.a)
        for expert in site.b:
            expert.copy_(single.b)
    (layer,) = merge([nn.ModuleDict({"query": site, "value": single})])
    for merged in layer.values():
        assert merged is not single
        assert torch.equal(merged.a, single.a)
        assert torch.equal(merged.b, single.b)
        assert merged.scale == 0.5
    with pytest.raises(TypeError, match="a site is a Linear; expected Lora or RoutedLora"):
        merge([nn.ModuleDict({"query": nn.Linear(2, 2)})])


def test_the_sites_of_a_layer_share_a_draw(bert: Backbone) -> None:
    """Query and value of a layer have the same route, as in the released code; layers have their
    own."""
    recipe = dataclasses.replace(LORA, share_up=False, consistency_weight=0.0)
    model = build(bert, 2, recipe)
    router, rng = Router(model.sites, recipe), random.Random(0)
    seen = set()
    for _ in range(50):
        (routes,) = router.draw(rng, 8)
        router.use(routes, range(8))
        layers = [[part.route for part in layer] for layer in layers_of(model.sites)]
        assert all(len(layer) == 2 and layer[0] == layer[1] for layer in layers)
        seen.add(tuple(layer[0] for layer in layers))
    assert len(seen) > 40  # of 256


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_step_costs_that_of_one(bert: Backbone, recipe: Recipe) -> None:
    """A step of a mixture has the matrix products of two passes of a single LoRA, whatever the
    routes."""
    control = dataclasses.replace(LORA, method="adapter-rdrop")
    wider = dataclasses.replace(control, rank=5)
    single = step_flops(bert, SINGLE_LORA)
    assert step_flops(bert, recipe) == step_flops(bert, control) == 2 * single
    assert step_flops(bert, wider) > 2 * single


@pytest.mark.parametrize("recipe", [SINGLE_LORA, RECIPES[0], RECIPES[3]])
def test_it_learns(embedded: Backbone, recipe: Recipe) -> None:
    """A separable task is learnt by LoRA, single or a mixture by any routing."""
    recipe = dataclasses.replace(recipe, epochs=6)
    assert measure(embedded, SINGLE, SINGLE, recipe).scores["accuracy"] >= 0.97


@pytest.mark.parametrize("share", SHARING[:3])
def test_what_is_trained(tmp_path: Path, share: tuple[bool, bool]) -> None:
    """Every expert and the head move; the backbone stays as it was, to the bit."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, "bert")))
    down, up = share
    recipe = dataclasses.replace(
        LORA, experts=3, epochs=12, share_down=down, share_up=up, weight_decay=1.0
    )
    model = build(backbone, 2, recipe)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    assert len(trained) == 2 * 2 * ((1 if down else 3) + (1 if up else 3)) + 2
    fit(model, SINGLE, encode(backbone.tokenizer, SINGLE.texts, 32), recipe, lambda _: None)
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []
    assert fingerprint(backbone.encoder, backbone.tokenizer) == backbone.fingerprint
    assert not any(module._forward_hooks for module in backbone.encoder.modules())
    assert all(p.grad is None for p in backbone.encoder.parameters())


@pytest.mark.parametrize("recipe", [SINGLE_LORA, *RECIPES[2:]])
def test_a_killed_run_goes_on(tmp_path: Path, bert: Backbone, recipe: Recipe) -> None:
    """A run that goes on from a checkpoint ends with the same bits as one that was never
    killed."""
    recipe = dataclasses.replace(recipe, epochs=3, batch_size=10, learning_rate=1e-3)
    whole = measure(bert, SINGLE, SINGLE, recipe)
    again = resumed(bert, recipe, tmp_path / "checkpoint", killed=7)
    assert torch.equal(again.logits, whole.logits)


def test_evaluations(bert: Backbone) -> None:
    """Fixed routes are the first expert at every site, and an ensemble averages the experts'
    logits."""
    model = build(bert, 2, dataclasses.replace(LORA, experts=3, share_up=False))
    for parameter in model.sites.parameters():
        nn.init.normal_(parameter, std=0.3)
    rows = encode(bert.tokenizer, SINGLE.texts, 32)

    def by(expert: int) -> Tensor:
        for layer in layers_of(model.sites):
            for part in layer:
                part.route = (expert, expert)
        return predict(model, rows)

    each = [by(expert) for expert in range(3)]
    assert not torch.allclose(each[0], each[1], atol=1e-3)
    assert torch.equal(predict_unmerged(model, rows, "fixed", 0), each[0])
    ensemble = predict_unmerged(model, rows, "ensemble", 0)
    torch.testing.assert_close(ensemble, torch.stack(each).mean(dim=0))


FILES: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "lora", "alpha": 8.0, "first_layer": 1, "dtype": "float32"},
    {"sites": ",".join(MODULES), "alpha": 2.0},
    {"method": "adapter-rdrop", "sites": "down"},
]


@pytest.mark.parametrize("changes", FILES)
def test_a_trained_file_is_served(bert: Backbone, changes: dict[str, Any]) -> None:
    """A trained LoRA file says what was trained, and the engine gives the logits of its probe."""
    recipe = dataclasses.replace(LORA, epochs=3, **changes)
    trained = run_of(bert, recipe)
    adapter = parse(serialize(trained.spec, trained.tensors))
    spec = adapter.spec
    assert (spec.kind, spec.ranks, spec.bottleneck) == ("lora", recipe.ranks, None)
    assert (spec.scale, spec.first_layer) == (recipe.scale, recipe.first_layer)
    assert (spec.intermediate_size is not None) == ("down" in recipe.ranks)
    assert spec.training["recipe"] == dataclasses.asdict(recipe)
    tokens = encode(bert.tokenizer, list(spec.probe.inputs), spec.max_length)
    engine = Engine(bert, Slots(2, CPU, torch.float32), CPU, torch.float32)
    rows = [Row(adapter, row.ids, row.types) for row in tokens]
    check_parity(adapter, [list(row) for row in engine.run(rows)], "float32")
    assert all(part.any() for name, part in adapter.tensors.items() if name.endswith(".b"))


def test_the_command(tmp_path: Path, bert_folder: Path) -> None:
    """`--method adamix --adaptation lora` writes a LoRA file by the options that it is given."""
    out = tmp_path / "out.safetensors"
    chosen = ("--adaptation", "lora", "--sites", "query,key", "--alpha", "8", "--out", str(out))
    result = run(tmp_path, bert_folder, *chosen, "--routing", "rows", "--second-pass", "mean")
    assert result.exit_code == 0, result.output
    assert load(out).spec.ranks == {"query": 4, "key": 4}
    assert load(out).spec.scale == 2.0


STILL = dataclasses.replace(LORA, learning_rate=1e-9, epochs=1, dtype="float32")


def another(backbone: Backbone, **options: Any) -> Adapter:
    options = {"ranks": {"query": 4, "value": 4}, "dtype": torch.float32, **options}
    return parse(random_adapter(backbone, "another", SINGLE.labels, **options)[2])


@pytest.mark.parametrize("method", ["adamix", "lora"])
@pytest.mark.parametrize("alpha", [8.0, 4.0])
def test_a_warm_start(bert: Backbone, method: Any, alpha: float) -> None:
    """Hardly trained, all experts merge to the other task's LoRA; another scale gives the same
    product."""
    start = another(bert, scale=2.0)
    trained = run_of(bert, dataclasses.replace(STILL, method=method, alpha=alpha), warm_start=start)
    assert trained.tensors.keys() == start.tensors.keys()
    assert trained.spec.scale == alpha / 4
    for name, tensor in start.tensors.items():
        expected = tensor * (2.0 / (alpha / 4)) if name.endswith(".b") else tensor
        torch.testing.assert_close(trained.tensors[name], expected, rtol=0, atol=1e-6)


def test_a_warm_start_that_does_not_fit(bert: Backbone) -> None:
    """An adapter of the other kind, of other ranks or of other layers is refused by name."""
    start = another(bert)
    name = f"--init another@{start.version}"
    bottleneck = another(bert, ranks=None, bottleneck=16)
    cases: list[tuple[Recipe, Adapter, str]] = [
        (QUICK, start, f"{name} is of kind 'lora'; expected 'bottleneck', which this run trains"),
        (
            LORA,
            bottleneck,
            f"--init another@{bottleneck.version} is of kind 'bottleneck'; expected 'lora', which",
        ),
        (
            dataclasses.replace(LORA, sites="query", rank=2),
            start,
            f"{name} has ranks query 4, value 4; expected query 2, as this run has",
        ),
        (
            dataclasses.replace(LORA, first_layer=1),
            start,
            f"{name} has first_layer 0; expected 1, as this run has",
        ),
    ]
    for recipe, adapter, message in cases:
        with pytest.raises(TrainingError) as refused:
            run_of(bert, recipe, warm_start=adapter)
        assert message in str(refused.value)


REFUSED: list[tuple[list[str], str]] = [
    (
        ["--adaptation", "lora", "--bottleneck", "8"],
        "bottleneck is 8, but this run trains LoRA; expected rank instead",
    ),
    (
        ["--method", "lora", "--bottleneck", "8"],
        "bottleneck is 8, but this run trains LoRA; expected rank instead",
    ),
    (
        ["--rank", "4"],
        "rank is 4, but this run trains no LoRA; expected method lora or adaptation lora with it",
    ),
    (["--method", "full", "--alpha", "4"], "alpha is 4.0, but this run trains no LoRA"),
    (["--sites", "query"], "sites is 'query', but this run trains no LoRA"),
    (
        ["--adaptation", "lora", "--method", "adapter"],
        "adaptation is 'lora', but method is 'adapter'; expected adamix or adapter-rdrop with it,"
        " or method lora",
    ),
    (
        ["--adaptation", "lora", "--sites", "query,pooler"],
        "sites is 'query,pooler', which names 'pooler'; expected some of query, key, value,",
    ),
    (
        ["--adaptation", "lora", "--sites", "key,key"],
        "sites is 'key,key', which names 'key' twice; expected different ones",
    ),
    (["--adaptation", "lora", "--sites", ""], "sites is '', which names ''; expected some of"),
    (["--adaptation", "lora", "--rank", "257"], "rank is 257; expected 1 to 256"),
    (["--adaptation", "lora", "--alpha", "0"], "alpha is 0.0; expected 0.001 to 1024"),
    (["--adaptation", "lora", "--alpha", "nan"], "alpha is nan; expected 0.001 to 1024"),
    (
        ["--paper", "--adaptation", "lora"],
        "--paper stands beside adaptation 'lora'; expected 'bottleneck', which is the paper's",
    ),
    (
        ["--method", "lora", "--routing", "rows"],
        "routing is 'rows', which needs a mixture, but method is 'lora'; expected adamix",
    ),
]


@pytest.mark.parametrize(("options", "message"), REFUSED)
def test_refused(tmp_path: Path, bert_folder: Path, options: list[str], message: str) -> None:
    """What contradicts itself ends the program with one sentence, and no file is written."""
    out = tmp_path / "out"
    assert_refused(run(tmp_path, bert_folder, *options, "--out", str(out)), message, out)
