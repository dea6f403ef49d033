"""Figures as SVG files: the same figures give the same file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def figure(columns: int = 1, size: tuple[float, float] = (7, 4)) -> tuple[Any, Any]:
    """A figure and its axes: one, or an array of them."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "adamix"  # the same plot is the same file
    from matplotlib import pyplot

    return pyplot.subplots(1, columns, figsize=size, layout="constrained")


def save(figure: Any, file: Path) -> None:
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)
