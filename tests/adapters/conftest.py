"""Adapter files of two tasks, and stores to put them into."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.backbone import Backbone
from adapters.store import Store
from tests.tiny import random_adapter


@pytest.fixture(scope="module")
def files(bert: Backbone) -> list[bytes]:
    """Three versions of the task sst2."""
    return [
        random_adapter(bert, "sst2", ["negative", "positive"], bottleneck=2, seed=seed)[2]
        for seed in range(3)
    ]


@pytest.fixture(scope="module")
def mrpc(bert: Backbone) -> bytes:
    return random_adapter(bert, "mrpc", ["0", "1"], text_pair=True)[2]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
