"""What the tests of benchmarks share."""

from __future__ import annotations

import pytest

from benchmarks.reliability.forks import forks


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The benchmarks' servers are forked, where no figure of the test is how long they start."""
    for module in ("http.growth", "http.shadow", "http.upload", "scale.validate"):
        monkeypatch.setattr(f"benchmarks.{module}.service", forks().service)
