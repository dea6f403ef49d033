"""What `adapter_config.json` of a PEFT folder says: which modules have LoRA, of which rank and
which scale.

The rules are those of peft 0.21: `tuners_utils.check_target_module_exists`,
`utils.other.get_pattern_key` and `LoraLayer.update_layer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from adapters.errors import CannotConvert
from adapters.spec import first_problem, shown

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
HEAD = re.compile(r"(.*\.)?(classifier|score|pooler)(\..*)?")

Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PatternedRank = Annotated[int, Field(ge=1)]


class PeftConfig(BaseModel):
    """The fields that decide what a PEFT adapter computes, under PEFT's own names."""

    model_config = ConfigDict(frozen=True, strict=True)

    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_version: str | None = None
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
            except re.error as error:
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

    def targets(self, module: str, *, linear: bool) -> bool:
        """Whether the module with this full name, such as `bert.pooler.dense`, has LoRA. `linear`
        says whether it is a linear one."""
        return (
            not self._excludes(module)
            and self._named(module, linear=linear)
            and self._in_layers(module)
        )

    def unmatched(self, modules: Mapping[str, bool]) -> str | None:
        """The first of `target_modules` that names none of these modules, which are linear or
        not."""
        if isinstance(self.target_modules, str):
            found = any(self._named(name, linear=linear) for name, linear in modules.items())
            return None if found else self.target_modules
        for target in self.target_modules:
            if not any(_ends_with(name, target) for name in modules):
                return target
        return None

    def rank(self, module: str) -> int:
        """The rank of LoRA at this module."""
        return (self.rank_pattern or {}).get(_pattern(self.rank_pattern, module), self.r)

    def scale(self, module: str) -> float:
        """The factor of `B·A` at this module: alpha / r, or alpha / √r with `use_rslora`."""
        alphas = self.alpha_pattern or {}
        alpha = alphas.get(_pattern(alphas, module), self.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def _patterns(self) -> Iterator[tuple[str, str]]:
        for field in ("target_modules", "exclude_modules"):
            value = getattr(self, field)
            if isinstance(value, str):
                yield field, value
        for field in ("modules_to_save", "rank_pattern", "alpha_pattern", "layers_pattern"):
            value = getattr(self, field) or ()
            for pattern in (value,) if isinstance(value, str) else value:
                yield field, pattern

    def _excludes(self, module: str) -> bool:
        excluded = self.exclude_modules or ()
        if isinstance(excluded, str):
            matched = re.fullmatch(excluded, module) is not None
        else:
            matched = any(_ends_with(module, name) for name in excluded)
        return matched or any(
            re.match(rf"(^|.*\.){saved}($|\..*)", module) for saved in self.modules_to_save or ()
        )

    def _named(self, module: str, *, linear: bool) -> bool:
        if not isinstance(self.target_modules, str):
            return any(_ends_with(module, target) for target in self.target_modules)
        if self.target_modules.lower() == ALL_LINEAR:
            return linear
        return re.fullmatch(self.target_modules, module) is not None

    def _in_layers(self, module: str) -> bool:
        layers = self.layers_to_transform
        if layers is None or layers == []:
            return True
        patterns = self.layers_pattern or r"[^.]*"
        for pattern in (patterns,) if isinstance(patterns, str) else patterns:
            found = re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module)
            if found is not None:
                layer = int(found["layer"])
                return layer in layers if isinstance(layers, list) else layer == layers
        return False


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
                " all tasks share one frozen encoder; expected only classifier, score and pooler"
            )
    return config


def _known() -> set[str]:
    return set(PeftConfig.model_fields)


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")


def _pattern(patterns: Mapping[str, object] | None, module: str) -> str:
    """The first of the patterns that the module's name ends with."""
    for pattern in patterns or ():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return pattern
    return module
