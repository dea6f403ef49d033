"""One training run: what it trains, what it leaves alone, what it reports, and that it learns."""

from __future__ import annotations

import dataclasses
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import backbone as backbones
from adapters.backbone import Backbone, fingerprint
from adapters.bottleneck import Bottleneck, RoutedBottleneck
from adapters.classifier import collate, from_adapter
from adapters.convert.probe import neutral_probe
from adapters.errors import BackboneError
from adapters.file import parse, serialize
from adapters.parity import check_parity
from adapters.text import encode
from tests.tiny import FAMILIES, tiny_backbone
from training.config import Recipe
from training.data import Dataset
from training.errors import NonFiniteLoss, TrainingError
from training.fit import fit
from training.methods import build
from training.one_run import Trained, measure, train
from training.probe import probe_texts
from training.progress import Progress
from training.scoring import predict, scores

TEXTS = [
    f"{article} {noun} {verb} {word}"
    for article in ("the", "a")
    for noun in ("film", "plot")
    for verb in ("is", "was")
    for word in ("good", "great", "bad", "awful")
]
GOOD = [text.endswith(("good", "great")) for text in TEXTS]
SINGLE = Dataset(
    "single_label_classification",
    ("bad", "good"),
    [(text,) for text in TEXTS],
    [int(good) for good in GOOD],
)
PAIRS = Dataset(
    "single_label_classification",
    ("no", "yes"),
    [(text, "it is good") for text in TEXTS],
    [int(good) for good in GOOD],
)
SEVERAL = Dataset(
    "multi_label_classification",
    ("film", "good"),
    [(text,) for text in TEXTS],
    [[0] * ("film" in text) + [1] * good for text, good in zip(TEXTS, GOOD, strict=True)],
)
NUMBERS = Dataset(
    "regression", ("score",), [(text,) for text in TEXTS], [2.0 * good - 0.5 for good in GOOD]
)
QUICK = Recipe(bottleneck=4, epochs=1, batch_size=16, learning_rate=1e-2)


def run(backbone: Backbone, data: Dataset = SINGLE, **changes: Any) -> Trained:
    return train("toy", backbone, data, data, dataclasses.replace(QUICK, **changes))


@pytest.mark.parametrize(
    ("data", "metric"),
    [(SINGLE, "accuracy"), (PAIRS, "accuracy"), (SEVERAL, "accuracy"), (NUMBERS, "pearson")],
)
def test_it_learns(embedded: Backbone, data: Dataset, metric: str) -> None:
    """A separable task of each kind is learnt by the merged mixture."""
    assert run(embedded, data, epochs=5).scores[metric] >= 0.97


def test_a_single_adapter_learns(embedded: Backbone) -> None:
    """A separable task is learnt by a single adapter, the method to compare with."""
    assert run(embedded, method="adapter", epochs=5).scores["accuracy"] >= 0.97


def test_a_trained_file(bert: Backbone) -> None:
    """What a run gives is a valid adapter file whose probe and dev scores are those of the file
    itself."""
    trained = run(bert, epochs=3, positive="good")
    adapter = parse(serialize(trained.spec, trained.tensors))
    model = from_adapter(bert, adapter)
    rows = encode(bert.tokenizer, SINGLE.texts, adapter.spec.max_length)
    assert (
        scores(SINGLE, predict(model, rows), "good")
        == trained.scores
        == adapter.spec.training["dev_scores"]
    )
    probe = encode(bert.tokenizer, adapter.spec.probe.inputs, adapter.spec.max_length)  # type: ignore[arg-type]
    with torch.no_grad():
        check_parity(adapter, model(collate(probe)).tolist(), "float32")
    assert adapter.spec.backbone == bert.reference
    assert (adapter.spec.max_length, adapter.spec.pooling) == (64, "pooler")
    said = adapter.spec.training
    assert said["recipe"] == dataclasses.asdict(
        dataclasses.replace(QUICK, epochs=3, positive="good")
    )
    assert (said["train_rows"], said["dev_rows"], said["steps"], said["planned_steps"]) == (
        32,
        32,
        6,
        6,
    )


