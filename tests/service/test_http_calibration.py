"""Calibrated scores and abstention over HTTP: by a file's temperatures and its risk-coverage
table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.backbone import Backbone
from adapters.file import parse, serialize
from adapters.spec import AdapterSpec
from adapters.store import Store
from tests.service.conftest import TASKS, running
from tests.service.test_http_predict import PAIR, by_label, predict
from tests.tiny import random_adapter

TEXTS = [
    f"it is a {word} film {'and very long ' * n}" for word in ("good", "bad") for n in range(6)
]
HEAT = {"sst2": (2.5,), "mnli": (0.4,), "topics": (0.5, 1.0, 2.0, 4.0, 8.0)}
RAW = {"function_to_apply": "none"}


def file(backbone: Backbone, task: str, points: list[tuple[float, float, float]]) -> bytes:
    spec, tensors, _ = random_adapter(backbone, task, **TASKS[task])
    names = ("accuracy", "coverage", "threshold")
    table = [dict(zip(names, point, strict=True)) for point in points]
    known = {"temperatures": HEAT.get(task), "risk_coverage": table or None}
    return serialize(AdapterSpec.model_validate({**dict(spec), **known}), tensors)


@pytest.fixture(scope="module")
def heated(embedded: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx2.Client]:
    """A service whose sst2, mnli and topics have temperatures, and sst2 a table that keeps the half
    of TEXTS for 0.9, and none for 0.99."""
    folder = tmp_path_factory.mktemp("heated") / "store"
    with Store(folder) as store:
        for task in TASKS:
            store.put(parse(file(embedded, task, [])))
    with running(folder) as server, server.client() as client:
        rows = predict(client, "sst2", TEXTS)
        sure = sorted(row[0]["score"] for row in rows)
        points = [(0.8, 1.0, 0.0), (0.9, 0.5, sum(sure[5:7]) / 2), (0.99, 0.1, 1.0)]
        answer = client.post("/adapters", files={"file": file(embedded, "sst2", points)})
        assert answer.status_code == 201, answer.text
        yield client


def softmax(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


@pytest.mark.parametrize("task", HEAT)
def test_scores_are_of_calibrated_logits(task: str, heated: httpx2.Client) -> None:
    """Scores are those of the logits over the temperatures; `none` answers the logits as they
    are."""
    text = PAIR if TASKS[task].get("text_pair") else "the plot was awful"
    labels = TASKS[task]["labels"]
    raw = by_label(predict(heated, task, text, parameters=RAW))
    assert raw == by_label(predict(heated, task, text, raw_scores=True))
    cooled = [
        raw[label] / HEAT[task][i if len(HEAT[task]) > 1 else 0] for i, label in enumerate(labels)
    ]
    expected = [sigmoid(value) for value in cooled] if task == "topics" else softmax(cooled)
    found = predict(heated, task, text)
    assert by_label(found) == pytest.approx(dict(zip(labels, expected, strict=True)))
    assert [entry["score"] for entry in found] == pytest.approx(sorted(expected, reverse=True))
    if task != "topics":
        best = max(raw, key=raw.__getitem__)
        assert predict(heated, task, text, parameters={"top_k": 1})[0]["label"] == best
    sigmoids = by_label(predict(heated, task, text, parameters={"function_to_apply": "sigmoid"}))
    assert sigmoids == pytest.approx(
        {label: sigmoid(value) for label, value in zip(labels, cooled, strict=True)}
    )


def infer(client: httpx2.Client, task: str, **parameters: Any) -> dict[str, Any]:
    tensor = {"name": "text", "shape": [len(TEXTS)], "datatype": "BYTES", "data": TEXTS}
    answer = client.post(
        f"/v2/models/{task}/infer", json={"inputs": [tensor], "parameters": parameters}
    )
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def test_v2_answers_the_same(heated: httpx2.Client) -> None:
    """V2's scores are those of /predict, and its logits are as they are."""
    found = infer(heated, "sst2")
    rows = predict(heated, "sst2", TEXTS)
    assert found["label"] == [row[0]["label"] for row in rows]
    assert found["score"] == pytest.approx([row[0]["score"] for row in rows])
    raw = predict(heated, "sst2", TEXTS[0], parameters=RAW)
    assert found["logits"][:2] == pytest.approx([by_label(raw)[x] for x in TASKS["sst2"]["labels"]])


