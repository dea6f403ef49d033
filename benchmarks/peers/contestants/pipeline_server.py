"""What one writes first: FastAPI in front of transformers' pipelines, one full model per task."""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

app = FastAPI()
pipelines: list[Any] = []


class Question(BaseModel):
    inputs: str


@app.get("/ready")
async def ready() -> str:
    return "ready"


@app.post("/classify")
async def classify(task: int, question: Question) -> list[dict[str, Any]]:
    # In the event loop, one after the other: as a plain `def` it would run in forty threads that
    # fight for the cores.
    return pipelines[task](question.inputs, top_k=None, truncation=True)


if __name__ == "__main__":
    model, tasks, port = sys.argv[1:]
    pipelines += [
        pipeline("text-classification", model=model, device="cpu") for _ in range(int(tasks))
    ]
    uvicorn.run(app, port=int(port), log_level="warning")
