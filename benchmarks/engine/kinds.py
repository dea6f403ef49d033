"""Both kinds of adapter in one batch: against the bare backbone, and the LoRA half against PEFT.
`python -m benchmarks.engine.mixed_batch --kinds` runs it."""

from __future__ import annotations

import copy
import json
import random
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from rich.table import Table

from adapters import backbone as backbones
from adapters.backbone import Backbone
from adapters.file import Adapter, parse
from adapters.lora import MODULES
from adapters.spec import LoraSite
from adapters.text import encode
from benchmarks.contest import summary, turns
from benchmarks.stores import MAX_LENGTH, random_file
from service.engine.engine import Engine
from service.engine.row import Row
from service.engine.slots import Slots
from training.hardware import hardware

Batch = list[tuple[int, str]]  # (task, text)
Ranks = Mapping[LoraSite, int] | None  # None: a bottleneck of 16

QUERY_VALUE: Ranks = {"query": 8, "value": 8}
ALL_SITES: Ranks = dict.fromkeys(MODULES, 64)
# the LoRA half last
MIX: list[Ranks] = [*[None] * 16, *[QUERY_VALUE] * 8, *[ALL_SITES] * 8]
LOW_RANK: list[Ranks] = [QUERY_VALUE] * 64
ROWS, MOST_LABELS = 64, 20


