"""How a command starts quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """For imports and other work whose objects nearly all live as long as the process: the garbage
    collector does not run meanwhile. Importing torch and transformers makes so many objects that
    looking through them again and again would take a quarter of a service's start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
