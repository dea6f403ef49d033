"""An event loop whose time goes on only where a test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Clock(asyncio.SelectorEventLoop):
    """The event loop."""

    now = 0.0

    def time(self) -> float:
        return self.now


def passes(seconds: float) -> None:
    """Let time go on."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Clock)
    loop.now += seconds


def on_a_clock(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario in such a loop."""
    with asyncio.Runner(loop_factory=Clock) as runner:
        runner.run(scenario())
