"""What a training step costs: routed against a single adapter's, and the trainer's batches against
a plain loop's.

    python -m benchmarks.glue.training_step --texts $GLUE_DIR/sst2/train.jsonl

The contestants take turns, repeat by repeat, on the very same rows, another one first each time, so
that a slow minute of the machine hits all of them; ratios are taken within a repeat, medians and
ranges over the repeats. Rows are tokenised before; everything else of a step is measured: padding,
forward, backward, clipping, AdamW. Adapters have bottleneck 16, LoRA has rank 8 on query and value,
mixtures have four experts.

Steps, all by the trainer (`training.fit`), on the same mini-batches:
- adapter: a single adapter in every layer
- routed: a mixture by random routes, without consistency
- consistent: the same with consistency, so with a second forward pass
- control: a single adapter's two passes (`adapter-rdrop`)
- corrected: a mixture whose rows are spread over the experts, a second pass through their mean, the
  task's loss on both
- lora, lora-routed, lora-control, lora-corrected: the same of LoRA

Real tokens a second, padding not counted, training the same single adapter:
- trainer: `training.fit`: mini-batches of rows of like length
- longest: a plain loop over transformers' encoder: shuffled rows, each mini-batch padded to its
  longest row
- maximum: the same loop with every row padded to 128 tokens, as many scripts do
"""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import transformers
import typer
from rich.console import Console
from rich.table import Table
from torch import nn

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.classifier import Batch, Classifier, collate
from adapters.text import Tokens, encode
from training.config import Recipe
from training.data import Dataset
from training.fit import fit
from training.hardware import hardware
from training.loss import target_tensor, task_loss
from training.methods import build

MAX_LENGTH = 128
STEPS = ("adapter", "routed", "consistent", "control", "corrected")
LORA_STEPS = ("lora", "lora-routed", "lora-control", "lora-corrected")
RATIOS = (
    ("routed", "adapter"),
    ("consistent", "adapter"),
    ("corrected", "control"),
    ("lora-routed", "lora"),
    ("lora-corrected", "lora-control"),
    ("trainer", "longest"),
    ("trainer", "maximum"),
)


def main(
    texts: Annotated[
        Path | None, typer.Option(help="JSON lines with a `text`; by default made-up ones.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="`embedded`, a folder, or a Hugging Face id.")
    ] = backbones.EMBEDDED,
    device: Annotated[str, typer.Option(help="`cpu` or `cuda`.")] = "cpu",
    precision: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    batch: Annotated[int, typer.Option(help="Rows in a mini-batch.")] = 32,
    steps: Annotated[int, typer.Option(help="Steps in a repeat.")] = 16,
    repeats: Annotated[int, typer.Option(help="Repeats, of which medians are taken.")] = 9,
    out: Annotated[Path, typer.Option(help="Where to write the figures.")] = Path(
        "benchmarks/results/training_step.json"
    ),
) -> None:
    """Measure steps of training side by side; print a table and write JSON."""
    loaded = backbones.load(backbone)
    loaded.encoder.to(device)  # type: ignore[arg-type]  # transformers' decorator hides that `self` is bound
    rng = random.Random(0)
    corpus = read_texts(texts, rng)
    contest = Contest(
        loaded,
        Recipe(
            method="adapter", epochs=1, batch_size=batch, learning_rate=1e-3, precision=precision
        ),
    )
    timed: dict[str, list[float]] = {}
    tokens = 0
    for repeat in range(-1, repeats):  # the first one warms up
        chosen = [(text,) for text in rng.choices(corpus, k=batch * steps)]
        rows = encode(loaded.tokenizer, chosen, contest.width)
        data = Dataset(
            "single_label_classification", ("no", "yes"), chosen, [rng.randrange(2) for _ in chosen]
        )
        names = list(contest.runs)
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds = contest.runs[name](data, rows)
            if repeat >= 0:
                timed.setdefault(name, []).append(seconds)
        tokens += sum(len(row.ids) for row in rows) if repeat >= 0 else 0
    settings = {
        "backbone": backbone,
        "precision": precision,
        "batch": batch,
        "steps": steps,
        "repeats": repeats,
    }
    report(timed, tokens / repeats, {**settings, "texts": str(texts)}, loaded.encoder.device, out)


class Contest:
    """The contestants, each with a model of its own on the same frozen encoder; each run gives its
    seconds."""

    def __init__(self, backbone: Backbone, recipe: Recipe) -> None:
        self.recipe = recipe
        self.width = min(MAX_LENGTH, backbone.max_length)
        self.plain = build(backbone, 2, recipe)
        routed = dataclasses.replace(recipe, method="adamix", consistency_weight=0.0)
        consistent = dataclasses.replace(recipe, method="adamix")
        control = dataclasses.replace(recipe, method="adapter-rdrop")
        corrected = dataclasses.replace(
            recipe, method="adamix", routing="rows", second_pass="mean", task_loss="both"
        )
        recipes = {
            "adapter": recipe,
            "routed": routed,
            "consistent": consistent,
            "control": control,
            "corrected": corrected,
            "lora": dataclasses.replace(recipe, method="lora"),
            "lora-routed": dataclasses.replace(routed, adaptation="lora"),
            "lora-control": dataclasses.replace(control, adaptation="lora"),
            "lora-corrected": dataclasses.replace(corrected, adaptation="lora"),
        }
        self.runs: dict[str, Callable[[Dataset, list[Tokens]], float]] = {
            **{name: Fitted(build(backbone, 2, one), one) for name, one in recipes.items()},
            "longest": lambda data, rows: self.loop(data, rows, None),
            "maximum": lambda data, rows: self.loop(data, rows, self.width),
        }

    def loop(self, data: Dataset, rows: list[Tokens], width: int | None) -> float:
        """A tutorial's loop: shuffle, pad, forward, backward, step; optimiser, clipping and
        schedule as the trainer's."""
        model, size = self.plain, self.recipe.batch_size
        device = model.encoder.device
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=self.recipe.learning_rate)
        schedule = transformers.get_linear_schedule_with_warmup(optimizer, 1, len(rows) // size)
        lower = torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.recipe.precision == "bfloat16"
        )
        order = random.Random(0).sample(range(len(rows)), len(rows))
        model.train()
        synchronise(device)
        started = time.perf_counter()
        for start in range(0, len(rows), size):
            chosen = order[start : start + size]
            target = target_tensor(data.problem_type, [data.targets[i] for i in chosen], 2, device)
            with lower:
                loss = task_loss(
                    data.problem_type,
                    model(padded([rows[i] for i in chosen], width, device)),
                    target,
                )
            loss.item()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, self.recipe.clip)
            optimizer.step()
            schedule.step()
        synchronise(device)
        seconds = time.perf_counter() - started
        model.eval()
        return seconds


