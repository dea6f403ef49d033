"""Large buffers, filled piece by piece.

To copy a buffer in one go, or to fill a new one with zeros, keeps the interpreter's lock: meanwhile
all other threads stand still, the one of a service's event loop among them. 41 MiB take some 30 ms,
and several times as long on a busy machine. Between two pieces, whoever waits for the lock gets it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from adapters.regular import opened

PIECE_BYTES = 256 << 10


def empty(size: int) -> memoryview:
    """A buffer to write to, of so many bytes. What it holds is arbitrary."""
    return np.empty(size, np.uint8).data


def copied(data: bytes | bytearray | memoryview) -> memoryview:
    """A copy of `data`."""
    whole, copy = memoryview(data), empty(len(data))
    for start in range(0, len(whole), PIECE_BYTES):
        end = start + PIECE_BYTES
        copy[start:end] = whole[start:end]
    return copy


def joined(pieces: list[bytearray]) -> memoryview:
    """All pieces in one. The list is emptied meanwhile, so that they do not take memory twice."""
    end = sum(map(len, pieces))
    whole = empty(end)
    while pieces:
        piece = pieces.pop()
        whole[end - len(piece) : end] = piece
        end -= len(piece)
    return whole


def read_file(path: Path, expected_bytes: int) -> memoryview:
    """A file's bytes, read into one buffer of `expected_bytes`: a second one of that size would
    leave holes in memory. A file of another size is read all the same. Raises OSError, also for
    what is no regular file."""
    data = empty(expected_bytes)
    with opened(path) as file:
        data = data[: file.readinto(data)]
        rest = file.read()
    return joined([bytearray(data), bytearray(rest)]) if rest else data
