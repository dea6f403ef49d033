"""Requests and answers of the Open Inference Protocol V2 (KServe, Triton).

Unknown *parameters* are ignored: the protocol leaves them to extensions, and clients send their own
(MLServer's `content_type`, Triton's `priority`). Unknown *keys* are refused: else a misspelt one
would be ignored silently.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.spec import Kind, ProblemType
from service.aggregation import Aggregate
from service.http.schemas import (
    ABSTAIN,
    AGGREGATE,
    CUT_AND_WINDOWED,
    STRIDE,
    Abstain,
    Strict,
    Window,
)
from service.predictor import Signature

EXTENSIONS = ("classification", "binary_tensor_data", "model_repository", "parameters")
PLATFORM = "adamix_adapter"
TEXT, PAIR = "text", "text_pair"
Datatype = Literal["BYTES", "FP32"]
LABEL, SCORE, LOGITS = "label", "score", "logits"


class _Parameters(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Object(Strict):
    model_config = ConfigDict(strict=True, protected_namespaces=())


# Lists of a request stop at their first wrong item: pydantic would make an error of each.
MAX_ITEMS = 16  # of what a task has two or three at most


class InputParameters(_Parameters):
    binary_data_size: int | None = Field(
        None, ge=0, description="Bytes of this tensor after the JSON."
    )
    shared_memory_region: None = Field(None, description="Not supported.")


class InputTensor(_Object):
    name: str = Field(json_schema_extra={"enum": [TEXT, PAIR]})
    shape: list[Annotated[int, Field(ge=0)]] = Field(
        max_length=MAX_ITEMS, fail_fast=True, json_schema_extra={"minItems": 1, "maxItems": 1}
    )
    datatype: str = Field(json_schema_extra={"enum": ["BYTES"]})
    parameters: InputParameters | None = None
    data: Any = Field(
        None,
        description="The texts, where they are not binary.",
        json_schema_extra={"type": ["array", "null"], "items": {"type": "string"}},
    )


class OutputParameters(_Parameters):
    classification: int | None = Field(
        None,
        ge=1,
        description='Answer the best so many labels as "value:index:label", at most all.',
    )
    binary_data: bool | None = Field(None, description="Answer this tensor after the JSON.")
    shared_memory_region: None = Field(None, description="Not supported.")


class RequestedOutput(_Object):
    name: str = Field(json_schema_extra={"enum": [LABEL, SCORE, LOGITS]})
    parameters: OutputParameters | None = None


class RequestParameters(_Parameters):
    truncate: bool | None = Field(
        None, description="Cut texts that are too long instead of refusing them."
    )
    abstain: Abstain = Field(None, description=f"{ABSTAIN} In place of null, the label is empty.")
    window_stride: int | None = Field(
        None, ge=0, description=f"With windows, as window_aggregate. {STRIDE}"
    )
    window_aggregate: Aggregate | None = Field(
        None, description=f"Answer long texts by windows. {AGGREGATE}"
    )
    binary_data_output: bool | None = Field(
        None, description="Answer every tensor after the JSON unless it says otherwise."
    )

    @property
    def window(self) -> Window | None:
        if self.window_stride is None and self.window_aggregate is None:
            return None
        return Window(stride=self.window_stride, aggregate=self.window_aggregate or "mean")

    @model_validator(mode="after")
    def _windows_or_cuts(self) -> Self:
        if self.truncate and self.window is not None:
            raise ValueError(CUT_AND_WINDOWED)
        return self


class InferRequest(_Object):
    """The JSON of an infer request."""

    id: str | None = Field(None, description="Answered as it is.")
    model_name: str | None = Field(None, description="Taken, not used: the path says it.")
    model_version: str | None = Field(None, description="Taken, not used: the path says it.")
    parameters: RequestParameters | None = None
    inputs: list[InputTensor] = Field(min_length=1, max_length=MAX_ITEMS, fail_fast=True)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=MAX_ITEMS, fail_fast=True, description="By default all."
    )

    @property
    def truncate(self) -> bool | None:
        return self.parameters.truncate if self.parameters is not None else None

    @property
    def window(self) -> Window | None:
        return self.parameters.window if self.parameters is not None else None

    @property
    def abstain(self) -> float | None:
        return self.parameters.abstain if self.parameters is not None else None

    @property
    def binary_by_default(self) -> bool:
        return self.parameters is not None and bool(self.parameters.binary_data_output)


class OutputTensor(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]
    data: list[str] | list[float] | None = None
    parameters: dict[str, int] | None = Field(
        None, description="binary_data_size, where the data stand after the JSON."
    )


class InferResponse(BaseModel):
    model_config = ConfigDict(protected_namespaces=())

    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[OutputTensor]


class ServerMetadata(BaseModel):
    name: str
    version: str
    extensions: list[str]


class TensorMetadata(BaseModel):
    name: str
    datatype: Datatype
    shape: list[int]


class ModelParameters(BaseModel):
    """What the protocol has no field for: of the version asked for, or else the active one."""

    version: str
    labels: list[str] = Field(description="In the order of the logits.")
    problem_type: ProblemType
    max_length: int
    kind: Kind


class ModelMetadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: ModelParameters


class ModelReady(BaseModel):
    name: str
    ready: bool


class IndexRequest(_Object):
    ready: bool | None = Field(
        None, description="Only models that are ready; here every version is."
    )


class IndexEntry(BaseModel):
    name: str
    version: str
    state: Literal["READY"]
    reason: str


def model_metadata(
    signature: Signature, kind: Kind, version: str, versions: list[str]
) -> ModelMetadata:
    """What one version of a task takes and answers, and its adapter's kind."""
    outputs: list[tuple[str, Datatype, list[int]]] = [
        (LABEL, "BYTES", [-1]),
        (SCORE, "FP32", [-1]),
        (LOGITS, "FP32", [-1, len(signature.labels)]),
    ]
    return ModelMetadata(
        name=signature.task,
        versions=versions,
        platform=PLATFORM,
        inputs=[
            TensorMetadata(name=name, datatype="BYTES", shape=[-1])
            for name in input_names(signature)
        ],
        outputs=[
            TensorMetadata(name=name, datatype=kind, shape=shape) for name, kind, shape in outputs
        ],
        parameters=ModelParameters(
            version=version,
            labels=list(signature.labels),
            problem_type=signature.problem_type,
            max_length=signature.max_length,
            kind=kind,
        ),
    )


def input_names(signature: Signature) -> tuple[str, ...]:
    """The input tensors that a task takes."""
    return (TEXT, PAIR) if signature.text_pair else (TEXT,)
