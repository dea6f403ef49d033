"""`python -m training evaluate TASK --url …`: what the clients of a running service get."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from adapters.file import parse
from tests.service.conftest import Server
from tests.tiny import TASKS
from tests.training.test_training_cli import jsonl
from training.__main__ import app

LABELS = TASKS["sst2"]["labels"]


def evaluate(name: str | Path, data: Path, *more: Any) -> Result:
    given = ["evaluate", name, "--dev", data, *more]
    return CliRunner().invoke(app, [str(part) for part in given])


def rows(task: str) -> list[dict[str, Any]]:
    """Enough for more than one request, one longer than the task takes."""
    spec = TASKS[task]
    pair = {"text_pair": "it is good"} if spec.get("text_pair") else {}
    labels, kind = spec["labels"], spec.get("problem_type")
    found = []
    for i in range(20):
        label: Any = labels[i % len(labels)]
        if kind == "regression":
            label = i + 0.5
        elif kind == "multi_label_classification":
            label = [label]
        found.append({"text": f"film {i} " * (200 if i == 3 else 1), "label": label, **pair})
    return found


@pytest.mark.parametrize("task", TASKS)
def test_the_same_as_the_file(server: Server, tmp_path: Path, task: str) -> None:
    """For a task of each kind, the service's answers score what its file scores in process."""
    data, file = jsonl(tmp_path / "rows.jsonl", rows(task)), tmp_path / "task.safetensors"
    with server.client() as client:
        version = client.get(f"/adapters/{task}").json()["version"]
        file.write_bytes(client.get(f"/adapters/{task}/versions/{version}/file").content)
    report = tmp_path / "report.html"
    served = evaluate(task, data, "--url", server.url, "--json", "--report", report)
    assert served.exit_code == 0, served.output
    own = evaluate(file, data, "--json")
    assert own.exit_code == 0, own.output
    found, expected = json.loads(served.stdout), json.loads(own.stdout)
    assert found["version"] == expected["version"]
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-3)
    assert server.url in report.read_text()
    pinned = evaluate(f"{task}@{version}", data, "--url", server.url, "--json")
    assert json.loads(pinned.stdout)["scores"] == found["scores"]


def test_what_cannot_be_asked(server: Server, tmp_path: Path) -> None:
    """An unknown task, another address and rows of other labels end in a sentence."""
    task = next(name for name in TASKS if "problem_type" not in TASKS[name])
    data = jsonl(tmp_path / "rows.jsonl", rows(task))
    other = jsonl(tmp_path / "other.jsonl", [{"text": "a", "label": "unheard of"}])
    for name, rows_file, url, message in (
        ("nope", data, server.url, "answered 404: there is no task 'nope'"),
        (task, data, "http://127.0.0.1:1", "cannot be reached"),
        (task, data, "localhost", "it is no address; expected http://HOST:PORT"),
        (task, other, server.url, "unheard of"),
    ):
        result = evaluate(name, rows_file, "--url", url)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1


class Stranger(ThreadingHTTPServer):
    """Has the file of one task, and answers predictions with `said`: a status, a Retry-After, and
    what stands in place of a score."""

    file: bytes
    said: tuple[int, str, str]


class Handler(BaseHTTPRequestHandler):
    server: Stranger

    def do_GET(self) -> None:
        if self.path.endswith("/file"):
            self.answer(200, self.server.file)
        else:
            self.answer(200, json.dumps({"version": parse(self.server.file).version}).encode())

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, _, score = self.server.said
        row = ",".join(f'{{"label": "{label}", "score": {score}}}' for label in LABELS)
        self.answer(status, f"[{','.join([f'[{row}]'] * len(asked['inputs']))}]".encode())
        self.server.said = (200, "1", "0.5")  # the next time

    def answer(self, status: int, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After", self.server.said[1])
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def stranger(adapter_bytes: Callable[..., bytes]) -> Iterator[Stranger]:
    with Stranger(("127.0.0.1", 0), Handler) as server:
        server.file = adapter_bytes("sst2")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "score", ["1e999", "-1e999", "NaN", "1" + "0" * 400, '"inf"', "null", "[]"]
)
def test_scores_that_are_no_numbers(stranger: Stranger, tmp_path: Path, score: str) -> None:
    """Scores that are not finite numbers, or none at all, end in a sentence, and are not judged."""
    stranger.said = (200, "1", score)
    data = jsonl(tmp_path / "rows.jsonl", rows("sst2"))
    result = evaluate("sst2", data, "--url", f"http://127.0.0.1:{stranger.server_port}")
    assert result.exit_code == 2, result.output
    assert "answered with something else than the scores of 16 rows" in result.stderr


@pytest.mark.parametrize("seconds", ["nan", "-1", "soon", ""])
def test_a_time_to_wait_that_is_none(stranger: Stranger, tmp_path: Path, seconds: str) -> None:
    """A busy service whose Retry-After is no time is asked again all the same."""
    stranger.said = (503, seconds, "0.5")
    data = jsonl(tmp_path / "rows.jsonl", rows("sst2"))
    result = evaluate("sst2", data, "--url", f"http://127.0.0.1:{stranger.server_port}")
    assert result.exit_code == 0, result.output
