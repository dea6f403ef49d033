"""How a command starts quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """For imports and other work whose objects live as long as the process: the garbage collector
    neither runs meanwhile nor looks at them later. Importing torch and transformers makes so many
    that it would take a quarter of a service's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
