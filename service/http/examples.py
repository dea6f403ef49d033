"""Requests and answers as the documentation shows them: what the shipped adapters answered."""

from __future__ import annotations

from typing import Any

VERSION = "1c9a3464a366"
_CREATED = "2026-11-24T09:35:08+00:00"
_PAIR = {"text": "A man is eating food.", "text_pair": "A man eats something."}
_POSITIVE = [
    {"label": "positive", "score": 0.9980083866955681},
    {"label": "negative", "score": 0.0019916133044318757},
]
_MRPC = [
    {"label": "equivalent", "score": 0.9599268962690658},
    {"label": "not_equivalent", "score": 0.04007310373093413},
]
_STSB = [{"label": "score", "score": 3.9187004566192627}]
_BEST = [
    [{"label": "positive", "score": 0.9978980422859542}],
    [{"label": "negative", "score": 0.9955326051506709}],
]


def one(value: Any) -> dict[str, Any]:
    """A single example."""
    return {"example": {"value": value}}


def _shown(summary: str, value: Any) -> dict[str, Any]:
    return {"summary": summary, "value": value}


TASKS = {"one task": {"value": ["sst2"]}, "several": {"value": ["mrpc", "stsb"]}}
PREDICT = {
    "text": _shown(
        "One text, for ?task=sst2", {"inputs": "a charming and often affecting journey"}
    ),
    "pair": _shown("A pair, for ?task=mrpc", {"inputs": _PAIR}),
    "texts": _shown(
        "A list, for ?task=sst2, its best labels",
        {"inputs": ["good", "bad"], "parameters": {"top_k": 1}},
    ),
    "pairs": _shown(
        "A list of pairs, for ?task=mrpc", {"inputs": [_PAIR, ["It rains.", "The sun shines."]]}
    ),
    "tasks": _shown("One pair for several tasks, ?task=mrpc&task=stsb", {"inputs": _PAIR}),
    "pinned": _shown(
        "A version, ?task=sst2&version=1c9a", {"inputs": "a charming and often affecting journey"}
    ),
    "long": _shown(
        "What is too long is cut, for ?task=sst2", {"inputs": "word " * 20, "truncate": True}
    ),
    "window": _shown(
        "What is too long is answered by windows that share 32 tokens, for ?task=sst2",
        {
            "inputs": "a charming journey " * 50,
            "parameters": {"window": {"stride": 32, "aggregate": "mean"}},
        },
    ),
    "tei": _shown(
        "As text-embeddings-inference's clients ask",
        {"inputs": [["good"], ["bad"]], "raw_scores": False, "truncate": True},
    ),
}
PREDICTED = {
    "text": _shown("One text: its labels, best first", _POSITIVE),
    "pair": _shown("A pair", _MRPC),
    "texts": _shown("A list: one answer each", _BEST),
    "tasks": _shown("Several tasks: one answer each, by task", {"mrpc": _MRPC, "stsb": _STSB}),
    "regression": _shown("A regression task: the value itself", _STSB),
}


def _tensor(name: str, *texts: str) -> dict[str, Any]:
    return {"name": name, "shape": [len(texts)], "datatype": "BYTES", "data": list(texts)}


