"""Read and write adapter files: safetensors files as docs/adapter-format.md specifies them."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from adapters import header
from adapters.disk import write_atomically
from adapters.errors import InvalidAdapter
from adapters.pieces import copied
from adapters.regular import opened_input
from adapters.spec import AdapterSpec

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# torch checks so many numbers without OpenMP. The OpenMP workers of an upload's thread would slow
# down the engine's.
SERIAL = 1 << 15


@dataclass(frozen=True, eq=False)
class Adapter:
    """One parsed, valid adapter. It is immutable, so a request in flight keeps the adapter that it
    was admitted with.

    `data` are the bytes of its file, in which its tensors lie; `digest` is their sha256.
    """

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]
    digest: str
    data: memoryview

    @property
    def bytes(self) -> int:
        """The size of the file."""
        return len(self.data)

    @property
    def version(self) -> str:
        """The first 12 hex digits of the file's sha256, by which a version is shown."""
        return self.digest[:12]

    @property
    def parameters(self) -> int:
        """The number of parameters in the file, those of the head included."""
        return sum(tensor.numel() for tensor in self.tensors.values())


@dataclass(frozen=True)
class Summary:
    """What a file's header says: its spec and its number of parameters, those of the head
    included."""

    spec: AdapterSpec
    parameters: int


def save(path: Path, spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> Adapter:
    """Write one adapter file, completely or not at all, and return it as a reader will see it.

    A link's target is written. Raises InvalidAdapter if the result would not be a valid file, and
    OSError where the disk refuses, or where a device, a pipe or a folder has the path: a file must
    not take its place. Then nothing is written.
    """
    adapter = parse(serialize(spec, tensors))
    target = path.resolve()
    if target.exists() and not target.is_file():
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    write_atomically(target, adapter.data)
    return adapter


def serialize(spec: AdapterSpec, tensors: Mapping[str, Tensor]) -> bytes:
    """Return the bytes of an adapter file, without validating them."""
    metadata = {"format": header.FORMAT, "spec": spec.model_dump_json()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, metadata)
    # safetensors writes the keys of the metadata in a random order. Here their order is fixed, so
    # that one adapter gives one file and one version.
    size = struct.unpack("<Q", data[:8])[0]
    head = json.dumps(
        {**json.loads(data[8 : 8 + size]), "__metadata__": metadata}, ensure_ascii=False
    ).encode()
    # The tensors begin at a multiple of eight, as in files that safetensors writes.
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data[8 + size :]


def load(path: Path) -> Adapter:
    """Read and validate one file, or a pipe. Raises InvalidAdapter, or OSError if it cannot be
    read.

    The header is read first: a file that is no adapter may be larger than the memory.
    """
    with opened_input(path) as file:  # a pipe can be read only once
        start = file.read(8 + header.MAX_HEADER_BYTES)
        entries, _ = header.read_start(start)
        tensors = sum(
            math.prod(entry["shape"]) * DTYPES[entry["dtype"]].itemsize
            for entry in entries.values()
        )
        return parse(start + file.read(tensors + 1))


def parse(data: bytes | memoryview) -> Adapter:
    """Parse and validate a file's bytes. Raises InvalidAdapter with the first rule of
    docs/adapter-format.md that they break.

    The tensors lie in `data` if it is a memoryview, which must be writable, and which nobody may
    change any more; else in a copy of it.
    """
    layout = header.read(data)
    kept = data if isinstance(data, memoryview) else copied(data)
    adapter = _adapter(kept, layout, hashlib.sha256(kept).hexdigest())
    for name, tensor in adapter.tensors.items():
        if not all(torch.isfinite(part).all() for part in torch.split(tensor.flatten(), SERIAL)):
            raise InvalidAdapter(f"tensor {name!r} holds NaN or infinity; expected finite numbers")
    return adapter


def reread(data: memoryview, digest: str) -> Adapter:
    """Parse a file that was validated when it was stored. Its sha256 is `digest`, as the caller has
    checked, so its tensors are not looked through again, which takes longest.

    Raises InvalidAdapter all the same for a header that was never valid. The tensors lie in `data`,
    so an adapter takes as much memory as its file.
    """
    return _adapter(data, header.read(data), digest)


def _adapter(data: memoryview, layout: header.Layout, digest: str) -> Adapter:
    entries, spec, start = layout
    whole = torch.frombuffer(data, dtype=torch.uint8)
    tensors = {name: _view(whole, start, entry) for name, entry in entries.items()}
    return Adapter(spec, tensors, digest, data)


def _view(whole: Tensor, start: int, entry: dict[str, Any]) -> Tensor:
    """Return a view of the tensor in the file's bytes, or a copy where it is not aligned."""
    dtype, (begin, end) = DTYPES[entry["dtype"]], entry["data_offsets"]
    part = whole[start + begin : start + end]
    return (
        (part.clone() if (start + begin) % dtype.itemsize else part)
        .view(dtype)
        .view(entry["shape"])
    )


def read_summary(path: Path) -> Summary:
    """Read the spec and the number of parameters from a file's header, without its tensors. Raises
    InvalidAdapter or OSError."""
    return _summary(*header.read_file(path))


def summary_of(start: bytes | memoryview, file_size: int) -> Summary:
    """The same from the beginning of a file of so many bytes, which holds its header."""
    return _summary(*header.read_start(start, file_size))


def _summary(entries: header.Entries, spec: AdapterSpec) -> Summary:
    return Summary(spec, sum(math.prod(entry["shape"]) for entry in entries.values()))
