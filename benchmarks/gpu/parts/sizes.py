"""How large what is measured is: as a GPU is to be filled, or so tiny that a test runs it on a
CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Model:
    """A RoBERTa's sizes."""

    hidden: int
    layers: int
    heads: int
    inner: int
    vocabulary: int = 50265


@dataclass(frozen=True)
class Sizes:
    large: Model
    base: Model
    repeats: int
    tokens: int  # of a full batch
    length: int  # of a long row
    rows: int  # of a small batch of SST-2's lengths, and of growth's
    tasks: int
    copies: int
    slots: int
    parity_rows: int
    squares: tuple[int, ...]
    copied: int  # bytes
    text: int  # tokens of the one text
    texts: int  # how often it is asked
    stores: tuple[int, ...]
    batches: int  # of a repeat of growth
    loads: int
    grid: tuple[tuple[int, int], ...]  # (rows a task, length)
    grid_tasks: tuple[int, ...]
    queries: int
    spreads: tuple[int, ...]
    residents: tuple[int, ...]


FULL = Sizes(
    large=Model(1024, 24, 16, 4096),
    base=Model(768, 12, 12, 3072),
    repeats=15,
    tokens=16384,
    length=128,
    rows=128,
    tasks=64,
    copies=32,
    slots=256,  # the service's default
    parity_rows=256,
    squares=(4096, 8192),
    copied=1 << 30,
    text=32,
    texts=200,
    stores=(10, 1_000, 10_000),
    batches=8,
    loads=300,
    grid=((1, 128), (2, 64), (4, 32)),
    grid_tasks=(1, 2, 4, 8, 16, 32, 64),
    queries=1024,
    spreads=(1, 2, 4, 8),
    residents=(0, 16, 64, 256),
)

TINY = Sizes(
    large=Model(32, 2, 4, 64, 100),
    base=Model(16, 1, 2, 32, 100),
    repeats=1,
    tokens=64,
    length=16,
    rows=4,
    tasks=4,
    copies=2,
    slots=4,
    parity_rows=8,
    squares=(32,),
    copied=1 << 12,
    text=8,
    texts=3,
    stores=(2, 6),
    batches=2,
    loads=3,
    grid=((1, 16), (2, 8)),
    grid_tasks=(1, 2),
    queries=8,
    spreads=(1, 4),
    residents=(0, 1, 2),
)