def test_abstention(heated: httpx2.Client) -> None:
    """Below the threshold of the accuracy that is asked for, the label is null and the score the
    confidence; other rows are answered as ever. V2 has an empty label there."""
    rows = predict(heated, "sst2", TEXTS)
    found = predict(heated, "sst2", TEXTS, parameters={"abstain": 0.9})
    sure = sorted((row[0]["score"] for row in rows), reverse=True)[:6]
    for row, before in zip(found, rows, strict=True):
        score = before[0]["score"]
        assert row == (before if score in sure else [{"label": None, "score": score}])
    raw = predict(heated, "sst2", TEXTS, parameters={"abstain": 0.9, **RAW, "top_k": 1})
    assert [row[0]["label"] for row in raw] == [row[0]["label"] for row in found]
    inferred = infer(heated, "sst2", abstain=0.9)
    assert inferred["label"] == [row[0]["label"] or "" for row in found]
    assert inferred["score"] == pytest.approx([row[0]["score"] for row in rows])


@pytest.mark.parametrize(("accuracy", "left"), [(0.5, 12), (0.8, 12), (0.85, 6), (0.95, 0)])
def test_the_next_point_of_the_table(accuracy: float, left: int, heated: httpx2.Client) -> None:
    """An accuracy between two points of the table is answered by the higher one."""
    found = predict(heated, "sst2", TEXTS, parameters={"abstain": accuracy})
    assert sum(row[0]["label"] is not None for row in found) == left


@pytest.mark.parametrize(
    ("task", "abstain", "sentence"),
    [
        ("sst2", 0.995, "abstain is 0.995; expected at most 0.99, the highest accuracy that task"),
        ("mnli", 0.9, "task 'mnli' cannot abstain: its file has no risk-coverage table"),
        ("topics", 0.9, "its problem type is multi_label_classification; expected no abstain"),
        ("sst2", 0, "parameters.abstain is 0; expected greater than 0"),
        ("sst2", 1, "parameters.abstain is 1; expected less than 1"),
        ("sst2", "0.9", "parameters.abstain is '0.9'; expected a valid number"),
        ("sst2", 95, "parameters.abstain is 95; expected less than 1"),
    ],
)
def test_what_cannot_be_asked(
    task: str, abstain: Any, sentence: str, heated: httpx2.Client
) -> None:
    """An accuracy that the table does not reach, or a task without a table, is refused in a
    sentence: a client that waits for labels would else get none, and not know why."""
    inputs: Any = [PAIR] if TASKS[task].get("text_pair") else TEXTS
    answer = heated.post(
        "/predict",
        params={"task": task},
        json={"inputs": inputs, "parameters": {"abstain": abstain}},
    )
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_the_table_is_shown(heated: httpx2.Client) -> None:
    """GET /adapters/{task} has the temperatures and the table."""
    spec = heated.get("/adapters/sst2").json()["spec"]
    assert spec["temperatures"] == [2.5]
    assert [point["accuracy"] for point in spec["risk_coverage"]] == [0.8, 0.9, 0.99]
    assert not {"temperatures", "risk_coverage"} & set(heated.get("/adapters/mrpc").json()["spec"])


def test_front_ends_do_the_same(embedded: Backbone, tmp_path: Path, heated: httpx2.Client) -> None:
    """Processes that speak HTTP for the engine know temperatures and thresholds, too."""
    points = heated.get("/adapters/sst2").json()["spec"]["risk_coverage"]
    with Store(tmp_path / "store") as store:
        store.put(parse(file(embedded, "sst2", [tuple(point.values()) for point in points])))
    with running(tmp_path / "store", workers=2) as server, server.client() as client:
        asked = {"abstain": 0.9}
        found = predict(client, "sst2", TEXTS, parameters=asked)
        expected = predict(heated, "sst2", TEXTS, parameters=asked)
        assert [row[0]["label"] for row in found] == [row[0]["label"] for row in expected]
        assert found[0][0]["score"] == pytest.approx(expected[0][0]["score"])
