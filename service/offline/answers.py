"""One row's answer as a file has it, and who gives the answers: a task of this process's engine, or
of a running server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import httpx2
import msgspec

from adapters.spec import ProblemType
from adapters.text import TextInput
from adapters.upload import asked, parsed_json, path_of
from service.offline.errors import CannotScore
from service.predictor import Admitted, Predictor
from service.scores import answer_of, check_finite, default_function, least_confidence

ROWS = 32  # of a request to a server
CONNECTIONS = 4


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """`prediction` is a label, None where the answer abstains; a list of labels, those above ½; or
    a number. `score` is that of the best label, None for a number. `scores` are all labels', in
    their order; none where the answer abstains."""

    prediction: str | list[str] | float | None
    score: float | None
    scores: list[float]


@dataclass(frozen=True)
class Scored:
    """What is answered: a version of a task, and what it takes. `digest` is that of the version, or
    its beginning."""

    task: str
    digest: str
    labels: tuple[str, ...]
    problem_type: ProblemType
    text_pair: bool

    def answer(self, entries: Sequence[dict[str, Any]]) -> Answer:
        """Of what /predict answers for one row. Raises KeyError for labels that are not the
        task's."""
        best = entries[0]
        if self.problem_type == "regression":
            return Answer(float(best["score"]), None, [])
        if best["label"] is None:
            return Answer(None, float(best["score"]), [])
        by_label = {entry["label"]: float(entry["score"]) for entry in entries}
        scores = [by_label[label] for label in self.labels]
        if self.problem_type == "multi_label_classification":
            above = [label for label, score in zip(self.labels, scores, strict=True) if score > 0.5]
            return Answer(above, float(best["score"]), scores)
        return Answer(best["label"], float(best["score"]), scores)


class _Known(msgspec.Struct):
    version: str
    labels: tuple[str, ...]
    problem_type: ProblemType


class _Input(msgspec.Struct):
    name: str


class _Model(msgspec.Struct):
    """What is needed of a server's answer about a task, which may be any server's."""

    parameters: _Known
    inputs: list[_Input]


class Answerer(Protocol):
    """`strict`: whether texts with control characters are refused."""

    scored: Scored
    strict: bool

    async def answers(self, texts: list[TextInput]) -> list[Answer]:
        """One for each row, in order. Texts that are too long are cut."""


class EngineAnswerer:
    """Asks a predictor of this process: the batches of a service, without HTTP."""

    strict = False

    def __init__(self, predictor: Predictor, admitted: Admitted, abstain: float | None) -> None:
        """Raises InvalidRequest if the task cannot abstain so."""
        self._predictor, self._admitted = predictor, admitted
        signature = admitted.signature
        self._least = None if abstain is None else least_confidence(signature, abstain)
        self._function = default_function(signature.problem_type)
        self.scored = Scored(
            signature.task,
            admitted.digest,
            signature.labels,
            signature.problem_type,
            signature.text_pair,
        )

    async def answers(self, texts: list[TextInput]) -> list[Answer]:
        """Raises NotFinite, or what the device raises."""
        signature = self._admitted.signature
        tokens = await self._predictor.tokenizer.encode(
            texts, signature.max_length, signature.template, truncate=True
        )
        outcomes = await self._predictor.run([(self._admitted, row) for row in tokens])
        logits = [outcome.value for outcome in outcomes]
        for i, row in enumerate(logits):
            check_finite(self._admitted, [row], self._predictor.dtype, i)
        return [
            self.scored.answer(answer_of(row, signature, self._function, None, self._least))
            for row in logits
        ]


class ServerAnswerer:
    """Asks a server, a few requests at once. One that is overloaded is asked again when it says."""

    strict = True

    def __init__(
        self, client: httpx2.Client, task: str, version: str | None, abstain: float | None
    ) -> None:
        """`version` None: the one that is active now, for all rows. Raises CannotUpload or
        CannotScore."""
        self._client, self._abstain = client, abstain
        self._threads = ThreadPoolExecutor(CONNECTIONS, thread_name_prefix="client")
        pinned = () if version is None else ("versions", version)
        path = path_of("v2", "models", task, *pinned)
        said = parsed_json(asked(client, "GET", path))
        try:
            model = msgspec.convert(said, _Model)
        except msgspec.ValidationError:
            raise CannotScore(
                f"{client.base_url} does not say what task {task!r} takes; expected an adamix-serve"
            ) from None
        known = model.parameters
        inputs = [tensor.name for tensor in model.inputs]
        self.scored = Scored(
            task, known.version, known.labels, known.problem_type, "text_pair" in inputs
        )

    async def answers(self, texts: list[TextInput]) -> list[Answer]:
        """Raises CannotUpload or CannotScore."""
        loop = asyncio.get_running_loop()
        parts = [texts[start : start + ROWS] for start in range(0, len(texts), ROWS)]
        found = await asyncio.gather(
            *(loop.run_in_executor(self._threads, self._ask, part) for part in parts)
        )
        return [answer for part in found for answer in part]

    def _ask(self, texts: list[TextInput]) -> list[Answer]:
        inputs = [
            {"text": text[0], "text_pair": text[1]} if len(text) == 2 else text[0] for text in texts
        ]
        body: dict[str, Any] = {"inputs": inputs, "truncate": True}
        if self._abstain is not None:
            body["parameters"] = {"abstain": self._abstain}
        at = {"task": self.scored.task, "version": self.scored.digest}
        said = parsed_json(asked(self._client, "POST", "/predict", params=at, json=body))
        try:
            answers = [self.scored.answer(row) for row in said]
            numbers = [
                score
                for each in answers
                for score in (each.score, each.prediction, *each.scores)
                if isinstance(score, float)
            ]
            if len(answers) == len(texts) and all(map(math.isfinite, numbers)):
                return answers
        except (KeyError, TypeError, ValueError, IndexError):
            pass
        raise CannotScore(
            f"the server answered with something else than the scores of {len(texts)} rows;"
            " expected an adamix-serve"
        )
