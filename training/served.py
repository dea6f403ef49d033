"""A task of a running service on labelled rows: what clients get, not what a file promises."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import httpx2
import torch

from adapters.errors import CannotUpload, InvalidAdapter
from adapters.file import Adapter, parse
from adapters.rows import read_rows
from adapters.text import TextInput
from adapters.upload import asked, connected, parsed_json, path_of, without_user
from training.data import Columns, labelled
from training.errors import TrainingError
from training.evaluation import Evaluated, judged

ROWS = 16  # in a request


def evaluated_by_service(
    name: str, url: str, key: str | None, data: Path, columns: Columns, positive: str | None
) -> Evaluated:
    """`name` is TASK, for its active version, or TASK@VERSION. The rows go to `/predict` with
    `truncate`, so that they are cut as in a training, and come back as logits. Raises AdaMixError.
    """
    task, _, version = name.partition("@")
    try:
        with connected(url, key) as client:
            shown = _shown(client)
            adapter = _adapter(client, task, version)
            dataset = labelled(data, read_rows(data, columns.needed), columns, adapter.spec)
            logits = torch.tensor(list(_logits(client, adapter, dataset.texts)))
    except CannotUpload as error:
        raise TrainingError(str(error)) from None
    return judged(adapter, f"{data}, answered by {shown}", dataset, logits, positive)


def _adapter(client: httpx2.Client, task: str, version: str) -> Adapter:
    """The very file that answers: its version is pinned in what is asked then."""
    if not version:
        said = parsed_json(asked(client, "GET", path_of("adapters", task)))
        active = said.get("version") if isinstance(said, dict) else None
        if not isinstance(active, str):
            raise TrainingError(
                f"task {task!r} has no active version there; expected one, or {task}@VERSION"
            )
        version = active
    place = path_of("adapters", task, "versions", version, "file")
    answer = asked(client, "GET", place)
    try:
        return parse(answer.content)
    except InvalidAdapter as error:
        raise TrainingError(
            f"{_shown(client)} sent no adapter's file: {error}; expected an adamix-serve"
        ) from None


def _logits(
    client: httpx2.Client, adapter: Adapter, texts: list[TextInput]
) -> Iterator[list[float]]:
    """A row each, in the order of the labels."""
    spec = adapter.spec
    at = {"task": spec.task, "version": adapter.version}
    for start in range(0, len(texts), ROWS):
        part = texts[start : start + ROWS]
        inputs = [
            {"text": text[0], "text_pair": text[1]} if len(text) == 2 else text[0] for text in part
        ]
        body = {
            "inputs": inputs,
            "truncate": True,
            "parameters": {"function_to_apply": "none", "top_k": len(spec.labels)},
        }
        said = parsed_json(asked(client, "POST", "/predict", params=at, json=body))
        try:
            found = [{each["label"]: float(each["score"]) for each in row} for row in said]
            rows = [[row[label] for label in spec.labels] for row in found]
            if len(rows) != len(part) or not all(map(math.isfinite, chain(*rows))):
                raise ValueError
        except (KeyError, TypeError, ValueError, OverflowError):  # an integer of 400 digits
            raise TrainingError(
                f"{_shown(client)} answered with something else than the scores of {len(part)}"
                " rows; expected an adamix-serve"
            ) from None
        yield from rows


def _shown(client: httpx2.Client) -> str:
    """The service's address, without a password."""
    return without_user(client.base_url).rstrip("/")
