"""The rows of the input with their answers, as CSV, JSON lines or Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from adapters.rows import BATCH_ROWS, PARQUET, pyarrow_parquet
from service.offline.answers import Answer, Scored

PREDICTION, SCORE = "prediction", "score"
JSON_LINES = (".jsonl", ".ndjson")
KINDS = (".csv", *JSON_LINES, PARQUET)
Rows = Iterator[tuple[dict[str, Any], Answer]]


def added_columns(scored: Scored, all_scores: bool) -> list[str]:
    """The columns that the output has beyond the input's."""
    if scored.problem_type == "regression":
        return [PREDICTION]
    more = [f"{SCORE} of {label}" for label in scored.labels] if all_scores else []
    return [PREDICTION, SCORE, *more]


def write_table(
    path: Path, kind: str, columns: dict[str, type], scored: Scored, all_scores: bool, rows: Rows
) -> None:
    """Write a whole table; `columns` are the input's, with the type of their values. Raises
    OSError or PackageMissing."""
    added = added_columns(scored, all_scores)

    def whole() -> Iterator[dict[str, Any]]:
        nothing = [None] * len(scored.labels)
        for row, answer in rows:
            values = [answer.prediction, answer.score, *(answer.scores or nothing)]
            yield {**row, **dict(zip(added, values, strict=False))}

    if kind == PARQUET:
        _write_parquet(path, _types(columns, scored, added), whole())
    elif kind == ".csv":
        _write_csv(path, [*columns, *added], whole())
    else:
        _write_json(path, whole())


def _write_csv(path: Path, names: list[str], rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([_cell(name, row.get(name)) for name in names])


def _cell(name: str, value: Any) -> Any:
    if name == PREDICTION and isinstance(value, list):
        return "|".join(value)
    if not isinstance(value, list | dict):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)  # Parquet has lists of dates


def _write_json(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("wb") as file:
        for row in rows:
            file.write(orjson.dumps(row, default=str) + b"\n")


def _write_parquet(path: Path, types: dict[str, Any], rows: Iterator[dict[str, Any]]) -> None:
    parquet = pyarrow_parquet(path)
    import pyarrow

    schema = pyarrow.schema(list(types.items()))
    with parquet.ParquetWriter(path, schema) as writer:
        part: list[dict[str, Any]] = []

        def write() -> None:
            writer.write_table(pyarrow.Table.from_pylist(part, schema=schema))
            part.clear()

        for row in rows:
            part.append({name: _fitting(row.get(name), type_) for name, type_ in types.items()})
            if len(part) == 64 * BATCH_ROWS:
                write()
        if part:
            write()


def _fitting(value: Any, type_: Any) -> Any:
    """A value as its column has it: one of another type becomes its JSON."""
    import pyarrow

    if isinstance(value, int) and pyarrow.types.is_floating(type_):
        return float(value)  # pyarrow refuses an integer that a float has not
    if value is None or not pyarrow.types.is_string(type_) or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def _types(columns: dict[str, type], scored: Scored, added: list[str]) -> dict[str, Any]:
    import pyarrow

    known = {bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    found = {name: known.get(kind, pyarrow.string()) for name, kind in columns.items()}
    prediction = {
        "regression": pyarrow.float64(),
        "multi_label_classification": pyarrow.list_(pyarrow.string()),
    }.get(scored.problem_type, pyarrow.string())
    more = {name: pyarrow.float64() for name in added}
    return {**found, **more, PREDICTION: prediction}
