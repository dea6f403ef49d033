"""The loop: steps over mini-batches, with random routes and consistency where there is a
mixture."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from torch import nn

from adapters.classifier import Classifier, collate
from adapters.text import Tokens
from training.checkpoint import Checkpoint
from training.config import Recipe
from training.data import Dataset
from training.dropout import CpuDropout
from training.errors import CheckpointError, NonFiniteLoss
from training.loss import step_loss, target_tensor
from training.processes import current
from training.progress import Progress
from training.routing import Router

# a bucket's rows are sorted within this many batches: enough for even lengths, few enough to
# shuffle
POOL_BATCHES = 64


def fit(
    model: Classifier,
    data: Dataset,
    rows: list[Tokens],
    recipe: Recipe,
    report: Callable[[Progress], None],
    checkpoint: Checkpoint | None = None,
) -> Progress:
    """Train in place whatever of `model` requires gradients, the encoder's dropout on.

    The first Ctrl-C ends it early. With a `checkpoint`, it goes on from what that holds, and stores
    into it now and then, at an early end and at the end.
    """
    device = next(model.parameters()).device
    rng = random.Random(recipe.seed)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
    optimizer = _optimizer(parameters, recipe)
    warmup = round(recipe.warmup * steps)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, warmup, steps)  # type: ignore[no-untyped-call]  # unannotated
    autocast = _autocast(device, recipe)
    router = Router(model.sites, recipe)
    state = {"optimizer": optimizer, "schedule": schedule}
    processes = current()
    progress = Progress(0, steps, float("nan"), 0, 0.0)
    if checkpoint is not None:
        progress = checkpoint.restore(model, state) or progress
        if processes.sum(progress.step) != processes.count * progress.step:
            raise CheckpointError(
                f"{checkpoint.path} is not the same to all processes; expected a folder that they"
                " share"
            )
    began, started = progress.step, time.monotonic() - progress.seconds
    dropout = CpuDropout(processes.seed(recipe.seed)) if device.type == "cpu" else None

    with (
        _interruptible() as interrupted,
        _training_mode(model),
        dropout or contextlib.nullcontext(),
    ):
        for number, indices in enumerate(_epochs(rows, recipe, rng), 1):
            routes = router.draw(rng, len(indices))
            if number <= began:  # done before the checkpoint: only its draws are repeated
                continue
            if dropout is not None:
                dropout.begin(number)
            elif not processes.main:
                # from the step's number too: a checkpoint keeps the main one's random numbers alone
                torch.manual_seed(
                    random.Random(f"{processes.seed(recipe.seed)} {number}").getrandbits(63)
                )
            places, share = processes.share(len(indices))
            part = [indices[place] for place in places]
            batch = collate([rows[i] for i in part], device)
            target = target_tensor(
                data.problem_type, [data.targets[i] for i in part], len(data.labels), device
            )
            with autocast:
                logits = []
                for routes_of_pass in routes:
                    router.use(routes_of_pass, places)
                    logits.append(model(batch))
                # a mean of the processes' means, weighted by their rows
                loss = share * step_loss(data.problem_type, logits, target, recipe)
            value = processes.sum(loss.item())
            if value != value or value in (float("inf"), float("-inf")):
                raise NonFiniteLoss(
                    f"the loss is {value} at step {progress.step + 1} of {steps} (learning rate"
                    f" {recipe.learning_rate}); expected a finite number: try a lower"
                    " --learning-rate"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
            processes.add_gradients(parameters)
            nn.utils.clip_grad_norm_(parameters, recipe.clip)
            rate = schedule.get_last_lr()[0]
            optimizer.step()
            schedule.step()
            tokens = progress.tokens + sum(len(rows[i].ids) for i in indices)
            progress = Progress(
                progress.step + 1, steps, value, tokens, time.monotonic() - started, rate
            )
            report(progress)
            stopping = processes.sum(interrupted()) > 0 or number == steps
            if (
                checkpoint is not None
                and processes.main
                and (stopping or number % checkpoint.every == 0)
            ):
                checkpoint.store(model, state, progress)
            if stopping:
                break
    return progress


def _epochs(rows: list[Tokens], recipe: Recipe, rng: random.Random) -> Iterator[list[int]]:
    """Mini-batches of row indices, all epochs: shuffled, then sorted by length within pools, so
    that a batch pads little."""
    size = recipe.batch_size
    for _ in range(recipe.epochs):
        order = list(range(len(rows)))
        rng.shuffle(order)
        batches: list[list[int]] = []
        for start in range(0, len(order), size * POOL_BATCHES):
            pool = sorted(
                order[start : start + size * POOL_BATCHES], key=lambda i: len(rows[i].ids)
            )
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        rng.shuffle(batches)
        yield from batches


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with decay on the weights and none on the biases."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)


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
