"""What a PEFT configuration says about the modules of one model: which of them have LoRA, of which
rank and which scale.

The rules are those of peft 0.21: `tuners_utils.check_target_module_exists`,
`utils.other.get_pattern_key` and `LoraLayer.update_layer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping

from adapters.convert.matching import PLAIN, SECONDS, Expression, Found, TooSlow, matches
from adapters.convert.peft_config import ALL_LINEAR, CONFIG, PeftConfig
from adapters.errors import CannotConvert
from adapters.spec import shortened, shown


class PeftModules:
    """`names` are the model's modules by their full names, such as `bert.pooler.dense`. Raises
    CannotConvert for regular expressions that cannot be matched against them, or not in time."""

    def __init__(self, config: PeftConfig, names: Iterable[str]) -> None:
        self._config = config
        self._found = _matched(config, sorted(set(names)))

    def targets(self, module: str, *, linear: bool) -> bool:
        """Whether this module has LoRA. `linear` says whether it is a linear one."""
        return (
            not self._excludes(module)
            and self._named(module, linear=linear)
            and self._in_layers(module)
        )

    def unmatched(self, modules: Mapping[str, bool]) -> str | None:
        """The first of `target_modules` that names none of these modules, which are linear or
        not."""
        targets = self._config.target_modules
        if isinstance(targets, str):
            found = any(self._named(name, linear=linear) for name, linear in modules.items())
            return None if found else targets
        return next(
            (target for target in targets if not any(_ends_with(name, target) for name in modules)),
            None,
        )

    def rank(self, module: str) -> int:
        """The rank of LoRA at this module."""
        ranks = self._config.rank_pattern or {}
        return ranks.get(self._pattern(ranks, module), self._config.r)

    def scale(self, module: str) -> float:
        """The factor of `B·A` at this module: alpha / r, or alpha / √r with `use_rslora`."""
        alphas = self._config.alpha_pattern or {}
        alpha = alphas.get(self._pattern(alphas, module), self._config.lora_alpha)
        rank = self.rank(module)
        return alpha / (math.sqrt(rank) if self._config.use_rslora else rank)

    def _excludes(self, module: str) -> bool:
        excluded = self._config.exclude_modules or ()
        if isinstance(excluded, str):
            matched = module in self._found[_whole(excluded)]
        else:
            matched = any(_ends_with(module, name) for name in excluded)
        saved = self._config.modules_to_save or ()
        return matched or any(module in self._found[_within(name)] for name in saved)

    def _named(self, module: str, *, linear: bool) -> bool:
        targets = self._config.target_modules
        if not isinstance(targets, str):
            return any(_ends_with(module, target) for target in targets)
        if targets.lower() == ALL_LINEAR:
            return linear
        return module in self._found[_whole(targets)]

    def _in_layers(self, module: str) -> bool:
        layers = self._config.layers_to_transform
        if layers is None or layers == []:
            return True
        for pattern in _layer_patterns(self._config):
            found = self._found[_before_number(pattern)]
            if module in found:
                layer = int(found[module] or "")
                return layer in layers if isinstance(layers, list) else layer == layers
        return False

    def _pattern(self, patterns: Iterable[str], module: str) -> str:
        """The first of the patterns that the module's name ends with."""
        return next(
            (pattern for pattern in patterns if module in self._found[_at_end(pattern)]), module
        )


def _matched(config: PeftConfig, names: list[str]) -> dict[Expression, Found]:
    written = dict(_expressions(config))
    plain = all(map(PLAIN.fullmatch, written.values()))
    try:
        found = matches([*written], names, plain=plain, seconds=SECONDS)
    except TooSlow as slow:
        raise CannotConvert(
            f"{CONFIG} has {shown(slow.args[0])}, which takes too long to match; expected names of"
            " modules, or a regular expression without repetitions within repetitions"
        ) from None
    except re.error as error:
        raise CannotConvert(
            f"{CONFIG} has a regular expression that cannot be used: {shortened(error)}"
        ) from None
    return dict(zip(written, found, strict=True))


def _expressions(config: PeftConfig) -> Iterator[tuple[Expression, str]]:
    """Each expression as PEFT uses it, with the part that the file has of it."""
    for field in (config.target_modules, config.exclude_modules):
        if isinstance(field, str):
            yield _whole(field), field
    for saved in config.modules_to_save or ():
        yield _within(saved), saved
    if config.layers_to_transform not in (None, []):
        for pattern in _layer_patterns(config):
            yield _before_number(pattern), pattern
    for pattern in (*(config.rank_pattern or ()), *(config.alpha_pattern or ())):
        yield _at_end(pattern), pattern


def _layer_patterns(config: PeftConfig) -> list[str]:
    patterns = config.layers_pattern or r"[^.]*"
    return [patterns] if isinstance(patterns, str) else patterns


def _whole(expression: str) -> Expression:
    return "fullmatch", expression


def _within(name: str) -> Expression:
    return "match", rf"(^|.*\.){name}($|\..*)"


def _before_number(pattern: str) -> Expression:
    return "match", rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\."


def _at_end(pattern: str) -> Expression:
    return "match", rf"(.*\.)?({pattern})$"


def _ends_with(module: str, name: str) -> bool:
    return module == name or module.endswith(f".{name}")
