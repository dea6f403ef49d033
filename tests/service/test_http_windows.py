"""Long texts by windows, over HTTP: what the reference model says of each window, joined; and what
is refused."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.store import Store
from adapters.text import Tokens
from service.aggregation import aggregated
from tests.service.conftest import TASKS, Server
from tests.service.test_http_operations import value
from tests.service.test_http_predict import by_label, predict

LONG = "the film is not very good and the plot was awful but it is great in red and blue " * 12
SECOND = "it was a good film"


def reference(server: Server, embedded: Backbone, task: str, stride: int) -> Tensor:
    """Logits `[W, C]`: the tokenizers library's own overflow, and transformers on each window."""
    adapter = Store(server.store, read_only=True).get(task)
    tokenizer = Tokenizer.from_str(embedded.tokenizer.to_str())
    tokenizer.enable_truncation(adapter.spec.max_length, stride=stride, strategy="only_first")
    encoding = tokenizer.encode(*((LONG, SECOND) if adapter.spec.text_pair else (LONG,)))
    rows = [
        Tokens(part.ids, part.type_ids, len(part.ids)) for part in (encoding, *encoding.overflowing)
    ]
    assert len(rows) > 3
    logits: Tensor = from_adapter(embedded, adapter)(collate(rows))
    return logits


@pytest.mark.parametrize("aggregate", ["mean", "max"])
@pytest.mark.parametrize("task", TASKS)
def test_windows_are_the_reference_s(
    task: str, aggregate: str, server: Server, client: httpx2.Client, embedded: Backbone
) -> None:
    """For every kind of task, from /predict and infer, a long text's logits are the mean or maximum
    over its windows."""
    windows = reference(server, embedded, task, stride=16)
    if aggregate == "max" and TASKS[task].get("problem_type") is None:
        windows = windows.log_softmax(-1)
    wanted = (windows.mean(0) if aggregate == "mean" else windows.amax(0)).tolist()
    inputs = {"text": LONG} | ({"text_pair": SECOND} if TASKS[task].get("text_pair") else {})
    window = {"stride": 16, "aggregate": aggregate}
    answer = predict(
        client, task, inputs, parameters={"window": window, "function_to_apply": "none"}
    )
    assert [by_label(answer)[label] for label in TASKS[task]["labels"]] == pytest.approx(
        wanted, abs=1e-4
    )
    tensors = [
        {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
        for name, text in inputs.items()
    ]
    body = {"inputs": tensors, "parameters": {"window_stride": 16, "window_aggregate": aggregate}}
    outputs = client.post(f"/v2/models/{task}/infer", json=body).json()["outputs"]
    assert outputs[2]["data"] == pytest.approx(wanted, abs=1e-4)


def test_a_text_that_fits_has_the_answer_without_windows(client: httpx2.Client) -> None:
    """With a window, however it is asked for, a text that fits is answered as without."""
    plain = by_label(predict(client, "sst2", "good"))
    for window in ({}, {"aggregate": "max"}, {"stride": 0}):
        assert by_label(
            predict(client, "sst2", "good", parameters={"window": window})
        ) == pytest.approx(plain, abs=1e-6)


def test_one_request_of_many_windows_is_counted_once(client: httpx2.Client) -> None:
    """A windowed request is one request, whose windows are rows of its batches."""

    def counts() -> tuple[float, float]:
        requests = value(
            client, "adamix_requests", "adamix_requests_total", task="sst2", outcome="ok"
        )
        return requests, value(client, "adamix_batch_rows", "adamix_batch_rows_sum")

    requests, rows = counts()
    answer = predict(
        client, "sst2", [LONG, "good"], parameters={"window": {"stride": 0}, "top_k": 1}
    )
    assert [len(scores) for scores in answer] == [1, 1]
    assert counts()[0] == requests + 1
    assert counts()[1] > rows + 3


@pytest.mark.parametrize(
    ("task", "body", "status", "words"),
    [
        (
            "sst2",
            {"inputs": LONG * 40},
            413,
            ["tokens or more", "windows or more", "at most 64", "the request has left"],
        ),
        (
            "sst2",
            {"inputs": [LONG * 8, LONG * 8]},
            413,
            ["input 1 has 1824 tokens and takes", "expected at most"],
        ),
        (["sst2", "topics"], {"inputs": LONG * 10}, 413, ["windows or more; expected at most 15"]),
        (
            "mrpc",
            {"inputs": [LONG, LONG]},
            422,
            ["input 0", "without room for the pair's other text"],
        ),
        ("sst2", {"inputs": LONG, "truncate": True}, 422, ["truncate is true with a window"]),
        (
            "sst2",
            {"inputs": "a", "parameters": {"window": {"stride": 62}}},
            422,
            ["stride is 62", "less than 62"],
        ),
        (
            "sst2",
            {"inputs": "a", "parameters": {"window": {"stride": -1}}},
            422,
            ["window.stride is -1", "greater"],
        ),
        (
            "sst2",
            {"inputs": "a", "parameters": {"window": {"aggregate": "sum"}}},
            422,
            ["'sum'", "mean", "max"],
        ),
        (
            "sst2",
            {"inputs": "a", "parameters": {"window": {"overlap": 1}}},
            422,
            ["window.overlap"],
        ),
        (
            "sst2",
            {"inputs": "a", "parameters": {"window": 64}},
            422,
            ["parameters.window is 64; expected an object"],
        ),
    ],
)
def test_windows_that_cannot_be_are_refused(
    client: httpx2.Client, task: Any, body: dict[str, Any], status: int, words: list[str]
) -> None:
    """Too many windows, a window without room and contradictions are 4xx with the numbers."""
    answer = client.post(
        "/predict", params={"task": task}, json={"parameters": {"window": {}}} | body
    )
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["error"]


def test_infer_takes_windows_or_cuts(client: httpx2.Client) -> None:
    """V2's parameters refuse truncation with windows, and take either of the window's two
    parameters alone."""
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [LONG]}
    for parameters in ({"window_stride": 4}, {"window_aggregate": "max"}):
        url, body = "/v2/models/sst2/infer", {"inputs": [tensor], "parameters": parameters}
        assert client.post(url, json=body).status_code == 200
        refused = client.post(url, json={**body, "parameters": {**parameters, "truncate": True}})
        assert (refused.status_code, refused.json()["error_type"]) == (422, "InvalidRequest")
        assert "truncate is true with a window" in refused.json()["error"]


def test_no_window_wins_by_a_shift_of_its_logits() -> None:
    """The largest of exclusive labels are sought among log probabilities: a shift of a window's
    logits changes nothing."""
    rows = [[1.0, 2.0], [4.0, 0.5]]
    shifted = [[1.0, 2.0], [104.0, 100.5]]
    kind = "single_label_classification"
    assert aggregated(shifted, "max", kind) == pytest.approx(aggregated(rows, "max", kind))
    assert aggregated(rows, "max", kind) == pytest.approx(
        torch.tensor(rows).log_softmax(-1).amax(0).tolist()
    )
    assert aggregated(rows, "max", "multi_label_classification") == [4.0, 2.0]
