"""POST /predict as clients call it: every form of input, every refusal."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import httpx2
import pytest

from adapters.backbone import Backbone
from adapters.classifier import collate, from_adapter
from adapters.store import Store
from adapters.text import TextInput, encode
from tests.service.conftest import TASKS, Server, running

FILM = "it is a good film"
PAIR = {"text": "a man is eating", "text_pair": "somebody eats"}


def predict(client: httpx2.Client, task: str | list[str], inputs: Any, **body: Any) -> Any:
    answer = client.post("/predict", params={"task": task}, json={"inputs": inputs, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def reference(
    server: Server, embedded: Backbone, task: str, texts: list[TextInput]
) -> list[list[float]]:
    """What transformers and the plain formulas say, away from the server."""
    adapter = Store(server.store, read_only=True).get(task)
    rows = encode(embedded.tokenizer, texts, adapter.spec.max_length)
    logits: list[list[float]] = from_adapter(embedded, adapter)(collate(rows)).tolist()
    return logits


def by_label(answer: list[dict[str, Any]]) -> dict[str, float]:
    return {entry["label"]: entry["score"] for entry in answer}


@pytest.mark.parametrize("task", TASKS)
def test_logits_are_the_reference_models(
    task: str, server: Server, client: httpx2.Client, embedded: Backbone
) -> None:
    """Raw scores over HTTP are the logits of transformers with the adapter attached, for every kind
    of task."""
    texts: list[TextInput] = [("good",), ("the plot was awful and very long",)]
    if TASKS[task].get("text_pair"):
        texts = [("a man is eating", "somebody eats"), ("red", "the film was not good at all")]
    answer = predict(
        client, task, [list(text) for text in texts], parameters={"function_to_apply": "none"}
    )
    for found, wanted in zip(answer, reference(server, embedded, task, texts), strict=True):
        labels = TASKS[task]["labels"]
        assert [by_label(found)[label] for label in labels] == pytest.approx(wanted, abs=1e-4)


def test_one_text_answers_its_labels_best_first(client: httpx2.Client) -> None:
    """One text is answered with a list of all labels, best first, whose softmax scores sum to
    one."""
    answer = predict(client, "sst2", FILM)
    assert {entry["label"] for entry in answer} == {"negative", "positive"}
    assert answer[0]["score"] >= answer[1]["score"]
    assert sum(entry["score"] for entry in answer) == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "inputs", "rows"),
    [
        ("sst2", {"text": FILM}, None),
        ("sst2", {"text": FILM, "text_pair": None}, None),
        ("sst2", [FILM], 1),
        ("sst2", [FILM, "bad"], 2),
        ("sst2", [[FILM], {"text": "bad"}, "awful"], 3),
        ("mrpc", PAIR, None),
        ("mrpc", ["a man is eating", "somebody eats"], None),
        ("mrpc", [["a man is eating", "somebody eats"]], 1),
        ("mrpc", [PAIR, ["red", "blue"]], 2),
    ],
)
def test_every_form_of_inputs(
    client: httpx2.Client, task: str, inputs: Any, rows: int | None
) -> None:
    """Each documented form of `inputs` is one row or a batch, as the contract says."""
    answer = predict(client, task, inputs)
    first = answer if rows is None else answer[0]
    assert {entry["label"] for entry in first} == set(TASKS[task]["labels"])
    assert rows is None or len(answer) == rows


def test_forms_of_one_pair_agree(client: httpx2.Client) -> None:
    """The same pair gets the same scores in whichever form it comes."""
    flat = predict(client, "mrpc", ["a man is eating", "somebody eats"])
    assert by_label(predict(client, "mrpc", PAIR)) == pytest.approx(by_label(flat), abs=1e-5)
    assert by_label(predict(client, "mrpc", [PAIR])[0]) == pytest.approx(by_label(flat), abs=1e-5)


def test_regression_answers_one_raw_value(client: httpx2.Client) -> None:
    """A regression task answers one entry with the model's value as it is."""
    (entry,) = predict(client, "stsb", PAIR)
    raw = predict(client, "stsb", PAIR, parameters={"function_to_apply": "none"})[0]["score"]
    assert entry["label"] == "score"
    assert entry["score"] == pytest.approx(raw, abs=1e-5)


def test_multi_label_scores_are_independent(client: httpx2.Client) -> None:
    """A multi-label task answers each label's own probability, the sigmoid of its logit."""
    scores = by_label(predict(client, "topics", FILM))
    logits = by_label(predict(client, "topics", FILM, raw_scores=True))
    assert scores == pytest.approx(
        {label: 1 / (1 + math.exp(-value)) for label, value in logits.items()}, abs=1e-4
    )


