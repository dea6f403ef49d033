"""AdapterSpec: the frozen description of one adapter, as stored in its file
(docs/adapter-format.md, section 3)."""

from __future__ import annotations

import itertools
import math
import re
import reprlib
from collections.abc import Iterator
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    ValidationError,
    model_validator,
)

from adapters.errors import InvalidAdapter, InvalidPrompt

TASK_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"

# Limits on what a file may say, because a server repeats it: labels in each answer, names in lists
# and logs, the training record on its page.
MAX_LABEL_CHARACTERS = 256
MAX_LABELS_CHARACTERS = 65_536
MAX_NAME_CHARACTERS = 1024
MAX_TRAINING_DEPTH = 32
MAX_INTEGER = 2**63 - 1
# C0 and C1 controls, DEL, the line and paragraph separators, and what embeds, overrides or isolates
# a direction of text (UAX #9): it would turn round what a page or a log shows beside it.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
# The same, but a note or a template may have several lines.
_CONTROL_BUT_LINES = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _printable(text: str) -> str:
    if _CONTROL.search(text):
        raise ValueError(f"{shown(text)} holds a control character; expected printable text")
    return text


Task = Annotated[str, StringConstraints(pattern=TASK_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
Label = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_LABEL_CHARACTERS),
    AfterValidator(_printable),
]
Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=MAX_NAME_CHARACTERS),
    AfterValidator(_printable),
]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Pooling = Literal["cls", "mean", "pooler", "mask"]
Kind = Literal["bottleneck", "lora"]
LoraSite = Literal["query", "key", "value", "attention_out", "up", "gate", "down"]
"""The linear modules of a layer that LoRA can change; `up`, `gate` and `down` are the
feed-forward's, and only a gated one has `gate`."""
INNER_SITES: tuple[LoraSite, ...] = ("up", "gate", "down")  # one side has intermediate_size
PositionType = Literal["absolute", "relative", "rotary", "disentangled"]
MAX_RANK = 256
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
MAX_SCALE = 1024.0  # far above alpha / r of any training
# Of a temperature. Trained networks have 1 to 3; far outside, every score is 0 or 1, or all are
# alike.
MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
Temperature = Annotated[float, Field(ge=MIN_TEMPERATURE, le=MAX_TEMPERATURE, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
MAX_COVERAGE_POINTS = 32

MASK = "{mask}"
TEXTS = ("{text}", "{text_pair}")
MAX_TEMPLATE_CHARACTERS = 1000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackboneSettings(_Frozen):
    """What decides, beside weights and vocabulary, what a backbone computes
    (docs/adapter-format.md, section 4)."""

    num_attention_heads: int = Field(ge=1, le=16384)
    hidden_act: Name
    layer_norm_eps: float = Field(gt=0, lt=1, allow_inf_nan=False)
    position_embedding_type: PositionType
    first_position: int = Field(ge=0, le=MAX_INTEGER)
    tokenization: Sha256
    further: dict[Name, JsonValue] | None = Field(None, exclude_if=lambda further: further is None)


class BackboneRef(_Frozen):
    """The backbone that an adapter was trained on. `fingerprint` and `settings` decide whether it
    fits another; files written before there were `settings` have none."""

    name: Name
    model_type: Name
    hidden_size: int = Field(ge=1, le=16384)
    num_layers: int = Field(ge=1, le=256)
    fingerprint: Sha256
    settings: BackboneSettings | None = Field(None, exclude_if=lambda settings: settings is None)


class Probe(_Frozen):
    """A few inputs with the logits that the trainer computed; a server replays them at upload."""

    inputs: Annotated[
        tuple[tuple[Text, ...], ...], Field(min_length=1, max_length=16, strict=False)
    ]
    logits: Annotated[tuple[tuple[float, ...], ...], Field(strict=False)]


class CoveragePoint(_Frozen):
    """Answers with a confidence of at least `threshold` are right as often as `accuracy` says; of
    all rows, `coverage` have one. All three are shares of 1, estimated on held-out rows."""

    accuracy: Share
    coverage: Share
    threshold: float = Field(ge=0, le=1, allow_inf_nan=False)


# What the spec of each kind of adapter says about its tensors.
KIND_KEYS: dict[Kind, tuple[str, ...]] = {
    "bottleneck": ("bottleneck", "activation"),
    "lora": ("ranks", "scale"),
}


def _absent(value: object) -> bool:
    return value is None


class AdapterSpec(_Frozen):
    """What an adapter is for and which backbone it fits. It is immutable.

    A bottleneck has `bottleneck` and `activation`, a LoRA adapter has `ranks` and `scale`, and
    `intermediate_size` if it has one of INNER_SITES; the others are None. `temperatures` divide the
    logits before they become scores: one, or of a multi-label task one for each label; None counts
    as 1. `risk_coverage` says below which confidence to abstain; its accuracies ascend.
    """

    task: Task
    labels: Annotated[tuple[Label, ...], Field(min_length=1, max_length=1000, strict=False)]
    problem_type: ProblemType
    text_pair: bool
    max_length: int = Field(ge=8, le=8192)
    pooling: Pooling
    template: str | None = Field(default=None, exclude_if=lambda template: template is None)
    normed_head: bool = Field(False, exclude_if=lambda normed: not normed)
    backbone: BackboneRef
    first_layer: int = Field(0, ge=0, le=255, exclude_if=lambda first_layer: first_layer == 0)
    kind: Kind = Field(default="bottleneck", exclude_if=lambda kind: kind == "bottleneck")
    bottleneck: Rank | None = Field(default=None, exclude_if=_absent)
    activation: Literal["gelu"] | None = Field(default=None, exclude_if=_absent)
    ranks: Annotated[dict[LoraSite, Rank], Field(min_length=1)] | None = Field(
        default=None, exclude_if=_absent
    )
    scale: float | None = Field(
        default=None, gt=0, le=MAX_SCALE, allow_inf_nan=False, exclude_if=_absent
    )
    intermediate_size: int | None = Field(default=None, ge=1, le=65536, exclude_if=_absent)
    temperatures: (
        Annotated[tuple[Temperature, ...], Field(min_length=1, max_length=1000, strict=False)]
        | None
    ) = Field(default=None, exclude_if=_absent)
    risk_coverage: (
        Annotated[
            tuple[CoveragePoint, ...],
            Field(min_length=1, max_length=MAX_COVERAGE_POINTS, strict=False),
        ]
        | None
    ) = Field(default=None, exclude_if=_absent)
    training: dict[str, JsonValue]
    probe: Probe

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {shown(list(self.labels))}; expected distinct names")
        if (characters := sum(map(len, self.labels))) > MAX_LABELS_CHARACTERS:
            raise ValueError(
                f"labels have {characters} characters together; expected at most"
                f" {MAX_LABELS_CHARACTERS}"
            )
        if self.problem_type == "regression" and len(self.labels) != 1:
            raise ValueError(
                f"a regression task has {len(self.labels)} labels; expected 1, the name of its"
                " value"
            )
        if self.problem_type == "single_label_classification" and len(self.labels) < 2:
            raise ValueError(
                f"single_label_classification has the label {shown(self.labels[0])} only;"
                " expected 2 or more"
            )
        self._check_kind()
        if self.first_layer >= self.backbone.num_layers:
            raise ValueError(
                f"first_layer is {self.first_layer}; expected less than {self.backbone.num_layers},"
                " the backbone's layers"
            )
        if (self.pooling == "mask") != (self.template is not None):
            found = (
                "no template" if self.template is None else f"the template {shown(self.template)}"
            )
            raise ValueError(
                f"pooling is {self.pooling!r} with {found}; expected a template exactly where it is"
                " 'mask'"
            )
        if self.normed_head and self.pooling == "mask":
            raise ValueError(
                "normed_head is true with pooling 'mask', whose head always has a norm; expected it"
                " with another pooling only"
            )
        if self.template is not None:
            check_template(self.template, text_pair=self.text_pair)
        self._check_temperatures()
        self._check_risk_coverage()
        for place, problem in _unfit(self.training, "training", 1):
            raise ValueError(f"{place} {problem}")
        if len(self.probe.logits) != len(self.probe.inputs):
            raise ValueError(
                f"the probe has {len(self.probe.logits)} rows of logits for"
                f" {len(self.probe.inputs)} inputs; expected one each"
            )
        texts = 2 if self.text_pair else 1
        for i, (text, logits) in enumerate(zip(self.probe.inputs, self.probe.logits, strict=True)):
            if len(text) != texts:
                raise ValueError(f"probe.inputs[{i}] holds {len(text)} texts; expected {texts}")
            if len(logits) != len(self.labels) or not all(map(math.isfinite, logits)):
                raise ValueError(
                    f"probe.logits[{i}] is {shown(list(logits))};"
                    f" expected {len(self.labels)} finite numbers"
                )
        return self

    def _check_kind(self) -> None:
        for kind, keys in KIND_KEYS.items():
            for key in keys:
                there = getattr(self, key) is not None
                if there and kind != self.kind:
                    raise ValueError(f"{key} is there; expected no such key with {self._of_kind}")
                if not there and kind == self.kind:
                    raise ValueError(
                        f"{key} is missing; expected it to be there with {self._of_kind}"
                    )
        inner = [site for site in self.ranks or () if site in INNER_SITES]
        if inner and self.intermediate_size is None:
            raise ValueError(
                "intermediate_size is missing; expected it to be there with a rank for"
                f" {inner[0]!r}"
            )
        if not inner and self.intermediate_size is not None:
            raise ValueError(
                "intermediate_size is there; expected it with a rank for 'up' or another site of"
                " the feed-forward only"
            )

    def _check_temperatures(self) -> None:
        if self.temperatures is None:
            return
        wanted = {
            "single_label_classification": 1,
            "multi_label_classification": len(self.labels),
            "regression": 0,
        }[self.problem_type]
        if len(self.temperatures) != wanted:
            expected = f"{wanted}, as {self.problem_type} has" if wanted else "none with regression"
            raise ValueError(
                f"temperatures holds {len(self.temperatures)} numbers; expected {expected}"
            )

    def _check_risk_coverage(self) -> None:
        points = self.risk_coverage or ()
        if points and self.problem_type != "single_label_classification":
            raise ValueError(
                f"risk_coverage is there with {self.problem_type}; expected it with"
                " single_label_classification only"
            )
        for before, after in itertools.pairwise(points):
            if (
                after.accuracy <= before.accuracy
                or after.coverage > before.coverage
                or after.threshold < before.threshold
            ):
                raise ValueError(
                    f"risk_coverage has {_point(after)} after {_point(before)}; expected a higher"
                    " accuracy, no higher coverage and no lower threshold"
                )

    @property
    def _of_kind(self) -> str:
        return f"kind {self.kind!r}"


def _point(point: CoveragePoint) -> str:
    return f"accuracy {point.accuracy}, coverage {point.coverage}, threshold {point.threshold}"


def parse_spec(json: str | bytes) -> AdapterSpec:
    """Read a spec from its JSON. Raises InvalidAdapter with one sentence about the first fault."""
    try:
        return AdapterSpec.model_validate_json(json)
    except ValidationError as error:
        raise InvalidAdapter(f"the adapter's spec is not valid: {first_problem(error)}") from None


def check_template(template: str, *, text_pair: bool) -> None:
    """Check that the template holds the mask and the task's texts, once each, and no other braces.
    Raises InvalidPrompt."""
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidPrompt(
            f"the template has {len(template)} characters; expected at most"
            f" {MAX_TEMPLATE_CHARACTERS}"
        )
    if _CONTROL_BUT_LINES.search(template):
        raise InvalidPrompt(
            f"the template {shown(template)} holds a control character; expected printable text"
        )
    for found in re.findall(r"\{[^{}]*\}|[{}]", template):
        if found not in (MASK, *TEXTS):
            raise InvalidPrompt(
                f"the template {shown(template)} holds {shown(found)}; expected no braces but"
                f" {', '.join((*TEXTS, MASK))}"
            )
    wanted = {MASK: 1, TEXTS[0]: 1, TEXTS[1]: int(text_pair)}
    for name, times in wanted.items():
        if template.count(name) != times:
            task = (
                f"; the task takes {'pairs' if text_pair else 'single texts'}"
                if name == TEXTS[1]
                else ""
            )
            raise InvalidPrompt(
                f"the template {shown(template)} holds {template.count(name)} {name}; expected"
                f" {times}{task}"
            )


# The type of an error of a validator that knows the keys of an object: its context holds the `key`
# that was found, and the `known` ones as a sentence lists them.
UNKNOWN_KEY = "unknown_key"


def first_problem(error: ValidationError) -> str:
    """Say in one sentence where pydantic found the first problem, what was found there, and what
    was expected."""
    problem = error.errors(include_url=False)[0]
    # pydantic marks a wrong key of a mapping by a part of its own
    place = ".".join(_legible(part) for part in problem["loc"] if part != "[key]")
    message = shortened(problem["msg"].removeprefix("Value error, "))
    if problem["type"] == "missing":
        return f"{place} is missing; expected it to be there"
    if problem["type"] == "extra_forbidden":
        return f"{place} is there; expected no such key"
    if problem["type"] == UNKNOWN_KEY:
        place = ".".join(filter(None, (place, _legible(problem["ctx"]["key"]))))
        return f"{place} is there; expected only {problem['ctx']['known']}"
    if not place or problem["type"] == "value_error":
        return message
    if problem["type"] == "model_type":  # pydantic would name our class
        return f"{place} is {shown(problem['input'])}; expected an object"
    return f"{place} is {shown(problem['input'])}; {_expected(message)}"


def shown(value: object) -> str:
    """Quote what was found, in at most 80 characters, however large or deeply nested it is."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 4, 80, 80
    text = brief.repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def shortened(text: object, most: int = 200) -> str:
    """Cut a text that others wrote, such as a library's message, to what a sentence can hold."""
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def legible(text: str) -> str:
    """A text that others wrote, on one line: its control characters become escapes, so that it
    cannot drive a terminal."""
    return _CONTROL.sub(lambda found: ascii(found.group())[1:-1], text)


def _unfit(value: JsonValue, place: str, depth: int) -> Iterator[tuple[str, str]]:
    """Find what the training record may not hold, because JSON or a page cannot repeat it."""
    if depth > MAX_TRAINING_DEPTH:
        yield place, f"is nested more deeply than {MAX_TRAINING_DEPTH} levels; expected fewer"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _unfit(key, f"the key {shown(key)} of {place}", depth)
            yield from _unfit(item, shortened(f"{place}.{_legible(key)}", 100), depth + 1)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _unfit(item, shortened(f"{place}.{i}", 100), depth + 1)
    elif isinstance(value, str) and _CONTROL_BUT_LINES.search(value):
        yield place, f"is {shown(value)}; expected no control characters"
    elif isinstance(value, float) and not math.isfinite(value):
        yield place, f"is {value}; expected a finite number"
    elif isinstance(value, int) and abs(value) > MAX_INTEGER:
        yield place, f"is an integer of {value.bit_length()} bits; expected at most 63"


def _legible(part: object) -> str:
    """A key or an index as a part of a place's name."""
    text = shortened(part, 80)
    return text if text.isprintable() else ascii(text)[1:-1]


def _expected(message: str) -> str:
    """'Input should be X' → 'expected X'; pydantic's other messages stand as they are."""
    for prefix in ("Input should be ", "String should ", "Value should "):
        if message.startswith(prefix):
            return (
                "expected "
                + ("it to " if prefix != "Input should be " else "")
                + message.removeprefix(prefix)
            )
    return message
