"""What all tests share: no network, a cache of their own, and tiny backbones built once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adapters import backbone as backbones
from adapters.backbone import Backbone
from tests.tiny import tiny_backbone

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _surroundings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Neither the user's caches nor a hub, here and in subprocesses."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv(
            "PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        )
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.delenv("ADAMIX_ADMIN_KEY", raising=False)
        yield


@pytest.fixture(autouse=True)
def _alike() -> None:
    """Each test begins with the same seed, and with one thread, whatever the one before has set:
    for tiny matrices threads only wait for each other, ten times as long on busy cores."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_backbone(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def bert(bert_folder: Path) -> Backbone:
    return backbones.load(str(bert_folder))


@pytest.fixture(scope="session")
def embedded() -> Backbone:
    return backbones.load()
