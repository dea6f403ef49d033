"""Rows → examples: texts or pairs, with labels or numbers."""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.errors import InvalidText
from adapters.rows import read_rows
from adapters.spec import AdapterSpec, ProblemType
from adapters.text import TextInput, check_encodable
from training.errors import DataError

Source = Path | str  # what errors call the place that rows come from
Rows = Iterable[tuple[int, dict[str, Any]]]  # (line number, columns)
Part = tuple[Source, Rows]

MAX_LABEL_CHARACTERS = 256  # a thousand of them still fit a file's header
MAX_CLASSES = 1000  # the adapter format's limit
NO_NUMBERS = {"", "nan", "na", "n/a", "null", "none"}  # how tables write that a number is missing
SHOWN_LINES = 5
NUMBER_WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)?")  # else "1,5" would be a class


@dataclass(frozen=True)
class Columns:
    """Which columns hold what. A `pair` of None: taken if the file has a `text_pair`."""

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    label_separator: str = "|"

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that a row may not hold twice."""
        return self.text, self.pair or "text_pair", self.label


@dataclass(frozen=True)
class Dataset:
    """Examples of one task. `targets[i]` is a label's index, a list of label indices, or a
    number."""

    problem_type: ProblemType
    labels: tuple[str, ...]
    texts: list[TextInput]
    targets: list[Any]
    unread: tuple[str, ...] = ()  # columns of the first row that are none of the examples'

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
    needed = columns.needed
    return assemble(
        (train, read_rows(train, needed)), (dev, read_rows(dev, needed)), columns, problem_type
    )


def labelled(source: Source, rows: Rows, columns: Columns, spec: AdapterSpec) -> Dataset:
    """Rows of the task that an adapter is of, with its labels. Raises DataError."""
    texts, found, unread = _examples(source, rows, columns)
    if (len(texts[0]) == 2) != spec.text_pair:
        wanted = "pairs of texts" if spec.text_pair else "single texts"
        here = "single texts" if spec.text_pair else "pairs of texts"
        raise DataError(f"{source} holds {here}; expected {wanted}, as task {spec.task!r} takes")
    targets = _targets(source, found, columns, spec.problem_type, spec.labels, "the adapter")
    return Dataset(spec.problem_type, spec.labels, texts, targets, unread)


def assemble(
    train_part: Part, dev_part: Part, columns: Columns, problem_type: ProblemType | None
) -> tuple[Dataset, Dataset]:
    """The same of rows from anywhere. Raises DataError."""
    (train, train_rows), (dev, dev_rows) = train_part, dev_part
    train_texts, train_labels, unread = _examples(train, train_rows, columns)
    dev_texts, dev_labels, _ = _examples(dev, dev_rows, columns)
    if len(train_texts[0]) != len(dev_texts[0]):
        raise DataError(
            f"{train} holds {_kind(train_texts)}, {dev} {_kind(dev_texts)}; expected the same"
            " columns in both"
        )
    problem_type = problem_type or _infer(train, train_labels, columns)
    several = problem_type == "multi_label_classification"
    labels: tuple[str, ...] = ("score",)
    if problem_type != "regression":
        labels = _label_names(train, _all_names(train, train_labels, several, columns), several)

    def made(path: Source, texts: list[TextInput], found: list[Any]) -> Dataset:
        targets = _targets(path, found, columns, problem_type, labels, str(train))
        return Dataset(problem_type, labels, texts, targets, unread)

    return made(train, train_texts, train_labels), made(dev, dev_texts, dev_labels)


def _targets(
    path: Source,
    found: list[Any],
    columns: Columns,
    problem_type: ProblemType,
    labels: tuple[str, ...],
    owner: str,
) -> list[Any]:
    """The rows' labels as a data set has them. `owner` is what errors say the labels are of."""
    if problem_type == "regression":
        return _numbers(path, found, columns)
    several = problem_type == "multi_label_classification"
    index = {name: i for i, name in enumerate(labels)}
    rows = _all_names(path, found, several, columns)
    for i, names in enumerate(rows):
        for name in names:
            if name not in index:
                raise DataError(
                    f"{path}, row {i + 1}, has the label {name!r}, which {owner} lacks; expected"
                    f" one of {_some(labels)}"
                )
    return [[index[n] for n in row] if several else index[row[0]] for row in rows]


def _examples(
    path: Source, rows: Rows, columns: Columns
) -> tuple[list[TextInput], list[Any], tuple[str, ...]]:
    """Texts, labels, and the columns that are neither."""
    texts: list[TextInput] = []
    unread: tuple[str, ...] = ()
    labels: list[Any] = []
    unusable: list[tuple[int, str]] = []  # the lines whose text is empty, say, and why
    pair = columns.pair
    try:
        for number, row in rows:
            if not texts and pair is None and "text_pair" in row:
                pair = "text_pair"
            _check_columns(row, columns, pair, path, number)
            if not texts:
                unread = tuple(
                    name for name in row if name not in (columns.text, pair, columns.label)
                )
            text = tuple(
                _text(row, name, path, number, unusable)
                for name in (columns.text, pair)
                if name is not None
            )
            if pair is None and "text_pair" in row:
                raise DataError(
                    f"{path}, line {number}, has a 'text_pair', which the first row has not;"
                    " expected it in all or none"
                )
            texts.append(text)  # type: ignore[arg-type]  # one or two strings, by the two columns above
            labels.append(_label(row, columns.label, path, number))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None
    if unusable:
        (number, reason), *others = unusable
        lines = ", ".join(str(line) for line, _ in others[:SHOWN_LINES])
        more = "…" if len(others) > SHOWN_LINES else ""
        too = f" (and {len(others)} more such texts, on lines {lines}{more})" if others else ""
        raise DataError(f"{path}, line {number}: {reason}{too}")
    if not texts:
        raise DataError(f"{path} holds no examples; expected at least one")
    return texts, labels, unread


