"""How long a piece of work keeps the interpreter's lock, so that all other threads stand still."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

LEAST_ATTEMPTS, MOST_ATTEMPTS = 3, 40
BYTES = 41 << 20


def gives_way(job: Callable[[], object]) -> bool:
    """Whether `job`, which works on a buffer of about BYTES, lets other threads go on more often
    than one copy of such a buffer does.

    Waits are counted in the processor's time, which other processes do not change. A thread that
    gets no core waits longer all the same, never shorter: so the shortest waits of several attempts
    are compared, of both in turn, until they tell.
    """
    copied, original = float("inf"), b"\1" * BYTES
    found = float("inf")
    for attempt in range(MOST_ATTEMPTS):
        copied = min(copied, _longest_wait(lambda: bytearray(original)))
        found = min(found, _longest_wait(job))
        if attempt >= LEAST_ATTEMPTS and found < copied / 2:
            return True
    return False


def _longest_wait(job: Callable[[], object]) -> float:
    """The most time that the processor gave `job` between two steps of a thread that always wants
    to go on."""
    clock = time.pthread_getcpuclockid(threading.get_ident())
    waits = [0.0]
    ended, begun = threading.Event(), threading.Event()

    def watch() -> None:
        last = time.clock_gettime(clock)
        begun.set()
        while not ended.is_set():
            time.sleep(0)
            now = time.clock_gettime(clock)
            waits.append(now - last)
            last = now

    interval = sys.getswitchinterval()
    sys.setswitchinterval(interval / 10)
    thread = threading.Thread(target=watch)
    thread.start()
    begun.wait()
    try:
        job()
    finally:
        ended.set()
        thread.join()
        sys.setswitchinterval(interval)
    return max(waits)
