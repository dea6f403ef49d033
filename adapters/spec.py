"""AdapterSpec: the frozen description of one adapter, as stored in its file
(docs/adapter-format.md, section 3)."""

from __future__ import annotations

import math
import re
import reprlib
from typing import Annotated, Literal, Self

from pydantic import (
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

Task = Annotated[str, StringConstraints(pattern=TASK_PATTERN)]
Text = Annotated[str, StringConstraints(min_length=1)]
ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
Pooling = Literal["cls", "mean", "pooler", "mask"]

MASK = "{mask}"
TEXTS = ("{text}", "{text_pair}")
MAX_TEMPLATE_CHARACTERS = 1000


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackboneRef(_Frozen):
    """The backbone an adapter was trained on; only `fingerprint` decides whether it fits."""

    name: Text
    model_type: Text
    hidden_size: int = Field(ge=1, le=16384)
    num_layers: int = Field(ge=1, le=256)
    fingerprint: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Probe(_Frozen):
    """A few inputs with the logits the trainer got: a server replays them at upload."""

    inputs: Annotated[
        tuple[tuple[Text, ...], ...], Field(min_length=1, max_length=16, strict=False)
    ]
    logits: Annotated[tuple[tuple[float, ...], ...], Field(strict=False)]


class AdapterSpec(_Frozen):
    """What an adapter is for and what it fits; immutable."""

    task: Task
    labels: Annotated[tuple[Text, ...], Field(min_length=1, max_length=1000, strict=False)]
    problem_type: ProblemType
    text_pair: bool
    max_length: int = Field(ge=8, le=8192)
    pooling: Pooling
    template: str | None = Field(None, exclude_if=lambda template: template is None)
    backbone: BackboneRef
    first_layer: int = Field(0, ge=0, le=255, exclude_if=lambda first_layer: first_layer == 0)
    bottleneck: int = Field(ge=1, le=256)
    activation: Literal["gelu"]
    training: dict[str, JsonValue]
    probe: Probe

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.labels)) != len(self.labels):
            raise ValueError(f"labels are {list(self.labels)}; expected distinct names")
        if self.problem_type == "regression" and len(self.labels) != 1:
            raise ValueError(
                f"a regression task has {len(self.labels)} labels; expected 1, the name of its"
                " value"
            )
        if self.problem_type == "single_label_classification" and len(self.labels) < 2:
            raise ValueError(
                f"single_label_classification has the label {self.labels[0]!r} only; expected 2 or"
                " more"
            )
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
        if self.template is not None:
            check_template(self.template, text_pair=self.text_pair)
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
                    f"probe.logits[{i}] is {list(logits)}; expected {len(self.labels)} finite"
                    " numbers"
                )
        return self


def parse_spec(json: str | bytes) -> AdapterSpec:
    """Read a spec from its JSON; raise InvalidAdapter with a sentence for the first thing wrong
    with it."""
    try:
        return AdapterSpec.model_validate_json(json)
    except ValidationError as error:
        raise InvalidAdapter(f"the adapter's spec is not valid: {first_problem(error)}") from None


def check_template(template: str, *, text_pair: bool) -> None:
    """Raise InvalidPrompt unless the template holds one mask and the task's texts, once each, and
    no other braces."""
    if len(template) > MAX_TEMPLATE_CHARACTERS:
        raise InvalidPrompt(
            f"the template has {len(template)} characters; expected at most"
            f" {MAX_TEMPLATE_CHARACTERS}"
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


def first_problem(error: ValidationError) -> str:
    """One sentence for the first problem pydantic found: where, what was found, what was
    expected."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{place} is missing; expected it to be there"
    if problem["type"] == "extra_forbidden":
        return f"{place} is there; expected no such key"
    if not place or problem["type"] == "value_error":
        return message
    if problem["type"] == "model_type":  # pydantic would name our class
        return f"{place} is {shown(problem['input'])}; expected an object"
    return f"{place} is {shown(problem['input'])}; {_expected(message)}"


def shown(value: object) -> str:
    """What was found, as much of it as a sentence bears: however large it is, and however deep a
    client nested it."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 4, 80, 80
    text = brief.repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


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
