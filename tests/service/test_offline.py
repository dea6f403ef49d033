"""`python -m service predict`: files scored by the engine or by a server, whole or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import decimal
import json
import math
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import httpx2
import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from adapters.text import TextInput
from service.__main__ import app
from service.offline.answers import Answer, Scored
from service.offline.errors import CannotScore
from service.offline.job import CHUNK_ROWS, Job, score
from tests.service.conftest import Server, until
from tests.service.test_http_predict import predict

WORDS = ("good", "bad", "awful", "great", "naïve 电影", "red, or blue", 'a "quoted" one')
TEXTS = [f"it is a {WORDS[i % 7]} film {i}" for i in range(40)]
ROWS = [{"id": i, "text": text, "price": i / 2, "new": i % 2 == 0} for i, text in enumerate(TEXTS)]
PAIRS = [{"text": text, "text_pair": "somebody eats"} for text in TEXTS]


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        return list(pyarrow.parquet.read_table(path).to_pylist())
    if path.suffix == ".csv":
        return list(csv.DictReader(path.open(newline="")))
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(rows: Path, out: Path, task: str, *more: Any) -> list[str]:
    return [str(part) for part in ("predict", "--task", task, rows, "--out", out, *more)]


def invoke(*given: Any, url: str | None = None) -> Result:
    return CliRunner().invoke(app, command(*given, *(["--url", url] if url else [])))


def refused(result: Result, sentence: str, out: Path) -> None:
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert sentence in result.stderr
    assert not out.exists()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_by_a_server(kind: str, server: Server, client: httpx2.Client, tmp_path: Path) -> None:
    """Every row comes out in its order with all its columns and the server's answer, in each form
    of file; nothing else is left."""
    out = tmp_path / f"out.{kind}"
    result = invoke(written(tmp_path / f"rows.{kind}", ROWS), out, "sst2", url=server.url)
    assert result.exit_code == 0, result.output
    assert f"{out}: 40 rows by sst2@" in result.stdout
    found, answers = read(out), predict(client, "sst2", TEXTS)
    expected = read(tmp_path / f"rows.{kind}")
    assert [{name: row[name] for name in ROWS[0]} for row in found] == expected
    assert [row["prediction"] for row in found] == [answer[0]["label"] for answer in answers]
    assert [float(row["score"]) for row in found] == pytest.approx(
        [answer[0]["score"] for answer in answers], abs=1e-5
    )
    assert {path.name for path in tmp_path.iterdir()} == {f"rows.{kind}", f"out.{kind}"}


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("mnli", ["prediction", "score", *(f"score of {x}" for x in ("contradiction",))]),
        ("stsb", ["prediction"]),
        ("topics", ["prediction", "score", "score of art"]),
    ],
)
def test_every_kind_of_task(
    task: str, columns: list[str], server: Server, client: httpx2.Client, tmp_path: Path
) -> None:
    """Pairs, numbers and several labels at once are answered, too, and each label has its score if
    that is asked for."""
    out, rows = tmp_path / "out.parquet", written(tmp_path / "rows.csv", PAIRS)
    result = invoke(rows, out, task, "--scores", url=server.url)
    assert result.exit_code == 0, result.output
    found = read(out)
    assert list(found[0])[2 : 2 + len(columns)] == columns
    inputs: Any = TEXTS if task == "topics" else PAIRS
    for row, answer in zip(found, predict(client, task, inputs), strict=True):
        by_label = {entry["label"]: entry["score"] for entry in answer}
        if task == "stsb":
            assert row["prediction"] == pytest.approx(by_label["score"], abs=1e-5)
            continue
        scores = {label: row[f"score of {label}"] for label in by_label}
        assert scores == pytest.approx(by_label, abs=1e-5)
        if task == "topics":
            assert set(row["prediction"]) == {x for x in by_label if by_label[x] > 0.5}


def test_by_the_engine(server: Server, tmp_path: Path) -> None:
    """Without a server the engine of the process gives the same answers, also while a server has
    the store open."""
    rows, out, by_url = (tmp_path / name for name in ("rows.csv", "out.csv", "by_url.csv"))
    written(rows, ROWS)
    done = subprocess.run(
        [sys.executable, "-m", "service", *command(rows, out, "sst2")],
        env={**os.environ, "ADAMIX_STORE": str(server.store)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert f"{out}: 40 rows by sst2@" in done.stdout
    assert done.stderr.splitlines() == ["40 of 40 rows"]
    assert invoke(rows, by_url, "sst2", url=server.url).exit_code == 0
    here, there = read(out), read(by_url)
    for name in ("id", "text", "prediction"):
        assert [row[name] for row in here] == [row[name] for row in there]
    assert [float(row["score"]) for row in here] == pytest.approx(
        [float(row["score"]) for row in there], abs=1e-5
    )


class Counting:
    """An answerer that counts the rows, and fails after some."""

    strict = False
    scored = Scored("toy", "abc", ("no", "yes"), "single_label_classification", False)

    def __init__(self, most: int = 10**9) -> None:
        self.asked, self.most = 0, most

    async def answers(self, texts: list[TextInput]) -> list[Answer]:
        if self.asked + len(texts) > self.most:
            raise CannotScore("it is enough")
        self.asked += len(texts)
        return [Answer(("no", "yes")[len(text[0]) % 2], 0.75, [0.25, 0.75]) for text in texts]


def run(job: Job, answerer: Counting) -> tuple[int, int]:
    return asyncio.run(score(job, answerer, lambda _done, _rows: None))


@pytest.mark.parametrize("left", ["", '["yes",0.7', "\x00\x00\x00", '["yes",0.75,[0.25,0.75]]'])
def test_half_a_line(tmp_path: Path, left: str) -> None:
    """A job that ended in the middle of a line goes on after the last whole one, and its output is
    that of a job that was not stopped, to the byte."""
    rows = written(tmp_path / "rows.jsonl", [{"text": "a" * (i % 9 + 1)} for i in range(1000)])
    whole, again = Job(rows, tmp_path / "whole.csv"), Job(rows, tmp_path / "again.csv")
    assert run(whole, Counting()) == (1000, 0)
    with pytest.raises(CannotScore, match="it is enough"):
        run(again, Counting(2 * CHUNK_ROWS))
    with again.part.open("a") as file:
        file.write(left)
    rest = Counting()
    assert run(again, rest) == (1000, 1000 - rest.asked)
    assert rest.asked < 1000
    assert again.out.read_bytes() == whole.out.read_bytes()


def test_another_job(tmp_path: Path) -> None:
    """What another input, task or option has left is not gone on with."""
    rows, out = written(tmp_path / "rows.csv", 20 * ROWS), tmp_path / "out.csv"
    with pytest.raises(CannotScore, match="it is enough"):
        run(Job(rows, out), Counting(0))
    assert not list(tmp_path.glob("out*"))  # nothing was answered, and nothing is left
    with pytest.raises(CannotScore, match="it is enough"):
        run(Job(rows, out), Counting(CHUNK_ROWS))
    with pytest.raises(CannotScore, match=r"of a job with another abstain .*; now 0.9.; expected"):
        run(Job(rows, out, abstain=0.9), Counting())
    written(rows, ROWS[:7])
    with pytest.raises(CannotScore, match="is of a job with another input"):
        run(Job(rows, out), Counting())
    (tmp_path / "out.csv.part").write_text("[1]\n")
    with pytest.raises(CannotScore, match="is no unfinished job"):
        run(Job(rows, out), Counting())


def test_one_process_at_a_time(tmp_path: Path) -> None:
    """A job that another process is at is refused."""
    import fcntl

    rows, out = written(tmp_path / "rows.csv", ROWS), tmp_path / "out.csv"
    with (tmp_path / "out.csv.part").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(CannotScore, match="is being written by another process"):
            run(Job(rows, out), Counting())


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"text": "good"}, {"text": " "}], "line 2: column 'text' is only white space; expected"),
        ([{"text": "good"}, {"text": 7}], "line 2, column 'text', is 7; expected a text"),
        ([{"comment": "good"}], "has no column 'text'; it has 'comment' (--text-column names"),
        ([{"text": "good\x07"}], "line 1: column 'text' holds the control character U+0007"),
        ([{"text": "good", "score": 1}], "has a column 'score', which the output needs for itself"),
        ([{"text": "good"}, {"text": "good", "id": 1 << 64}], "line 2, cannot be written to the"),
        ([{"text": "good", "id": ["\ud800"]}], "line 1, cannot be written to the output: str is"),
        (
            [{"text": "good"}, {"text": "good", "id": float("nan")}],
            "line 2, column 'id', holds nan; expected finite numbers, or null",
        ),
        ([{"text": "good", "id": {"a": [1, -math.inf]}}], "line 1, column 'id', holds -inf; exp"),
        ([], "holds no rows; expected at least one"),
    ],
)
def test_rows_that_cannot_be_scored(
    rows: list[dict[str, Any]], sentence: str, server: Server, tmp_path: Path
) -> None:
    """A row that cannot be scored is named before anything is asked."""
    path, out = written(tmp_path / "rows.jsonl", rows), tmp_path / "out.csv"
    refused(invoke(path, out, "sst2", url=server.url), sentence, out)
    assert not (tmp_path / "out.csv.part").exists()


def test_large_numbers_in_parquet(stub: str, tmp_path: Path) -> None:
    """Integers that no column of 64 signed bits holds become texts; those beside fractions become
    the nearest floating-point numbers."""
    rows = [{"text": "a", "id": 1, "price": 0.5}, {"text": "b", "id": 2**63, "price": 2**60 + 1}]
    out = tmp_path / "out.parquet"
    Stub.turn = lambda _: False
    result = invoke(written(tmp_path / "rows.jsonl", rows), out, "sst2", url=stub)
    assert result.exit_code == 0, result.output
    assert [(row["id"], row["price"]) for row in read(out)] == [("1", 0.5), (str(2**63), 2.0**60)]


def test_numbers_beyond_floating_point(stub: str, tmp_path: Path) -> None:
    """A number of JSON that would become infinite is refused. Parquet may hold NaN and infinity,
    which a CSV and Parquet have too, and JSON lines have not."""
    Stub.turn = lambda _: False
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.csv"
    rows.write_text('{"text": "good", "id": 1e400}\n')
    refused(invoke(rows, out, "sst2", url=stub), "line 1, column 'id', holds inf; expected", out)
    rows = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(table(price=[1.5, math.nan]), rows)
    lines = tmp_path / "out.jsonl"
    sentence = "line 2, column 'price', holds nan; expected finite numbers, or null: JSON lines"
    refused(invoke(rows, lines, "sst2", url=stub), sentence, lines)
    for out in (tmp_path / "out.csv", tmp_path / "out.parquet"):
        assert invoke(rows, out, "sst2", url=stub).exit_code == 0
        assert [str(row["price"]) for row in read(out)] == ["1.5", "nan"]


def table(**columns: Any) -> pyarrow.Table:
    return pyarrow.table({"text": ["good", "bad"], **columns})


def test_odd_parquet(stub: str, tmp_path: Path) -> None:
    """A date that Python has not, and damage behind a sound footer, are refused in a sentence that
    names the input; lists of decimal numbers come out as texts in a CSV."""
    Stub.turn = lambda _: False
    rows, out = tmp_path / "rows.parquet", tmp_path / "out.csv"
    days = pyarrow.array([10**7, 1], pyarrow.date32())
    pyarrow.parquet.write_table(table(day=days), rows)
    refused(invoke(rows, out, "sst2", url=stub), "rows.parquet, after row 0, holds what", out)
    data = rows.read_bytes()
    rows.write_bytes(data[:20] + bytes(30) + data[50:])
    refused(invoke(rows, out, "sst2", url=stub), "rows.parquet is not Parquet: ", out)
    pyarrow.parquet.write_table(table(price=[[decimal.Decimal("1.5")]] * 2), rows)
    assert invoke(rows, out, "sst2", url=stub).exit_code == 0
    assert [row["price"] for row in read(out)] == ['["1.5"]'] * 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("rows.csv", b"id,id,text\n1,2,good\n", "names the column 'id' 2 times; expected it once"),
        ("rows.jsonl", b'{"id": 1, "id": 2, "text": "good"}\n', "it holds 'id' twice"),
    ],
)
def test_a_column_that_is_there_twice(
    name: str, content: bytes, sentence: str, stub: str, tmp_path: Path
) -> None:
    """Of two columns of one name the output would lose one."""
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out.jsonl"
    refused(invoke(tmp_path / name, out, "sst2", url=stub), sentence, out)


@pytest.mark.parametrize(
    ("known", "score"),
    [
        ({"problem_type": ["regression"]}, 0.9),
        ({"version": {}}, 0.9),
        ({"labels": "no"}, 0.9),
        ({"labels": [["no"], 1]}, 0.9),
        ({}, float("nan")),
        ({}, "inf"),
    ],
)
def test_another_server_than_ours(
    known: dict[str, Any], score: Any, stub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that answers with something else is named in a sentence."""
    Stub.turn = lambda _: False
    monkeypatch.setattr(Stub, "known", {**Stub.known, **known})
    monkeypatch.setattr(Stub, "score", score)
    out = tmp_path / "out.parquet"
    result = invoke(written(tmp_path / "rows.csv", ROWS), out, "sst2", url=stub)
    refused(result, "expected an adamix-serve", out)


