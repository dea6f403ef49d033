"""The proofs of reliability find what is wrong, where something is."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from adapters.backbone import Backbone
from adapters.file import parse
from adapters.store import Store
from benchmarks.reliability import adapters, crash, hostile, requests, soak
from benchmarks.reliability.adapters import Task
from benchmarks.reliability.client import Answer
from benchmarks.reliability.files import mutated
from benchmarks.reliability.report import Findings, finish


@pytest.fixture(scope="module")
def task(bert: Backbone) -> Task:
    return adapters.task(bert, "topics", 3)


def answer(task: Task, version: int, *, status: int = 200, name: int | None = None) -> Answer:
    """What a version answers to the first input; `name` is the version that the header names."""
    named = task.versions[version if name is None else name].short
    head = f"HTTP/1.1 {status} \r\nx-adapter-version: {task.name}@{named}\r\n\r\n".encode()
    scores = task.versions[version].expected[0]
    entries = [{"label": label, "score": score} for label, score in scores.items()]
    return Answer(status, head, json.dumps(entries).encode())


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"version": 1}, None),
        ({"version": 2}, None),
        ({"version": 0}, "a stale version"),
        ({"version": 0, "name": 1}, "a wrong answer"),
        ({"version": 1, "status": 429}, "a refusal"),
        ({"version": 1, "status": 404}, "a refusal"),
        ({"version": 1, "status": 503}, "a 5xx"),
    ],
)
def test_a_soak_s_judgement(task: Task, given: dict[str, Any], kind: str | None) -> None:
    """While version 2 follows 1, which had followed 0: 1 and 2 may answer, each with its own
    scores; version 0, another's scores, and any refusal are faults."""
    served = soak.Served(task, list(task.versions), set(), settled=1)
    ask = soak.Ask(b"", ((served, (0,)),))
    findings = Findings()
    soak.judge(ask, [served.settled], answer(task, **given), soak.Part(1), findings)
    assert list(findings.counts) == ([kind] if kind else [])


def test_a_task_that_is_deleted_may_be_missing(task: Task) -> None:
    """404 is right from a deletion until the next upload, and counted apart."""
    served = soak.Served(task, [task.versions[0], None], set(), settled=0)
    part, findings = soak.Part(1), Findings()
    missing = answer(task, 0, status=404)
    soak.judge(soak.Ask(b"", ((served, (0,)),)), [0], missing, part, findings)
    assert (part.absent, findings.counts.total()) == (1, 0)


def written(task: Task, folder: Path, versions: int) -> crash.Writer:
    """A store with so many versions, and the writer that was told so."""
    with Store(folder) as store:
        for version in task.versions[:versions]:
            store.put(version.adapter)
    digests = [version.digest for version in task.versions[:versions]]
    return crash.Writer(task, crash.State(frozenset(digests), digests[-1]))


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        ("none", None),
        ("cut", "a file that is not whole"),
        ("gone", "an acknowledged write that is lost"),
        ("pointer", "a state that nobody asked for"),
        ("garbage", "a fault of the store"),
    ],
)
def test_a_crash_s_judgement(tmp_path: Path, task: Task, damage: str, kind: str | None) -> None:
    """A file that was cut, one that is gone, an `active` that names another version, or nothing:
    each is a fault of its own kind."""
    writer = written(task, tmp_path, 2)
    first, second = (tmp_path / "topics" / f"{v.digest}.safetensors" for v in task.versions[:2])
    if damage == "cut":
        second.write_bytes(second.read_bytes()[:-9])
    elif damage == "gone":
        first.unlink()
    elif damage == "pointer":
        (tmp_path / "topics" / "active").write_text(task.versions[0].digest)
    elif damage == "garbage":
        (tmp_path / "topics" / "active").write_text("garbage")
    findings = Findings()
    crash.look_at_disk(tmp_path, [writer], crash.Counts(), findings)
    assert next(iter(findings.counts), None) == kind


