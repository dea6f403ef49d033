"""The decisions and the journal are whole: every record is listed, and has what a reader looks
for."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
DECISIONS = sorted((ROOT / "docs/decisions").glob("0*.md"))
JOURNAL = (ROOT / "benchmarks/JOURNAL.md").read_text()


def test_every_decision_is_listed_once() -> None:
    """The index and the site's navigation list each record once, and records are numbered without
    a gap."""
    index = (ROOT / "docs/decisions/index.md").read_text()
    navigation = (ROOT / "mkdocs.yml").read_text()
    names = [path.name for path in DECISIONS]
    assert [name[:4] for name in names] == [f"{i:04}" for i in range(1, len(names) + 1)]
    assert sorted(re.findall(r"\]\((\d{4}-[^)]*)\)", index)) == names
    assert re.findall(r"decisions/(\d{4}-\S*)", navigation) == names


def test_every_decision_has_its_parts() -> None:
    """Each record is titled by its number and says problem, choice, what was rejected, and
    status."""
    for path in DECISIONS:
        text = path.read_text()
        assert text.startswith(f"# {path.name[:4]}: "), path.name
        parts = " ".join(re.findall(r"^## (.*)$", text, re.MULTILINE)).lower()
        assert re.fullmatch(r"problem choice (and )?rejected( .*)? status", parts), path.name


def test_the_journal_lists_its_entries() -> None:
    """The journal's contents link each entry in its order, newest first, by the entry's own
    title."""
    entries = re.findall(r"^## (\d{4}-\d\d-\d\d, .*)$", JOURNAL, re.MULTILINE)
    headings = re.findall(r"^## (.*)$", JOURNAL, re.MULTILINE)
    assert headings == ["Contents", *entries]
    contents = JOURNAL.split("## Contents", 1)[1].split("\n## ", 1)[0]
    days = re.split(r"^\*\*(\d{4}-\d\d-\d\d)\*\*$", contents, flags=re.MULTILINE)[1:]
    listed = [
        f"{day}, {title}"
        for day, titles in zip(days[::2], days[1::2], strict=True)
        for title in re.findall(r"^- \[(.*)\]\(#.*\)$", titles, re.MULTILINE)
    ]
    assert [title.casefold() for title in listed] == [title.casefold() for title in entries]
    assert days[::2] == sorted(set(days[::2]), reverse=True)
