"""A judgement as a page: one HTML file that needs no network."""

from __future__ import annotations

from pathlib import Path

import jinja2

from adapters.card import card
from adapters.disk import write_atomically
from adapters.file import Adapter
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
    path: Path, judged: Judgement, adapter: Adapter, data: str, hints: list[str]
) -> None:
    """`data` names the rows that were judged. Raises TrainingError."""
    page = TEMPLATES.get_template("report.html").render(
        title=f"Task {adapter.spec.task}",
        version=adapter.version,
        data=data,
        judged=judged,
        hints=hints,
        described=card(adapter),
    )
    try:
        write_atomically(path, page.encode())
    except OSError as error:
        raise TrainingError(f"{path} cannot be written: {error.strerror}") from None