def _check_columns(
    row: dict[str, Any], columns: Columns, pair: str | None, path: Source, number: int
) -> None:
    names = {"--text-column": columns.text, "--pair-column": pair, "--label-column": columns.label}
    lacking = {
        option: name for option, name in names.items() if name is not None and name not in row
    }
    if lacking:
        several = len(lacking) > 1
        raise DataError(
            f"{path}, line {number}, has no column{'s' * several}"
            f" {' and '.join(map(repr, lacking.values()))}; it has {_some(list(row))}"
            f" ({' and '.join(lacking)} name{'' if several else 's'} another; in Python,"
            " columns=Columns(…))"
        )


def _text(
    row: dict[str, Any], name: str, path: Source, number: int, unusable: list[tuple[int, str]]
) -> str:
    text = row[name]
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}, column {name!r}, is {text!r}; expected a text")
    try:
        check_encodable(text, f"column {name!r}")
    except InvalidText as error:
        unusable.append((number, str(error)))
    return text


def _label(row: dict[str, Any], name: str, path: Source, number: int) -> Any:
    label = row[name]
    if isinstance(label, list):
        label = [part.strip() if isinstance(part, str) else part for part in label]
    elif isinstance(label, str):
        label = label.strip()
    for part in label if isinstance(label, list) else [label]:
        if not isinstance(part, str | int | float) or (
            isinstance(part, float) and not math.isfinite(part)
        ):
            raise DataError(
                f"{path}, line {number}, column {name!r}, is {label!r}; expected a name, a number"
                " or a list of names"
            )
        if isinstance(part, str) and part:  # an empty one may say "no label" of several
            try:
                check_encodable(part, f"column {name!r}")
            except InvalidText as error:
                raise DataError(f"{path}, line {number}: {error}") from None
    return label


def _infer(path: Source, labels: list[Any], columns: Columns) -> ProblemType:
    """Whole numbers are classes, also where a table writes them as 0.0 and 1.0."""
    if any(isinstance(label, list) for label in labels):
        return "multi_label_classification"
    numbers = [_number(label) for label in labels]
    missing = [i for i, number in enumerate(numbers) if number is None]
    if 0 < len(missing) < len(labels) and all(
        isinstance(labels[i], str) and labels[i].lower() in NO_NUMBERS for i in missing
    ):
        raise DataError(
            f"{path}, row {missing[0] + 1}, column {columns.label!r}, is {labels[missing[0]]!r}"
            " among numbers; expected a number in every row"
        )
    if any("," in str(label) for label in labels) and all(
        NUMBER_WITH_COMMA.fullmatch(str(label)) for label in labels
    ):
        row = next(i for i, label in enumerate(labels) if "," in str(label))
        raise DataError(
            f"{path}, row {row + 1}, column {columns.label!r}, is {labels[row]!r}; expected a"
            " decimal point in a number"
        )
    if not missing and any(number is not None and number % 1 for number in numbers):
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


def _all_names(path: Source, labels: list[Any], several: bool, columns: Columns) -> list[list[str]]:
    """The names of each row's labels. Refuses what looks like vectors of 0 and 1, the usual form of
    several labels elsewhere: read as names they would make two labels, "0" and "1"."""
    if several and _multi_hot(labels):
        raise DataError(
            f"{path}, column {columns.label!r}, holds vectors of 0 and 1, such as {labels[0]!r};"
            " expected a list of the names of the row's labels"
        )
    rows = []
    for i, label in enumerate(labels):
        if not several and isinstance(label, list):
            raise DataError(
                f"{path}, row {i + 1}, column {columns.label!r}, is {_shown(label)}; expected one"
                " name, or --problem-type multi_label_classification"
            )
        names = _names(label, several, columns)
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise DataError(
                f"{path}, row {i + 1}, column {columns.label!r}, is {_shown(label)}, which holds"
                f" {twice!r} twice; expected each label's name once (vectors of 0 and 1 are not"
                " read)"
            )
        rows.append(names)
    return rows


def _multi_hot(labels: list[Any]) -> bool:
    lengths = {len(label) if isinstance(label, list) else 0 for label in labels}
    return (
        len(lengths) == 1
        and lengths.pop() > 1
        and all(not isinstance(part, str) and part in (0, 1) for row in labels for part in row)
    )


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
    _check_spellings(path, found)
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


def _check_spellings(path: Source, names: Iterable[str]) -> None:
    """Names that look alike would be classes of their own."""
    known: dict[str, str] = {}
    for name in sorted(names):
        other = known.setdefault(unicodedata.normalize("NFC", " ".join(name.split())), name)
        if other != name:
            raise DataError(
                f"{path} holds the labels {other!a} and {name!a}, which differ by white"
                " space or Unicode form alone; expected one spelling"
            )


def _kind(texts: list[TextInput]) -> str:
    return "pairs" if len(texts[0]) == 2 else "single texts"


def _shown(label: Any) -> str:
    text = repr(label)
    return text if len(text) <= 80 else f"{text[:80]}…"


def _some(names: tuple[str, ...] | list[str]) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
