"""Request and response models."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictInt,
    WithJsonSchema,
    create_model,
    model_validator,
)
from pydantic_core import PydanticCustomError

from adapters.spec import UNKNOWN_KEY, AdapterSpec, Kind, ProblemType
from service.aggregation import Aggregate
from service.http.sentences import quoted
from service.scores import Function, default_function

Accuracy = Annotated[float, Field(strict=True, gt=0, lt=1)]
Abstain = Accuracy | None

STRIDE = (
    "Tokens that neighbouring windows share; by default a quarter of those that a window has of the"
    " text."
)
AGGREGATE = "One answer of the windows' logits: their mean, or each label's largest."
ABSTAIN = (
    "Answer the label null where the confidence is too low for this share of right answers, such"
    " as 0.95."
)
CUT_ON_THE_LEFT = "truncation_direction is 'left'; expected 'right' where a text may be cut"
CUT_AND_WINDOWED = "truncate is true with a window; expected one of them: windows need no cut"

# What check_text allows: no control characters, and not white space alone.
_CONTROL = r"\u0000-\u0008\u000e-\u001f\u007f"
_TEXT = {
    "type": "string",
    "minLength": 1,
    "pattern": rf"^[^{_CONTROL}]*[^\s{_CONTROL}][^{_CONTROL}]*$",
}
_PAIR = {
    "type": "object",
    "properties": {"text": _TEXT, "text_pair": {"anyOf": [_TEXT, {"type": "null"}]}},
    "required": ["text"],
    "additionalProperties": False,
}
_INPUTS = {
    "description": (
        'A text; {"text", "text_pair"}; or a list of either, or of ["a"] and ["a", "b"]. A flat'
        " list of two texts is one pair for a task that takes pairs, else a batch of two."
    ),
    "anyOf": [
        _TEXT,
        _PAIR,
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _TEXT,
                    _PAIR,
                    {"type": "array", "items": _TEXT, "minItems": 1, "maxItems": 2},
                ]
            },
        },
    ],
    "examples": ["a charming and often affecting journey"],
}


class Strict(BaseModel):
    """Refuses unknown keys, and stops at the first one: pydantic would make an error of each, of
    which a body can hold 200,000."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, value: Any) -> Any:
        known = cls.__pydantic_fields__.keys()
        if isinstance(value, dict) and not value.keys() <= known:
            context = {"key": next(key for key in value if key not in known), "known": _keys(cls)}
            raise PydanticCustomError(UNKNOWN_KEY, "{key} is not known", context)
        return value


def _keys(model: type[BaseModel]) -> str:
    return quoted(list(model.model_fields), "or")


class Window(Strict):
    """Answer a text that is too long for a row by windows of it; each counts as an input."""

    stride: StrictInt | None = Field(None, ge=0, description=STRIDE)
    aggregate: Aggregate = Field("mean", description=AGGREGATE)


class Parameters(Strict):
    """Hugging Face's parameters of text classification, `abstain` and `window`."""

    top_k: StrictInt | None = Field(
        None,
        ge=1,
        description="How many labels to answer, the best ones; by default all.",
    )
    function_to_apply: Function | None = Field(
        None,
        description=(
            "By default softmax; sigmoid for multi-label tasks; none for regression. Both are of"
            " calibrated logits; none answers the logits as they are."
        ),
    )
    abstain: Abstain = Field(None, description=ABSTAIN)
    window: Window | None = None


class PredictRequest(Strict):
    """The body of /predict; `raw_scores` and `truncation_direction` are
    text-embeddings-inference's."""

    inputs: Annotated[Any, WithJsonSchema(_INPUTS)]
    parameters: Parameters | None = None
    truncate: bool | None = Field(
        None,
        description=(
            "Cut inputs that are too long instead of refusing them; by default as the query's"
            " truncate says, and else as the server is set."
        ),
    )
    raw_scores: bool | None = Field(None, description='As function_to_apply "none".')
    truncation_direction: Literal["Right", "right", "Left", "left"] | None = Field(
        None,
        description="Only the right end can be cut: left is refused where something is to be cut.",
    )
    options: dict[str, Any] | None = Field(
        None, description="Hugging Face's API options: taken, not used."
    )

    @property
    def window(self) -> Window | None:
        return self.parameters.window if self.parameters is not None else None

    @property
    def abstain(self) -> float | None:
        return self.parameters.abstain if self.parameters is not None else None

    @property
    def cut_on_the_left(self) -> bool:
        return self.truncation_direction in ("Left", "left")

    @model_validator(mode="after")
    def _cut_on_the_right(self) -> Self:
        if self.truncate and self.window is not None:
            raise ValueError(CUT_AND_WINDOWED)
        if self.truncate and self.cut_on_the_left:
            raise ValueError(CUT_ON_THE_LEFT)
        return self

    def function(self, problem_type: ProblemType) -> Function:
        """What turns logits into scores."""
        if self.parameters is not None and self.parameters.function_to_apply is not None:
            return self.parameters.function_to_apply
        return "none" if self.raw_scores else default_function(problem_type)


class Score(BaseModel):
    """One label of an answer; null where the answer abstains, and `score` is the confidence."""

    label: str | None
    score: float


class Problem(BaseModel):
    """Every error's body."""

    error: str = Field(description="One sentence: the thing, what was found, what was expected.")
    error_type: str


class VersionInfo(BaseModel):
    version: str
    bytes: int
    created: str
    active: bool


class AdapterInfo(BaseModel):
    """One task's adapter as listed; `version` is the active one, `tier` where its weights are
    now."""

    task: str
    kind: Kind
    version: str | None
    labels: list[str]
    problem_type: ProblemType
    text_pair: bool
    bytes: int
    parameters: int
    created: str
    tier: Literal["device", "host", "disk"]


class Latency(BaseModel):
    """In seconds, of a task's last 256 answers, each from the request's body to its answer."""

    p50: float
    p99: float


class AdapterListed(AdapterInfo):
    """What `details=true` adds to a list: the trainer's word in the file, and what this server saw
    since it started."""

    dev_scores: dict[str, float]
    requests: int
    latency: Latency | None = Field(description="null until the task has answered.")
    canary: float | None = Field(None, description="The percent of the keys that a canary has.")


class ProbeShown(BaseModel):
    """The probe without its texts, which may be of the training data: the file alone has them."""

    rows: int
    logits: list[list[float]]


_SPEC_FIELDS: Any = {
    name: (field.annotation, field) for name, field in AdapterSpec.model_fields.items()
}
# The file's spec, but for the texts of its probe.
SpecShown = create_model(
    "AdapterSpec",
    __doc__="What an adapter is for and what it fits, as its file says.",
    **{**_SPEC_FIELDS, "probe": (ProbeShown, ...)},
)


class AdapterDetail(AdapterInfo):
    spec: SpecShown  # type: ignore[valid-type]  # it is made of AdapterSpec's fields
    versions: list[VersionInfo]


class Activation(Strict):
    """The body of POST /adapters/{task}/activate."""

    version: str = Field(
        min_length=1, max_length=64, description="A version or the beginning of one."
    )


class AdapterBytes(BaseModel):
    task: str
    version: str | None
    bytes: int


class Storage(BaseModel):
    """What one copy of the backbone saves; all sizes in bytes."""

    backbone: str
    dtype: str
    tasks: int
    backbone_bytes: int
    adapters_bytes: int
    total_bytes: int
    full_copies_bytes: int = Field(description="Every task with a backbone and a head of its own.")
    saved_bytes: int
    ratio: float = Field(description="full_copies_bytes / total_bytes")
    adapters: list[AdapterBytes]
