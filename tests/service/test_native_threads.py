"""The native kernels' threads: several callers at once, and processes that fork."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from service.engine.native.library import ACTIVATIONS, Library
from tests.service.conftest import threads

CALLERS, CALLS = 4, 60


def test_several_callers(library: Library) -> None:
    """Python threads that call at the same time, each with its own numbers, get what one alone
    gets."""
    layers = [(torch.randn(200, 90), torch.randn(200)) for _ in range(CALLERS)]
    packed = [library.packed(*layer) for layer in layers]
    inputs = [torch.randn(97, 90) for _ in range(CALLERS)]

    def product(caller: int, rows: int) -> Tensor:
        return library.linear(inputs[caller][:rows], packed[caller], 200, ACTIVATIONS["gelu"])

    wanted = [product(caller, 97) for caller in range(CALLERS)]

    def calls(caller: int) -> list[int]:
        """For how many rows it was wrong."""
        sizes = [1 + (7 * i + 31 * caller) % 97 for i in range(CALLS)]
        return [n for n in sizes if not torch.equal(product(caller, n), wanted[caller][:n])]

    with threads(3), ThreadPoolExecutor(CALLERS) as callers:
        assert list(callers.map(calls, range(CALLERS))) == [[]] * CALLERS


FORK = """
import os
import torch
from service.engine.native.library import ACTIVATIONS, load

library = load()
torch.set_num_threads(2)
x, packed = torch.randn(97, 90), library.packed(torch.randn(200, 90), torch.randn(200))

def product():
    return library.linear(x, packed, 200, ACTIVATIONS["gelu"])

wanted = product()  # by two threads, which a forked process does not have
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        right = all(torch.equal(product(), wanted) for _ in range(20))
        grandchild = os.fork() if right else -1
        if grandchild == 0:
            os._exit(0 if torch.equal(product(), wanted) else 1)
        ended = grandchild > 0 and os.waitstatus_to_exitcode(os.waitpid(grandchild, 0)[1]) == 0
        os._exit(0 if ended else 1)
    children.append(child)
    assert torch.equal(product(), wanted)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
print(codes)
"""


@pytest.mark.usefixtures("library")
def test_after_a_fork() -> None:
    """Forked processes, and those that they fork, compute with threads of their own, and so does
    their parent."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "[0, 0, 0]\n"), done.stderr


LIMITED = """
import resource
from pathlib import Path
import torch
from service.engine.native.library import ACTIVATIONS, load

library = load()
x, packed = torch.randn(97, 90), library.packed(torch.randn(200, 90), torch.randn(200))
torch.set_num_threads(1)
wanted = library.linear(x, packed, 200, ACTIVATIONS["gelu"])
torch.set_num_threads(3)
found = torch.zeros(97, 200)
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + (1 << 20)  # a thread's stack takes more
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
library.linear(x, packed, 200, ACTIVATIONS["gelu"], found)
print(torch.equal(found, wanted))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.usefixtures("library")
def test_no_more_threads() -> None:
    """Where the system gives no more threads, those that there are compute all of it."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr
