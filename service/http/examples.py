"""Requests as the documentation shows them, with the answers that the service gave to them.

The answers are `service.http.recorded`. `python -m tests.service.record_examples` writes that file:
it asks all requests of `asked` of a service with the shipped adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from service.http.recorded import ANSWERS


@dataclass(frozen=True)
class Example:
    """One request: its method and path, and its JSON if it has a body."""

    summary: str
    method: str
    path: str
    body: Any = None


def asked(version: str) -> dict[str, Example]:
    """Every request by name, in the order in which they are recorded. `version` is the one that the
    task sst2 has."""
    film = "a charming and often affecting journey"
    pair = {"text": "A man is eating food.", "text_pair": "A man eats something."}
    window = {"window": {"stride": 32, "aggregate": "mean"}}
    return {
        "predict text": _predict("One text", "task=sst2", film),
        "predict pair": _predict("A pair", "task=mrpc", pair),
        "predict texts": _predict(
            "A list, its best labels", "task=sst2", ["good", "bad"], parameters={"top_k": 1}
        ),
        "predict pairs": _predict(
            "A list of pairs", "task=mrpc", [pair, ["It rains.", "The sun shines."]]
        ),
        "predict tasks": _predict("One pair for several tasks", "task=mrpc&task=stsb", pair),
        "predict regression": _predict("A regression task: the value itself", "task=stsb", pair),
        "predict pinned": _predict("A version", f"task=sst2&version={version[:4]}", film),
        "predict long": _predict("Cut what is too long", "task=sst2", "word " * 200, truncate=True),
        "predict window": _predict(
            "Answer what is too long by windows that share 32 tokens",
            "task=sst2",
            "a charming journey " * 50,
            parameters=window,
        ),
        "predict tei": _predict(
            "As text-embeddings-inference's clients ask",
            "task=sst2",
            [["good"], ["bad"]],
            raw_scores=False,
            truncate=True,
        ),
        "infer texts": _infer("Two texts", "sst2", [_tensor("text", "good", "bad")]),
        "infer pair": _infer(
            "A pair, as a classification",
            "mrpc",
            [_tensor(name, text) for name, text in pair.items()],
            id="42",
            outputs=[{"name": "score", "parameters": {"classification": 2}}],
            parameters={"truncate": True},
        ),
        "infer window": _infer(
            "A long text, by windows",
            "sst2",
            [_tensor("text", "a charming journey " * 50)],
            parameters={"window_aggregate": "max"},
        ),
        "server": Example("The server", "GET", "/v2"),
        "model": Example("The model", "GET", "/v2/models/sst2"),
        "index": Example("The versions", "POST", "/v2/repository/index", {"ready": True}),
        "activation": Example("Roll back", "POST", "/adapters/sst2/activate", {"version": version}),
        "adapter": Example("The task", "GET", "/adapters/sst2"),
        "adapters": Example("The list", "GET", "/adapters?limit=2"),
        "details": Example("With details=true", "GET", "/adapters?search=sst2&details=true"),
        "storage": Example("Bytes, and how they add up", "GET", "/storage"),
        "ready": Example("Ready", "GET", "/ready"),
        "metrics": Example(
            "The samples", "GET", "/metrics?name[]=adamix_requests_total&name[]=adamix_queue_rows"
        ),
    }


def _predict(summary: str, query: str, inputs: Any, **body: Any) -> Example:
    summary = f"{summary} (?{query})"
    return Example(summary, "POST", f"/predict?{query}", {"inputs": inputs, **body})


def _infer(summary: str, task: str, inputs: list[dict[str, Any]], **body: Any) -> Example:
    summary = f"{summary} (for {task})"
    return Example(summary, "POST", f"/v2/models/{task}/infer", {"inputs": inputs, **body})


def _tensor(name: str, *texts: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


VERSION: str = ANSWERS["adapter"]["version"]
_ASKED = asked(VERSION)


def one(value: Any) -> dict[str, Any]:
    """A single example."""
    return {"example": {"value": value}}


def _answered(name: str) -> Any:
    return ANSWERS.get(name)  # none for a new request, until it is recorded


def _requests(kind: str) -> dict[str, Any]:
    return {
        name.removeprefix(kind): {"summary": example.summary, "value": example.body}
        for name, example in _ASKED.items()
        if name.startswith(kind)
    }


def _answers(kind: str) -> dict[str, Any]:
    return {
        name.removeprefix(kind): {"summary": example.summary, "value": _answered(name)}
        for name, example in _ASKED.items()
        if name.startswith(kind)
    }


TASKS = {"one task": {"value": ["sst2"]}, "several": {"value": ["mrpc", "stsb"]}}
PREDICT, PREDICTED = _requests("predict "), _answers("predict ")
INFER, INFERRED = _requests("infer "), _answers("infer ")
SERVER, MODEL, INDEX = (one(_answered(name)) for name in ("server", "model", "index"))
ADAPTER, STORAGE, READY = (one(_answered(name)) for name in ("adapter", "storage", "ready"))
ADAPTERS = {
    name: {"summary": _ASKED[name].summary, "value": _answered(name)}
    for name in ("adapters", "details")
}
ACTIVATION = one(_ASKED["activation"].body)
TRAFFIC_ASKED = one(
    {
        "active": VERSION,
        "canary": {"version": "9f8e7d6c5b4a", "percent": 5},
        "shadow": {"version": "0a1b2c3d4e5f", "percent": 100},
        "rollback": {"disagreement": 0.2, "errors": 0.01, "after": 200},
    }
)
_SEEN = {
    "requests": 1900,
    "errors": 0,
    "non_finite": 0,
    "rows": 1900,
    "labels": {"positive": 0.55, "negative": 0.45},
    "mean_score": 0.97,
    "compared": 0,
    "disagreement": None,
    "mean_difference": None,
    "dropped": 0,
    "latency": {"p50": 0.012, "p99": 0.031},
}
_COMPARED = {**_SEEN, "compared": 1880, "disagreement": 0.03, "mean_difference": 0.02}
TRAFFIC = one(
    {
        **TRAFFIC_ASKED["example"]["value"],
        "labels_may_differ": False,
        "left": None,
        "since": "2026-11-28T12:00:00+00:00",
        "seen": {"active": _SEEN, "canary": _COMPARED, "shadow": _COMPARED},
    }
)
METRICS = one(_answered("metrics"))
