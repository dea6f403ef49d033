"""Read `adapter_config.json` of a PEFT folder. `adapters.convert.peft_modules` says what it means
for the modules of one model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapters.errors import CannotConvert
from adapters.spec import MAX_NAME_CHARACTERS, first_problem, shown

CONFIG = "adapter_config.json"
ALL_LINEAR = "all-linear"

_OTHER = "which computes something else"
_BASE = "which changes the base model's own weights"
# For each field the values that compute `W·x + scale·B·A·x`, and what any other does. The first
# value is PEFT's default for a missing field, except for `peft_type` and `task_type`.
NEEDED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "peft_type": (("LORA",), _OTHER),
    "task_type": (("SEQ_CLS",), "whose head is another one"),
    "bias": (("none",), "which trains biases of the base model"),
    "lora_bias": ((False,), "which adds a bias to B"),
    "use_dora": ((False,), "which scales each weight's columns by a trained magnitude (DoRA)"),
    "use_qalora": ((False,), "which is for a quantised base model"),
    "init_lora_weights": ((True, False, "gaussian", "eva", "orthogonal"), _BASE),
    "trainable_token_indices": ((None,), "which trains embeddings"),
    "target_parameters": ((None, []), _OTHER),
    "layer_replication": ((None,), "which adds layers to the base model"),
    "alora_invocation_tokens": ((None,), "which adapts a part of the tokens only"),
    "megatron_config": ((None,), "which is for Megatron's layers"),
    **dict.fromkeys(
        ("use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config"),
        ((None,), _OTHER),
    ),
}
# About training, initialisation, files or where a model runs, and what means something only with
# other values of the fields above. PEFT sets `fan_in_fan_out` to false at a linear module.
WITHOUT_EFFECT = {
    *("auto_mapping", "inference_mode", "lora_dropout", "fan_in_fan_out", "runtime_config"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config", "megatron_core"),
    *("qalora_group_size", "ensure_weight_tying"),
}
HEAD = re.compile(r"(.*\.)?(classifier|score|pooler|head)(\..*)?")

MAX_ENTRIES = 1000  # of a list or a mapping: there is one for each module at most
# Far below any that is of use: it divided by a rank is not zero.
Alpha = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]
PatternedRank = Annotated[int, Field(ge=1)]
Said = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]


class PeftConfig(BaseModel):
    """The fields that decide what a PEFT adapter computes, under PEFT's own names."""

    model_config = ConfigDict(frozen=True, strict=True)

    base_model_name_or_path: Said | None = None
    revision: Said | None = None
    peft_version: Said | None = None
    r: int = Field(8, ge=1)
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    target_modules: str | list[str]
    exclude_modules: str | list[str] | None = None
    modules_to_save: list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, PatternedRank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, fields: dict[str, Any]) -> dict[str, Any]:
        for name, value in fields.items():
            if isinstance(value, list | dict) and len(value) > MAX_ENTRIES:
                raise ValueError(f"{name} has {len(value)} entries; expected at most {MAX_ENTRIES}")
        return fields

    @field_validator("target_modules", mode="before")
    @classmethod
    def _some(cls, value: object) -> object:
        names = [value] if isinstance(value, str) else value
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            names = []
        if not any(names):
            raise ValueError(
                f"target_modules is {shown(value)}; expected names of modules, or a regular"
                " expression"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for field, pattern in self._patterns():
            try:
                re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                raise ValueError(
                    f"{field} has {shown(pattern)}: {error}; expected a regular expression"
                ) from None
        if isinstance(self.target_modules, str) and self.layers_to_transform not in (None, []):
            raise ValueError(
                "layers_to_transform is there with a regular expression as target_modules;"
                " expected a list of modules with it, as PEFT does"
            )
        return self

    @property
    def base_model(self) -> str | None:
        """The base model's name, with its revision if there is one."""
        name = self.base_model_name_or_path or None
        return f"{name}@{self.revision}" if name and self.revision else name

    def _patterns(self) -> Iterator[tuple[str, str]]:
        for field in ("target_modules", "exclude_modules"):
            value = getattr(self, field)
            if isinstance(value, str):
                yield field, value
        for field in ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_pattern"):
            value = getattr(self, field) or ()
            for pattern in (value,) if isinstance(value, str) else value:
                yield field, pattern


def parse(fields: Mapping[str, Any]) -> PeftConfig:
    """Check that a configuration is of LoRA as our adapter file has it. Raises CannotConvert with
    the field, what it does, the value found and the value needed."""
    for name, (values, effect) in NEEDED.items():
        required = name in ("peft_type", "task_type")
        found = fields.get(name, None if required else values[0])
        if found not in values:
            expected = " or ".join(map(repr, values))
            raise CannotConvert(
                f"{CONFIG} has {name} {shown(found)}, {effect}; expected {expected}"
            )
    for name in sorted(fields.keys() - NEEDED.keys() - WITHOUT_EFFECT - _known()):
        # PEFT's own rule for what a later version added: off is as if it were not there
        if fields[name] not in (None, False, [], {}):
            raise CannotConvert(
                f"{CONFIG} has the field {name[:80]!r} with {shown(fields[name])}, which is not"
                " known and may change what is computed; expected only fields that are known, or"
                " off"
            )
    try:
        config = PeftConfig.model_validate(
            {name: value for name, value in fields.items() if name in _known()}
        )
    except ValidationError as error:
        raise CannotConvert(f"{CONFIG}: {first_problem(error)}") from None
    for saved in config.modules_to_save or ():
        if not HEAD.fullmatch(saved):
            what = "embeddings" if "embed" in saved else "a part of the encoder"
            raise CannotConvert(
                f"{CONFIG} has {shown(saved)} in modules_to_save, a trained copy of {what}, and"
                " all tasks share one frozen encoder; expected only classifier, score, pooler and"
                " head"
            )
    return config


def _known() -> set[str]:
    return set(PeftConfig.model_fields)
