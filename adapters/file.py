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

from adapters.errors import InvalidAdapter
from adapters.spec import AdapterSpec, parse_spec, shown

FORMAT = "adamix-adapter/1"
MAX_HEADER_BYTES = 1 << 20
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
DENSE_HEAD = ("head.dense.weight", "head.dense.bias")


@dataclass(frozen=True, eq=False)
class Adapter:
    """One parsed, valid adapter; immutable, so a request in flight keeps the one it was admitted with."""

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
    metadata = {"format": FORMAT, "spec": spec.model_dump_json()}
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    data = safetensors.torch.save(contiguous, metadata)
    # safetensors writes the metadata's keys in a random order; in ours, one adapter is one file and one version.
    size = struct.unpack("<Q", data[:8])[0]
    header = json.dumps({**json.loads(data[8 : 8 + size]), "__metadata__": metadata}, ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)  # the tensors begin at a multiple of eight, as safetensors has it
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def load(path: Path) -> Adapter:
    """Read and validate one file. Raises InvalidAdapter, or OSError if it cannot be read."""
    return parse(path.read_bytes())


def parse(data: bytes) -> Adapter:
    """Bytes → a valid adapter, or InvalidAdapter with the first rule of docs/adapter-format.md that they break."""
    header = _read_header(data)
    spec = _read_metadata(header.pop("__metadata__", None))
    _check_tensors(header, spec)
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # safetensors raises a SafetensorError for which it exports no stable name per case
        raise InvalidAdapter(f"the file is not valid safetensors: {error}") from None
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise InvalidAdapter(f"tensor {name!r} holds NaN or infinity; expected finite numbers")
    return Adapter(spec, tensors, hashlib.sha256(data).hexdigest(), len(data))


def read_summary(path: Path) -> Summary:
    """The spec and the size, from the file's header: no tensor is read."""
    with path.open("rb") as file:
        start = file.read(8)
        header = _parse_header(file.read(_header_size(start, path.stat().st_size)))
    spec = _read_metadata(header.pop("__metadata__", None))
    _check_tensors(header, spec)
    return Summary(spec, sum(math.prod(entry["shape"]) for entry in header.values()))


def write_atomically(path: Path, data: bytes) -> None:
    """Temp file, fsync, rename, fsync of the folder: a reader sees the old file or the new one, also after a crash."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
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


def _read_header(data: bytes) -> dict[str, Any]:
    size = _header_size(data[:8], len(data))
    return _parse_header(data[8 : 8 + size])


def _header_size(start: bytes, file_size: int) -> int:
    if len(start) < 8:
        raise InvalidAdapter(f"the file has {len(start)} bytes; expected a safetensors file, which has at least 8")
    size: int = struct.unpack("<Q", start)[0]
    if size > MAX_HEADER_BYTES:
        raise InvalidAdapter(
            f"the file's header claims {size} bytes; expected at most {MAX_HEADER_BYTES}, and a safetensors file"
        )
    if 8 + size > file_size:
        raise InvalidAdapter(f"the file has {file_size} bytes, its header alone claims {8 + size}; it is cut short")
    return size


def _parse_header(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"the file's header is not JSON: {error}; expected a safetensors file") from None
    if not isinstance(header, dict):
        raise InvalidAdapter(f"the file's header is a JSON {type(header).__name__}; expected an object")
    return header


def _check_spec_keys(text: str) -> None:
    """Pydantic would take the last of two equal keys, another reader perhaps the first."""
    try:
        json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(f"the adapter's spec is not JSON: {error}; expected an object") from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name[:80]!r} stands there twice")
        result[name] = value
    return result


def _read_metadata(metadata: Any) -> AdapterSpec:
    if not isinstance(metadata, dict) or set(metadata) != {"format", "spec"}:
        found = sorted(metadata) if isinstance(metadata, dict) else "none"
        raise InvalidAdapter(f"the file's metadata keys are {found}; expected exactly 'format' and 'spec'")
    if metadata["format"] != FORMAT:
        raise InvalidAdapter(f"the file's format is {str(metadata['format'])[:80]!r}; expected {FORMAT!r}")
    if not isinstance(metadata["spec"], str):
        raise InvalidAdapter(f"the metadata's spec is a {type(metadata['spec']).__name__}; expected a string of JSON")
    _check_spec_keys(metadata["spec"])
    return parse_spec(metadata["spec"])


def expected_shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Every tensor that a file of this spec may hold, with its shape (docs/adapter-format.md, section 2)."""
    layers = spec.backbone.num_layers - spec.first_layer
    d, r, labels = spec.backbone.hidden_size, spec.bottleneck, len(spec.labels)
    norm = {"head.norm.weight": (d,), "head.norm.bias": (d,)} if spec.pooling == "mask" else {}
    return {
        "down.weight": (layers, r, d),
        "down.bias": (layers, r),
        "up.weight": (layers, d, r),
        "up.bias": (layers, d),
        "head.dense.weight": (d, d),
        "head.dense.bias": (d,),
        **norm,
        "head.out.weight": (labels, d),
        "head.out.bias": (labels,),
    }


def _check_tensors(header: dict[str, Any], spec: AdapterSpec) -> None:
    shapes = expected_shapes(spec)
    for name in header:
        if name not in shapes:
            raise InvalidAdapter(f"the file holds a tensor {name[:80]!r}; expected only {', '.join(shapes)}")
    dense = [name for name in DENSE_HEAD if name in header]
    if len(dense) == 1:
        raise InvalidAdapter(f"the file holds {dense[0]!r} alone; expected both of {', '.join(DENSE_HEAD)}, or neither")
    for name, shape in shapes.items():
        if name not in header:
            if name in DENSE_HEAD and spec.pooling != "mask":
                continue
            raise InvalidAdapter(f"the tensor {name!r} is missing; expected {name!r} of shape {list(shape)}")
        entry = header[name] if isinstance(header[name], dict) else {}
        if str(entry.get("dtype")) not in DTYPES:  # str: what JSON holds need not be hashable
            raise InvalidAdapter(
                f"tensor {name!r} has dtype {shown(entry.get('dtype'))}; expected one of {', '.join(DTYPES)}"
            )
        if entry.get("shape") != list(shape):
            raise InvalidAdapter(
                f"tensor {name!r} has shape {shown(entry.get('shape'))}; expected {list(shape)} by the file's spec"
            )
        if set(entry) - TENSOR_KEYS:
            raise InvalidAdapter(
                f"tensor {name!r} has the keys {shown(sorted(entry))}; expected only {', '.join(sorted(TENSOR_KEYS))}"
            )
