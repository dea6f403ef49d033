"""The adapter file: one safetensors file, as docs/adapter-format.md specifies it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adapters import header
from adapters.errors import InvalidAdapter
from adapters.spec import AdapterSpec

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# Numbers that torch looks through without OpenMP's help: workers of an upload's thread would slow
# down the engine's.
SERIAL = 1 << 15
LEFTOVER = ".tmp-"  # how a file begins that is not whole yet


@dataclass(frozen=True, eq=False)
class Adapter:
    """One parsed, valid adapter; immutable, so a request in flight keeps the one it was admitted
    with."""

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]
    digest: str
    bytes: int

    @property
    def version(self) -> str:
        """The first 12 hex digits of the file's sha256: how a version is shown."""
        return self.digest[:12]

    @property
    def parameters(self) -> int:
        """How many numbers the file holds, head included."""
        return sum(tensor.numel() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Summary:
    """What a file's header tells: its spec, and how many numbers it holds, head included."""

    spec: AdapterSpec
    parameters: int


def save(path: Path, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Adapter:
    """Write one adapter file, whole or not at all, and return it as a reader will see it.

    Raises InvalidAdapter, and writes nothing, if the result would not be a valid file.
    """
    data = serialize(spec, tensors)
    adapter = parse(data)
    write_atomically(path, data)
    return adapter


def serialize(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> bytes:
    """The bytes of an adapter file; not validated."""
    metadata = {"format": header.FORMAT, "spec": spec.model_dump_json()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, metadata)
    # safetensors writes the metadata's keys in a random order; in ours, one adapter is one file and
    # one version.
    size = struct.unpack("<Q", data[:8])[0]
    head = json.dumps(
        {**json.loads(data[8 : 8 + size]), "__metadata__": metadata}, ensure_ascii=False
    ).encode()
    # the tensors begin at a multiple of eight, as safetensors has it
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def load(path: Path) -> Adapter:
    """Read and validate one file. Raises InvalidAdapter, or OSError if it cannot be read."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Adapter:
    """Bytes → a valid adapter, or InvalidAdapter with the first rule of docs/adapter-format.md that
    they break."""
    header.read(data)
    try:
        safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    except Exception as error:
        # safetensors raises a SafetensorError for which it exports no stable name per case
        raise InvalidAdapter(f"the file is not valid safetensors: {error}") from None
    adapter = reread(bytearray(data), hashlib.sha256(data).hexdigest())
    for name, tensor in adapter.tensors.items():
        if not all(torch.isfinite(part).all() for part in torch.split(tensor.flatten(), SERIAL)):
            raise InvalidAdapter(f"tensor {name!r} holds NaN or infinity; expected finite numbers")
    return adapter


def reread(data: bytearray, digest: str) -> Adapter:
    """A file that was valid when it was stored, and by its sha256 `digest` is the same: its numbers
    are not looked through again, which takes longest. Raises InvalidAdapter all the same for one
    that was never valid.

    The tensors lie in `data`, so an adapter takes what its file does.
    """
    entries, spec, start = header.read(data)
    whole = torch.frombuffer(data, dtype=torch.uint8)
    try:
        tensors = {name: _view(whole, start, entry) for name, entry in entries.items()}
    except (ValueError, TypeError, RuntimeError, KeyError) as error:
        raise InvalidAdapter(f"the file is not valid safetensors: {error}") from None
    return Adapter(spec, tensors, digest, len(data))


def _view(whole: Tensor, start: int, entry: dict[str, Any]) -> Tensor:
    """A tensor where it lies in the file's bytes; where it lies crooked, a copy."""
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    part = whole[start + begin : start + end]
    return (
        (part.clone() if (start + begin) % dtype.itemsize else part)
        .view(dtype)
        .view(entry["shape"])
    )


def read_summary(path: Path) -> Summary:
    """The spec and the size, from the file's header: no tensor is read."""
    entries, spec = header.read_file(path)
    return Summary(spec, sum(math.prod(entry["shape"]) for entry in entries.values()))


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Temp file, fsync, rename, fsync of the folder: a reader sees the old file or the new one,
    also after a crash."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=LEFTOVER)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename or unlink in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