def test_a_name_that_is_too_long(stub: str, tmp_path: Path) -> None:
    """An output whose name no file system takes is refused in a sentence, and so is the folder of
    one."""
    rows, long = written(tmp_path / "rows.csv", ROWS), "a" * 300
    for out in (tmp_path / f"{long}.csv", tmp_path / long / "out.csv"):
        result = invoke(rows, out, "sst2", url=stub)
        assert result.exit_code == 2, result.output
        assert result.stderr.startswith("error: ")


def test_what_is_refused_at_once(server: Server, tmp_path: Path) -> None:
    """An output that is there or has no form, a task that is not there, a file that is no Parquet
    and an accuracy without a table are refused in a sentence."""
    rows, out = written(tmp_path / "rows.csv", ROWS), tmp_path / "out.csv"
    refused(invoke(rows, tmp_path / "out.txt", "sst2"), "ends in '.txt'; expected .csv", out)
    refused(invoke(rows, tmp_path / "no" / "out.csv", "sst2"), "does not exist", out)
    refused(invoke(rows, out, "nonesuch", url=server.url), "nonesuch", out)
    refused(invoke(rows, out, "sst2?x", url=server.url), "there is no task 'sst2?x'", out)
    refused(invoke(tmp_path / "none.csv", out, "sst2", url=server.url), "none.csv cannot be", out)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    result = invoke(tmp_path / "rows.parquet", out, "sst2", url=server.url)
    refused(result, "rows.parquet is not Parquet: ", out)
    result = invoke(rows, out, "sst2", "--abstain", "0.9", url=server.url)
    refused(result, "cannot abstain: its file has no risk-coverage table", out)
    shutil.copy(rows, out)
    result = invoke(rows, out, "sst2", url=server.url)
    assert result.exit_code == 2
    assert "is there already; expected another file" in result.stderr
    assert out.read_bytes() == rows.read_bytes()


