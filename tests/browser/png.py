"""PNG files with a palette: Chromium writes every pixel in three bytes, and packs for speed rather
than for size."""

from __future__ import annotations

import struct
import zlib
from collections import Counter

COLOURS = 256


def with_palette(png: bytes) -> bytes:
    """The same picture in its 256 most frequent colours, the others each as the nearest of them:
    half the bytes or less."""
    chunks = _chunks(png)
    width, height, depth, kind = struct.unpack(">IIBB", chunks["IHDR"][:10])
    assert (depth, kind) == (8, 2), f"depth {depth}, kind {kind}; expected Chromium's 8-bit RGB"
    rows = _unfiltered(zlib.decompress(chunks["IDAT"]), width, height)
    pixels = [[row[i : i + 3] for i in range(0, len(row), 3)] for row in rows]
    counts = Counter(pixel for row in pixels for pixel in row)
    palette = [colour for colour, _ in counts.most_common(COLOURS)]
    index = {colour: i for i, colour in enumerate(palette)}
    for colour in counts:
        if colour not in index:
            index[colour] = index[min(palette, key=lambda other: _distance(colour, other))]
    packed = zlib.compress(
        b"".join(b"\0" + bytes(index[pixel] for pixel in row) for row in pixels), 9
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    parts = (b"IHDR", header), (b"PLTE", b"".join(palette)), (b"IDAT", packed), (b"IEND", b"")
    return png[:8] + b"".join(_chunk(name, data) for name, data in parts)


def _distance(one: bytes, other: bytes) -> int:
    return sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _chunks(png: bytes) -> dict[str, bytes]:
    """Chunks by name; those of one name joined, as IDAT's are meant to be."""
    found: dict[str, bytes] = {}
    at = 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name = png[at + 4 : at + 8].decode()
        found[name] = found.get(name, b"") + png[at + 8 : at + 8 + size]
        at += size + 12
    return found


def _unfiltered(data: bytes, width: int, height: int) -> list[bytes]:
    """Rows of RGB bytes: each row names its filter, which predicts a byte from its left, upper and
    upper left neighbours."""
    stride = 3 * width
    above, rows = bytearray(stride), []
    for y in range(height):
        start = y * (stride + 1)
        kind, row = data[start], bytearray(data[start + 1 : start + 1 + stride])
        for i in range(stride) if kind else ():
            left, corner = (row[i - 3], above[i - 3]) if i >= 3 else (0, 0)
            row[i] = (row[i] + _predicted(kind, left, above[i], corner)) & 255
        rows.append(bytes(row))
        above = row
    return rows


def _predicted(kind: int, left: int, up: int, corner: int) -> int:
    if kind == 1:
        return left
    if kind == 2:
        return up
    if kind == 3:
        return (left + up) // 2
    guess = left + up - corner
    return min((left, up, corner), key=lambda byte: abs(guess - byte))
