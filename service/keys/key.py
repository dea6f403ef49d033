"""Key: who may ask what of which tasks, and how often."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import cached_property

from adapters.spec import TASK_PATTERN

SCOPES = ("predict", "write", "read-metrics")
TASK = re.compile(TASK_PATTERN)
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
PATTERN = re.compile(r"[a-z0-9_*?-]{1,64}")


@dataclass(frozen=True)
class Key:
    """One key of a keys file. A limit that is None is none."""

    name: str
    hash: str
    scopes: frozenset[str]
    tasks: tuple[str, ...] = ()
    requests_per_second: float | None = None
    rows_per_second: float | None = None

    def sees(self, task: str) -> bool:
        """Whether a task is within the key's patterns. What is no task's name never is."""
        return bool(TASK.fullmatch(task) and self._fits.fullmatch(task))

    @cached_property
    def _fits(self) -> re.Pattern[str]:
        # of several `*` in a row one is as good; fnmatch's own form does not backtrack
        patterns = (re.sub(r"\*+", "*", pattern) for pattern in self.tasks)
        return re.compile("|".join(map(fnmatch.translate, patterns)) or r"(?!)")
