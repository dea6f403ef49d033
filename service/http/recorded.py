"""Answers of a service with the shipped adapters; written by
`python -m tests.service.record_examples`."""

from __future__ import annotations

from typing import Any

ANSWERS: dict[str, Any] = {
    "predict text": [
        {"label": "positive", "score": 0.9980083885911349},
        {"label": "negative", "score": 0.001991611408865091},
    ],
    "predict pair": [
        {"label": "equivalent", "score": 0.8940730591911258},
        {"label": "not_equivalent", "score": 0.10592694080887421},
    ],
    "predict texts": [
        [{"label": "positive", "score": 0.9978980427860465}],
        [{"label": "negative", "score": 0.9955326072713737}],
    ],
    "predict pairs": [
        [
            {"label": "equivalent", "score": 0.8940730591911258},
            {"label": "not_equivalent", "score": 0.10592694080887421},
        ],
        [
            {"label": "not_equivalent", "score": 0.6075655482075017},
            {"label": "equivalent", "score": 0.39243445179249825},
        ],
    ],
    "predict tasks": {
        "mrpc": [
            {"label": "equivalent", "score": 0.8940730591911258},
            {"label": "not_equivalent", "score": 0.10592694080887421},
        ],
        "stsb": [{"label": "score", "score": 3.9186997413635254}],
    },
    "predict regression": [{"label": "score", "score": 3.9186997413635254}],
    "predict pinned": [
        {"label": "positive", "score": 0.9980083885911349},
        {"label": "negative", "score": 0.001991611408865091},
    ],
    "predict long": [
        {"label": "positive", "score": 0.7826228131000771},
        {"label": "negative", "score": 0.2173771868999229},
    ],
    "predict window": [
        {"label": "positive", "score": 0.996534526568843},
        {"label": "negative", "score": 0.003465473431156954},
    ],
    "predict tei": [
        [
            {"label": "positive", "score": 0.9978980427860465},
            {"label": "negative", "score": 0.0021019572139534754},
        ],
        [
            {"label": "negative", "score": 0.9955326072713737},
            {"label": "positive", "score": 0.004467392728626342},
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
                "data": [0.9978980427860465, 0.9955326072713737],
            },
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [2, 2],
                "data": [
                    -3.0636215209960938,
                    3.099160671234131,
                    2.66093111038208,
                    -2.74554181098938,
                ],
            },
        ],
    },
    "infer pair": {
        "model_name": "mrpc",
        "model_version": "abfefd462dff",
        "id": "42",
        "outputs": [
            {
                "name": "score",
                "datatype": "BYTES",
                "shape": [1, 2],
                "data": ["0.894073:0:equivalent", "0.105927:1:not_equivalent"],
            }
        ],
    },
    "infer window": {
        "model_name": "sst2",
        "model_version": "1c9a3464a366",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "data": [0.9962810093333673]},
            {
                "name": "logits",
                "datatype": "FP32",
                "shape": [1, 2],
                "data": [-5.59411183546238, -0.0035347850817499804],
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
        {"name": "cola", "version": "1a3e642e0396", "state": "READY", "reason": ""},
        {"name": "mnli", "version": "26c9a293fd44", "state": "READY", "reason": ""},
        {"name": "mpqa", "version": "afe12258a0ae", "state": "READY", "reason": ""},
        {"name": "mrpc", "version": "abfefd462dff", "state": "READY", "reason": ""},
        {"name": "qnli", "version": "fd731bcd85a2", "state": "READY", "reason": ""},
        {"name": "qqp", "version": "ab803350d761", "state": "READY", "reason": ""},
        {"name": "rte", "version": "e662dbb2899d", "state": "READY", "reason": ""},
        {"name": "sst2", "version": "1c9a3464a366", "state": "READY", "reason": ""},
        {"name": "stsb", "version": "f29937b7da74", "state": "READY", "reason": ""},
        {"name": "subj", "version": "329b586fda42", "state": "READY", "reason": ""},
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
        "created": "2026-11-29T02:15:24+00:00",
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
                "created": "2026-11-29T02:15:24+00:00",
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
        "created": "2026-11-29T02:15:24+00:00",
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
                "created": "2026-11-29T02:15:24+00:00",
                "active": True,
            }
        ],
    },
    "adapters": [
        {
            "task": "cola",
            "kind": "bottleneck",
            "version": "1a3e642e0396",
            "labels": ["acceptable", "unacceptable"],
            "problem_type": "single_label_classification",
            "text_pair": False,
            "bytes": 452308,
            "parameters": 224738,
            "created": "2026-11-29T02:15:24+00:00",
            "tier": "host",
        },
        {
            "task": "mnli",
            "kind": "bottleneck",
            "version": "26c9a293fd44",
            "labels": ["contradiction", "entailment", "neutral"],
            "problem_type": "single_label_classification",
            "text_pair": True,
            "bytes": 453694,
            "parameters": 225123,
            "created": "2026-11-29T02:15:24+00:00",
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
            "created": "2026-11-29T02:15:24+00:00",
            "tier": "device",
            "dev_scores": {"accuracy": 0.892202, "f1_macro": 0.892197, "matthews": 0.784628},
            "requests": 8,
            "latency": {"p50": 0.020260067656636238, "p99": 0.08892761170864105},
            "canary": None,
        }
    ],
    "storage": {
        "backbone": "embedded",
        "dtype": "float32",
        "tasks": 10,
        "backbone_bytes": 90852864,
        "adapters_bytes": 4521576,
        "total_bytes": 95374440,
        "full_copies_bytes": 908528640,
        "saved_bytes": 813154200,
        "ratio": 9.526,
        "adapters": [
            {"task": "cola", "version": "1a3e642e0396", "bytes": 452308},
            {"task": "mnli", "version": "26c9a293fd44", "bytes": 453694},
            {"task": "mpqa", "version": "afe12258a0ae", "bytes": 452316},
            {"task": "mrpc", "version": "abfefd462dff", "bytes": 448428},
            {"task": "qnli", "version": "fd731bcd85a2", "bytes": 453092},
            {"task": "qqp", "version": "ab803350d761", "bytes": 453100},
            {"task": "rte", "version": "e662dbb2899d", "bytes": 453180},
            {"task": "sst2", "version": "1c9a3464a366", "bytes": 451796},
            {"task": "stsb", "version": "f29937b7da74", "bytes": 450858},
            {"task": "subj", "version": "329b586fda42", "bytes": 452804},
        ],
    },
    "ready": {"status": "ready", "backbone": "embedded", "tasks": 10},
    "metrics": "# HELP adamix_queue_rows Rows waiting for a batch.\n"
    "# TYPE adamix_queue_rows gauge\n"
    "adamix_queue_rows 0.0\n"
    "# HELP adamix_requests_total Predict requests by task and outcome.\n"
    "# TYPE adamix_requests_total counter\n"
    'adamix_requests_total{outcome="ok",task="sst2"} 8.0\n'
    'adamix_requests_total{outcome="ok",task="mrpc"} 4.0\n'
    'adamix_requests_total{outcome="ok",task="stsb"} 2.0\n',
}
