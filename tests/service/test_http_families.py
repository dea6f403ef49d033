"""Each further family, and XLM-R, over HTTP: trained, merged, uploaded, its probe replayed, and
asked."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters import backbone as backbones
from adapters.classifier import collate, from_adapter
from adapters.file import parse, serialize
from adapters.text import encode
from tests.sentence_pieces import pieces_backbone
from tests.service.conftest import ADMIN_KEY, running
from tests.tiny import tiny_masked_lm
from tests.training.test_training import QUICK, SINGLE
from training.config import SERVABLE, Recipe
from training.one_run import train

TEXTS = [("it is a good film",), ("awful",), ("the plot was not very good and the film is bad",)]
# DeBERTa and XLM-R with SentencePiece's own file alone, as they are released
FOLDERS = {
    "distilbert": tiny_masked_lm,
    "mpnet": tiny_masked_lm,
    "modernbert": tiny_masked_lm,
    "deberta-v2": pieces_backbone,
    "xlm-roberta": pieces_backbone,
}


@pytest.mark.parametrize("family", FOLDERS)
def test_from_training_to_answers(family: str, tmp_path: Path) -> None:
    """What each method that can be served trains on the backbone, and a prompt, uploaded, answer in
    one batch the logits of transformers' model."""
    folder = FOLDERS[family](tmp_path / "backbone", family)
    backbone = backbones.load(str(folder))
    words = dict(zip(SINGLE.labels, ("good", "the"), strict=True))
    recipes: dict[str, dict[str, Any]] = {method: {"method": method} for method in SERVABLE}
    recipes["adamix"]["experts"] = 2
    recipes["lora"] |= {"rank": 4, "bottleneck": Recipe.bottleneck}
    recipes["updates"] = {**recipes["lora"], "method": "adamix", "adaptation": "lora", "experts": 2}
    recipes["prompt"] = {
        "experts": 2,
        "prompt": "{text} It was {mask}.",
        "label_words": words,
    }
    files = {}
    for task, changes in recipes.items():
        recipe = dataclasses.replace(QUICK, **changes)
        trained = train(task, backbone, SINGLE, SINGLE, recipe)
        files[task] = serialize(trained.spec, trained.tensors)
    bearer = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with (
        running(tmp_path / "store", backbone=folder, admin_key=ADMIN_KEY) as server,
        server.client(headers=bearer) as client,
    ):
        for data in files.values():
            answer = client.post("/adapters", files={"file": data})
            assert answer.status_code == 201, answer.text  # its probe was replayed
        answer = client.post(
            "/predict?" + "&".join(f"task={task}" for task in files),
            json={
                "inputs": [text for (text,) in TEXTS],
                "parameters": {"function_to_apply": "none", "top_k": 2},
            },
        )
        assert answer.status_code == 200, answer.text
    for task, data in files.items():
        adapter = parse(data)
        spec = adapter.spec
        prompt = backbone.prompt(spec.template, spec.max_length)
        rows = encode(backbone.tokenizer, TEXTS, spec.max_length, prompt)
        with torch.no_grad():
            wanted = from_adapter(backbone, adapter)(collate(rows))
        for found, logits in zip(answer.json()[task], wanted, strict=True):
            scores = {entry["label"]: entry["score"] for entry in found}
            assert [scores[label] for label in spec.labels] == pytest.approx(
                logits.tolist(), abs=1e-4
            )
