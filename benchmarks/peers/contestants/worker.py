"""A contestant's process: does one repeat when told to, over lines of JSON.

    → {"run": "mixed", "batches": [[[3, ["a text"]], [0, ["a text", "its pair"]]]],
       "answers": false}
    ← {"seconds": 0.12, "processor_seconds": 0.24, "answers": null}

A batch is a list of (task, text or pair), an answer the logits of its rows in their order. The
scripts beside this file are started by their paths, so that this folder is all they see of the
repository: AdapterHub's package is called `adapters`, too.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast

MAX_LENGTH = 128
Batch = list[tuple[int, list[str]]]
Rows = list[list[float]]


def serve(runs: dict[str, Callable[[Batch], Rows]], versions: dict[str, str]) -> None:
    """Answer requests until there are no more, on the pipe that ANSWERS in the environment
    names."""
    out = os.fdopen(int(os.environ["ANSWERS"]), "w", buffering=1)
    out.write(json.dumps({"torch": torch.__version__, **versions}) + "\n")
    for line in sys.stdin:
        request = json.loads(line)
        run, batches = runs[request["run"]], request["batches"]
        with torch.inference_mode():
            started, used = time.perf_counter(), time.process_time()
            answers = [run(batch) for batch in batches]
            seconds, used = time.perf_counter() - started, time.process_time() - used
        answer = {
            "seconds": seconds,
            "processor_seconds": used,
            "answers": answers if request["answers"] else None,
        }
        out.write(json.dumps(answer) + "\n")


class Padded:
    """transformers' own way to a batch: its tokeniser, padded to the longest row."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(model / "tokenizer.json"),
            pad_token="[PAD]",
            cls_token="[CLS]",
            sep_token="[SEP]",
        )
        self._length = max_length(model)

    def __call__(self, texts: list[list[str]]) -> Any:
        parts = [list(part) for part in zip(*texts, strict=True)]
        options = {
            "padding": True,
            "truncation": True,
            "max_length": self._length,
            "return_tensors": "pt",
        }
        return self._tokenizer(*parts, return_token_type_ids=True, **options)


def max_length(model: Path) -> int:
    """The most tokens of a row, of which a longer text loses the rest."""
    config = json.loads((model / "config.json").read_text())
    return min(MAX_LENGTH, config["max_position_embeddings"])


def by_task(batch: Batch) -> dict[int, list[int]]:
    """Which rows of a batch belong to each task."""
    rows: dict[int, list[int]] = {}
    for i, (task, _) in enumerate(batch):
        rows.setdefault(task, []).append(i)
    return rows


def in_turn(batch: Batch, run: Callable[[int, list[list[str]]], Rows]) -> Rows:
    """A batch split by task, each part run by itself; the answers in the rows' order."""
    answers: Rows = [[] for _ in batch]
    for task, rows in by_task(batch).items():
        for i, answer in zip(rows, run(task, [batch[i][1] for i in rows]), strict=True):
            answers[i] = answer
    return answers
