"""Tell another maker's file or folder by what it holds, and make the contents of an adapter file of
it."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from adapters import backbone as backbones
from adapters.convert import adamix, adapterhub, peft, peft_folder
from adapters.convert.assembly import Wanted, assemble
from adapters.errors import CannotConvert
from adapters.spec import AdapterSpec


def convert(
    source: Path, backbone: str | None, wanted: Wanted
) -> tuple[AdapterSpec, dict[str, Tensor]]:
    """Return the spec and the tensors of an adapter file. Without `backbone` it is the base model
    that a PEFT folder names. Raises CannotConvert, another AdaMixError or OSError."""
    if source.is_dir() and peft_folder.made_by_peft(source):
        folder = peft_folder.read(source)
        loaded = backbones.load(_named(backbone or folder.config.base_model))
        return assemble(peft.fit(folder, loaded), loaded, wanted)
    foreign = adapterhub.read(source) if source.is_dir() else adamix.read(source)
    return assemble(foreign, backbones.load(_named(backbone)), wanted)


def _named(backbone: str | None) -> str:
    if backbone is None:
        raise CannotConvert(
            "it names no base model; expected --backbone NAME, what it was trained on"
        )
    # the same weights, which need no network
    return backbones.EMBEDDED if backbone == backbones.EMBEDDED_ID else backbone
