"""Recipe: every choice of one training run, with the paper's settings as defaults where they do not
depend on the data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from adapters.spec import Pooling
from adapters.text import check_encodable
from training.errors import TrainingError

Method = Literal[
    "adamix", "adapter", "adapter-rdrop", "houlsby", "lora", "bitfit", "head", "full"
]
# What a server can apply: one bottleneck after the feed-forward output of a layer. Only these can
# be exported.
SERVABLE: tuple[Method, ...] = ("adamix", "adapter", "adapter-rdrop")
TWO_PASSES: tuple[Method, ...] = ("adamix", "adapter-rdrop")
Routing = Literal["batch", "rows"]
SecondPass = Literal["random", "mean"]
TaskLoss = Literal["first", "both"]
Evaluation = Literal["merged", "random", "fixed", "ensemble"]
Precision = Literal["auto", "float32", "bfloat16"]
FileDtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class Recipe:
    """One training run; stored in the adapter file as its provenance.

    `consistency_weight` is the weight of the consistency regularisation, which is a mean over the
    mini-batch (older files have `consistency` instead: there it was a sum over the mini-batch).
    `routing`, `second_pass` and `task_loss` say what the two passes of a step go through and which
    of them carry the task's loss (training.routing, training.loss). `head_first` fits the head
    before anything is trained (training.head_first). `first_layer` is the lowest one with an adapter: the bare ones below are a trunk that
    tasks can share. `positive` names the label whose F1 is reported. `evaluate` says what of a
    mixture is judged: what it merges into, or its experts at random, one, or all. `shots` draws so
    many training examples in all, by the seed; None takes all. `pooling` and `dense_head` of None
    mean what the backbone's family does. `init` names the adapter, task@version, that every expert
    starts as. `prompt` is a template with a mask, `words` has each label's word there: then the
    frozen head is the backbone's own.
    """

    method: Method = "adamix"
    experts: int = 4
    share_down: bool = False
    share_up: bool = True
    bottleneck: int = 16
    first_layer: int = 0
    init: str | None = None
    routing: Routing = "batch"
    second_pass: SecondPass = "random"
    task_loss: TaskLoss = "first"
    consistency_weight: float = 1.0
    head_first: bool = False
    epochs: int = 10
    batch_size: int = 32
    learning_rate: float = 1e-3
    warmup: float = 0.06
    weight_decay: float = 0.1
    clip: float = 1.0
    max_length: int = 128
    pooling: Pooling | None = None
    dense_head: bool | None = None
    prompt: str | None = None
    words: dict[str, str] | None = None
    positive: str | None = None
    evaluate: Evaluation = "merged"
    shots: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    dtype: FileDtype = "float16"

    def __post_init__(self) -> None:
        bounds: dict[str, tuple[float, float]] = {
            "experts": (1, 64),
            "bottleneck": (1, 256),
            "first_layer": (0, 255),
            "consistency_weight": (0, 1e6),
            "epochs": (1, 10_000),
            "batch_size": (1, 65_536),
            "learning_rate": (1e-9, 10),
            "warmup": (0, 1),
            "weight_decay": (0, 10),
            "clip": (1e-6, 1e6),
            "max_length": (8, 8192),
            "seed": (0, 2**63 - 1),
            "shots": (1, 2**31),
        }
        for name, (low, high) in bounds.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise TrainingError(f"{name} is {value}; expected {low} to {high}")
        if self.method == "adamix" and self.share_down and self.share_up and self.experts > 1:
            raise TrainingError(
                f"share_down and share_up are both true, so that {self.experts} experts would be"
                " one; expected one of them at most, or one expert"
            )
        if self.method != "adamix" and self.experts != Recipe.experts:
            raise TrainingError(
                f"experts is {self.experts}, but method is {self.method!r}; expected adamix with it"
            )
        if self.method == "adapter-rdrop":  # R-Drop's own; said here, so that a file's recipe says it
            object.__setattr__(self, "task_loss", "both")
        self._check_passes()
        if self.evaluate != "merged" and self.method != "adamix":
            raise TrainingError(
                f"evaluate is {self.evaluate!r}, which needs a mixture, but method is"
                f" {self.method!r}; expected adamix"
            )
        if self.first_layer and self.method not in SERVABLE:
            raise TrainingError(
                f"first_layer is {self.first_layer}, but method is {self.method!r}; expected"
                f" {' or '.join(SERVABLE)} with it"
            )
        if self.init is not None and self.method not in SERVABLE:
            raise TrainingError(
                f"init is {self.init!r}, but method is {self.method!r}; expected"
                f" {' or '.join(SERVABLE)} with it"
            )
        for text in (self.prompt, *(self.words or {}).values()):
            if text is not None:
                check_encodable(text, "the prompt or one of its words")
        if (self.prompt is None) != (self.words is None):
            alone = "prompt" if self.words is None else "words"
            raise TrainingError(
                f"{alone} stands alone; expected a prompt and its label words, or neither"
            )
        if self.prompt is not None and (self.pooling is not None or self.dense_head is not None):
            raise TrainingError(
                "a prompt brings its own head and pooling; expected neither pooling nor dense_head"
                " with it"
            )
        if self.prompt is not None and self.method == "head":
            raise TrainingError(
                "method is 'head', but a prompt's head is frozen; expected a method that trains"
                " more"
            )
        if self.prompt is not None and self.head_first:
            raise TrainingError(
                "head_first is true, but a prompt's head is frozen; expected one of them"
            )

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        two = self.consistency_weight > 0 or self.task_loss == "both"
        return 2 if two and self.method in TWO_PASSES else 1

    def _check_passes(self) -> None:
        for name in ("routing", "second_pass"):
            if self.method != "adamix" and getattr(self, name) != getattr(Recipe, name):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}, which needs a mixture, but method is"
                    f" {self.method!r}; expected adamix"
                )
        if self.task_loss == "both" and self.method not in TWO_PASSES:
            raise TrainingError(
                f"task_loss is 'both', but a step of method {self.method!r} has one pass; expected"
                f" {' or '.join(TWO_PASSES)}"
            )
        if self.second_pass == "mean" and self.experts == 1:
            raise TrainingError(
                "second_pass is 'mean', but experts is 1, whose mean is itself; expected 2 experts"
                " or more, or method adapter-rdrop, which is that"
            )
        if self.second_pass == "mean" and self.passes == 1:
            raise TrainingError(
                "second_pass is 'mean', but there is no second pass: consistency_weight is 0 and"
                " task_loss 'first'; expected a weight above 0, or task_loss both"
            )
