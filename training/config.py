"""Recipe: every choice of one training run, with the paper's settings as defaults where they do not
depend on the data. What a command does where its user chooses nothing: training.defaults.

Each choice is declared once: its type, its bounds, its default, and how the command line names and
explains it (training.options makes the options of these declarations).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_args, get_type_hints

from adapters.spec import Kind, LoraSite, Pooling
from adapters.text import check_encodable
from training.errors import TrainingError

Method = Literal["adamix", "adapter", "adapter-rdrop", "houlsby", "lora", "bitfit", "head", "full"]
# What a server can apply: one bottleneck after the feed-forward output of a layer, or LoRA. Only
# these can be exported.
SERVABLE: tuple[Method, ...] = ("adamix", "adapter", "adapter-rdrop", "lora")
SERVABLE_NAMES = "adamix, adapter, adapter-rdrop or lora"
TWO_PASSES: tuple[Method, ...] = ("adamix", "adapter-rdrop")  # with either adaptation
LORA_SITES: tuple[LoraSite, ...] = get_args(LoraSite)
Routing = Literal["batch", "rows"]
SecondPass = Literal["random", "mean"]
TaskLoss = Literal["first", "both"]
Selected = Literal["last", "best"]
Calibrated = Literal["auto", "folds", "none"]
Evaluation = Literal["merged", "random", "fixed", "ensemble"]
Precision = Literal["auto", "float32", "bfloat16"]
FileDtype = Literal["float16", "bfloat16", "float32"]

ADAPTER, STEPS, FEW, MACHINE = "Adapter", "Training", "Few-shot and ablations", "Machine"
RESULTS = "Results"


@dataclass(frozen=True)
class Option:
    """How the command line shows a choice: its help, its panel, a name for its values, the type
    that it reads where that is not the field's own. `bounds` are the least and the greatest value
    that a recipe takes. `left_open` says what decides where the user does not."""

    panel: str
    help: str | None = None
    metavar: str | None = None
    reads: Any = None
    bounds: tuple[float, float] | None = None
    left_open: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run; stored in the adapter file as its provenance.

    Files from before 2026-11-28 have `consistency`, the weight of a consistency loss that was a
    sum over the mini-batch, where there is `consistency_weight` now, the weight of a mean; and
    `shots` and `words`, which are `few_shot` and `label_words` now.
    """

    method: Annotated[
        Method,
        Option(
            ADAPTER,
            "`adamix` (routed, then merged), `adapter` (a single bottleneck), `adapter-rdrop` (a"
            " single one, two passes), `lora` (a single LoRA); to compare: `houlsby` (two"
            " bottlenecks a layer), `bitfit` (biases), `head` (frozen encoder), `full` (full"
            " fine-tuning).",
            "NAME",
        ),
    ] = "adamix"
    adaptation: Annotated[
        Kind,
        Option(
            ADAPTER,
            "What `adamix` mixes and `adapter-rdrop` has one of: `bottleneck` or `lora`.",
            "NAME",
        ),
    ] = "bottleneck"
    experts: Annotated[int, Option(ADAPTER, "Experts in each layer's mixture.", bounds=(1, 64))] = 4
    share_down: Annotated[bool, Option(ADAPTER, "One project-down (LoRA's A) for all experts.")] = (
        False
    )
    share_up: Annotated[bool, Option(ADAPTER, "One project-up (LoRA's B) for all experts.")] = True
    bottleneck: Annotated[int, Option(ADAPTER, "Width of the bottleneck.", bounds=(1, 256))] = 16
    rank: Annotated[
        int,
        Option(
            ADAPTER,
            "LoRA's rank; 8 on query and value has the size of a bottleneck of 16.",
            bounds=(1, 256),
        ),
    ] = 8
    alpha: Annotated[
        float | None,
        Option(
            ADAPTER,
            "LoRA's alpha: its scale is alpha / rank. By default the rank, a scale of 1.",
            bounds=(1e-3, 1024),
        ),
    ] = None
    # A text, because it stands in files and checkpoints as it is.
    sites: Annotated[
        str,
        Option(
            ADAPTER,
            "LoRA's linear modules in a layer: some of `query`, `key`, `value`, `attention_out`,"
            " `up`, `down`.",
            "SITE,…",
        ),
    ] = "query,value"
    first_layer: Annotated[
        int,
        Option(
            ADAPTER,
            "Lowest layer with an adapter; tasks share the bare ones below.",
            bounds=(0, 255),
        ),
    ] = 0
    # The adapter, task@version, that every expert starts as.
    init: Annotated[
        str | None,
        Option(
            ADAPTER,
            "An adapter to start from, of another task: same backbone, kind, sizes, first layer.",
            "FILE",
            reads=Path | None,
        ),
    ] = None
    routing: Annotated[
        Routing,
        Option(
            ADAPTER,
            "`batch`: one draw of experts for a mini-batch; `rows`: its rows spread over them.",
            "NAME",
            left_open="rows",
        ),
    ] = "batch"
    second_pass: Annotated[
        SecondPass,
        Option(
            ADAPTER,
            "Through `random` experts again, or through the experts' `mean`.",
            "NAME",
            left_open="mean",
        ),
    ] = "random"
    task_loss: Annotated[
        TaskLoss,
        Option(
            ADAPTER, "On the `first` pass alone, or on `both`.", "NAME", left_open="both for two"
        ),
    ] = "first"
    consistency_weight: Annotated[
        float, Option(ADAPTER, "Weight of the consistency loss; 0 for none.", bounds=(0, 1e6))
    ] = 1.0
    head_first: Annotated[
        bool, Option(ADAPTER, "Fit the head by logistic regression before anything is trained.")
    ] = False
    epochs: Annotated[int, Option(STEPS, bounds=(1, 10_000), left_open="by the rows")]
    select: Annotated[
        Selected,
        Option(
            STEPS,
            "The `last` epoch's weights, or those of the `best` on rows held out of the training"
            " rows: a tenth, but 100 where that is less, at most a third.",
            "NAME",
        ),
    ] = "last"
    patience: Annotated[
        int | None,
        Option(
            STEPS,
            "With `--select best`: end after this many epochs that are no better.",
            bounds=(1, 10_000),
        ),
    ] = None
    calibrate: Annotated[
        Calibrated,
        Option(
            STEPS,
            "The scores' temperature: `auto`, on a tenth of the training rows, held out, from 1,000"
            " rows on; `folds`, by five more trainings, with no row held out; or `none`.",
            "NAME",
        ),
    ] = "auto"
    batch_size: Annotated[
        int,
        Option(STEPS, "Rows in a mini-batch.", bounds=(1, 65_536), left_open="by the rows"),
    ]
    learning_rate: Annotated[
        float,
        Option(
            STEPS,
            "Peak, after the warm-up.",
            bounds=(1e-9, 10),
            left_open="by the method and the backbone's size",
        ),
    ]
    warmup: Annotated[float, Option(STEPS, "Share of all steps.", bounds=(0, 1))] = 0.06
    weight_decay: Annotated[float, Option(STEPS, bounds=(0, 10))] = 0.1
    clip: Annotated[float, Option(STEPS, "Largest gradient norm.", bounds=(1e-6, 1e6))] = 1.0
    max_length: Annotated[int, Option(STEPS, "Tokens; longer texts are cut.", bounds=(8, 8192))] = (
        128
    )
    pooling: Annotated[
        Pooling | None,
        Option(
            ADAPTER,
            "`mean`, `cls` or `pooler`; by default the backbone's.",
            "NAME",
            reads=Literal["mean", "cls", "pooler"] | None,
        ),
    ] = None
    dense_head: Annotated[
        bool | None, Option(ADAPTER, "A hidden layer in the head; by default the family's.")
    ] = None
    prompt: Annotated[
        str | None,
        Option(
            FEW,
            "Score label words by the backbone's own masked-language-model head, at the mask of a"
            " template such as `{text} It was {mask}.` or, for pairs, `{text}? {mask},"
            " {text_pair}`.",
            "TEMPLATE",
        ),
    ] = None
    label_words: Annotated[
        dict[str, str] | None,
        Option(
            FEW,
            "The prompt's word for each label; or a JSON object.",
            "LABEL=WORD,…",
            reads=str | None,
        ),
    ] = None
    positive: Annotated[str | None, Option(RESULTS, "The label whose F1 is reported.")] = None
    evaluate: Annotated[
        Evaluation,
        Option(
            FEW,
            "Of `adamix`: `merged`, or for ablations the mixture by `random` routes (a draw a"
            " batch), by `fixed` ones (the first expert), or the `ensemble` of its experts'"
            " logits.",
            "NAME",
        ),
    ] = "merged"
    few_shot: Annotated[
        int | None,
        Option(
            FEW,
            "This many examples in all, drawn by the seed, classes balanced.",
            bounds=(1, 2**31),
        ),
    ] = None
    seed: Annotated[int, Option(STEPS, bounds=(0, 2**63 - 1))] = 0
    precision: Annotated[
        Precision, Option(MACHINE, "`float32`, `bfloat16`, or `auto`: bfloat16 on a GPU.")
    ] = "auto"
    dtype: Annotated[
        FileDtype, Option(MACHINE, "Of the file: `float16`, `bfloat16` or `float32`.")
    ] = "float16"

    @property
    def passes(self) -> int:
        """Forward passes of a step."""
        two = self.consistency_weight > 0 or self.task_loss == "both"
        return 2 if two and self.method in TWO_PASSES else 1

    @property
    def ranks(self) -> dict[LoraSite, int]:
        """LoRA's rank at each of its sites."""
        return {cast(LoraSite, site): self.rank for site in self.sites.split(",")}

    @property
    def scale(self) -> float:
        """What LoRA's product is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def __post_init__(self) -> None:
        # What a method brings along is set here, so that a file's recipe says it.
        if self.method == "adapter-rdrop":
            object.__setattr__(self, "task_loss", "both")
        if self.method == "lora":
            object.__setattr__(self, "adaptation", "lora")
        check_bounds({name: getattr(self, name) for name in OPTIONS})
        self._check_adaptation()
        self._check_mixture()
        self._check_passes()
        self._check_servable_choices()
        self._check_prompt()
        if self.patience is not None and self.select != "best":
            raise TrainingError(
                f"patience is {self.patience}, but select is {self.select!r}; expected best with it"
            )

    def _check_adaptation(self) -> None:
        if self.adaptation == "lora" and self.method not in (*TWO_PASSES, "lora"):
            raise TrainingError(
                f"adaptation is 'lora', but method is {self.method!r}; expected"
                f" {' or '.join(TWO_PASSES)} with it, or method lora"
            )
        if self.adaptation == "lora" and self.bottleneck != Recipe.bottleneck:
            raise TrainingError(
                f"bottleneck is {self.bottleneck}, but this run trains LoRA; expected rank instead"
            )
        for name in ("rank", "alpha", "sites"):
            if self.adaptation != "lora" and getattr(self, name) != getattr(Recipe, name):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}, but this run trains no LoRA; expected"
                    " method lora or adaptation lora with it"
                )
        self._check_sites()

    def _check_sites(self) -> None:
        named = self.sites.split(",")
        for site in named:
            if site not in LORA_SITES:
                raise TrainingError(
                    f"sites is {self.sites!r}, which names {site!r}; expected some of"
                    f" {', '.join(LORA_SITES)}, with commas between"
                )
            if named.count(site) > 1:
                raise TrainingError(
                    f"sites is {self.sites!r}, which names {site!r} twice; expected different ones"
                )

    def _check_mixture(self) -> None:
        if self.method == "adamix" and self.share_down and self.share_up and self.experts > 1:
            raise TrainingError(
                f"share_down and share_up are both true, so that {self.experts} experts would be"
                " one; expected one of them at most, or one expert"
            )
        if self.method != "adamix" and self.experts != Recipe.experts:
            raise TrainingError(
                f"experts is {self.experts}, but method is {self.method!r}; expected adamix with it"
            )
        for name in ("routing", "second_pass", "evaluate"):
            if self.method != "adamix" and getattr(self, name) != getattr(Recipe, name):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}, which needs a mixture, but method is"
                    f" {self.method!r}; expected adamix"
                )

    def _check_passes(self) -> None:
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

    def _check_servable_choices(self) -> None:
        for name in ("first_layer", "init"):
            if self.method not in SERVABLE and getattr(self, name) != getattr(Recipe, name):
                raise TrainingError(
                    f"{name} is {getattr(self, name)!r}, but method is {self.method!r}; expected"
                    f" {SERVABLE_NAMES} with it"
                )

    def _check_prompt(self) -> None:
        for text in (self.prompt, *(self.label_words or {}).values()):
            if text is not None:
                check_encodable(text, "the prompt or one of its words")
        if (self.prompt is None) != (self.label_words is None):
            alone = "prompt" if self.label_words is None else "label_words"
            raise TrainingError(
                f"{alone} stands alone; expected a prompt and its label words, or neither"
            )
        if self.prompt is None:
            return
        if self.pooling is not None or self.dense_head is not None:
            raise TrainingError(
                "a prompt brings its own head and pooling; expected neither pooling nor dense_head"
                " with it"
            )
        if self.method == "head":
            raise TrainingError(
                "method is 'head', but a prompt's head is frozen; expected a method that trains"
                " more"
            )
        if self.head_first:
            raise TrainingError(
                "head_first is true, but a prompt's head is frozen; expected one of them"
            )


OPTIONS: dict[str, Option] = {
    name: next(part for part in hint.__metadata__ if isinstance(part, Option))
    for name, hint in get_type_hints(Recipe, include_extras=True).items()
}


def check_bounds(choices: Mapping[str, Any]) -> None:
    """Raises TrainingError for a number of a recipe that is out of its bounds, or is none."""
    for name, value in choices.items():
        bounds = OPTIONS[name].bounds
        if value is None or bounds is None:
            continue
        low, high = bounds
        if not isinstance(value, Real) or not low <= float(value) <= high:
            raise TrainingError(f"{name} is {value!r}; expected {low} to {high}")


# The paper's recipe and its released code's (arXiv 2205.12410; roberta_large_mnli_expert_soup.sh),
# but for what depends on the data and the backbone.
PAPER: dict[str, Any] = {
    "method": "adamix",
    "adaptation": "bottleneck",
    "experts": 4,
    "share_down": False,
    "share_up": True,
    "routing": "batch",
    "second_pass": "random",
    "task_loss": "first",
    "consistency_weight": 1.0,
    "head_first": False,
}
