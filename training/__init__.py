"""Train and evaluate adapters: `python -m training`, or from Python:

from training import train
adapter = train("tickets", rows, dev_rows, learning_rate=1e-3)
adapter.predict(["you billed me twice"])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from training.config import Recipe
    from training.data import Columns
    from training.errors import TrainingError
    from training.library import Evaluated, TrainedAdapter, evaluate, load, train

__all__ = [
    "Columns",
    "Evaluated",
    "Recipe",
    "TrainedAdapter",
    "TrainingError",
    "evaluate",
    "load",
    "train",
]
_HOMES = {"Recipe": "config", "Columns": "data", "TrainingError": "errors"}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the command's help does not wait for torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"training.{_HOMES.get(name, 'library')}"), name)
