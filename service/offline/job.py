"""Score a file: its rows, with a task's answers, into another file.

The input is read three times: to look whether all of it can be scored, to score it, and to write
the output. So nothing is found out after hours that could be found out before, and a job that was
killed goes on where it was (`journal`). The output is there when it is whole.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from adapters.disk import written_whole
from adapters.errors import DataError, InvalidText
from adapters.regular import is_folder, is_there, opened
from adapters.rows import JSON_LINES, read_rows
from adapters.spec import shortened
from adapters.text import TextInput, check_encodable, check_text
from service.offline.answers import Answer, Answerer
from service.offline.errors import CannotScore
from service.offline.journal import Journal
from service.offline.table import KINDS, added_columns, write_table

CHUNK_ROWS = 256
MAX_INT64 = (1 << 63) - 1
CHUNKS = 4  # under way at once, so that the device has the next batch while texts are tokenised


@dataclass(frozen=True)
class Job:
    """What is scored, and how. `pair` None: the column `text_pair`, if the task takes pairs.
    `all_scores`: with a column for each label."""

    source: Path
    out: Path
    text: str = "text"
    pair: str | None = None
    abstain: float | None = None
    all_scores: bool = False

    def check(self) -> None:
        """Raises CannotScore for what is known before anything is read."""
        kind = self.out.suffix.lower()
        if kind not in KINDS:
            raise CannotScore(
                f"--out {self.out} ends in {kind!r}; expected {', '.join(KINDS[:-1])} or"
                f" {KINDS[-1]}"
            )
        if not is_folder(self.out.parent):
            raise CannotScore(f"the folder of --out {self.out} does not exist; expected one")
        if is_there(self.out) and not is_there(self.part):
            raise CannotScore(f"--out {self.out} is there already; expected another file")

    @property
    def part(self) -> Path:
        """Where the answers lie until the output is whole."""
        return self.out.with_name(f"{self.out.name}.part")

    def columns(self, text_pair: bool) -> tuple[str, ...]:
        """Those of the texts."""
        return (self.text, self.pair or "text_pair") if text_pair else (self.text,)


@dataclass(frozen=True)
class _Survey:
    rows: int
    columns: dict[str, type]


async def score(job: Job, answerer: Answerer, show: Callable[[int, int], None]) -> tuple[int, int]:
    """Answer every row and write the output; returns how many rows there are, and how many of them
    were answered before. `show` is told the rows that are answered, of how many. Raises
    CannotScore, DataError, PackageMissing, or what the answerer raises; then what was answered
    stays, and the same job goes on with it."""
    try:
        return await _score(job, answerer, show)
    except OSError as error:
        place = error.filename or job.out
        raise CannotScore(f"{place} cannot be read or written: {error.strerror}") from None


async def _score(job: Job, answerer: Answerer, show: Callable[[int, int], None]) -> tuple[int, int]:
    scored = answerer.scored
    survey = _looked_through(job, answerer)
    identity = {
        "input": _digest(job.source),
        "task": scored.task,
        "version": scored.digest,
        "texts": list(job.columns(scored.text_pair)),
        "abstain": job.abstain,
    }
    journal = Journal.of(job.part, identity)
    try:
        before = journal.rows
        show(before, survey.rows)
        async for answers in _answered(job, answerer, before):
            journal.add(answers)
            show(journal.rows, survey.rows)
        if journal.rows != survey.rows:
            raise CannotScore(
                f"{job.source} has {journal.rows} rows, and had {survey.rows}; expected a file that"
                " nobody changes"
            )
        rows = (row for _, row in read_rows(job.source, ()))
        with written_whole(job.out) as path:
            write_table(
                path, job.out.suffix.lower(), survey.columns, scored, job.all_scores,
                zip(rows, journal.answers(), strict=True),
            )  # fmt: skip
        journal.remove()
        return survey.rows, before
    except BaseException:
        if not journal.rows:  # nothing that would be lost
            journal.remove()
        raise
    finally:
        journal.close()


async def _answered(job: Job, answerer: Answerer, skip: int) -> AsyncIterator[list[Answer]]:
    """The answers of the rows after the first `skip`, by chunks, in order."""
    chunks = _chunks(job, answerer, skip)
    waiting: deque[asyncio.Task[list[Answer]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(asyncio.create_task(answerer.answers(chunk)))
            if len(waiting) == CHUNKS:
                yield await waiting.popleft()
        while waiting:
            yield await waiting.popleft()
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


def _chunks(job: Job, answerer: Answerer, skip: int) -> Iterator[list[TextInput]]:
    names = job.columns(answerer.scored.text_pair)
    rows = islice(read_rows(job.source, names), skip, None)
    while chunk := [tuple(row[name] for name in names) for _, row in islice(rows, CHUNK_ROWS)]:
        yield chunk


def _looked_through(job: Job, answerer: Answerer) -> _Survey:
    """What the input has. Raises DataError for the first row that cannot be scored."""
    names = job.columns(answerer.scored.text_pair)
    check = check_text if answerer.strict else check_encodable
    columns: dict[str, type] = {}
    kinds = (job.source.suffix.lower(), job.out.suffix.lower())
    without_infinity = any(kind in JSON_LINES for kind in kinds)
    count = 0
    for number, row in read_rows(job.source, None):  # all its columns go to the output
        count += 1
        for name in names:
            where = f"{job.source}, line {number}"
            if name not in row:
                option = "--text-column" if name == job.text else "--pair-column"
                raise DataError(
                    f"{where}, has no column {name!r}; it has {', '.join(map(repr, row))}"
                    f" ({option} names another)"
                )
            if not isinstance(row[name], str):
                raise DataError(f"{where}, column {name!r}, is {row[name]!r}; expected a text")
            try:
                check(row[name], f"column {name!r}")
            except InvalidText as error:
                raise DataError(f"{where}: {error}") from None
        _check_writable(row, f"{job.source}, line {number}")
        if without_infinity:
            _check_finite(row, f"{job.source}, line {number}")
        for name, value in row.items():
            columns[name] = _joined(columns.get(name), value)
    if not count:
        raise DataError(f"{job.source} holds no rows; expected at least one")
    for name in added_columns(answerer.scored, job.all_scores):
        if name in columns:
            raise DataError(
                f"{job.source} has a column {name!r}, which the output needs for itself; expected"
                " another name"
            )
    return _Survey(count, {name: _known(kind) for name, kind in columns.items()})


def _check_writable(row: dict[str, Any], where: str) -> None:
    """Raises DataError for what no output can hold, such as half of a surrogate pair or a number of
    more than 64 bits."""
    try:
        orjson.dumps(row, default=str)
    except TypeError as error:
        raise DataError(
            f"{where}, cannot be written to the output: {shortened(error)}; expected values that"
            " JSON has"
        ) from None


def _check_finite(row: dict[str, Any], where: str) -> None:
    """Raises DataError for NaN or infinity: JSON lines have neither, and null would be written."""
    for name, value in row.items():
        rest = [value]
        while rest:
            part = rest.pop()
            if isinstance(part, float) and not math.isfinite(part):
                raise DataError(
                    f"{where}, column {name!r}, holds {part!r}; expected finite numbers, or null:"
                    " JSON lines have no others"
                )
            if isinstance(part, list | dict):
                rest += part.values() if isinstance(part, dict) else part


class _Nothing:
    """The type of a column that was null so far."""


def _joined(kind: type | None, value: Any) -> type:
    """The type of a column with one value more: `str` where there are several."""
    if value is None:
        return kind or _Nothing
    found = type(value)
    if found is int and value > MAX_INT64:
        found = str
    if kind in (None, _Nothing, found):
        return found
    return float if {kind, found} == {int, float} else str


def _known(kind: type) -> type:
    return kind if kind in (bool, int, float) else str


def _digest(path: Path) -> str:
    with opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
