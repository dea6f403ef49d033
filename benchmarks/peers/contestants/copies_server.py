"""FastAPI in front of a full copy of the model per task, in ONNX Runtime or OpenVINO."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

app = FastAPI()


class Question(BaseModel):
    inputs: str


@app.get("/ready")
async def ready() -> str:
    return "ready"


@app.post("/classify")
async def classify(task: int, question: Question) -> list[dict[str, Any]]:
    # In the event loop, one after the other, as in pipeline_server.py.
    (logits,) = app.state.copies.logits(task, [[question.inputs]])
    exponentials = [math.exp(x - max(logits)) for x in logits]
    scores = [x / sum(exponentials) for x in exponentials]
    answer = [
        {"label": label, "score": score}
        for label, score in zip(app.state.labels, scores, strict=True)
    ]
    return sorted(answer, key=lambda entry: -entry["score"])


if __name__ == "__main__":
    runtime, model, tasks, dtype, port = sys.argv[1:]
    contestant = importlib.import_module(f"{runtime}_copies")
    app.state.copies = contestant.Copies(Path(model), int(tasks), dtype)
    config = json.loads((Path(model) / "config.json").read_text())
    app.state.labels = list(config["id2label"].values())
    uvicorn.run(app, port=int(port), log_level="warning")
