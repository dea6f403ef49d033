"""Parts of the sentences that errors are answered with."""

from __future__ import annotations

from collections.abc import Sequence


def plural(number: int, noun: str) -> str:
    """`1 task`, `2 tasks`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def quoted(names: Sequence[str], last: str = "and") -> str:
    """`'a'`, `'a' and 'b'`, `'a', 'b' and 'c'`; `last` stands before the last one."""
    *first, final = map(repr, names)
    return f"{', '.join(first)} {last} {final}" if first else final