def test_the_backbone_is_frozen(tmp_path: Path) -> None:
    """Training leaves the backbone as it was, to the bit, in eval mode and without adapters."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, "bert")))
    run(backbone, epochs=3, weight_decay=1.0)
    assert fingerprint(backbone.encoder, backbone.tokenizer) == backbone.fingerprint
    assert not backbone.encoder.training
    assert not any(module._forward_hooks for module in backbone.encoder.modules())
    assert all(p.grad is None for p in backbone.encoder.parameters())


@pytest.mark.parametrize("share", [(False, True), (True, False), (False, False)])
def test_every_expert_is_trained(bert: Backbone, share: tuple[bool, bool]) -> None:
    """By the end of a run each expert's weights and biases, and the head's, have moved."""
    recipe = dataclasses.replace(
        QUICK, experts=3, epochs=12, share_down=share[0], share_up=share[1]
    )
    model = build(bert, 2, recipe)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    rows = encode(bert.tokenizer, SINGLE.texts, 32)
    fit(model, SINGLE, rows, recipe, lambda _: None)
    assert all(isinstance(site, RoutedBottleneck) for site in model.sites)
    assert len(trained) == 2 * 2 * ((1 if share[0] else 3) + (1 if share[1] else 3)) + 2
    assert [name for name, p in trained.items() if torch.equal(p, before[name])] == []


@pytest.mark.parametrize("data", [SINGLE, NUMBERS, SEVERAL])
def test_a_seed_makes_a_run(bert: Backbone, data: Dataset) -> None:
    """A run with the same seed gives the same numbers to the bit, another seed others."""
    first, again, other = (run(bert, data, seed=seed, epochs=2) for seed in (7, 7, 8))
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert first.spec.probe == again.spec.probe
    assert not torch.equal(first.tensors["down.weight"], other.tensors["down.weight"])


def test_routes_vary_between_the_passes(bert: Backbone) -> None:
    """Within a step the two passes draw their routes apart, in every layer, and over the steps all
    routes appear."""
    recipe = dataclasses.replace(QUICK, experts=2, epochs=20)
    model = build(bert, 2, recipe)
    passes: list[tuple[int, ...]] = []
    model.encoder.embeddings.register_forward_hook(
        lambda *_: passes.append(tuple(site.route[0] for site in model.sites))
    )
    try:
        fit(model, SINGLE, encode(bert.tokenizer, SINGLE.texts, 32), recipe, lambda _: None)
    finally:
        model.encoder.embeddings._forward_hooks.clear()
    steps = list(zip(passes[::2], passes[1::2], strict=True))
    assert len(steps) == 40
    assert len(set(steps)) > 10  # of 16


@pytest.mark.parametrize(
    ("changes", "passes"), [({}, 2), ({"consistency_weight": 0.0}, 1), ({"method": "adapter"}, 1)]
)
def test_passes_of_a_step(bert: Backbone, changes: dict[str, Any], passes: int) -> None:
    """A step takes a second forward pass for consistency, and only for that."""
    recipe = dataclasses.replace(QUICK, **changes)
    model = build(bert, 2, recipe)
    calls: list[object] = []
    handle = model.encoder.embeddings.register_forward_hook(lambda *_: calls.append(1))
    done = fit(model, SINGLE, encode(bert.tokenizer, SINGLE.texts, 32), recipe, lambda _: None)
    handle.remove()
    assert len(calls) == passes * done.steps


def test_progress(bert: Backbone) -> None:
    """Every step is reported with its loss and the tokens so far, each row once an epoch."""
    seen: list[Progress] = []
    train(
        "toy",
        bert,
        SINGLE,
        SINGLE,
        dataclasses.replace(QUICK, epochs=2, batch_size=20),
        seen.append,
    )
    assert [p.step for p in seen] == [1, 2, 3, 4]
    assert {p.steps for p in seen} == {4}
    tokens = sum(len(row.ids) for row in encode(bert.tokenizer, SINGLE.texts, 64))
    assert (seen[1].tokens, seen[3].tokens) == (tokens, 2 * tokens)
    assert all(p.loss > 0 for p in seen)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(tmp_path: Path, family: str) -> None:
    """Each family trains with its own pooling and head: dense for all but BERT."""
    trained = run(backbones.load(str(tiny_backbone(tmp_path, family))))
    assert trained.spec.pooling == ("pooler" if family == "bert" else "cls")
    assert ("head.dense.weight" in trained.tensors) == (family != "bert")


CHOICES: list[dict[str, Any]] = [
    *({"dtype": dtype} for dtype in ("bfloat16", "float32")),
    *({"pooling": pooling} for pooling in ("mean", "cls")),
    *({"warmup": warmup} for warmup in (0.0, 1.0)),
    *({"max_length": length} for length in (8, 8192)),
    *({"precision": "bfloat16"}, {"dense_head": True}, {"experts": 1}, {"batch_size": 1000}),
]


@pytest.mark.parametrize("changes", CHOICES)
def test_choices(bert: Backbone, changes: dict[str, Any]) -> None:
    """Each choice of a recipe gives a valid file that says so."""
    trained = run(bert, **changes)
    adapter = parse(serialize(trained.spec, trained.tensors))
    assert adapter.spec.training["recipe"] | changes == adapter.spec.training["recipe"]
    assert adapter.tensors["up.weight"].dtype == getattr(torch, changes.get("dtype", "float16"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts is 0; expected 1 to 64"),
        ({"bottleneck": 257}, "bottleneck is 257; expected 1 to 256"),
        ({"epochs": 0}, "epochs is 0; expected 1 to 10000"),
        ({"learning_rate": float("nan")}, "learning_rate is nan; expected"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected"),
        ({"consistency_weight": -1.0}, "consistency_weight is -1.0; expected"),
        ({"warmup": 1.1}, "warmup is 1.1; expected 0 to 1"),
        ({"max_length": 7}, "max_length is 7; expected 8 to"),
        ({"seed": -1}, "seed is -1; expected 0 to"),
        ({"positive": "great"}, "positive is 'great'; expected one of bad, good"),
    ],
)
def test_refused_recipes(bert: Backbone, changes: dict[str, Any], message: str) -> None:
    """A recipe outside its bounds is refused by the name, the value and the bounds."""
    with pytest.raises(TrainingError, match=message):
        run(bert, **changes)


def test_a_pooling_the_backbone_lacks(tmp_path: Path) -> None:
    """A pooler that the checkpoint does not have cannot be trained on."""
    with pytest.raises(
        BackboneError,
        match=r"pooling is 'pooler', but the checkpoint of .* has none; expected cls or mean",
    ):
        run(backbones.load(str(tiny_backbone(tmp_path, "roberta", pooler=False))), pooling="pooler")


def test_a_loss_that_is_not_finite(tmp_path: Path) -> None:
    """A loss that becomes NaN ends the run with the step and the learning rate."""
    backbone = backbones.load(str(tiny_backbone(tmp_path, "bert")))
    backbone.encoder.get_parameter("encoder.layer.0.output.dense.bias")[0] = float("nan")
    with pytest.raises(
        NonFiniteLoss,
        match=r"the loss is nan at step 1 of 2 \(learning rate 0.01\); expected a finite number",
    ):
        run(backbone)


def test_rows_that_are_cut_are_told(bert: Backbone) -> None:
    """How many rows were cut is told, and a set of which all are cut is trained on all the same."""
    long = dataclasses.replace(SINGLE, texts=[("good " * 100,)] * 32)
    told: list[str] = []
    measured = measure(bert, SINGLE, long, QUICK, say=told.append)
    assert measured.done.step == measured.done.steps
    (sentence,) = told
    assert sentence.startswith("32 of 32 dev rows are longer than")
    assert "were cut" in sentence


def test_a_length_beyond_the_backbone_s_is_told(bert: Backbone) -> None:
    """A `--max-length` that the backbone cannot take is told, with the one that is used."""
    told: list[str] = []
    measured = measure(
        bert, SINGLE, SINGLE, dataclasses.replace(QUICK, max_length=4096), say=told.append
    )
    assert measured.done.step == measured.done.steps
    assert told == [
        f"--max-length is 4096, but the backbone takes {bert.max_length} tokens at most"
    ]


def test_numbers_far_from_one_are_told(bert: Backbone) -> None:
    """Numbers too large to be learned as they are are told."""
    far = Dataset("regression", ("score",), SINGLE.texts, [1e5 * i for i in range(32)])
    told: list[str] = []
    measure(bert, far, far, QUICK, say=told.append)
    assert told == [
        "the numbers to learn go up to 3.1e+06 in magnitude; training works best from -10 to 10:"
        " scale them, and scale the answers back"
    ]


def test_a_file_holds_no_text_of_the_data(bert: Backbone) -> None:
    """The probe has neutral sentences, or those that were given for it."""
    texts = set(SINGLE.texts)
    trained = run(bert)
    assert trained.spec.probe.inputs == neutral_probe(text_pair=False)
    assert not texts & set(trained.spec.probe.inputs)
    given = train("toy", bert, SINGLE, SINGLE, QUICK, probe=[("my own text",)])
    assert given.spec.probe.inputs == (("my own text",),)


def test_a_probe_that_no_file_could_hold_is_refused(tmp_path: Path) -> None:
    """Texts for the probe that are long in characters, though perhaps short in tokens, are refused
    before the training, not at its end."""
    file = tmp_path / "probe.jsonl"
    file.write_text(json.dumps({"text": "x" * 1_000_000}) + "\n")
    with pytest.raises(TrainingError, match="have 1000000 characters; expected at most 64000"):
        probe_texts(file, text_pair=False)


def test_what_a_file_cannot_say_is_refused_before_the_first_step(bert: Backbone) -> None:
    """A label that no adapter file may hold ends the run before its first step."""
    steps: list[Progress] = []
    odd = dataclasses.replace(SINGLE, labels=("no\x07", "yes"))
    with pytest.raises(TrainingError, match="the adapter's file cannot say this: 'no"):
        train("toy", bert, odd, odd, QUICK, steps.append)
    assert steps == []


def test_training_outside_the_main_thread(bert: Backbone) -> None:
    """A run in another thread, where no Ctrl-C arrives, is a run like any other."""
    results: list[Trained] = []
    thread = threading.Thread(target=lambda: results.append(run(bert)))
    thread.start()
    thread.join()
    assert len(results) == 1


def test_scores_of_known_predictions() -> None:
    """Scores are the definitions': accuracy, F1, Matthews and Pearson and Spearman correlation."""
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0], [0.0, 1.0], [0.0, 3.0]])
    data = Dataset("single_label_classification", ("no", "yes"), [("t",)] * 4, [0, 0, 1, 1])
    assert scores(data, logits, "yes") == {
        "accuracy": 0.75,
        "f1_macro": 0.733333,
        "matthews": 0.57735,
        "f1": 0.8,
    }
    several = Dataset("multi_label_classification", ("a", "b"), [("t",)] * 2, [[0], []])
    found = torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    assert scores(several, found) == {"accuracy": 0.5, "f1_micro": 0.666667, "f1_macro": 0.5}
    numbers = Dataset("regression", ("score",), [("t",)] * 3, [1.0, 2.0, 4.0])
    assert scores(numbers, torch.tensor([[3.0], [1.0], [5.0]])) == {
        "pearson": 0.654654,
        "spearman": 0.5,
    }


@pytest.mark.parametrize("rows", [1, 3])
def test_correlations_that_do_not_exist(rows: int) -> None:
    """One row, or a constant prediction, has no correlation: it counts as 0."""
    numbers = Dataset("regression", ("score",), [("t",)] * rows, [1.0, 2.0, 4.0][:rows])
    assert scores(numbers, torch.ones(rows, 1)) == {"pearson": 0.0, "spearman": 0.0}


def test_prediction_order(bert: Backbone) -> None:
    """Predictions come in the rows' order, whatever batches their lengths made."""
    model = build(bert, 2, dataclasses.replace(QUICK, method="adapter"))
    rows = encode(bert.tokenizer, [("good " * n,) for n in (40, 1, 60, 7, 33)] * 40, 64)
    batched = predict(model, rows)
    with torch.no_grad():
        alone = torch.cat([model(collate([row])) for row in rows[:5]])
    torch.testing.assert_close(batched[:5], alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(batched[5:10], alone, atol=1e-5, rtol=1e-5)
    assert all(isinstance(site, Bottleneck) for site in model.sites)
