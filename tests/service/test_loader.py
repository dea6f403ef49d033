"""Adapters on their way from the disk to the device, before their rows are queued."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch

from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.store import Store
from service.engine.slots import Slots
from service.loader import Loader
from tests.tiny import random_adapter

WAITING = 20


@pytest.mark.parametrize(("device", "copies"), [("meta", 1), ("cpu", 0)])
def test_an_adapter_is_read_and_copied_once(
    bert: Backbone, tmp_path: Path, device: str, copies: int
) -> None:
    """However many requests wait for it at once, its file is read once, and it comes to a device
    that has a memory of its own once; to a CPU only with its batch."""
    version, _ = Store(tmp_path).put(parse(random_adapter(bert, "film", ["no", "yes"])[2]))
    seconds: list[float] = []
    slots = Slots(2, torch.device(device), torch.float32, loaded=seconds.append)
    loader = Loader(Store(tmp_path), slots)

    async def bring() -> Adapter:
        adapter = await loader.load("film", version.digest)
        await loader.prefetch(adapter)
        return adapter

    async def all_at_once() -> list[Adapter]:
        return await asyncio.gather(*(bring() for _ in range(WAITING)))

    first, *others = asyncio.run(all_at_once())
    assert first.digest == version.digest
    assert all(adapter is first for adapter in others)
    assert len(seconds) == copies
    assert slots.resident(version.digest) == bool(copies)