def measure(corpus: list[str], batches: int, repeats: int, out: Path, texts: str) -> None:
    """Print a table and write JSON.

    - mix:   64 rows over 32 tasks, 16 of bottleneck 16, 8 of LoRA of rank 8 at query and value, 8
             of LoRA of rank 64 at all six sites, with 1 to 20 labels
    - lora:  64 rows over 64 tasks of LoRA of rank 8 at query and value
    - bare:  the same rows without adapters and heads
    - half:  the rows of `mix` whose adapters are LoRA, in batches of their own
    - peft:  the rows of `half` in PEFT's mixed batches: transformers' model, padded, one
             `LoraConfig` per task, `adapter_names`. All heads have two labels, because PEFT's heads
             of one batch must have the same number

    Times are CPU seconds of this process, so that others on the machine disturb them less. Run it
    on one core: threads that wait for each other count as work.
    """
    rng = random.Random(0)
    backbone = backbones.load()
    mix = Ours(backbone, MIX, rng)
    low_rank = Ours(backbone, LOW_RANK, rng)
    first_lora = MIX.index(QUERY_VALUE)
    theirs = Theirs(backbone, mix.adapters[first_lora:])
    picked = [rng.choices(corpus, k=ROWS) for _ in range(batches)]
    works: dict[str, list[Batch]] = {
        "mix": [[(rng.randrange(len(MIX)), text) for text in batch] for batch in picked],
        "lora": [list(enumerate(batch)) for batch in picked],
    }
    half = [[(task, text) for task, text in batch if task >= first_lora] for batch in works["mix"]]
    for_peft = [[(task - first_lora, text) for task, text in batch] for batch in half]
    difference = max(theirs.check(batch) for batch in for_peft)
    assert difference < 1e-3, f"PEFT and this engine differ by {difference}"
    runs: dict[str, tuple[Callable[[Batch], object], list[Batch]]] = {
        "mix": (mix.run, works["mix"]),
        "lora": (low_rank.run, works["lora"]),
        "bare": (mix.bare, works["mix"]),
        "half": (mix.run, half),
        "peft": (theirs.run, for_peft),
    }
    speeds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(-1, repeats):  # the first one warms up
        for name, (run, work) in turns(list(runs.items()), repeat):
            seconds = sum(_seconds(run, batch) for batch in work)
            if repeat >= 0:
                speeds[name].append(sum(map(len, work)) / seconds)
    pairs = {"mix / bare": ("mix", "bare"), "lora / bare": ("lora", "bare")}
    pairs["half / peft"] = ("half", "peft")
    result = {
        "command": " ".join(["python", "-m", "benchmarks.engine.mixed_batch", *sys.argv[1:]]),
        "settings": {"rows": ROWS, "batches": batches, "repeats": repeats, "texts": texts},
        "tokens_per_batch": round(sum(map(mix.tokens, works["mix"])) / batches, 1),
        "texts_per_cpu_second": {name: summary(values) for name, values in speeds.items()},
        "ratios": {
            name: summary([a / b for a, b in zip(speeds[one], speeds[other], strict=True)])
            for name, (one, other) in pairs.items()
        },
        "largest_difference_to_peft": float(f"{difference:.2g}"),
        "hardware": hardware(torch.device("cpu")),
        "versions": {module.__name__: module.__version__ for module in (torch, transformers, peft)},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("what", "median", "range")
    for group, unit in (("texts_per_cpu_second", " texts/CPU s"), ("ratios", "×")):
        for name, v in result[group].items():
            table.add_row(name, f"{v['median']:.3g}{unit}", f"{v['low']:.3g} – {v['high']:.3g}")
    Console().print(table)
    Console().print(f"written to {out}")


class Ours:
    """This engine with an adapter a task."""

    def __init__(self, backbone: Backbone, kinds: list[Ranks], rng: random.Random) -> None:
        self.backbone = backbone
        self.adapters = [
            parse(
                random_file(
                    backbone, f"task-{i}", i, ranks=ranks, labels=rng.randint(1, MOST_LABELS)
                )
            )
            for i, ranks in enumerate(kinds)
        ]
        cpu = torch.device("cpu")
        self.engine = Engine(backbone, Slots(len(kinds), cpu, torch.float32), cpu, torch.float32)

    def run(self, batch: Batch) -> list[list[float]]:
        return self.engine.run(self._rows(batch))

    @torch.inference_mode()
    def bare(self, batch: Batch) -> list[list[float]]:
        encoder = self.engine.encoder
        packed = encoder.pack([(row.ids, row.types) for row in self._rows(batch)])
        pooled: list[list[float]] = encoder.pool_mean(encoder.forward(packed), packed).tolist()
        return pooled

    def tokens(self, batch: Batch) -> int:
        return sum(row.tokens for row in self._rows(batch))

    def _rows(self, batch: Batch) -> list[Row]:
        tokens = encode(self.backbone.tokenizer, [(text,) for _, text in batch], MAX_LENGTH)
        return [
            Row(self.adapters[task], row.ids, row.types)
            for (task, _), row in zip(batch, tokens, strict=True)
        ]


class Theirs:
    """PEFT with the same LoRA weights."""

    def __init__(self, backbone: Backbone, adapters: list[Adapter]) -> None:
        self.backbone, self.adapters = backbone, adapters
        config = copy.deepcopy(backbone.config)
        config.num_labels = 2
        base = transformers.BertForSequenceClassification(config)
        base.bert.load_state_dict(backbone.encoder.state_dict(), strict=False)
        self.model = peft.get_peft_model(base, _config(adapters[0]), adapter_name="task-0")
        for i, adapter in enumerate(adapters[1:], 1):
            self.model.add_adapter(f"task-{i}", _config(adapter))
        self.model.eval()
        parameters = dict(self.model.named_parameters())
        with torch.no_grad():
            for i, adapter in enumerate(adapters):
                for site in adapter.spec.ranks or ():
                    for layer in range(config.num_hidden_layers):
                        place = f"base_model.model.bert.encoder.layer.{layer}.{MODULES[site]}"
                        for side in ("a", "b"):
                            name = f"{place}.lora_{side.upper()}.task-{i}.weight"
                            parameters[name].copy_(adapter.tensors[f"lora.{site}.{side}"][layer])

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[list[float]]:
        logits: list[list[float]] = self._forward(batch)[0].logits.tolist()
        return logits

    @torch.inference_mode()
    def check(self, batch: Batch) -> float:
        """The largest difference of the last hidden states from those of this engine."""
        output, lengths = self._forward(batch, output_hidden_states=True)
        cpu = torch.device("cpu")
        slots = Slots(len(self.adapters), cpu, torch.float32)
        engine = Engine(self.backbone, slots, cpu, torch.float32)
        seen: list[torch.Tensor] = []
        pool = engine.encoder.pool_mean
        engine._poolings["mean"] = lambda hidden, packed: (
            seen.append(hidden) or pool(hidden, packed)
        )  # type: ignore[func-returns-value]
        differences = []
        tokens = encode(self.backbone.tokenizer, [(text,) for _, text in batch], MAX_LENGTH)
        for i, ((task, _), row) in enumerate(zip(batch, tokens, strict=True)):
            engine.run([Row(self.adapters[task], row.ids, row.types)])
            theirs = output.hidden_states[-1][i, : lengths[i]]
            differences.append(float((seen[-1] - theirs).abs().max()))
        return max(differences)

    def _forward(self, batch: Batch, **options: Any) -> tuple[Any, list[int]]:
        rows = encode(self.backbone.tokenizer, [(text,) for _, text in batch], MAX_LENGTH)
        lengths = [len(row.ids) for row in rows]
        width = max(lengths)
        output = self.model(
            input_ids=torch.tensor([row.ids + [0] * (width - len(row.ids)) for row in rows]),
            attention_mask=torch.tensor([[1] * n + [0] * (width - n) for n in lengths]),
            adapter_names=[f"task-{task}" for task, _ in batch],
            **options,
        )
        return output, lengths


def _config(adapter: Adapter) -> peft.LoraConfig:
    ranks, scale = adapter.spec.ranks, adapter.spec.scale
    assert ranks is not None
    assert scale is not None
    (rank,) = set(ranks.values())
    modules = "|".join(MODULES[site].replace(".", r"\.") for site in ranks)
    return peft.LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=round(rank * scale),
        target_modules=rf".*\.layer\.\d+\.({modules})",
    )


def _seconds(run: Callable[[Batch], object], batch: Batch) -> float:
    started = time.process_time()
    run(batch)
    return time.process_time() - started
