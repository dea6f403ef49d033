"""Other people's clients, unchanged."""

from __future__ import annotations

from typing import Any

import pytest
from huggingface_hub import InferenceClient, constants

from tests.service.conftest import Server


@pytest.fixture(autouse=True)
def _online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client refuses any address, this machine's too, while the hub is said to be out of
    reach."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


def test_hugging_faces_client_classifies(server: Server) -> None:
    """huggingface_hub's InferenceClient gets labels and scores, with its own parameters."""
    client = InferenceClient(model=f"{server.url}/predict?task=sst2")
    answer = client.text_classification("it is a good film")
    assert {element.label for element in answer} == {"negative", "positive"}
    assert answer[0].score >= answer[1].score
    (best,) = client.text_classification("it is a good film", top_k=1, function_to_apply="sigmoid")
    assert best.label == answer[0].label


def test_hugging_faces_client_cuts_and_asks_for_more_labels_than_there_are(server: Server) -> None:
    """InferenceClient cannot say `truncate`: the address can. Its `top_k` may exceed the labels."""
    client = InferenceClient(model=f"{server.url}/predict?task=sst2&truncate=true")
    answer = client.text_classification("a good film " * 500, top_k=5)
    assert {element.label for element in answer} == {"negative", "positive"}


def test_text_embeddings_inferences_forms(server: Server) -> None:
    """The request forms of text-embeddings-inference's /predict are understood: a pair, a batch,
    raw scores."""
    with server.client() as client:
        pair = client.post(
            "/predict?task=mrpc", json={"inputs": ["a man eats", "somebody eats"], "truncate": True}
        )
        assert {entry["label"] for entry in pair.json()} == {"equivalent", "not_equivalent"}
        body = {"inputs": [["good"], ["bad"]], "raw_scores": True, "truncation_direction": "Right"}
        batch = client.post("/predict?task=sst2", json=body)
        assert [len(row) for row in batch.json()] == [2, 2]
        assert sum(entry["score"] for entry in batch.json()[0]) != pytest.approx(1)
        defaults = {"truncate": None, "truncation_direction": "Left", "raw_scores": False}
        assert (
            client.post("/predict?task=sst2", json={"inputs": "good", **defaults}).status_code
            == 200
        )


TOO_LONG = "good " * 300


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"inputs": [["good"]] * 65}, 413, "65 inputs"),
        ({"inputs": TOO_LONG}, 413, "tokens"),
        (
            {"inputs": TOO_LONG, "truncate": True, "truncation_direction": "left"},
            422,
            "truncation_direction is 'left'",
        ),
        ({"inputs": [["a", "b", "c"]]}, 422, "3 texts"),
    ],
)
def test_text_embeddings_inferences_errors(
    server: Server, body: dict[str, Any], status: int, word: str
) -> None:
    """What text-embeddings-inference refuses is refused with its keys and, where a request is too
    much, with its status."""
    with server.client() as client:
        answer = client.post("/predict?task=sst2", json=body)
    assert answer.status_code == status
    assert set(answer.json()) == {"error", "error_type"}
    assert word in answer.json()["error"]