def test_top_k_keeps_the_best(client: httpx2.Client) -> None:
    """`top_k` answers that many labels, the best ones."""
    everything = predict(client, "mnli", PAIR)
    best = predict(client, "mnli", PAIR, parameters={"top_k": 2})
    assert [entry["label"] for entry in best] == [entry["label"] for entry in everything[:2]]


def test_top_k_beyond_the_labels_is_all_of_them(client: httpx2.Client) -> None:
    """A `top_k` larger than the number of labels answers all labels, as Hugging Face's pipeline
    does."""
    assert predict(client, "mnli", PAIR, parameters={"top_k": 99}) == predict(client, "mnli", PAIR)


@pytest.mark.parametrize(
    ("query", "truncate", "status"),
    [
        ("", None, 413),
        ("true", None, 200),
        ("True", None, 200),
        ("true", False, 413),
        ("false", True, 200),
        ("perhaps", None, 422),
    ],
)
def test_truncate_in_the_query(
    client: httpx2.Client, query: str, truncate: bool | None, status: int
) -> None:
    """`?truncate=true` is for clients that cannot say it in the body; the body's word counts
    more."""
    path = f"/predict?task=sst2{f'&truncate={query}' if query else ''}"
    answer = client.post(path, json={"inputs": "good " * 500, "truncate": truncate})
    assert answer.status_code == status, answer.text
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good " * 500]}
    parameters = {} if truncate is None else {"truncate": truncate}
    path = f"/v2/models/sst2/infer{f'?truncate={query}' if query else ''}"
    answer = client.post(path, json={"inputs": [tensor], "parameters": parameters})
    assert answer.status_code == status, answer.text


def test_windows_and_left_cuts_do_not_go_with_truncate_in_the_query(client: httpx2.Client) -> None:
    """What is refused beside the body's truncate is refused beside the query's."""
    for body in ({"parameters": {"window": {}}}, {"truncation_direction": "left"}):
        answer = client.post(
            "/predict?task=sst2&truncate=true", json={"inputs": "good " * 500, **body}
        )
        assert (answer.status_code, answer.json()["error_type"]) == (422, "InvalidRequest")


def test_texts_can_be_cut_by_default(filled_store: Path) -> None:
    """With ADAMIX_AUTO_TRUNCATE a text that is too long is cut, unless the request says not to, or
    asks for windows."""
    long = {"inputs": "good " * 500}
    with (
        running(filled_store, read_only=True, auto_truncate=True) as server,
        server.client() as client,
    ):
        cut = predict(client, "sst2", long["inputs"])
        assert cut == predict(client, "sst2", long["inputs"], truncate=True)
        windowed = predict(client, "sst2", long["inputs"], parameters={"window": {}})
        assert windowed != cut
        for body in ({"truncate": False}, {"truncation_direction": "left"}):
            refused = client.post("/predict?task=sst2", json={**long, **body})
            assert refused.status_code in (413, 422)


def test_several_tasks_on_one_text(client: httpx2.Client) -> None:
    """Several tasks answer an object of one answer each, and the header names every version."""
    answer = client.post("/predict?task=mrpc&task=mnli&task=stsb", json={"inputs": PAIR})
    assert set(answer.json()) == {"mrpc", "mnli", "stsb"}
    assert by_label(answer.json()["mnli"]) == pytest.approx(
        by_label(predict(client, "mnli", PAIR)), abs=1e-4
    )
    assert [part.split("@")[0] for part in answer.headers["X-Adapter-Version"].split(", ")] == [
        "mrpc",
        "mnli",
        "stsb",
    ]


def test_headers_say_which_version_and_where_the_time_went(
    client: httpx2.Client, server: Server
) -> None:
    """The answer's headers name the version that answered, the stages' times and the request's
    id."""
    answer = client.post(
        "/predict?task=sst2", json={"inputs": FILM}, headers={"X-Request-ID": "mine-1"}
    )
    version = Store(server.store, read_only=True).find("sst2").short
    assert answer.headers["X-Adapter-Version"] == f"sst2@{version}"
    stages = [stage.split(";dur=") for stage in answer.headers["Server-Timing"].split(", ")]
    assert [name for name, _ in stages] == ["queue", "tokenize", "inference"]
    assert all(float(milliseconds) >= 0 for _, milliseconds in stages)
    assert answer.headers["X-Request-ID"] == "mine-1"


