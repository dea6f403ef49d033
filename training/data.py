"""Data files → examples: JSON lines, CSV (quoted) and TSV (unquoted); texts or pairs; labels or
numbers."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InvalidText
from adapters.spec import ProblemType
from adapters.text import TextInput, check_encodable
from training.errors import DataError

Source = Path | str  # what errors call the place that rows come from
Rows = Iterable[tuple[int, dict[str, Any]]]  # (line number, columns)
Part = tuple[Source, Rows]

MAX_LABEL_CHARACTERS = 256  # a thousand of them still fit a file's header
MAX_CLASSES = 1000  # the adapter format's limit


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. A `pair` of None: taken if the file has a `text_pair`."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    label_separator: str = "|"


@dataclass(frozen=True)
class Dataset:
    """Examples of one task. `targets[i]` is a label's index, a list of label indices, or a
    number."""

    problem_type: ProblemType
    labels: tuple[str, ...]
    texts: list[TextInput]
    targets: list[Any]

    @property
    def text_pair(self) -> bool:
        return len(self.texts[0]) == 2


def read(
    train: Path, dev: Path, columns: Columns, problem_type: ProblemType | None = None
) -> tuple[Dataset, Dataset]:
    """Read both files of a task; label names are those of the training file, in sorted order.

    With no `problem_type`, labels that are lists make it multi-label, fractional numbers
    regression, anything else single-label. Raises DataError.
    """
    return assemble((train, _rows(train)), (dev, _rows(dev)), columns, problem_type)


def assemble(
    train_part: Part, dev_part: Part, columns: Columns, problem_type: ProblemType | None
) -> tuple[Dataset, Dataset]:
    """The same of rows from anywhere. Raises DataError."""
    (train, train_rows), (dev, dev_rows) = train_part, dev_part
    train_texts, train_labels = _examples(train, train_rows, columns)
    dev_texts, dev_labels = _examples(dev, dev_rows, columns)
    if len(train_texts[0]) != len(dev_texts[0]):
        raise DataError(
            f"{train} holds {_kind(train_texts)}, {dev} {_kind(dev_texts)}; expected the same"
            " columns in both"
        )
    problem_type = problem_type or _infer(train_labels)
    if problem_type == "regression":
        return (
            Dataset(problem_type, ("score",), train_texts, _numbers(train, train_labels, columns)),
            Dataset(problem_type, ("score",), dev_texts, _numbers(dev, dev_labels, columns)),
        )
    several = problem_type == "multi_label_classification"
    train_names, dev_names = (
        [_names(label, several, columns) for label in x] for x in (train_labels, dev_labels)
    )
    labels = _label_names(train, train_names, several)
    index = {name: i for i, name in enumerate(labels)}
    for i, names in enumerate(dev_names):
        for name in names:
            if name not in index:
                raise DataError(
                    f"{dev}, row {i + 1}, has the label {name!r}, which {train} lacks; expected one"
                    f" of {_some(labels)}"
                )

    def targets(rows: list[list[str]]) -> list[Any]:
        return [[index[n] for n in row] if several else index[row[0]] for row in rows]

    return (
        Dataset(problem_type, labels, train_texts, targets(train_names)),
        Dataset(problem_type, labels, dev_texts, targets(dev_names)),
    )


def _examples(path: Source, rows: Rows, columns: Columns) -> tuple[list[TextInput], list[Any]]:
    texts: list[TextInput] = []
    labels: list[Any] = []
    pair = columns.pair
    try:
        for number, row in rows:
            if not texts and pair is None and "text_pair" in row:
                pair = "text_pair"
            text = tuple(
                _text(row, name, path, number) for name in (columns.text, pair) if name is not None
            )
            if pair is None and "text_pair" in row:
                raise DataError(
                    f"{path}, line {number}, has a 'text_pair', which the first row has not;"
                    " expected it in all or none"
                )
            texts.append(text)  # type: ignore[arg-type]  # one or two strings, by the two columns above
            labels.append(_label(row, columns.label, path, number))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    if not texts:
        raise DataError(f"{path} holds no examples; expected at least one")
    return texts, labels


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, columns) of each row."""
    if path.suffix in (".csv", ".tsv"):
        yield from _table_rows(path)
    elif path.suffix in (".jsonl", ".json", ".ndjson"):
        yield from _json_rows(path)
    else:
        raise DataError(f"{path} ends in {path.suffix!r}; expected .jsonl, .csv or .tsv")


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise DataError(f"{path}, line {number}, is not JSON: {error}") from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}, is a JSON {type(row).__name__}; expected an object"
                )
            yield number, row


