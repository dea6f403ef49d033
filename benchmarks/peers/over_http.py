"""The contestants that are servers, each in its process, and what they share: one text a request,
so many at once."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.contest import Materials, Rows, difference, turns
from benchmarks.http import load
from benchmarks.http.load import Call, Phase
from benchmarks.http.server import Server, running, service, surroundings
from benchmarks.peers.processes import SCRIPTS, python_of
from service.engine.native.choice import choose
from service.engine.quantized import lacking

CPU = torch.device("cpu")
Question = tuple[int, str]  # a task's number, a text


@dataclass(frozen=True)
class Contestant:
    server: Server
    call: Callable[[Question], Call]
    scores: Callable[[Any], list[dict[str, Any]]]  # of an answer: label and score


class Servers:
    """Started, and ready to take turns."""

    def __init__(self, contestants: dict[str, Contestant]) -> None:
        self.contestants = contestants

    def check(self, questions: list[Question], expected: Rows) -> dict[str, float]:
        """The greatest difference of the service's scores from the expected ones, and of others' in
        float32 from the pipelines', which hold the same model. Raises RuntimeError."""
        found = {
            "service: scores, ours: mixed": difference(
                "the service", self._scores("service", questions), expected
            )
        }
        for name in ("infinity", "onnxruntime", "openvino"):
            if name in self.contestants:
                answers = self._scores(name, questions), self._scores("pipelines", questions)
                found[f"{name}, pipelines"] = difference(f"{name} and the pipelines", *answers)
        return found

    def measure(
        self, texts: list[str], tasks: int, repeats: int, seconds: float, concurrency: int
    ) -> dict[str, list[Phase]]:
        """Every server's phases, one a repeat."""
        phases: dict[str, list[Phase]] = {name: [] for name in self.contestants}
        for repeat in range(-1, repeats):  # the first one warms up
            for name in turns(list(self.contestants), repeat):
                contestant, questions = self.contestants[name], asked(texts, tasks, seed=repeat)
                phase = load.closed_loop(
                    contestant.server.url, map(contestant.call, questions), seconds, concurrency
                )
                if repeat >= 0:
                    phases[name].append(phase)
        return phases

    def _scores(self, name: str, questions: list[Question]) -> Rows:
        contestant = self.contestants[name]
        answers = load.answers(contestant.server.url, list(map(contestant.call, questions)))
        by_label = [
            sorted(contestant.scores(answer), key=lambda entry: entry["label"])
            for answer in answers
        ]
        return [[entry["score"] for entry in row] for row in by_label]


@contextlib.contextmanager
def started(of: Materials, without: set[str]) -> Iterator[Servers]:
    makers: dict[str, Callable[[Materials], Made]] = {
        "service": partial(_service, dtype="float32"),
        "service int8": partial(_service, dtype="int8"),
        "pipelines": _pipelines,
        "infinity": _infinity,
        "onnxruntime": partial(_copies, runtime="onnxruntime", dtype="float32"),
        "onnxruntime int8": partial(_copies, runtime="onnxruntime", dtype="int8"),
        "openvino": partial(_copies, runtime="openvino", dtype="float32"),
    }
    if choose("auto", CPU, torch.int8).library is None and lacking(CPU):  # it refuses int8
        del makers["service int8"]
    with ExitStack() as stack:
        contestants = {}
        for name, make in makers.items():
            if not set(name.split()) & without:
                server, call, scores = make(of)
                contestants[name] = Contestant(stack.enter_context(server), call, scores)
        yield Servers(contestants)


def asked(texts: list[str], tasks: int, seed: int) -> Iterator[Question]:
    """Questions without end: the same ones for the same seed."""
    rng = random.Random(seed)
    while True:
        yield rng.randrange(tasks), rng.choice(texts)


Made = tuple[
    AbstractContextManager[Server],
    Callable[[Question], Call],
    Callable[[Any], list[dict[str, Any]]],
]


def _service(of: Materials, dtype: str) -> Made:
    def call(question: Question) -> Call:
        task, text = question
        return Call(
            f"/predict?task={of.tasks[task]}",
            json.dumps({"inputs": text, "truncate": True}).encode(),
        )

    # read-only, for two of them have the store
    made = service(of.store, of.backbone, dtype=dtype, read_only=True)
    return made, call, lambda answer: answer


def _pipelines(of: Materials) -> Made:
    return _by_task(sys.executable, "pipeline_server.py", of.model, len(of.tasks))


def _copies(of: Materials, runtime: str, dtype: str) -> Made:
    python = python_of(runtime)
    return _by_task(python, "copies_server.py", runtime, of.model, len(of.tasks), dtype)


def _by_task(python: Path | str, script: str, *arguments: object) -> Made:
    command = [str(python), str(SCRIPTS / script), *map(str, arguments), "{port}"]

    def call(question: Question) -> Call:
        task, text = question
        return Call(f"/classify?task={task}", json.dumps({"inputs": text}).encode())

    return running(command, surroundings({}), "/ready"), call, lambda answer: answer


def _infinity(of: Materials) -> Made:
    program = str(python_of("infinity").parent / "infinity_emb")
    # "Better transformer" is for GPUs; everybody is warmed up alike; and its makers need no report
    # of this.
    options = [
        "--engine",
        "torch",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--no-bettertransformer",
        "--no-model-warmup",
    ]
    address = ["--host", "127.0.0.1", "--port", "{port}"]
    command = [program, "v2", "--model-id", str(of.model), *address, *options]
    environment = surroundings({"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"})

    def call(question: Question) -> Call:
        return Call(
            "/classify", json.dumps({"model": of.model.name, "input": [question[1]]}).encode()
        )

    return running(command, environment, "/health"), call, lambda answer: answer["data"][0]