INFER = {
    "texts": _shown("Two texts, for sst2", {"inputs": [_tensor("text", "good", "bad")]}),
    "pair": _shown(
        "A pair, for mrpc, as a classification",
        {
            "id": "42",
            "inputs": [_tensor("text", _PAIR["text"]), _tensor("text_pair", _PAIR["text_pair"])],
            "outputs": [{"name": "score", "parameters": {"classification": 2}}],
            "parameters": {"truncate": True},
        },
    ),
    "window": _shown(
        "A long text, for sst2, by windows",
        {
            "inputs": [_tensor("text", "a charming journey " * 50)],
            "parameters": {"window_aggregate": "max"},
        },
    ),
}
_LOGITS = [-3.063621759414673, 3.0991601943969727, 2.66093111038208, -2.7455413341522217]
_CLASSES = ["0.959927:0:equivalent", "0.040073:1:not_equivalent"]
INFERRED = {
    "texts": _shown(
        "Two texts",
        {
            "model_name": "sst2",
            "model_version": VERSION,
            "outputs": [
                {
                    "name": "label",
                    "datatype": "BYTES",
                    "shape": [2],
                    "data": ["positive", "negative"],
                },
                {
                    "name": "score",
                    "datatype": "FP32",
                    "shape": [2],
                    "data": [0.9978980422859542, 0.9955326051506709],
                },
                {"name": "logits", "datatype": "FP32", "shape": [2, 2], "data": _LOGITS},
            ],
        },
    ),
    "pair": _shown(
        "A pair, as a classification",
        {
            "model_name": "mrpc",
            "model_version": "c9ac04922195",
            "id": "42",
            "outputs": [{"name": "score", "datatype": "BYTES", "shape": [1, 2], "data": _CLASSES}],
        },
    ),
}
SERVER = one(
    {
        "name": "adamix-serve",
        "version": "0.1.0",
        "extensions": ["classification", "binary_tensor_data", "model_repository", "parameters"],
    }
)
MODEL = one(
    {
        "name": "sst2",
        "versions": [VERSION],
        "platform": "adamix_adapter",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "parameters": {
            "version": VERSION,
            "labels": ["negative", "positive"],
            "problem_type": "single_label_classification",
            "max_length": 128,
        },
    }
)
INDEX = one([{"name": "sst2", "version": VERSION, "state": "READY", "reason": ""}])

_ADAPTER = {
    "task": "sst2",
    "version": VERSION,
    "labels": ["negative", "positive"],
    "problem_type": "single_label_classification",
    "text_pair": False,
    "bytes": 451796,
    "parameters": 224738,
    "created": _CREATED,
    "tier": "device",
}
_SPEC = {
    "task": "sst2",
    "labels": ["negative", "positive"],
    "problem_type": "single_label_classification",
    "text_pair": False,
    "max_length": 128,
    "pooling": "mean",
    "backbone": {
        "name": "embedded",
        "model_type": "bert",
        "hidden_size": 384,
        "num_layers": 6,
        "fingerprint": "8082ef5ee211202b3b8ce37c31ba60ed0415b0adae0f881f466738a565e911b5",
    },
    "bottleneck": 16,
    "activation": "gelu",
    "training": {
        "recipe": {"method": "adamix", "experts": 4},
        "dev_scores": {"accuracy": 0.892202},
    },
    "probe": {
        "inputs": [["unflinchingly bleak and desperate "]],
        "logits": [[1.611295461654663, -1.6306326389312744]],
    },
}
ADAPTER = one(
    {
        **_ADAPTER,
        "spec": _SPEC,
        "versions": [{"version": VERSION, "bytes": 451796, "created": _CREATED, "active": True}],
    }
)
_DETAILS = {
    "dev_scores": {"accuracy": 0.892202},
    "requests": 3,
    "latency": {"p50": 0.0163, "p99": 0.0412},
}
ADAPTERS = {
    "plain": _shown("The list", [_ADAPTER]),
    "details": _shown("With details=true", [{**_ADAPTER, **_DETAILS}]),
}
ACTIVATION = one({"version": VERSION})
STORAGE = one(
    {
        "backbone": "embedded",
        "dtype": "float32",
        "tasks": 4,
        "backbone_bytes": 90852864,
        "adapters_bytes": 1808128,
        "total_bytes": 92660992,
        "full_copies_bytes": 363411456,
        "saved_bytes": 270750464,
        "ratio": 3.922,
        "adapters": [{"task": "sst2", "version": VERSION, "bytes": 451796}],
    }
)
METRICS = one('adamix_requests_total{outcome="ok",task="sst2"} 1.0\nadamix_queue_rows 0.0\n')
