"""Adapter files that are damaged or that lie, made at random of a valid one."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

# In place of any value of a header, or of the spec in it.
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1e308, 0.5, float("nan"), float("inf")),
    *("", " ", "a", "\0", "\ud800", "\u202e", "\x1b[2J", "a" * 5000, "[]", "null", "F16", "I64"),
    *([], [0], [-1], [[]], ["a", "a"], [1 << 40, 1 << 40], ["a"] * 2000, {}, {"a": {}}),
    *("lora", "bottleneck", "query", ["query"], {"query": 257}, {"pooler": 4}, {"up": 4, "key": 2}),
    *("../x", "sst2", "regression", "mask", "{text}{mask}", "{text}{text}", "adamix-adapter/2"),
)


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header and its tensors' bytes."""
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: dict[str, Any] | bytes, body: bytes) -> bytes:
    """The file of a header and its tensors' bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def mutated(valid: bytes, chance: random.Random) -> bytes:
    """A valid file, changed in its bytes, in its header, in its spec or in its tensors."""
    how = chance.choice((in_bytes, in_bytes, in_header, in_spec, in_spec, in_tensors))
    return how(valid, chance)


def in_bytes(valid: bytes, chance: random.Random) -> bytes:
    """Bytes changed, cut out or doubled, anywhere; or the file's end cut off."""
    damaged = bytearray(valid)
    header = 8 + struct.unpack("<Q", valid[:8])[0]
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(chance.choice((8, header, len(valid))) + 1)
        damaged[at : at + chance.randrange(5)] = chance.randbytes(chance.randrange(5))
    if chance.random() < 0.1:
        del damaged[chance.randrange(len(damaged) + 1) :]
    return bytes(damaged)


def in_header(valid: bytes, chance: random.Random) -> bytes:
    """One place of the header's JSON changed: an entry of a tensor, the metadata, a key."""
    header, body = split(valid)
    _change(header, chance)
    return join(_json(header, chance), body)


def in_spec(valid: bytes, chance: random.Random) -> bytes:
    """One place of the spec changed, or two."""
    header, body = split(valid)
    spec = json.loads(header["__metadata__"]["spec"])
    for _ in range(chance.randint(1, 2)):
        _change(spec, chance)
    header["__metadata__"]["spec"] = _json(spec, chance).decode("utf-8", "surrogatepass")
    return join(_json(header, chance), body)


def in_tensors(valid: bytes, chance: random.Random) -> bytes:
    """Numbers that are huge, not finite or of another dtype, under a header that fits."""
    header, body = split(valid)
    changed = bytearray(body)
    for _ in range(chance.randint(1, 8)):
        at = 2 * chance.randrange(len(body) // 2)
        # float16's infinity, a NaN, its greatest number, its least, minus zero
        number = chance.choice((0x7C00, 0x7E01, 0x7BFF, 0x0001, 0x8000))
        changed[at : at + 2] = struct.pack("<H", number)
    if chance.random() < 0.3:
        name = chance.choice([name for name in header if name != "__metadata__"])
        header[name]["dtype"] = chance.choice(("BF16", "F32", "I16", "F8_E4M3"))
    return join(header, bytes(changed))


def _change(document: dict[str, Any], chance: random.Random) -> None:
    """Replace, remove, double or add one thing somewhere in it."""
    place: Any = document
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        inner = [key for key in keys if isinstance(place[key], dict | list) and place[key]]
        if not inner or chance.random() < 0.3:
            break
        place = place[chance.choice(inner)]
    value = copy.deepcopy(chance.choice(VALUES))
    key = chance.choice(keys)
    how = chance.random()
    if how < 0.6:
        place[key] = value
    elif how < 0.75:
        del place[key]
    elif isinstance(place, list):
        place.append(value if how < 0.9 else place[key])
    else:
        place[chance.choice(("author", "", "task", "\0", "format", "x" * 5000))] = value


def _json(document: Any, chance: random.Random) -> bytes:
    """As JSON; at times with a key twice, or nested too deeply."""
    text = json.dumps(document)
    how = chance.random()
    if how < 0.03 and text.startswith("{") and document:
        key = json.dumps(chance.choice(list(document)))
        text = f"{{{key}:1,{text[1:]}"
    elif how < 0.05:
        text = text.replace(":", f":{'[' * 2000}", 1)
    return text.encode()
