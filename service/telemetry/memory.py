"""How much memory there is to use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # of cgroups v2 and v1


def memory_bytes(cgroup: Path = CGROUP) -> int:
    """The machine's memory, or what a container's limit leaves of it."""
    found = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for name in LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or `max`: no limit
            found.append(int((cgroup / name).read_text()))
    return min(found)
