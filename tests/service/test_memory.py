"""How much memory the service may take for granted."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service.telemetry.memory import memory_bytes

ALL = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("limit", ["memory.max", "memory/memory.limit_in_bytes"])
def test_a_container_s_limit(tmp_path: Path, limit: str) -> None:
    """A limit of either version of cgroups counts, if there is less than the machine has."""
    (tmp_path / limit).parent.mkdir(exist_ok=True)
    (tmp_path / limit).write_text(f"{1 << 30}\n")
    assert memory_bytes(tmp_path) == 1 << 30
    (tmp_path / limit).write_text(f"{1 << 62}\n")
    assert memory_bytes(tmp_path) == ALL


def test_no_limit(tmp_path: Path) -> None:
    """Without a limit it is all that the machine has."""
    assert memory_bytes(tmp_path) == ALL
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_bytes(tmp_path) == ALL
