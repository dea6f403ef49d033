"""Adapter files of two tasks, and stores to put them into, in a folder and in a bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.backbone import Backbone
from adapters.bucket.store import BucketStore
from adapters.store import Store
from tests.adapters.faulty_bucket import BACKBONE, Faulty, Replica
from tests.buckets import S3, seaweedfs
from tests.tiny import random_adapter

_numbers = itertools.count()


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


@pytest.fixture
def bucket() -> Faulty:
    return Faulty()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def replica(bucket: Faulty, tmp_path: Path) -> Iterator[Replica]:
    """Open one more replica on the bucket, with a disk of its own."""
    replicas: list[BucketStore] = []

    def another(disk: str | None = None, **options: Any) -> BucketStore:
        folder = tmp_path / (disk or f"disk-{next(_numbers)}")
        given = {"backbone": BACKBONE, "timeout": 0.05, **options}
        replicas.append(BucketStore(given.pop("objects", bucket), folder, **given))
        return replicas[-1]

    yield another
    for each in replicas:
        each.close()