def test_truncate_cuts_what_is_too_long(client: httpx2.Client) -> None:
    """With `"truncate": true` a text beyond max_length is answered as its beginning is."""
    limit = TASKS["sst2"]["max_length"]
    long = predict(client, "sst2", "good " * 500, truncate=True)
    assert by_label(long) == pytest.approx(
        by_label(predict(client, "sst2", "good " * (limit - 2))), abs=1e-5
    )


# what is sent, the status, and words that the message must hold
REFUSED: dict[str, tuple[str, Any, int, list[str]]] = {
    "unknown task": ("sst", FILM, 404, ["'sst'", "'sst2'"]),
    "task with a path": ("../../etc/passwd", FILM, 404, ["'../../etc/passwd'"]),
    "empty text": ("sst2", "", 422, ["inputs", "empty"]),
    "white space": ("sst2", " \n\t", 422, ["inputs", "white space"]),
    "empty list": ("sst2", [], 422, ["inputs", "empty list", "at least one"]),
    "empty text in a list": ("sst2", ["good", ""], 422, ["inputs[1]", "empty"]),
    "a number": ("sst2", 5, 422, ["inputs is 5", "expected a text"]),
    "null": ("sst2", None, 422, ["inputs is None", "expected a text"]),
    "a number in a list": ("sst2", ["good", 5], 422, ["inputs[1]", "5"]),
    "a list too deep": ("sst2", [[["good"]]], 422, ["inputs[0]", "expected"]),
    "three texts in a row": ("mrpc", [["a", "b", "c"]], 422, ["inputs[0]", "3 texts"]),
    "an unknown key": ("sst2", {"text": "a", "pair": "b"}, 422, ["'pair'", "text_pair"]),
    "a pair for a single-text task": ("sst2", PAIR, 422, ["'sst2'", "2 texts", "one text"]),
    "one text for a pair task": ("mrpc", FILM, 422, ["'mrpc'", "1 text", "pair"]),
    "three texts for a pair task": ("mrpc", ["a", "b", "c"], 422, ["'mrpc'", "inputs[0]", "pair"]),
    "too long": ("sst2", "go " * 300, 413, ["302 tokens", "64", "truncate"]),
    "far too long": ("sst2", "good " * 100_000, 413, ["tokens or more", "64"]),
    "too many": ("sst2", ["good"] * 65, 413, ["65 inputs", "64"]),
    "a control character": ("sst2", "go\x00od", 422, ["control character", "U+0000", "position 2"]),
    "a control character in a pair": ("mrpc", ["good", "b\x1bad"], 422, ["second text", "U+001B"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_inputs_are_refused_by_name(case: str, client: httpx2.Client) -> None:
    """Each bad input is a 4xx whose sentence names the thing, the value found and the value
    expected."""
    task, inputs, status, words = REFUSED[case]
    answer = client.post("/predict", params={"task": task}, json={"inputs": inputs})
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error", "error_type"}
    for word in words:
        assert word in answer.json()["error"]


MALFORMED: dict[str, tuple[bytes, int, list[str]]] = {
    "not JSON": (b"{inputs: good}", 400, ["JSON"]),
    "cut short": (b'{"inputs": "go', 400, ["JSON"]),
    "empty": (b"", 400, ["JSON"]),
    "not UTF-8": (b'{"inputs": "\xff"}', 400, ["JSON"]),
    "a lone surrogate": (rb'{"inputs": "\ud800"}', 400, ["surrogate"]),
    "a list": (b'["good"]', 422, ["object"]),
    "no inputs": (b'{"text": "good"}', 422, ["inputs"]),
    "an unknown key": (b'{"inputs": "good", "input": 1}', 422, ["input"]),
    "top_k of zero": (
        b'{"inputs": "good", "parameters": {"top_k": 0}}',
        422,
        ["top_k is 0", "greater than or equal to 1"],
    ),
    "top_k true": (
        b'{"inputs": "good", "parameters": {"top_k": true}}',
        422,
        ["top_k", "True", "integer"],
    ),
    "top_k a text": (
        b'{"inputs": "good", "parameters": {"top_k": "all"}}',
        422,
        ["top_k", "all", "integer"],
    ),
    "unknown function": (
        b'{"inputs": "good", "parameters": {"function_to_apply": "tanh"}}',
        422,
        ["tanh", "softmax"],
    ),
    "nested deep": (
        b'{"inputs": ' + b"[" * 1000 + b"]" * 1000 + b"}",
        422,
        ["inputs[0]", "expected a text"],
    ),
    "nested too deep": (b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400, ["JSON"]),
    "a body of 10 MB": (
        b'{"inputs": "' + b"good " * 2_000_000 + b'"}',
        413,
        ["10000014", "2097152"],
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies_are_refused_by_name(case: str, client: httpx2.Client) -> None:
    """Each malformed body is a 4xx with a sentence, and the server goes on."""
    body, status, words = MALFORMED[case]
    answer = client.post("/predict?task=sst2", content=body)
    assert answer.status_code == status, answer.text
    for word in words:
        assert word in answer.json()["error"]
    assert predict(client, "sst2", FILM)


def test_a_compressed_body_is_refused(client: httpx2.Client) -> None:
    """A compressed body is refused by its Content-Encoding, not as bad JSON."""
    answer = client.post(
        "/predict?task=sst2",
        content=gzip.compress(b'{"inputs": "a"}'),
        headers={"Content-Encoding": "gzip"},
    )
    assert (answer.status_code, answer.json()["error_type"]) == (415, "CompressedBody")
    assert "'gzip'" in answer.json()["error"]


def test_a_body_without_a_length_is_limited_too(client: httpx2.Client) -> None:
    """A chunked body that grows beyond the limit is refused as it comes in."""
    answer = client.post("/predict?task=sst2", content=(b"x" * 65536 for _ in range(100)))
    assert answer.status_code == 413
    assert "2097152" in answer.json()["error"]


def test_no_task_and_unknown_paths_are_explained(client: httpx2.Client) -> None:
    """A request without a task or a path, to an unknown path or by a wrong method says what was
    expected."""
    expected = (
        "expected POST /predict?task=NAME (5 tasks: 'mnli', 'mrpc', 'sst2', 'stsb', 'topics')"
    )
    for path, found in (
        ("/predict", "the request names no task"),
        ("/", "POST / predicts nothing"),
    ):
        answer = client.post(path, json={"inputs": FILM})
        assert (answer.status_code, answer.json()) == (
            422,
            {"error": f"{found}; {expected}", "error_type": "InvalidRequest"},
        )
    unknown = client.get("/predictions")
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "UnknownPath")
    wrong = client.get("/predict?task=sst2")
    assert wrong.status_code == 405
    assert "POST" in wrong.json()["error"]


def test_a_wrong_method_is_told_all_that_are_right(client: httpx2.Client) -> None:
    """A path that several routes share is answered with the methods of all of them, in the sentence
    and in Allow."""
    for path, methods in (
        ("/adapters", "GET, HEAD, POST"),
        ("/adapters/sst2", "GET, HEAD, DELETE"),
        ("/predict", "POST"),
    ):
        answer = client.patch(path)
        assert (answer.status_code, answer.headers["Allow"]) == (405, methods)
        assert answer.json()["error"].endswith(f"expected {methods}")


def test_head_is_get_without_its_body(client: httpx2.Client, server: Server) -> None:
    """Wherever GET answers, HEAD answers with the same status and headers and no body; elsewhere it
    is a 405."""
    file = f"/adapters/sst2/versions/{Store(server.store, read_only=True).find('sst2').short}/file"
    paths = (
        "/",
        "/health",
        "/ready",
        "/adapters",
        "/adapters/sst2",
        file,
        "/storage",
        "/docs",
        "/openapi.json",
        "/v2",
    )
    for path in (*paths, "/static/page.js", "/adapters/nonesuch", "/nonesuch"):
        head, get = client.head(path), client.get(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        for name in ("Content-Length", "Content-Type", "ETag", "X-Total-Count"):
            assert head.headers.get(name) == get.headers.get(name), (path, name)
    assert (
        client.head("/metrics").headers["Content-Type"]
        == client.get("/metrics").headers["Content-Type"]
    )
    refused = client.head("/predict")
    assert (refused.status_code, refused.headers["Allow"]) == (405, "POST")


def test_versions_are_pinned_by_prefix(client: httpx2.Client, server: Server) -> None:
    """`version` takes a digest or its beginning, refuses an unknown one, and wants a single
    task."""
    version = Store(server.store, read_only=True).find("sst2")
    for prefix in (version.short[:4], version.short, version.digest):
        answer = client.post(
            "/predict", params={"task": "sst2", "version": prefix}, json={"inputs": FILM}
        )
        assert answer.headers["X-Adapter-Version"] == f"sst2@{version.short}"
    unknown = client.post("/predict?task=sst2&version=beef", json={"inputs": FILM})
    assert (unknown.status_code, unknown.json()["error_type"]) == (404, "UnknownVersion")
    several = client.post("/predict?task=mrpc&task=mnli&version=beef", json={"inputs": PAIR})
    assert several.status_code == 422
