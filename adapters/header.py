"""The header of an adapter file: its spec and where its tensors lie, held to
docs/adapter-format.md, sections 1 to 3."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path
from typing import Any

from adapters.errors import InvalidAdapter
from adapters.regular import opened
from adapters.spec import INNER_SITES, AdapterSpec, LoraSite, parse_spec, shortened, shown

FORMAT = "adamix-adapter/1"
MAX_HEADER_BYTES = 1 << 20
# In the spec. 1,000 labels have 16,000 logits in the probe; the rest is the training record's.
MAX_SPEC_VALUES = 32_768
DTYPES = {"F32": 4, "F16": 2, "BF16": 2}  # with the bytes of a number
TENSOR_KEYS = {"dtype", "shape", "data_offsets"}
# How files begin that people take for weights, and what they are.
LOOKALIKES = {
    b"version ": "a Git LFS pointer, which `git lfs pull` replaces by the file itself",
    b"\x1f\x8b": "a gzip archive, which has to be unpacked first",
    b"PK\x03\x04": "a zip archive, as torch.save writes it",
    b"<": "a page of HTML or XML",
}
DENSE_HEAD = ("head.dense.weight", "head.dense.bias")
Entries = dict[str, dict[str, Any]]
Layout = tuple[Entries, AdapterSpec, int]


def read(data: bytes | memoryview) -> Layout:
    """Return the tensors' entries, the spec, and the offset at which the tensors' bytes begin, and
    where they lie. Raises InvalidAdapter."""
    size = _size(bytes(data[:8]), len(data))
    entries, spec = _checked(bytes(data[8 : 8 + size]))
    _check_offsets(entries, len(data) - 8 - size)
    return entries, spec, 8 + size


def read_file(path: Path) -> tuple[Entries, AdapterSpec]:
    """Return the entries and the spec of a file, without reading its tensors. Raises InvalidAdapter
    or OSError."""
    with opened(path) as file:
        start = file.read(8)
        return _checked(file.read(_size(start, os.fstat(file.fileno()).st_size)))


def bytes_needed(start: bytes | memoryview, file_size: int) -> int:
    """How many bytes a file's header takes with its length, by its beginning. Raises
    InvalidAdapter."""
    return 8 + _size(bytes(start[:8]), file_size)


def read_start(
    data: bytes | memoryview, file_size: int | None = None
) -> tuple[Entries, AdapterSpec]:
    """Return the entries and the spec of a file of `file_size` bytes, by its beginning, which holds
    its whole header; by default that is the whole file, or more than any header. Raises
    InvalidAdapter."""
    size = _size(bytes(data[:8]), len(data) if file_size is None else file_size)
    return _checked(bytes(data[8 : 8 + size]))


def expected_shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every tensor that a file with this spec may hold
    (docs/adapter-format.md, section 2)."""
    d, labels = spec.backbone.hidden_size, len(spec.labels)
    norm = {"head.norm.weight": (d,), "head.norm.bias": (d,)} if _normed(spec) else {}
    return {
        **(_bottleneck_shapes(spec) if spec.ranks is None else _lora_shapes(spec)),
        "head.dense.weight": (d, d),
        "head.dense.bias": (d,),
        **norm,
        "head.out.weight": (labels, d),
        "head.out.bias": (labels,),
    }


def site_sizes(site: LoraSite, hidden: int, intermediate: int | None) -> tuple[int, int]:
    """Return the inputs and outputs of a layer's linear module; those of the feed-forward need
    `intermediate`."""
    if site not in INNER_SITES:
        return hidden, hidden
    assert intermediate is not None, "the spec was checked"
    return (intermediate, hidden) if site == "down" else (hidden, intermediate)


def lookalike(start: bytes) -> str | None:
    """Say what a file is that is no file of weights, by its first eight bytes."""
    return next((kind for magic, kind in LOOKALIKES.items() if start.startswith(magic)), None)


def _normed(spec: AdapterSpec) -> bool:
    """Whether the head is `LayerNorm(gelu(dense(x)))`, then the output projection."""
    return spec.pooling == "mask" or spec.normed_head


def _bottleneck_shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    assert spec.bottleneck is not None, "the spec was checked"
    layers = spec.backbone.num_layers - spec.first_layer
    d, r = spec.backbone.hidden_size, spec.bottleneck
    return {
        "down.weight": (layers, r, d),
        "down.bias": (layers, r),
        "up.weight": (layers, d, r),
        "up.bias": (layers, d),
    }


def _lora_shapes(spec: AdapterSpec) -> dict[str, tuple[int, ...]]:
    layers = spec.backbone.num_layers - spec.first_layer
    shapes: dict[str, tuple[int, ...]] = {}
    for site, rank in (spec.ranks or {}).items():
        inputs, outputs = site_sizes(site, spec.backbone.hidden_size, spec.intermediate_size)
        shapes[f"lora.{site}.a"] = (layers, rank, inputs)
        shapes[f"lora.{site}.b"] = (layers, outputs, rank)
    return shapes


def _checked(data: bytes) -> tuple[Entries, AdapterSpec]:
    header = _parsed(data)
    spec = _read_metadata(header.pop("__metadata__", None))
    _check_tensors(header, spec)
    return header, spec


