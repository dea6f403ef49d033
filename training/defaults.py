"""What a run does where its user chooses nothing: by the number of training rows, the size of the
encoder, and the method.

For the embedded backbone (hidden size 384) the values are what rows held out of the training rows
prefer (`python -m benchmarks.glue defaults`, and the search of docs/results.md). Where nothing
could be measured they are the field's. In RoBERTa-large (hidden size 1,024) AdaMix trains adapters
at 3e-4 (`roberta_large_mnli_expert_soup.sh`), LoRA was trained at 2e-4 to 4e-4 (arXiv 2106.09685,
table 9), and full fine-tuning at 1e-5 to 3e-5 (arXiv 1907.11692, table 10). Between the two sizes a
rate lies on a straight line of the logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from training.config import Method, Recipe, check_bounds

# Rows in a mini-batch, and up to how many training rows.
MINI_BATCHES = ((4, 500), (8, 5_000), (16, 20_000), (32, math.inf))
LEAST_STEPS = 250  # fewer are few (training.advice)
LEAST_EPOCHS, MOST_EPOCHS = 3, 40
SMALL, LARGE = 384, 1024  # hidden sizes, and the peak rates that go with them
ADAPTER_RATES = (3e-3, 3e-4)
RATES: dict[Method, tuple[float, float]] = {
    "lora": (1e-3, 3e-4),
    "full": (8e-5, 2e-5),
    "head": (2e-3, 1e-3),
    "bitfit": (2e-3, 1e-3),
}


@dataclass(frozen=True)
class Chosen:
    """A recipe, and a sentence for each choice that its user left open."""

    recipe: Recipe
    reasons: tuple[str, ...]


def choose(given: Mapping[str, Any], rows: int, hidden_size: int) -> Chosen:
    """The recipe of a run on `rows` training rows in an encoder of `hidden_size`. `given` has the
    choices that were made. Raises TrainingError."""
    check_bounds(given)  # the other choices are reckoned with it
    made, reasons = dict(given), list[str]()

    def leave(reason: str, **choices: Any) -> None:
        left = {name: value for name, value in choices.items() if name not in given}
        if left:
            made.update(left)
            said = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in left.items())
            reasons.append(f"chose {said}: {reason}")

    size = mini_batch(rows)
    leave(f"for {rows} training rows", batch_size=size)
    count = epochs(rows, made["batch_size"])
    leave(f"makes {count * -(-rows // made['batch_size'])} steps", epochs=count)
    method = given.get("method", Recipe.method)
    lora = given.get("adaptation", Recipe.adaptation) == "lora"
    leave(
        f"for {'lora' if lora else method} in an encoder of hidden size {hidden_size}",
        learning_rate=rate("lora" if lora else method, hidden_size),
    )
    if method == "adamix":
        leave("of AdaMix's variants the best in our tests", **_routing(given))
    return Chosen(Recipe(**made), tuple(reasons))


def mini_batch(rows: int) -> int:
    """Rows in a mini-batch."""
    return next(size for size, most in MINI_BATCHES if rows <= most)


def epochs(rows: int, size: int) -> int:
    """As many as make enough steps, within bounds."""
    steps = -(-rows // size)
    return min(max(-(-LEAST_STEPS // steps), LEAST_EPOCHS), MOST_EPOCHS)


def rate(method: Method, hidden_size: int) -> float:
    """Peak learning rate, with one digit."""
    small, large = RATES.get(method, ADAPTER_RATES)
    part = math.log(hidden_size / SMALL) / math.log(LARGE / SMALL)
    between = small * (large / small) ** min(max(part, 0.0), 1.0)
    return float(f"{between:.0e}")


def _routing(given: Mapping[str, Any]) -> dict[str, str]:
    """Rows spread over the experts, and what will be served trained in the second pass."""
    chosen = {"routing": "rows", "task_loss": "both"}
    weight = given.get("consistency_weight", Recipe.consistency_weight)
    two = weight > 0 or given.get("task_loss", "both") == "both"
    if two and given.get("experts", Recipe.experts) > 1:
        chosen["second_pass"] = "mean"
    return chosen
