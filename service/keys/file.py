"""A keys file: TOML, one table `[keys.NAME]` a key. docs/keys.md describes it.

[keys.team-a]
hash = "scrypt$16384$8$1$…$…"
scopes = ["predict"]
tasks = ["sst2*"]
requests_per_second = 20
rows_per_second = 200
"""

from __future__ import annotations

import json
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import AdaMixError
from adapters.regular import opened
from adapters.spec import shown
from service.keys.hashes import BadHash, check_hash
from service.keys.key import NAME, PATTERN, SCOPES, Key

MAX_BYTES = 4 << 20
MAX_PATTERNS = 1000
LIMITS = ("requests_per_second", "rows_per_second")
LEAST_LIMIT, MOST_LIMIT = 0.001, 1e9
FIELDS = ("hash", "scopes", "tasks", *LIMITS)
METRICS = "read-metrics"  # which says nothing of single tasks
_HEADER = re.compile(r"\s*\[\s*keys\s*\.\s*[\"']?([^\"'\]\s]*)[\"']?\s*\]")
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")


class InvalidKeys(AdaMixError):
    """A keys file that cannot be used."""


def read(path: Path) -> dict[str, Key]:
    """The keys of a file, by name. Raises InvalidKeys with one sentence that names the line."""
    try:
        with opened(path) as file:
            _check_readers(path, os.fstat(file.fileno()))
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InvalidKeys(
            f"the keys file {path} (ADAMIX_KEYS_FILE) cannot be read: {error.strerror}; expected a"
            " file that this user may read"
        ) from None
    if len(data) > MAX_BYTES:
        raise InvalidKeys(f"the keys file {path} has more than {MAX_BYTES} bytes; expected fewer")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InvalidKeys(
            f"the keys file {path}, line {line}: it is not UTF-8; expected TOML"
        ) from None
    try:
        return parse(text)
    except InvalidKeys as error:
        raise InvalidKeys(f"the keys file {path}, {error}") from None


def parse(text: str) -> dict[str, Key]:
    """The keys of a file's text, by name. Raises InvalidKeys, which begins with the line."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        line = int(place[1]) if place and place[1] else max(1, len(text.splitlines()))
        reason = _TOML_PLACE.sub("", str(error))
        raise InvalidKeys(
            f"line {line}: it is not TOML: {reason[:1].lower()}{reason[1:200]}; expected TOML"
        ) from None
    except (RecursionError, ValueError):  # of lists within lists, or numbers of 5,000 digits
        raise InvalidKeys("line 1: it is not TOML that can be read; expected TOML") from None
    for name in document:
        if name != "keys":
            raise InvalidKeys(
                f"line {_line(text, name)}: it has {shown(name)}; expected tables [keys.NAME] alone"
            )
    tables = document.get("keys")
    if not isinstance(tables, dict) or not tables:
        # also a file that is empty for a moment, since somebody writes it anew
        raise InvalidKeys("line 1: it has no key; expected at least one table [keys.NAME]")
    return {name: _key(text, name, table) for name, table in tables.items()}


def check(key: Key) -> None:
    """Raises InvalidKeys for a key that no keys file may have."""
    if not NAME.fullmatch(key.name):
        raise InvalidKeys(
            f"the name is {shown(key.name)}; expected at most 64 of a-z, 0-9, _ and -"
        )
    try:
        parse(block(key))
    except InvalidKeys as error:
        raise InvalidKeys(str(error).partition(": ")[2]) from None  # without the line


def block(key: Key) -> str:
    """A key as a keys file has it."""
    lines = [f"[keys.{key.name}]", f"hash = {json.dumps(key.hash)}"]
    lines.append(f"scopes = {json.dumps(sorted(key.scopes))}")
    if key.tasks:
        lines.append(f"tasks = {json.dumps(list(key.tasks))}")
    limits = {name: getattr(key, name) for name in LIMITS}
    lines += [f"{name} = {limit!r}" for name, limit in limits.items() if limit is not None]
    return "\n".join(lines) + "\n"


def _check_readers(path: Path, about: os.stat_result) -> None:
    """Links to it are followed: Kubernetes mounts a Secret's files as links."""
    mode = stat.S_IMODE(about.st_mode)
    if mode & stat.S_IRWXO:
        raise InvalidKeys(
            f"the keys file {path} has mode {mode:04o}, so that every user of this machine may know"
            " it; expected mode 0600, or 0640 for a group"
        )