def _table_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    dialect: dict[str, Any] = (
        {"delimiter": ","}
        if path.suffix == ".csv"
        else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    )
    csv.field_size_limit(1 << 24)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=path.suffix == ".csv", **dialect)
        try:
            for row in reader:
                # what DictReader makes of too many fields and of too few
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}, does not have the header's"
                        f" {len(reader.fieldnames or [])} columns"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{path}, after line {reader.line_num}, is not {path.suffix[1:].upper()}: {error}"
            ) from None


def _text(row: dict[str, Any], name: str, path: Source, number: int) -> str:
    if name not in row:
        raise DataError(f"{path}, line {number}, has no column {name!r}; it has {_some(list(row))}")
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}, column {name!r}, is {text!r}; expected a text")
    _check_text(text, name, path, number)
    return text


def _label(row: dict[str, Any], name: str, path: Source, number: int) -> Any:
    if name not in row:
        raise DataError(f"{path}, line {number}, has no column {name!r}; it has {_some(list(row))}")
    label = row[name]
    for part in label if isinstance(label, list) else [label]:
        if not isinstance(part, str | int | float) or (
            isinstance(part, float) and not math.isfinite(part)
        ):
            raise DataError(
                f"{path}, line {number}, column {name!r}, is {label!r}; expected a name, a number"
                " or a list of names"
            )
        if isinstance(part, str) and part:  # an empty one may say "no label" of several
            _check_text(part, name, path, number)
    return label


def _check_text(text: str, name: str, path: Source, number: int) -> None:
    try:
        check_encodable(text, f"column {name!r}")
    except InvalidText as error:
        raise DataError(f"{path}, line {number}: {error}") from None


def _infer(labels: list[Any]) -> ProblemType:
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    numbers = [_number(label) for label in labels]
    if None not in numbers and any(isinstance(x, float) or "." in str(x) for x in labels):
        return "regression"
    return "single_label_classification"


def _number(label: Any) -> float | None:
    if isinstance(label, bool) or not isinstance(label, int | float | str):
        return None
    try:
        value = float(label)
    except (ValueError, OverflowError):  # a whole number may be larger than any float
        return None
    return value if math.isfinite(value) else None


def _numbers(path: Source, labels: list[Any], columns: Columns) -> list[float]:
    values = []
    for i, label in enumerate(labels):
        value = _number(label)
        if value is None:
            raise DataError(
                f"{path}, row {i + 1}, column {columns.label!r}, is {label!r}; expected a finite"
                " number"
            )
        values.append(value)
    return values


def _names(label: Any, several: bool, columns: Columns) -> list[str]:
    if several and isinstance(label, str):
        label = [part.strip() for part in label.split(columns.label_separator) if part.strip()]
    parts = label if several and isinstance(label, list) else [label]
    return [part if isinstance(part, str) else json.dumps(part) for part in parts]


def _label_names(path: Source, rows: list[list[str]], several: bool) -> tuple[str, ...]:
    found = {name for row in rows for name in row}
    if "" in found:
        raise DataError(f"{path} holds an empty label; expected a name in every row")
    if len(found) < (1 if several else 2):
        only = f"the one label {_some(sorted(found))}" if found else "no labels"
        raise DataError(
            f"{path} holds {only}; expected {'at least one' if several else 'two or more'}"
        )
    longest = max(found, key=len, default="")
    if len(longest) > MAX_LABEL_CHARACTERS:
        raise DataError(
            f"{path} holds a label of {len(longest)} characters, {longest[:40]!r}…; expected at"
            f" most {MAX_LABEL_CHARACTERS}"
        )
    if len(found) > MAX_CLASSES:
        raise DataError(
            f"{path} holds {len(found)} distinct labels; expected at most {MAX_CLASSES} "
            "(for numbers, say --problem-type regression)"
        )
    return tuple(
        sorted(found, key=lambda name: (_number(name) is None, _number(name) or 0.0, name))
    )


def _kind(texts: list[TextInput]) -> str:
    return "pairs" if len(texts[0]) == 2 else "single texts"


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