class Stub(BaseHTTPRequestHandler):
    """A server whose answers are scripted: `turn` is told each request's number, and says whether
    it is overloaded."""

    turn: ClassVar[Callable[[int], bool]]
    keys: ClassVar[list[str | None]] = []
    known: ClassVar[dict[str, Any]] = {
        "version": "abc",
        "labels": ["no", "yes"],
        "problem_type": "single_label_classification",
    }
    score: ClassVar[Any] = 0.9
    asked: ClassVar[list[tuple[str | None, str]]] = []  # by which key, and which text

    def _answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # to a client that was killed
            self.wfile.write(data)

    def do_GET(self) -> None:
        self._answer(200, {"parameters": self.known, "inputs": [{"name": "text"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.append(self.headers["Authorization"])
        if type(self).turn(len(self.keys)):
            self._answer(429, {"error": "the queue is full", "error_type": "QueueFull"})
            return
        self.asked.extend((self.headers["Authorization"], text) for text in body["inputs"])
        row = [{"label": "yes", "score": self.score}, {"label": "no", "score": 0.1}]
        self._answer(200, [row for _ in body["inputs"]])

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def stub() -> Iterator[str]:
    Stub.keys.clear()
    Stub.asked.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_an_overloaded_server(stub: str, tmp_path: Path) -> None:
    """A server that answers 429 is asked again, with the key, until every row is answered."""
    Stub.turn = lambda number: number % 3 > 0
    rows, out = written(tmp_path / "rows.csv", ROWS), tmp_path / "out.csv"
    result = invoke(rows, out, "toy", "--key", "a-key-of-mine", url=stub)
    assert result.exit_code == 0, result.output
    assert [row["prediction"] for row in read(out)] == ["yes"] * 40
    assert set(Stub.keys) == {"Bearer a-key-of-mine"}
    assert len(Stub.keys) == 6


def test_a_killed_process(stub: str, tmp_path: Path) -> None:
    """A process that was killed leaves no output; the same command answers the rest, and no row
    twice."""
    many = [{"text": f"row {i}"} for i in range(5 * CHUNK_ROWS)]
    rows, out = written(tmp_path / "rows.csv", many), tmp_path / "out.csv"
    part, gone = tmp_path / "out.csv.part", threading.Event()

    def turn(number: int) -> bool:
        # a chunk and a half is answered; the rest waits until nobody waits for it
        return number > 12 and gone.wait(60)

    Stub.turn = turn
    given = command(rows, out, "toy", "--url", stub)
    with subprocess.Popen([sys.executable, "-m", "service", *given]) as process:
        until(lambda: part.exists() and part.read_bytes().count(b"\n") > CHUNK_ROWS)
        process.kill()
    gone.set()
    assert not out.exists()
    before = part.read_bytes().count(b"\n") - 1
    Stub.turn = lambda _: False
    result = invoke(rows, out, "toy", "--key", "the-second-process", url=stub)
    assert f"1,280 rows ({before:,} of them before) by toy@abc" in result.stdout
    again = [text for key, text in Stub.asked if key == "Bearer the-second-process"]
    assert sorted(again) == sorted(row["text"] for row in many[before:])
    assert [row["text"] for row in read(out)] == [row["text"] for row in many]
    assert not part.exists()
