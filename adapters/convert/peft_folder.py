"""Read a folder that `save_pretrained` of a PEFT model wrote, as far as it can be understood
without its base model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.convert.objects import read_object, read_start
from adapters.convert.peft_config import CONFIG, PeftConfig, parse
from adapters.convert.weights import read_safetensors, refuse_rest
from adapters.errors import CannotConvert
from adapters.spec import legible, shown

WRITER = "PEFT's save_pretrained"
WEIGHTS, PICKLE, CARD = "adapter_model.safetensors", "adapter_model.bin", "README.md"
MODEL_CONFIG = "config.json"
PREFIX = "base_model.model."
ENCODERS = ("bert", "roberta", "mpnet", "model")  # what base models call their encoder
# What other families call theirs, and why their classifiers are not read.
OTHERS = {
    "electra": "an ELECTRA classifier, whose head has a GELU that an adapter file cannot say",
    "deberta": "a DeBERTa classifier, whose head has a GELU that an adapter file cannot say",
    "distilbert": "a DistilBERT classifier, whose head has a ReLU that an adapter file cannot say",
}
# Trainer's own folders, which hold earlier states of the same adapter.
CHECKPOINT = re.compile(r"checkpoint-\d+")
# What PEFT's model card says of a base model that was quantised during training.
QUANTISED = re.compile(r"quantization config was used during training:.*", re.DOTALL)
BITS = re.compile(r"load_in_[48]bit: True|quant_method: \S+")


@dataclass(frozen=True, eq=False)
class Folder:
    """A folder's configuration and its tensors, without `base_model.model.` in their names.
    `model` holds what the model's own `config.json` says, if it lies beside them."""

    name: str
    config: PeftConfig
    weights: Mapping[str, Tensor]
    prefix: str
    model: Mapping[str, Any]


def made_by_peft(folder: Path) -> bool:
    """Whether a folder, or one in it, holds files as PEFT names them."""
    return any(
        (place / name).is_file()
        for place in (folder, *_inner(folder))
        for name in (WEIGHTS, PICKLE)
    ) or ((folder / CONFIG).is_file() and b'"peft_type"' in read_start(folder / CONFIG))


def read(folder: Path) -> Folder:
    """Read what can be told without the base model. Raises CannotConvert or OSError."""
    _check_one_adapter(folder)
    config = parse(read_object(folder / CONFIG, WRITER))
    if not (folder / WEIGHTS).is_file() and (folder / PICKLE).is_file():
        raise CannotConvert(
            f"{folder.name} has its weights in {PICKLE}, a pickle, which can be a program, and was"
            f" not opened; expected {WEIGHTS}: if you trust its maker, load it with PEFT and save"
            " it again"
        )
    if not (folder / WEIGHTS).is_file():
        raise CannotConvert(
            f"{folder.name} has no {WEIGHTS}; expected a folder that {WRITER} wrote"
        )
    model_config = folder / MODEL_CONFIG
    model = read_object(model_config, "save_pretrained") if model_config.is_file() else {}
    _check_not_quantised(folder / CARD, model)
    loaded = read_safetensors(folder / WEIGHTS)
    weights = {
        name.removeprefix(PREFIX): loaded.pop(name)
        for name in list(loaded)
        if name.startswith(PREFIX)
    }
    refuse_rest(loaded, f"names that begin with {PREFIX!r}")
    return Folder(folder.name, config, weights, _prefix(weights), model)


def _inner(folder: Path) -> list[Path]:
    """The folders within it that hold an adapter of their own."""
    return sorted(
        path.parent
        for path in folder.glob(f"*/{CONFIG}")
        if not CHECKPOINT.fullmatch(path.parent.name)
    )


def _check_one_adapter(folder: Path) -> None:
    inner = _inner(folder)
    own = (folder / CONFIG).is_file()
    if inner and (own or len(inner) > 1):
        names = [*(["its own"] if own else []), *(shown(path.name) for path in inner)]
        raise CannotConvert(
            f"{folder.name} holds {len(names)} adapters, {', '.join(names[:8])}; expected the"
            " folder of one"
        )
    if inner:
        raise CannotConvert(
            f"{folder.name} holds its adapter in {shown(inner[0].name)}; expected that folder"
        )


def _check_not_quantised(card: Path, model: Mapping[str, Any]) -> None:
    """A quantised base model has other weights, and so is another base model. PEFT's own files of
    weights and configuration do not say it: a folder without both of these is taken as it is."""
    found = None
    if card.is_file():
        found = QUANTISED.search(read_start(card).decode("utf-8", "replace"))
    bits = BITS.search(found[0]) if found else None
    said = model.get("quantization_config")
    if bits or said:
        file, words = (card.name, legible(bits[0][:80])) if bits else (MODEL_CONFIG, shown(said))
        raise CannotConvert(
            f"{file} says that the base model was quantised during training ({words}), so that the"
            " adapter corrects other weights than it would be served with; expected a base model in"
            " floating point"
        )


def _prefix(weights: Mapping[str, Tensor]) -> str:
    """What the base model calls its encoder. Raises CannotConvert for other models."""
    prefixes = sorted({name.partition(".")[0] for name in weights if ".lora_" in name})
    for prefix in prefixes:
        if prefix in OTHERS:
            raise CannotConvert(
                f"{WEIGHTS} is of {OTHERS[prefix]}; expected one of {', '.join(ENCODERS)}"
            )
    if len(prefixes) != 1 or prefixes[0] not in ENCODERS:
        found = " and ".join(shown(name) for name in prefixes[:4]) or "no module"
        raise CannotConvert(
            f"{WEIGHTS} has LoRA at {found}; expected it at the modules of"
            f" {' or '.join(map(repr, ENCODERS))}, as classifiers of BERT, RoBERTa, MPNet and"
            " ModernBERT call their encoder"
        )
    return prefixes[0]