def _size(start: bytes, file_size: int) -> int:
    if len(start) < 8:
        raise InvalidAdapter(
            f"the file has {len(start)} bytes; expected a safetensors file, which has at least 8"
        )
    size: int = struct.unpack("<Q", start)[0]
    if size > MAX_HEADER_BYTES and (kind := lookalike(start)) is not None:
        raise InvalidAdapter(f"the file looks like {kind}; expected a safetensors file")
    if size > MAX_HEADER_BYTES:
        raise InvalidAdapter(
            f"the file's header claims {size} bytes; expected at most {MAX_HEADER_BYTES}, and a"
            " safetensors file"
        )
    if 8 + size > file_size:
        raise InvalidAdapter(
            f"the file has {file_size} bytes, its header alone claims {8 + size}; it is cut short"
        )
    return size


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        header = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(
            f"the file's header is not JSON: {shortened(error)}; expected a safetensors file"
        ) from None
    if not isinstance(header, dict):
        raise InvalidAdapter(
            f"the file's header is a JSON {type(header).__name__}; expected an object"
        )
    return header


def _check_spec(text: str) -> None:
    """Refuse a key that is there twice: pydantic takes the last one, another reader perhaps the
    first. Refuse more values than any adapter has: pydantic makes an error of each wrong one."""
    try:
        spec = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise InvalidAdapter(
            f"the adapter's spec is not JSON: {shortened(error)}; expected an object"
        ) from None
    if (values := _count(spec)) > MAX_SPEC_VALUES:
        raise InvalidAdapter(
            f"the adapter's spec holds {values} values; expected at most {MAX_SPEC_VALUES}"
        )


def _count(document: Any) -> int:
    """Count the values of a JSON document, objects and lists among them."""
    count, rest = 0, [document]
    while rest:
        value = rest.pop()
        count += 1
        if isinstance(value, dict | list):
            rest += value.values() if isinstance(value, dict) else value
    return count


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"the key {name[:80]!r} stands there twice")
        result[name] = value
    return result


def _read_metadata(metadata: Any) -> AdapterSpec:
    if not isinstance(metadata, dict) or set(metadata) != {"format", "spec"}:
        found = shown(sorted(metadata)) if isinstance(metadata, dict) else "none"
        raise InvalidAdapter(
            f"the file's metadata keys are {found}; expected exactly 'format' and 'spec'"
        )
    if metadata["format"] != FORMAT:
        raise InvalidAdapter(
            f"the file's format is {str(metadata['format'])[:80]!r}; expected {FORMAT!r}"
        )
    if not isinstance(metadata["spec"], str):
        raise InvalidAdapter(
            f"the metadata's spec is a {type(metadata['spec']).__name__}; expected a string of JSON"
        )
    _check_spec(metadata["spec"])
    return parse_spec(metadata["spec"])


def _check_tensors(header: dict[str, Any], spec: AdapterSpec) -> None:
    shapes = expected_shapes(spec)
    for name in header:
        if name not in shapes:
            raise InvalidAdapter(
                f"the file holds a tensor {name[:80]!r}; expected only {', '.join(shapes)}"
            )
    dense = [name for name in DENSE_HEAD if name in header]
    if len(dense) == 1:
        raise InvalidAdapter(
            f"the file holds {dense[0]!r} alone; expected both of {', '.join(DENSE_HEAD)}, or"
            " neither"
        )
    for name, shape in shapes.items():
        if name not in header:
            if name in DENSE_HEAD and not _normed(spec):
                continue
            raise InvalidAdapter(
                f"the tensor {name!r} is missing; expected {name!r} of shape {list(shape)}"
            )
        entry = header[name] if isinstance(header[name], dict) else {}
        if str(entry.get("dtype")) not in DTYPES:  # str: what JSON holds need not be hashable
            raise InvalidAdapter(
                f"tensor {name!r} has dtype {shown(entry.get('dtype'))}; expected one of"
                f" {', '.join(DTYPES)}"
            )
        if entry.get("shape") != list(shape) or not _whole(entry["shape"]):
            raise InvalidAdapter(
                f"tensor {name!r} has shape {shown(entry.get('shape'))}; expected {list(shape)} by"
                " the file's spec"
            )
        if set(entry) - TENSOR_KEYS:
            raise InvalidAdapter(
                f"tensor {name!r} has the keys {shown(sorted(entry))}; expected only"
                f" {', '.join(sorted(TENSOR_KEYS))}"
            )


def _check_offsets(entries: Entries, tensor_bytes: int) -> None:
    """Check that the tensors fill the rest of the file, one after the other, as the safetensors
    library does. It copies every tensor meanwhile, and holds up all other threads."""
    for name, entry in entries.items():
        offsets = entry.get("data_offsets")
        if not (isinstance(offsets, list) and len(offsets) == 2 and _whole(offsets)):
            raise InvalidAdapter(
                f"the file is not valid safetensors: tensor {name!r} has the data_offsets"
                f" {shown(offsets)}; expected its first byte and the one after its last"
            )
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = end, end + math.prod(entry["shape"]) * DTYPES[entry["dtype"]]
        if entry["data_offsets"] != [begin, end]:
            raise InvalidAdapter(
                f"the file is not valid safetensors: tensor {name!r} has the data_offsets"
                f" {shown(entry['data_offsets'])}; expected {[begin, end]}, without gaps or"
                " overlaps"
            )
    if end != tensor_bytes:
        raise InvalidAdapter(
            f"the file is not valid safetensors: its tensors have {tensor_bytes} bytes; expected"
            f" {end}, as the header says"
        )


def _whole(numbers: list[object]) -> bool:
    """Whether they are whole numbers, of which Python takes `2.0` and `true` for equals."""
    return all(type(number) is int for number in numbers)
