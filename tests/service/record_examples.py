"""What the service answers to the documentation's requests, with the shipped adapters.

    python -m tests.service.record_examples

writes it to service/http/recorded.py; a test asks again and compares.
"""

from __future__ import annotations

import pprint
import subprocess
import sys
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

from service.http.examples import asked
from tests.service.conftest import running

ROOT = Path(__file__).parent.parent.parent
RECORDED = ROOT / "service" / "http" / "recorded.py"
HEAD = '''"""Answers of a service with the shipped adapters; written by
`python -m tests.service.record_examples`."""

from __future__ import annotations

from typing import Any

ANSWERS: dict[str, Any] = '''


def record(store: Path) -> dict[str, Any]:
    """Ask a service every request of the examples: its answers, by name. `store` is a folder that
    does not exist yet."""
    version = sha256((ROOT / "store" / "sst2.safetensors").read_bytes()).hexdigest()[:12]
    answers: dict[str, Any] = {}
    with running(store, seed=ROOT / "store") as server, server.client() as client:
        for name, example in asked(version).items():
            answer = client.request(example.method, example.path, json=example.body)
            assert answer.status_code == 200, f"{name}: {answer.text}"
            is_json = answer.headers["Content-Type"] == "application/json"
            answers[name] = answer.json() if is_json else answer.text
    return answers


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        answers = record(Path(folder) / "store")
    RECORDED.write_text(HEAD + pprint.pformat(answers, width=92, sort_dicts=False) + "\n")
    subprocess.run([sys.executable, "-m", "ruff", "format", "--quiet", str(RECORDED)], check=True)


if __name__ == "__main__":
    main()