def _key(text: str, name: str, table: Any) -> Key:
    if not isinstance(table, dict):
        raise InvalidKeys(
            f"line {_line(text, name)}: keys.{name} is {shown(table)}; expected a table"
            f" [keys.{name}]"
        )

    def fault(field: str | None, what: str) -> InvalidKeys:
        line = _line(text, name, field)
        return InvalidKeys(f"line {line}: of the key {shown(name)}, {what}")

    if not NAME.fullmatch(name):
        raise fault(None, f"the name is {shown(name)}; expected at most 64 of a-z, 0-9, _ and -")
    for field in table:
        if field not in FIELDS:
            raise fault(field, f"{shown(field)} is unknown; expected {', '.join(FIELDS)}")
    for field in ("hash", "scopes"):
        if field not in table:
            raise fault(None, f"{field} is missing; expected it")
    try:
        if not isinstance(table["hash"], str):
            raise BadHash("expected a text")
        check_hash(table["hash"])
    except BadHash as error:  # the hash itself stays out of the log
        raise fault("hash", f"the hash is none: {error}") from None
    scopes = table["scopes"]
    tasks = table.get("tasks", [])
    for field, found in (("scopes", scopes), ("tasks", tasks)):
        if field in table and not _are_texts(found):
            raise fault(
                field, f"{field} is {shown(found)}; expected a list of 1 to {MAX_PATTERNS} texts"
            )
    for scope in scopes:
        if scope not in SCOPES:
            raise fault("scopes", f"the scope {shown(scope)} is unknown; expected {_SCOPES}")
    if "tasks" not in table and set(scopes) != {METRICS}:
        raise fault(None, 'tasks is missing; expected patterns, such as ["sst2*"]')
    for pattern in tasks:
        if not PATTERN.fullmatch(pattern):
            raise fault(
                "tasks",
                f"the pattern {shown(pattern)} fits no task; expected at most 64 of a-z, 0-9, _, -,"
                " * and ?",
            )
    for field in LIMITS:
        if field in table and not _is_limit(table[field]):
            raise fault(
                field,
                f"{field} is {shown(table[field])}; expected a number from {LEAST_LIMIT:g} to"
                f" {MOST_LIMIT:g}",
            )
    return Key(name, table["hash"], frozenset(scopes), tuple(tasks), *_limits(table))


_SCOPES = ", ".join(SCOPES)


def _are_texts(found: Any) -> bool:
    return (
        isinstance(found, list)
        and 1 <= len(found) <= MAX_PATTERNS
        and all(isinstance(item, str) for item in found)
    )


def _is_limit(found: Any) -> bool:
    number = isinstance(found, int | float) and not isinstance(found, bool)
    return number and LEAST_LIMIT <= found <= MOST_LIMIT


def _limits(table: Mapping[str, Any]) -> list[float | None]:
    return [float(table[field]) if field in table else None for field in LIMITS]


def _line(text: str, name: str, field: str | None = None) -> int:
    """Where a key's field is, or its table, or where the name first stands: TOML's reader does not
    tell the lines of what it read."""
    lines = text.splitlines()
    start = None
    for number, line in enumerate(lines, 1):
        header = _HEADER.match(line)
        if header is not None:
            if start is not None:
                break
            start = number if header[1] == name else None
        elif (
            start is not None
            and field is not None
            and re.match(rf"\s*[\"']?{re.escape(field)}[\"']?\s*=", line)
        ):
            return number
    if start is not None:
        return start
    return next((number for number, line in enumerate(lines, 1) if name in line), 1)
