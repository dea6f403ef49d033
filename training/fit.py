"""The training loop: steps over mini-batches, each of one or two passes."""

from __future__ import annotations

import contextlib
import math
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adapters.classifier import Batch, Classifier, collate
from adapters.text import Tokens
from training.checkpoint import Checkpoint, Stateful
from training.config import Recipe
from training.data import Dataset
from training.dropout import CpuDropout
from training.errors import CheckpointError, NonFiniteLoss
from training.loss import step_loss, target_tensor
from training.processes import Processes, current
from training.progress import Progress
from training.routing import Pass, Router
from training.selection import Selection

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
    selection: Selection | None = None,
) -> Progress:
    """Train in place whatever of `model` requires gradients, the encoder's dropout on.

    The first Ctrl-C ends it early. With a `checkpoint`, it goes on from what that holds, and stores
    into it now and then, at an early end and at the end. With a `selection`, which judges every
    epoch and may end the training, the model has the weights of the best at the end. Raises
    NonFiniteLoss or CheckpointError.
    """
    rng = random.Random(recipe.seed)
    trainer = _Trainer.of(model, data, rows, recipe, selection)
    processes, progress = trainer.processes, trainer.begin(checkpoint)
    began, started = progress.step, time.monotonic() - progress.seconds
    with _interruptible() as interrupted, _training_mode(model), trainer.dropout_context():
        for number, indices in enumerate(_epochs(rows, recipe, rng), 1):
            routes = trainer.router.draw(rng, len(indices))
            if number <= began:  # done before the checkpoint: only its draws are repeated
                continue
            if trainer.exhausted:  # so was the run that is gone on with
                break
            rate = float(trainer.schedule.get_last_lr()[0])
            loss = trainer.step(number, indices, routes)
            tokens = progress.tokens + sum(len(rows[i].ids) for i in indices)
            seconds = time.monotonic() - started
            progress = Progress(number, trainer.steps, loss, tokens, seconds, rate)
            report(progress)
            if selection is not None and number % trainer.steps_per_epoch == 0:
                selection.judge(model, number // trainer.steps_per_epoch, number)
                model.train()  # judging put it into eval mode
            asked = processes.sum(interrupted() or trainer.exhausted) > 0
            stopping = asked or number == trainer.steps
            due = stopping or (checkpoint is not None and number % checkpoint.every == 0)
            if checkpoint is not None and processes.main and due:
                checkpoint.store(model, trainer.state, progress)
            if stopping:
                break
    if selection is not None:
        selection.restore(model)
    return progress


@dataclass(frozen=True)
class _Trainer:
    """What the steps of one run share."""

    model: Classifier
    data: Dataset
    rows: list[Tokens]
    recipe: Recipe
    steps: int
    parameters: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    schedule: torch.optim.lr_scheduler.LambdaLR
    router: Router
    processes: Processes
    dropout: CpuDropout | None
    selection: Selection | None

    @classmethod
    def of(
        cls,
        model: Classifier,
        data: Dataset,
        rows: list[Tokens],
        recipe: Recipe,
        selection: Selection | None,
    ) -> _Trainer:
        parameters = [p for p in model.parameters() if p.requires_grad]
        steps = recipe.epochs * -(-len(rows) // recipe.batch_size)
        optimizer = _optimizer(parameters, recipe)
        processes = current()
        on_cpu = next(model.parameters()).device.type == "cpu"
        return cls(
            model=model,
            data=data,
            rows=rows,
            recipe=recipe,
            steps=steps,
            parameters=parameters,
            optimizer=optimizer,
            schedule=transformers.get_linear_schedule_with_warmup(  # type: ignore[no-untyped-call]  # unannotated
                optimizer, round(recipe.warmup * steps), steps
            ),
            router=Router(model.sites, recipe),
            processes=processes,
            dropout=CpuDropout(processes.seed(recipe.seed)) if on_cpu else None,
            selection=selection,
        )

    @property
    def state(self) -> dict[str, Stateful]:
        """What a checkpoint keeps beside the weights."""
        chosen = {} if self.selection is None else {"selection": self.selection}
        return {"optimizer": self.optimizer, "schedule": self.schedule, **chosen}

    @property
    def steps_per_epoch(self) -> int:
        return self.steps // self.recipe.epochs

    @property
    def exhausted(self) -> bool:
        return self.selection is not None and self.selection.exhausted

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def begin(self, checkpoint: Checkpoint | None) -> Progress:
        """Where the run is: at its start, or where the checkpoint has it."""
        begin = Progress(0, self.steps, float("nan"), 0, 0.0)
        if checkpoint is None:
            return begin
        progress = checkpoint.restore(self.model, self.state) or begin
        if self.processes.sum(progress.step) != self.processes.count * progress.step:
            raise CheckpointError(
                f"{checkpoint.path} is not the same to all processes; expected a folder that they"
                " share"
            )
        return progress

    def dropout_context(self) -> contextlib.AbstractContextManager[object]:
        return self.dropout or contextlib.nullcontext()

    def step(self, number: int, indices: list[int], routes: list[Pass]) -> float:
        """One step over a mini-batch of row indices; its loss, all processes together."""
        self._seed_dropout(number)
        places, share = self.processes.share(len(indices))
        batch, target = self._collate([indices[place] for place in places])
        with _autocast(self.device, self.recipe):
            logits = self._passes(batch, routes, places)
            # a mean of the processes' means, weighted by their rows
            loss = share * step_loss(self.data.problem_type, logits, target, self.recipe)
        value = self._checked(number, self.processes.sum(loss.item()))
        self._update(loss)
        return value

    def _seed_dropout(self, number: int) -> None:
        """From the step's number, so that a resumed run drops what it would have dropped. On a GPU
        a checkpoint keeps the main process's random numbers; the others' follow from this."""
        if self.dropout is not None:
            self.dropout.begin(number)
        elif not self.processes.main:
            seed = f"{self.processes.seed(self.recipe.seed)} {number}"
            torch.manual_seed(random.Random(seed).getrandbits(63))

    def _collate(self, part: list[int]) -> tuple[Batch, Tensor]:
        batch = collate([self.rows[i] for i in part], self.device)
        targets = [self.data.targets[i] for i in part]
        labels = len(self.data.labels)
        return batch, target_tensor(self.data.problem_type, targets, labels, self.device)

    def _passes(self, batch: Batch, routes: list[Pass], places: list[int]) -> list[Tensor]:
        logits = []
        for routes_of_pass in routes:
            self.router.use(routes_of_pass, places)
            logits.append(self.model(batch))
        return logits

    def _checked(self, number: int, loss: float) -> float:
        if not math.isfinite(loss):
            raise NonFiniteLoss(
                f"the loss is {loss} at step {number} of {self.steps} (learning rate"
                f" {self.recipe.learning_rate}); expected a finite number: try a lower"
                " --learning-rate"
            )
        return loss

    def _update(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
        self.processes.add_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        self.optimizer.step()
        self.schedule.step()


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
