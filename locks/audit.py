"""Ask the package index which known vulnerabilities the locked versions have (`make audit`, and a
part of `make check`). Where it cannot be asked, that is said, and nothing fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LOCKS = Path(__file__).parent
# An advisory that does not concern us, and why: {"PYSEC-…": "we never call …"}.
IGNORED: dict[str, str] = {}
SECONDS_TO_ANSWER = 20
SECONDS_IN_ALL = 300


def main() -> None:
    # The versions of torch's default build are those of its CPU build.
    names = ("torch", "service", "development", "ray")
    texts = ((LOCKS / f"{name}.txt").read_text() for name in names)
    # Some packages are in two of them, with the same entry.
    entries = dict.fromkeys(one for text in texts for one in re.split(r"\n(?! )", text))
    locked = "\n".join(entries)
    (probe,) = re.findall(r"^setuptools==(?:.*\\\n)+.*\n", locked, re.MULTILINE)
    if not asked_about(probe, SECONDS_TO_ANSWER):
        sys.stdout.write("audit: no index of advisories can be reached; nothing was looked up\n")
        return
    answers = asked_about(locked, SECONDS_IN_ALL)
    if not answers:
        sys.stdout.write("audit: the index of advisories ended its answers; nothing was learnt\n")
        return
    found = [
        f"{answer['name']} {answer['version']} has {vulnerability['id']}, mended in"
        f" {', '.join(vulnerability['fix_versions']) or 'no version'}"
        for answer in answers
        for vulnerability in answer["vulns"]
        if not IGNORED.keys() & {vulnerability["id"], *vulnerability["aliases"]}
    ]
    sys.stdout.writelines(f"audit: {sentence}\n" for sentence in found)
    if found:
        sys.exit(1)
    sys.stdout.write(f"audit: no known vulnerability in {len(answers)} packages\n")


def asked_about(requirements: str, seconds: int) -> list[dict[str, Any]]:
    """pip-audit's answers, of the packages that the index knows; none if it does not answer."""
    with tempfile.TemporaryDirectory() as scratch:
        asked, answered = Path(scratch) / "asked.txt", Path(scratch) / "answered.json"
        asked.write_text(requirements)
        command = [
            sys.executable, "-m", "pip_audit", "--disable-pip", "--require-hashes", "--requirement",
            asked, "--timeout", "10", "--progress-spinner", "off", "--format", "json", "--output",
            answered,
        ]  # fmt: skip
        try:  # its exit code is 1 for a vulnerability and for an index that is away
            subprocess.run(command, capture_output=True, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return []
        text = answered.read_text() if answered.exists() else ""
    answers = json.loads(text)["dependencies"] if text else []
    return [answer for answer in answers if "skip_reason" not in answer]


if __name__ == "__main__":
    main()
