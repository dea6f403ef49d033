"""Read a file of weights, safetensors or PyTorch's own, without running anything that it holds."""

from __future__ import annotations

import re
import warnings
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import safetensors.torch
import torch
from torch import Tensor

from adapters.errors import CannotConvert
from adapters.header import lookalike
from adapters.regular import opened
from adapters.spec import shown

# The start of a pickle of protocol 2 or later. torch.save writes zip archives, except in old
# versions.
PICKLE = b"\x80"
ZIP = b"PK"
# the number with which the pickles of old versions start
TORCH_BEFORE_1_6 = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


# A large encoder's whole checkpoint has some hundred tensors; each costs some tenths of a
# millisecond, also one without numbers.
MAX_TENSORS = 10_000
MAX_HEADER_BYTES = 4 << 20
MAX_RECORDS = MAX_TENSORS + 100  # of an archive, which has some beside its tensors


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name. Raises CannotConvert, or OSError if the file cannot be
    read."""
    loaded = _load(path)
    if not isinstance(loaded, dict):
        raise CannotConvert(
            f"{path.name} holds a {type(loaded).__name__}; expected tensors by name"
        )
    _check_count(path, len(loaded))
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_plain(value):
            raise CannotConvert(
                f"{path.name} holds a {type(value).__name__} under {shown(name)}; expected dense"
                " tensors by name"
            )
    return loaded


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file by name; a file of another format under that name is
    refused. Raises CannotConvert, or OSError if the file cannot be read."""
    with opened(path) as file:
        head = file.read(9)
    if head[8:] != b"{" and (head.startswith((PICKLE, ZIP))):
        raise CannotConvert(
            f"{path.name} is a pickle or an archive of one, which can be a program, and was not"
            " opened; expected a safetensors file"
        )
    return read_weights(path)


def take(weights: dict[str, Tensor], name: str, dimensions: int | None = None) -> Tensor:
    """Remove a tensor from `weights` and return it: a matrix if it is named `….weight`, else a
    vector, where `dimensions` do not say otherwise. What is left at the end is what nobody knows.
    Raises CannotConvert."""
    if name not in weights:
        raise CannotConvert(f"the tensor {shown(name)} is missing; expected it to be there")
    tensor = weights.pop(name)
    if dimensions is None:
        dimensions = 2 if name.endswith(".weight") else 1
    if not tensor.is_floating_point() or tensor.ndim != dimensions:
        found = f"{tensor.dtype} of shape {list(tensor.shape)}"
        raise CannotConvert(
            f"the tensor {shown(name)} is {found}; expected floating point of {dimensions}"
            f" dimension{'s' * (dimensions > 1)}"
        )
    return tensor


def refuse_rest(weights: dict[str, Tensor], known: str) -> None:
    """Raise CannotConvert if a tensor was not taken, because it would be lost."""
    if weights:
        raise CannotConvert(
            f"the tensor {shown(min(weights))} is not understood; expected only {known}"
        )


def _check_count(path: Path, tensors: int) -> None:
    if tensors > MAX_TENSORS:
        raise CannotConvert(f"{path.name} holds {tensors} tensors; expected at most {MAX_TENSORS}")


def _is_plain(tensor: Tensor) -> bool:
    """Whether a tensor's numbers are all in the file: a view can claim more than its storage has.
    Quantised ones, and those without numbers, have no place in a format of floating point."""
    return (
        tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def _load(path: Path) -> object:
    with opened(path) as file:
        head = file.read(32)
    safe = head[8:9] == b"{"  # safetensors begins with a length of eight bytes and a JSON object
    kind = lookalike(head[:8])
    if not safe and kind is not None and not head.startswith(ZIP):
        raise CannotConvert(
            f"{path.name} looks like {kind}; expected a PyTorch or safetensors file"
        )
    if not safe and head.startswith(PICKLE) and TORCH_BEFORE_1_6 not in head:
        raise CannotConvert(
            f"{path.name} is a plain pickle, which is a program, and was not opened; expected what"
            " torch.save or safetensors wrote: if you trust its maker, load it and write its"
            " tensors with safetensors.torch.save_file"
        )
    if head.startswith(ZIP):
        _check_archive(path)
    header_bytes = int.from_bytes(head[:8], "little")
    if safe and header_bytes > MAX_HEADER_BYTES:
        raise CannotConvert(
            f"{path.name} has a header of {header_bytes} bytes; expected at most {MAX_HEADER_BYTES}"
        )
    try:
        if safe:
            with safetensors.safe_open(path, "pt") as file:
                _check_count(path, len(file.keys()))
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            # about old pickle protocols: whatever cannot be read is refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise CannotConvert(
                f"{path.name} holds code ({found[1]}), which was not run; expected tensors by name"
                " alone, as of state_dict()"
            ) from None
        raise CannotConvert(
            f"{path.name} is no readable pickle of tensors; expected a PyTorch or safetensors file"
        ) from None
    except CannotConvert:
        raise
    except Exception as error:
        # whatever PyTorch's readers of archives and safetensors raise on broken files
        reason = type(error).__name__
        raise CannotConvert(
            f"{path.name} is damaged or no file of weights ({reason}); expected PyTorch or"
            " safetensors"
        ) from None


def _check_archive(path: Path) -> None:
    """Refuse a zip archive that would be larger when it is read, as PyTorch's reader expands it; or
    one of very many records."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # also names that are no UTF-8
        raise CannotConvert(
            f"{path.name} is a damaged archive; expected a PyTorch or safetensors file"
        ) from None
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CannotConvert(
            f"{path.name} is a compressed archive, which could become larger than the memory;"
            " expected what torch.save writes, which is not compressed"
        )
    if len(records) > MAX_RECORDS:
        raise CannotConvert(
            f"{path.name} has {len(records)} records; expected at most {MAX_RECORDS}"
        )
