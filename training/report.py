"""A judgement, or a comparison of runs, as a page: one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from adapters.card import card
from adapters.disk import write_atomically
from adapters.file import Adapter
from training.comparison import Comparison, shown
from training.config import Recipe
from training.curves import HEIGHT, WIDTH, Curve
from training.errors import TrainingError
from training.judgement import Judgement

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def write_report(
    path: Path,
    task: str,
    judged: Judgement,
    data: str,
    hints: Sequence[str],
    adapter: Adapter | None,
    recipe: Mapping[str, Any],
    curves: Sequence[Curve] = (),
) -> None:
    """`data` names the rows that were judged; `adapter` is what they were judged by, if that is a
    file; `recipe` has its settings by name. Raises TrainingError."""
    described = {} if adapter is None else card(adapter)
    described.pop("recipe", None)  # it has a table of its own
    page = TEMPLATES.get_template("report.html").render(
        title=f"Task {task}",
        version=None if adapter is None else adapter.version,
        data=data,
        judged=judged,
        hints=hints,
        described=described,
        settings=_settings(recipe),
        curves=curves,
        size=(WIDTH, HEIGHT),
    )
    _write(path, page)


def write_comparison(path: Path, found: Comparison) -> None:
    """Raises TrainingError."""
    ends = [end for group in found.groups for end in group.interval or ()]
    values = [value for group in found.groups for value in group.scores[found.metric]]
    low, high = min(values + ends), max(values + ends)
    page = TEMPLATES.get_template("comparison.html").render(
        found=found,
        low=low,
        high=high,
        place=lambda value: round(240 * (value - low) / (high - low or 1.0), 1),
        shown=shown,
    )
    _write(path, page)


def _write(path: Path, page: str) -> None:
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None


def _settings(recipe: Mapping[str, Any]) -> list[tuple[str, str, bool]]:
    """Name, value, and whether somebody chose it: whether it is not today's default."""
    return [
        (
            name,
            value if isinstance(value, str) else json.dumps(value),
            value != getattr(Recipe, name, None),
        )
        for name, value in recipe.items()
    ]