def test_an_interrupted_write_may_be_done_or_not(tmp_path: Path, task: Task) -> None:
    """The state after the write that was under way is as good as the one before it; a third one is
    not."""
    writer = written(task, tmp_path, 2)
    found = writer.state
    before = crash.State(frozenset({task.versions[0].digest}), task.versions[0].digest)
    for pending, faults in ((crash.Write("upload", b"", found), 0), (None, 1)):
        findings = Findings()
        waiting = replace(writer, state=before, pending=pending)
        crash.look_at_disk(tmp_path, [waiting], crash.Counts(), findings)
        assert findings.counts.total() == faults


ERROR = b'{"error":"it is full","error_type":"QueueFull"}'


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind"),
    [
        (429, b"", ERROR, None),
        (503, b"Retry-After: 1\r\n", ERROR, None),
        (503, b"", ERROR, "a 5xx"),
        (500, b"", ERROR, "a 5xx"),
        (400, b"", b"Bad Request", "an error that is no sentence"),
        (422, b"", b'{"detail":[]}', "an error that is no sentence"),
    ],
)
def test_an_attack_s_judgement(status: int, headers: bytes, body: bytes, kind: str | None) -> None:
    """Errors below 500 in our form are right, and so is 503 with Retry-After; all else is a
    fault."""
    data = b"HTTP/1.1 %d x\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)
    findings = Findings()
    hostile.judge("here", data, hostile.Part(1), findings)
    assert list(findings.counts) == ([kind] if kind else [])


def test_an_answer_that_is_cut() -> None:
    """Half an answer is a fault, unless it answers HEAD; 500 is one there too."""
    cut = b"HTTP/1.1 %d x\r\nContent-Length: 9\r\n\r\n"
    for status, head, kind in (
        (200, False, "an answer that is none"),
        (200, True, None),
        (404, True, None),
        (500, True, "a 5xx"),
    ):
        findings = Findings()
        hostile.judge("here", cut % status, hostile.Part(1), findings, head=head)
        assert list(findings.counts) == ([kind] if kind else [])


def test_the_same_seed_makes_the_same(task: Task) -> None:
    """Files and requests can be made again by their seed, and differ from one seed to the next."""
    valid = task.versions[0].data
    files = [mutated(valid, random.Random(seed)) for seed in (1, 1, 2)]
    assert files[0] == files[1] != files[2]
    for make in requests.kinds([valid]).values():
        made = [make(seed) for seed in [*range(20), *range(20)]]
        assert made[:20] == made[20:]
        assert len(set(made)) > 15


@pytest.mark.parametrize("kind", [0, 1], ids=["bottleneck", "lora"])
def test_mutated_files_are_of_both_sorts(bert: Backbone, kind: int) -> None:
    """Of each kind of adapter most mutated files are refused, and some are valid all the same."""
    chance, findings = random.Random(0), Findings()
    valid = hostile.valid_files(bert)[kind]
    assert parse(valid).spec.kind == ("bottleneck", "lora")[kind]
    figures = hostile.parse_all([valid], 300, findings, chance.randrange(99))
    assert figures["refused"] > 150
    assert figures["valid_all_the_same"] > 5
    assert not findings.counts


def test_a_run_that_found_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON and stderr say what was wrong, and the exit code is 1."""
    findings = Findings()
    for number in range(30):
        findings.wrong("a hang", f"stream {number}")
    with pytest.raises(typer.Exit) as ended:
        finish("crash", {"kills": 1}, [("kills", "1")], findings, tmp_path / "crash.json")
    assert ended.value.exit_code == 1
    result = json.loads((tmp_path / "crash.json").read_text())
    assert (result["kills"], result["wrong"], len(result["sentences"])) == (1, {"a hang": 30}, 20)
    assert capsys.readouterr().err.endswith("error: 30 faults (30 × a hang); expected none\n")


def test_adapters_can_be_told_apart(task: Task) -> None:
    """On each input all versions of a task differ by more than the tolerance, and each file is the
    adapter that it says."""
    assert len(task.inputs) >= 4
    for i in range(len(task.inputs)):
        answers = [version.expected[i] for version in task.versions]
        assert not adapters.agree(answers[0], answers[1])
        assert not adapters.agree(answers[1], answers[2])
    assert all(parse(version.data).digest == version.digest for version in task.versions)
