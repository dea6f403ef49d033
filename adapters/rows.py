"""Data files → rows of columns: JSON lines, CSV (quoted), TSV (unquoted) and Parquet."""

from __future__ import annotations

import collections
import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, TextIO

from adapters.errors import DataError, PackageMissing
from adapters.regular import opened
from adapters.spec import shortened

Row = tuple[int, dict[str, Any]]  # line number, columns

TABLES = (".csv", ".tsv")
JSON_LINES = (".jsonl", ".json", ".ndjson")
PARQUET = ".parquet"
BATCH_ROWS = 1024  # of a Parquet file, in memory at once


def read_rows(path: Path, needed: Collection[str] | None) -> Iterator[Row]:
    """Each row with its line's number; of Parquet, with the row's. Raises DataError, also for a row
    or a header that holds one of the `needed` columns twice (None: any), PackageMissing and
    OSError."""
    kind = path.suffix.lower()
    if kind not in (*TABLES, *JSON_LINES, PARQUET):
        raise DataError(f"{path} ends in {path.suffix!r}; expected .jsonl, .csv, .tsv or .parquet")
    read = _parquet_rows if kind == PARQUET else _table_rows if kind in TABLES else _json_rows
    try:
        yield from read(path, needed)
    except UnicodeDecodeError:
        raise DataError(_not_utf8(path)) from None


def _json_rows(path: Path, needed: Collection[str] | None) -> Iterator[Row]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            twice = _twice([name for name, _ in pairs], needed)
            if twice is not None:
                raise ValueError(f"it holds {twice!r} twice")
        return row

    with io.TextIOWrapper(opened(path), "utf-8-sig") as file:
        first = True
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if first and line.lstrip().startswith("["):
                raise DataError(
                    f"{path}, line {number}, begins a JSON array; expected JSON lines: one object a"
                    " line"
                )
            first = False
            try:
                row = json.loads(line, object_pairs_hook=once)
            except (ValueError, RecursionError) as error:
                raise DataError(
                    f"{path}, line {number}, is not JSON: {error}; expected one object a line"
                ) from None
            if not isinstance(row, dict):
                raise DataError(
                    f"{path}, line {number}, is a JSON {type(row).__name__}; expected an object"
                )
            yield number, row


def _table_rows(path: Path, needed: Collection[str] | None) -> Iterator[Row]:
    quoted = path.suffix.lower() == ".csv"
    csv.field_size_limit(1 << 24)
    with io.TextIOWrapper(opened(path), "utf-8-sig", newline="") as file:
        dialect: dict[str, Any] = (
            {"delimiter": _delimiter(file)}
            if quoted
            else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        )
        reader = csv.DictReader(file, strict=quoted, **dialect)
        try:
            header = list(reader.fieldnames or [])
            name = _twice(header, needed)
            if name is not None:
                raise DataError(
                    f"{path}, line 1, names the column {name!r} {header.count(name)} times;"
                    " expected it once"
                )
            for row in reader:
                # what DictReader makes of too many fields and of too few
                if None in row or None in row.values():
                    raise DataError(
                        f"{path}, line {reader.line_num}, does not have the header's"
                        f" {len(header)} columns"
                    )
                yield reader.line_num, row
        except csv.Error as error:
            raise DataError(
                f"{path}, after line {reader.line_num}, is not {path.suffix[1:].upper()}: {error}"
            ) from None


def _parquet_rows(path: Path, needed: Collection[str] | None) -> Iterator[Row]:
    parquet = pyarrow_parquet(path)
    import pyarrow

    with opened(path) as file:  # an error of the file's is its own: a folder, say
        number = 0
        try:
            table = parquet.ParquetFile(file)
            names = table.schema_arrow.names
            name = _twice(names, needed)
            if name is not None:
                raise DataError(
                    f"{path} names the column {name!r} {names.count(name)} times; expected it once"
                )
            for batch in table.iter_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row
        except (pyarrow.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's own
                raise
            raise DataError(f"{path} is not Parquet: {shortened(error)}") from None
        except (ValueError, OverflowError) as error:  # a date that Python has not
            raise DataError(
                f"{path}, after row {number // BATCH_ROWS * BATCH_ROWS}, holds what cannot be read:"
                f" {shortened(error)}; expected values that Python has"
            ) from None


def pyarrow_parquet(path: Path) -> Any:
    """The module that reads and writes Parquet. Raises PackageMissing."""
    try:
        import pyarrow.parquet
    except ModuleNotFoundError:
        raise PackageMissing(
            f"{path} is a Parquet file, and pyarrow is not installed; expected pip install -c"
            " constraints.txt -e '.[parquet]'"
        ) from None
    return pyarrow.parquet


def _twice(names: list[str], needed: Collection[str] | None) -> str | None:
    """The first of the needed names that is there twice."""
    counts = collections.Counter(names)
    return next(
        (name for name in counts if counts[name] > 1 and (needed is None or name in needed)), None
    )


def _delimiter(file: TextIO) -> str:
    """A comma; or what spreadsheets of many countries write in its place, where the header has no
    comma but that."""
    header = file.readline()
    file.seek(0)
    return ";" if ";" in header and "," not in header else ","


def _not_utf8(path: Path) -> str:
    """Say where a file stops being UTF-8: a decoder counts from the piece that it was given."""
    with opened(path) as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                utf16 = number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff")
                found = "a mark of UTF-16" if utf16 else f"the byte 0x{line[error.start]:02x}"
                return f"{path}, line {number}, holds {found}; expected UTF-8"
    return f"{path} is not UTF-8; expected UTF-8"  # changed since
