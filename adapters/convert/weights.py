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
from adapters.spec import shown

# The start of a pickle of protocol 2 or later. torch.save writes zip archives, except in old
# versions.
PICKLE = b"\x80"
ZIP = b"PK"
# the number with which the pickles of old versions start
TORCH_BEFORE_1_6 = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file by name. Raises CannotConvert, or OSError if the file cannot be
    read."""
    loaded = _load(path)
    if not isinstance(loaded, dict):
        raise CannotConvert(
            f"{path.name} holds a {type(loaded).__name__}; expected tensors by name"
        )
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
    with path.open("rb") as file:
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
    with path.open("rb") as file:
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
    if head.startswith(ZIP) and _is_compressed(path):
        raise CannotConvert(
            f"{path.name} is a compressed archive, which could become larger than the memory;"
            " expected what torch.save writes, which is not compressed"
        )
    try:
        if safe:
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
    except Exception as error:
        # whatever PyTorch's readers of archives and safetensors raise on broken files
        reason = type(error).__name__
        raise CannotConvert(
            f"{path.name} is damaged or no file of weights ({reason}); expected PyTorch or"
            " safetensors"
        ) from None


def _is_compressed(path: Path) -> bool:
    """Whether a zip archive would be larger when it is read. PyTorch's reader expands it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError):  # which PyTorch's reader will say
        return False