@dataclass(frozen=True)
class Fitted:
    """Training by the trainer."""

    model: Classifier
    recipe: Recipe

    def __call__(self, data: Dataset, rows: list[Tokens]) -> float:
        device = self.model.encoder.device
        synchronise(device)
        started = time.perf_counter()
        fit(self.model, data, rows, self.recipe, lambda _: None)
        synchronise(device)
        return time.perf_counter() - started


def padded(rows: list[Tokens], width: int | None, device: torch.device) -> Batch:
    """Rows padded to the longest of them, or to `width`."""
    batch = collate(rows, device)
    if width is None:
        return batch
    more = (0, width - batch.ids.shape[1])
    return Batch(*(nn.functional.pad(part, more) for part in (batch.ids, batch.types, batch.mask)))


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def read_texts(path: Path | None, rng: random.Random) -> list[str]:
    if path is not None:
        return [
            json.loads(line)["text"]
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
    words = [
        "the",
        "film",
        "is",
        "a",
        "good",
        "and",
        "moving",
        "story",
        "of",
        "people",
        "in",
        "love",
        "with",
        "life",
    ]
    return [" ".join(rng.choices(words, k=max(1, round(rng.gauss(19, 9))))) for _ in range(1000)]


def report(
    timed: dict[str, list[float]],
    tokens: float,
    settings: dict[str, Any],
    device: torch.device,
    out: Path,
) -> None:
    timed = {**timed, "trainer": timed["adapter"]}
    steps = {
        name: [1000 * x / settings["steps"] for x in timed[name]] for name in STEPS + LORA_STEPS
    }
    speeds = {name: [tokens / x for x in timed[name]] for name in ("trainer", "longest", "maximum")}
    ratios = {}
    for above, below in RATIOS:  # of durations for steps, of speeds for the trainer
        pairs = zip(timed[above], timed[below], strict=True)
        ratios[f"{above} / {below}"] = [b / a if above == "trainer" else a / b for a, b in pairs]
    result = {
        "command": " ".join(["python", "-m", "benchmarks.glue.training_step", *sys.argv[1:]]),
        "settings": settings,
        "tokens_per_step": round(tokens / settings["steps"], 1),
        "milliseconds_per_step": {name: summary(values) for name, values in steps.items()},
        "tokens_per_second": {name: summary(values) for name, values in speeds.items()},
        "ratios": {name: summary(values) for name, values in ratios.items()},
        "hardware": hardware(device),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")

    table = Table("what", "median", "range")
    for unit, figures in ((" ms a step", steps), (" tokens/s", speeds), ("×", ratios)):
        for name, values in figures.items():
            shown = summary(values)
            table.add_row(
                name, f"{shown['median']:.4g}{unit}", f"{shown['low']:.4g} – {shown['high']:.4g}"
            )
    console = Console()
    n, per, batch = (settings[name] for name in ("repeats", "steps", "batch"))
    console.print(f"{n} repeats of {per} steps of {batch} rows; {result['hardware']}")
    console.print(table)
    console.print(f"written to {out}")


def summary(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


if __name__ == "__main__":
    typer.run(main)
