"""The recipe: tokenise, train the routed mixture, merge it, evaluate what was merged, describe it in a spec."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import platform
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adapters.backbone import Backbone
from adapters.bottleneck import Bottleneck, RoutedBottleneck, draw_routes
from adapters.classifier import Classifier, Head, collate, from_tensors, to_tensors
from adapters.merge import merge
from adapters.spec import AdapterSpec, Probe
from adapters.text import Tokens, encode
from training.config import Recipe
from training.data import Dataset
from training.errors import NonFiniteLoss, TrainingError
from training.evaluate import predict, scores
from training.loss import consistency_loss, target_tensor, task_loss

POOL_BATCHES = 64  # a bucket's rows are sorted within this many batches: enough for even lengths, few enough to shuffle
PROBE_ROWS = 4


@dataclass(frozen=True)
class Progress:
    """Where a run is, after each step: `loss` is the step's whole loss, `tokens` counts real tokens of first passes."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Trained:
    """The result of a run: what `adapters.file.save` takes, and the dev scores of exactly that."""

    spec: AdapterSpec
    tensors: dict[str, Tensor]
    scores: dict[str, float]


def train(
    task: str,
    backbone: Backbone,
    train_set: Dataset,
    dev_set: Dataset,
    recipe: Recipe,
    report: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """One run, from examples to a merged adapter. Ctrl-C ends the training early; what it has is merged all the same.

    Raises TrainingError. The backbone is left as it was, to the bit.
    """
    started = time.monotonic()
    torch.manual_seed(recipe.seed)
    max_length = min(recipe.max_length, backbone.max_length)
    rows = encode(backbone.tokenizer, train_set.texts, max_length)
    dev_rows = encode(backbone.tokenizer, dev_set.texts, max_length)
    if recipe.positive is not None and recipe.positive not in train_set.labels:
        raise TrainingError(f"positive is {recipe.positive!r}; expected one of {', '.join(train_set.labels)}")

    probed = _probe_rows(dev_rows)
    model = build(backbone, len(train_set.labels), recipe)
    done = fit(model, train_set, rows, recipe, report)

    tensors = to_tensors(merge(model.sites), model.head, getattr(torch, recipe.dtype))
    merged = from_tensors(backbone, tensors, model.pooling)
    result = scores(dev_set, predict(merged, dev_rows), recipe.positive)
    spec = AdapterSpec(
        task=task,
        labels=train_set.labels,
        problem_type=train_set.problem_type,
        text_pair=train_set.text_pair,
        max_length=max_length,
        pooling=model.pooling,
        backbone=backbone.reference,
        bottleneck=recipe.bottleneck,
        activation="gelu",
        training=_provenance(recipe, train_set, dev_set, done, result, time.monotonic() - started),
        probe=_probe(merged, dev_set, dev_rows, probed),
    )
    return Trained(spec, tensors, result)


def build(backbone: Backbone, labels: int, recipe: Recipe) -> Classifier:
    """The model to train: a mixture (or, by `method`, a single adapter) in every layer, and a fresh head."""
    config = backbone.config
    d, r = config.hidden_size, recipe.bottleneck
    sites = nn.ModuleList(
        RoutedBottleneck(d, r, recipe.experts, share_down=recipe.share_down, share_up=recipe.share_up)
        if recipe.method == "adamix"
        else Bottleneck(d, r)
        for _ in range(config.num_hidden_layers)
    )
    dense = recipe.dense_head if recipe.dense_head is not None else config.model_type != "bert"
    dropout = getattr(config, "classifier_dropout", None)
    head = Head(d, labels, dense=dense, dropout=config.hidden_dropout_prob if dropout is None else dropout)
    model = Classifier(backbone, sites, head, recipe.pooling or backbone.default_pooling)
    return model.to(backbone.encoder.device)


def fit(
    model: Classifier, data: Dataset, rows: list[Tokens], recipe: Recipe, report: Callable[[Progress], None]
) -> Progress:
    """Train `model` in place; the encoder's dropout is on, its weights are not touched."""
    device = next(model.parameters()).device
    rng = random.Random(recipe.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    optimizer = _optimizer(parameters, recipe)
    warmup = round(recipe.warmup * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)  # type: ignore[no-untyped-call]  # unannotated
    autocast = _autocast(device, recipe)
    progress = Progress(0, steps, float("nan"), 0, 0.0)
    started = time.monotonic()

    with _interruptible() as interrupted, _training_mode(model):
        for indices in _epochs(rows, recipe, rng):
            batch = collate([rows[i] for i in indices], device)
            target = target_tensor(data.problem_type, [data.targets[i] for i in indices], len(data.labels), device)
            with autocast:
                draw_routes(model.sites, rng)
                first = model(batch)
                loss = task_loss(data.problem_type, first, target)
                if recipe.consistency and recipe.method == "adamix":
                    draw_routes(model.sites, rng)
                    loss = loss + recipe.consistency * consistency_loss(data.problem_type, first, model(batch))
            value = loss.item()
            if value != value or value in (float("inf"), float("-inf")):
                raise NonFiniteLoss(
                    f"the loss is {value} at step {progress.step + 1} of {steps} (learning rate {recipe.learning_rate}); "
                    "expected a finite number: try a lower --learning-rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            optimizer.step()
            schedule.step()
            tokens = progress.tokens + sum(len(rows[i].ids) for i in indices)
            progress = Progress(progress.step + 1, steps, value, tokens, time.monotonic() - started)
            report(progress)
            if interrupted():
                break
    return progress


def _epochs(rows: list[Tokens], recipe: Recipe, rng: random.Random) -> Iterator[list[int]]:
    """Mini-batches of row indices, all epochs: shuffled, then sorted by length within pools, so that a batch pads little."""
    size = recipe.batch_size
    for _ in range(recipe.epochs):
        order = list(range(len(rows)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), size * POOL_BATCHES):
            pool = sorted(order[start : start + size * POOL_BATCHES], key=lambda i: len(rows[i].ids))
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with decay on the weights and none on the biases."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate)


def _autocast(device: torch.device, recipe: Recipe) -> torch.autocast:
    lower = recipe.precision == "bfloat16" or (recipe.precision == "auto" and device.type == "cuda")
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=lower)


@contextlib.contextmanager
def _training_mode(model: Classifier) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


@contextlib.contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks for an early end, a second one is the usual KeyboardInterrupt."""
    seen = False

    def ask(_signal: int, _frame: Any) -> None:
        nonlocal seen
        seen = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not in the main thread: signals are somebody else's there
        yield lambda: False
        return
    try:
        yield lambda: seen
    finally:
        signal.signal(signal.SIGINT, previous)


def _probe_rows(rows: list[Tokens]) -> list[int]:
    """The first dev rows that are not cut."""
    whole = [i for i, row in enumerate(rows) if row.full_length == len(row.ids)][:PROBE_ROWS]
    if not whole:
        raise TrainingError("every dev row is longer than max_length; expected at least one that fits, for the probe")
    return whole


def _probe(merged: Classifier, dev_set: Dataset, rows: list[Tokens], chosen: list[int]) -> Probe:
    """Some dev rows with the logits of the merged adapter as it will be in the file."""
    logits = predict(merged, [rows[i] for i in chosen])
    return Probe(
        inputs=tuple(dev_set.texts[i] for i in chosen), logits=tuple(tuple(row) for row in logits.double().tolist())
    )


def _provenance(
    recipe: Recipe, train_set: Dataset, dev_set: Dataset, done: Progress, result: dict[str, float], seconds: float
) -> dict[str, Any]:
    return {
        "recipe": dataclasses.asdict(recipe),
        "train_rows": len(train_set.texts),
        "dev_rows": len(dev_set.texts),
        "steps": done.step,
        "planned_steps": done.steps,
        "dev_scores": result,
        "seconds": round(seconds, 1),
        "hardware": platform.processor() or platform.machine(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {name: version(name) for name in ("torch", "transformers", "tokenizers")},
    }
