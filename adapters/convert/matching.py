"""Match regular expressions that a file brings, within a time limit.

An expression can take exponential time, and Python's `re` has no limit of its own. So expressions
that can are matched in a process of their own, which runs this file and imports nothing else.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal

SECONDS = 10.0  # for all expressions together; honest ones take milliseconds
# Without a repetition, an alternative or a group an expression takes no more than its length.
PLAIN = re.compile(r"[^*+?{|(]*")

Expression = tuple[Literal["match", "fullmatch"], str]
Found = dict[str, str | None]
"""The names that an expression matches, each with what its group `layer` holds."""


class TooSlow(Exception):
    """An expression takes too long; its argument is the expression."""


def matches(
    expressions: Sequence[Expression], names: Sequence[str], *, plain: bool, seconds: float
) -> list[Found]:
    """Return what each expression finds among the names. `plain` says that none of them can take
    long. Raises TooSlow, or re.error for one that is none."""
    if plain:
        return list(_found(expressions, names))
    try:
        ran = subprocess.run(
            [sys.executable, "-I", "-S", __file__],
            input=json.dumps([expressions, names]).encode(),
            capture_output=True,
            timeout=seconds,
        )
        output = ran.stdout
    except subprocess.TimeoutExpired as expired:
        output, ran = expired.stdout or b"", None
    found = [json.loads(line) for line in output.splitlines()]
    if ran is None:
        raise TooSlow(expressions[len(found)][1])
    if ran.returncode != 0:
        raise re.error(ran.stderr.decode("utf-8", "replace").strip())
    return found


def _found(expressions: Iterable[Expression], names: Sequence[str]) -> Iterator[Found]:
    for how, text in expressions:
        match = getattr(re.compile(text), how)
        found = {name: match(name) for name in names}
        yield {name: one.groupdict().get("layer") for name, one in found.items() if one}


def _main() -> None:
    try:
        for found in _found(*json.load(sys.stdin)):
            sys.stdout.write(json.dumps(found) + "\n")
            sys.stdout.flush()  # where it takes too long, the next one is to blame
    except (re.error, RecursionError, OverflowError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    _main()
