"""Whether the native kernels compute, or torch's operators."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from service.engine.linear import Linear, Plain, Prepacked, prepacks
from service.engine.native.library import Library, NativeError, load
from service.engine.native.linear import Native, NativeQuantized
from service.engine.quantized import Quantized, lacking

Kernels = Literal["auto", "native", "torch"]

# What is measured: a layer of usual size, with the rows of a short text, of a longer one, and of a
# small batch. One choice holds for all of them, so that a row's numbers do not depend on how many
# rows its batch has.
INPUTS, OUTPUTS = 512, 2048
ROWS = (8, 24, 64)
REPEATS = 5
# The native kernels also save what torch's operators cost beside their products. They are left only
# where their products are this slow.
SLOW = 0.85
CLOSE = 1e-3  # float32 sums of INPUTS numbers, in another order
CLOSE_INT8 = 0.1  # torch's inputs have 8 bits


class Choice(NamedTuple):
    """The native kernels, or None for torch's operators, and why."""

    library: Library | None
    reason: str


def choose(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> Choice:
    """`auto` takes the native kernels where they are there and not slower. Raises NativeError if
    they are wanted and cannot be had."""
    if kernels == "torch":
        return Choice(None, "asked for")
    reason = None
    if device.type != "cpu":
        reason = f"native kernels are for the CPU; the device is {device.type!r}"
    elif dtype not in (torch.float32, torch.int8):
        name = str(dtype).removeprefix("torch.")
        reason = f"native kernels are for float32 and int8; the dtype is {name}"
    if reason is None:
        try:
            return Choice(_checked(dtype), "asked for") if kernels == "native" else _measured(dtype)
        except NativeError as error:
            reason = str(error)
    if kernels == "native":
        raise NativeError(reason)
    return Choice(None, reason)


def _checked(dtype: torch.dtype) -> Library:
    library = load()
    if dtype == torch.int8 and not library.has_int8:
        raise NativeError(f"there are no native kernels ({library.kind}) for int8")
    return library


@lru_cache(maxsize=2)
def _measured(dtype: torch.dtype) -> Choice:
    """Once in a process: it takes a twentieth of a second."""
    library = _checked(dtype)
    if dtype == torch.int8 and lacking(torch.device("cpu")) is not None:
        return Choice(library, "torch's need AVX512-VNNI for int8")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # of which processor time tells; other programs' use does not count
    try:
        ratio = _ratio(library, dtype)
    finally:
        torch.set_num_threads(threads)
    reason = f"products at {ratio:.2f} times the speed of torch's"
    return Choice(library if ratio >= SLOW else None, reason)


@torch.inference_mode()
def _ratio(library: Library, dtype: torch.dtype) -> float:
    """How many times as fast as torch's the native products are, as a geometric mean. Raises
    NativeError if they do not give the same."""
    generator = torch.Generator().manual_seed(0)  # of its own: the process's stays as it is
    weight = torch.randn(OUTPUTS, INPUTS, generator=generator) / INPUTS**0.5
    bias = torch.randn(OUTPUTS, generator=generator)
    native: Linear = Native(library, weight, bias)
    other: Linear = Prepacked(weight, bias) if prepacks() else Plain(weight, bias)
    close = CLOSE
    if dtype == torch.int8:
        native, other = NativeQuantized(library, weight, bias), Quantized(weight, bias)
        close = CLOSE_INT8
    logs = []
    for rows in ROWS:
        x = torch.randn(rows, INPUTS, generator=generator)
        apart = (native(x) - other(x)).abs().max().item()
        if not apart < close:
            raise NativeError(
                f"the native kernels ({library.kind}) differ from torch's by {apart:.2g}; expected"
                f" less than {close}"
            )
        seconds = [(_seconds(other, x), _seconds(native, x)) for _ in range(REPEATS)]
        theirs, ours = (min(each) for each in zip(*seconds, strict=True))
        logs.append(math.log(theirs / ours))
    return math.exp(sum(logs) / len(logs))


def _seconds(layer: Callable[[Tensor], Tensor], x: Tensor) -> float:
    """Of this thread's processor time."""
    started = time.thread_time()
    layer(x)
    return time.thread_time() - started
