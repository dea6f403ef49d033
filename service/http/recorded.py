"""Answers of a service with the shipped adapters; written by
`python -m tests.service.record_examples`."""

from __future__ import annotations

from typing import Any

ANSWERS: dict[str, Any] = {
    "predict text": [
        {"label": "positive", "score": 0.998008385747784},
        {"label": "negative", "score": 0.0019916142522159435},
    ],
    "predict pair": [
        {"label": "equivalent", "score": 0.9995222141174951},
        {"label": "not_equivalent", "score": 0.00047778588250497794},
    ],
    "predict texts": [
        [{"label": "positive", "score": 0.9978980422859542}],
        [{"label": "negative", "score": 0.995532603029967}],
    ],
    "predict pairs": [
        [
            {"label": "equivalent", "score": 0.9995222136620603},
            {"label": "not_equivalent", "score": 0.00047778633793961565},
        ],
        [
            {"label": "not_equivalent", "score": 0.8273188036734116},
            {"label": "equivalent", "score": 0.1726811963265885},
        ],
    ],
    "predict tasks": {
        "mrpc": [
            {"label": "equivalent", "score": 0.9995222141174951},
            {"label": "not_equivalent", "score": 0.00047778588250497794},
        ],
        "stsb": [{"label": "score", "score": 3.918700933456421}],
    },
    "predict regression": [{"label": "score", "score": 3.918700933456421}],
    "predict pinned": [
        {"label": "positive", "score": 0.998008385747784},
        {"label": "negative", "score": 0.0019916142522159435},
    ],
    "predict long": [
        {"label": "positive", "score": 0.7826229347824667},
        {"label": "negative", "score": 0.21737706521753328},
    ],
    "predict window": [
        {"label": "positive", "score": 0.996534526980528},
        {"label": "negative", "score": 0.0034654730194719975},
    ],
    "predict tei": [
        [
            {"label": "positive", "score": 0.9978980422859542},
            {"label": "negative", "score": 0.0021019577140458006},
        ],
        [
            {"label": "negative", "score": 0.995532603029967},
            {"label": "positive", "score": 0.004467396970033005},
        ],
    ],
    "infer texts": {
        "model_name": "sst2",
        "model_version": "1c9a3464a366",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [2], "data": ["positive", "negative"]},
            {
                "name": "score",
                "datatype": "FP32",
                "shape": [2],
                "data": [0.9978980422859542, 0.995532603029967],
            },
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": [
                    -3.063621759414673,
                    3.0991601943969727,
                    2.660930871963501,
                    -2.7455410957336426,
                ],
            },
        ],
    },
    "infer pair": {
        "model_name": "mrpc",
        "model_version": "8f5d22f06f5c",
        "id": "42",
        "outputs": [
            {
                "name": "score",
                "datatype": "BYTES",
                "shape": [1, 2],
                "data": ["0.999522:0:equivalent", "0.000478:1:not_equivalent"],
            }
        ],
    },
    "infer window": {
        "model_name": "sst2",
        "model_version": "1c9a3464a366",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.9962810102196943]},
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [1, 2],
                "data": [-5.594112072994113, -0.003534783399209207],
            },
        ],
    },
    "server": {
        "name": "adamix-serve",
        "version": "0.1.0",
        "extensions": ["classification", "binary_tensor_data", "model_repository", "parameters"],
    },
    "model": {
        "name": "sst2",
        "versions": ["1c9a3464a366"],
        "platform": "adamix_adapter",
        "inputs": [{"name": "text", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [-1]},
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "logits", "datatype": "FP32", "shape": [-1, 2]},
        ],
        "parameters": {
            "version": "1c9a3464a366",
            "labels": ["negative", "positive"],
            "problem_type": "single_label_classification",
            "max_length": 128,
            "kind": "bottleneck",
        },
    },
    "index": [
        {"name": "cola", "version": "24c3e43af168", "state": "READY", "reason": ""},
        {"name": "mnli", "version": "b48d3657bb86", "state": "READY", "reason": ""},
        {"name": "mpqa", "version": "cbf245a28594", "state": "READY", "reason": ""},
        {"name": "mrpc", "version": "8f5d22f06f5c", "state": "READY", "reason": ""},
        {"name": "qnli", "version": "fd61b418deec", "state": "READY", "reason": ""},
        {"name": "qqp", "version": "b099bede5993", "state": "READY", "reason": ""},
        {"name": "rte", "version": "f839a26588ba", "state": "READY", "reason": ""},
        {"name": "sst2", "version": "1c9a3464a366", "state": "READY", "reason": ""},
        {"name": "stsb", "version": "f29937b7da74", "state": "READY", "reason": ""},
        {"name": "subj", "version": "2525d27eac55", "state": "READY", "reason": ""},
    ],
    "activation": {
        "task": "sst2",
        "kind": "bottleneck",
        "version": "1c9a3464a366",
        "labels": ["negative", "positive"],
        "problem_type": "single_label_classification",
        "text_pair": False,
        "bytes": 451796,
        "parameters": 224738,
        "created": "2026-11-28T09:38:03+00:00",
        "tier": "device",
        "spec": {
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
                "recipe": {
                    "method": "adamix",
                    "experts": 4,
                    "share_down": False,
                    "share_up": True,
                    "bottleneck": 16,
                    "consistency": 0.03,
                    "epochs": 4,
                    "batch_size": 32,
                    "learning_rate": 0.003,
                    "warmup": 0.06,
                    "weight_decay": 0.1,
                    "clip": 1.0,
                    "max_length": 128,
                    "pooling": None,
                    "dense_head": True,
                    "positive": None,
                    "seed": 0,
                    "precision": "bfloat16",
                    "dtype": "float16",
                },
                "train_rows": 67349,
                "dev_rows": 872,
                "steps": 8420,
                "planned_steps": 8420,
                "dev_scores": {"accuracy": 0.892202, "f1_macro": 0.892197, "matthews": 0.784628},
                "seconds": 3172.6,
                "hardware": "x86_64",
                "created": "2026-11-24T07:40:04+00:00",
                "versions": {
                    "torch": "2.13.0+cpu",
                    "transformers": "5.23.0",
                    "tokenizers": "0.23.3",
                },
            },
            "probe": {
                "rows": 4,
                "logits": [
                    [-3.035830020904541, 3.1055877208709717],
                    [1.611295461654663, -1.6306326389312744],
                    [-1.0314018726348877, 1.0302186012268066],
                    [-0.7903755903244019, 0.779343843460083],
                ],
            },
        },
        "versions": [
            {
                "version": "1c9a3464a366",
                "bytes": 451796,
                "created": "2026-11-28T09:38:03+00:00",
                "active": True,
            }
        ],
    },
    "adapter": {
        "task": "sst2",
        "kind": "bottleneck",
        "version": "1c9a3464a366",
        "labels": ["negative", "positive"],
        "problem_type": "single_label_classification",
        "text_pair": False,
        "bytes": 451796,
        "parameters": 224738,
        "created": "2026-11-28T09:38:03+00:00",
        "tier": "device",
        "spec": {
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
                "recipe": {
                    "method": "adamix",
                    "experts": 4,
                    "share_down": False,
                    "share_up": True,
                    "bottleneck": 16,
                    "consistency": 0.03,
                    "epochs": 4,
                    "batch_size": 32,
                    "learning_rate": 0.003,
                    "warmup": 0.06,
                    "weight_decay": 0.1,
                    "clip": 1.0,
                    "max_length": 128,
                    "pooling": None,
                    "dense_head": True,
                    "positive": None,
                    "seed": 0,
                    "precision": "bfloat16",
                    "dtype": "float16",
                },
                "train_rows": 67349,
                "dev_rows": 872,
                "steps": 8420,
                "planned_steps": 8420,
                "dev_scores": {"accuracy": 0.892202, "f1_macro": 0.892197, "matthews": 0.784628},
                "seconds": 3172.6,
                "hardware": "x86_64",
                "created": "2026-11-24T07:40:04+00:00",
                "versions": {
                    "torch": "2.13.0+cpu",
                    "transformers": "5.23.0",
                    "tokenizers": "0.23.3",
                },
            },
            "probe": {
                "rows": 4,
                "logits": [
                    [-3.035830020904541, 3.1055877208709717],
                    [1.611295461654663, -1.6306326389312744],
                    [-1.0314018726348877, 1.0302186012268066],
                    [-0.7903755903244019, 0.779343843460083],
                ],
            },
        },
        "versions": [
            {
                "version": "1c9a3464a366",
                "bytes": 451796,
                "created": "2026-11-28T09:38:03+00:00",
                "active": True,
            }
        ],
    },
    "adapters": [
        {
            "task": "cola",
            "kind": "bottleneck",
            "version": "24c3e43af168",
            "labels": ["acceptable", "unacceptable"],
            "problem_type": "single_label_classification",
            "text_pair": False,
            "bytes": 451844,
            "parameters": 224738,
            "created": "2026-11-28T09:38:02+00:00",
            "tier": "host",
        },
        {
            "task": "mnli",
            "kind": "bottleneck",
            "version": "b48d3657bb86",
            "labels": ["contradiction", "entailment", "neutral"],
            "problem_type": "single_label_classification",
            "text_pair": True,
            "bytes": 453078,
            "parameters": 225123,
            "created": "2026-11-28T09:38:02+00:00",
            "tier": "host",
        },
    ],
    "details": [
        {
            "task": "sst2",
            "kind": "bottleneck",
            "version": "1c9a3464a366",
            "labels": ["negative", "positive"],
            "problem_type": "single_label_classification",
            "text_pair": False,
            "bytes": 451796,
            "parameters": 224738,
            "created": "2026-11-28T09:38:03+00:00",
            "tier": "device",
            "dev_scores": {"accuracy": 0.892202, "f1_macro": 0.892197, "matthews": 0.784628},
            "requests": 8,
            "latency": {"p50": 0.16950273513793945, "p99": 0.8320754766464233},
            "canary": None,
        }
    ],
    "storage": {
        "backbone": "embedded",
        "dtype": "float32",
        "tasks": 10,
        "backbone_bytes": 90852864,
        "adapters_bytes": 4516536,
        "total_bytes": 95369400,
        "full_copies_bytes": 908528640,
        "saved_bytes": 813159240,
        "ratio": 9.526,
        "adapters": [
            {"task": "cola", "version": "24c3e43af168", "bytes": 451844},
            {"task": "mnli", "version": "b48d3657bb86", "bytes": 453078},
            {"task": "mpqa", "version": "cbf245a28594", "bytes": 451708},
            {"task": "mrpc", "version": "8f5d22f06f5c", "bytes": 447668},
            {"task": "qnli", "version": "fd61b418deec", "bytes": 452556},
            {"task": "qqp", "version": "b099bede5993", "bytes": 452196},
            {"task": "rte", "version": "f839a26588ba", "bytes": 452644},
            {"task": "sst2", "version": "1c9a3464a366", "bytes": 451796},
            {"task": "stsb", "version": "f29937b7da74", "bytes": 450858},
            {"task": "subj", "version": "2525d27eac55", "bytes": 452188},
        ],
    },
    "ready": {"status": "ready", "backbone": "embedded", "tasks": 10},
    "metrics": "# HELP adamix_requests_total Predict requests by task and outcome.\n"
    "# TYPE adamix_requests_total counter\n"
    'adamix_requests_total{outcome="ok",task="sst2"} 8.0\n'
    'adamix_requests_total{outcome="ok",task="mrpc"} 4.0\n'
    'adamix_requests_total{outcome="ok",task="stsb"} 2.0\n'
    "# HELP adamix_queue_rows Rows waiting for a batch.\n"
    "# TYPE adamix_queue_rows gauge\n"
    "adamix_queue_rows 0.0\n",
}
