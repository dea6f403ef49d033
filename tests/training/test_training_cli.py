"""`python -m training`, as a user runs it: files in, one adapter file out, or one sentence and exit
code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
from typer.testing import CliRunner, Result

from adapters.__main__ import app as adapters_app
from adapters.file import load
from tests.tiny import tiny_backbone
from training.__main__ import app

LABELS = {"good": "positive", "great": "positive", "bad": "negative", "awful": "negative"}
ROWS = [
    {"text": f"the {noun} is {word}", "label": label}
    for noun in ("film", "plot")
    for word, label in LABELS.items()
]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return jsonl(tmp_path / "data.jsonl", ROWS)


def jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(data: Path, out: Path, backbone: Path | str, *more: str) -> list[str]:
    options = {
        "--task": "toy",
        "--train": data,
        "--dev": data,
        "--out": out,
        "--backbone": backbone,
    }
    quick = {"--epochs": 1, "--bottleneck": 4, "--batch-size": 4}
    return [str(part) for option in (options | quick).items() for part in option] + list(more)


def invoke(*args: Any) -> Result:
    return CliRunner().invoke(app, arguments(*args))


def run_lines(stdout: str) -> list[str]:
    """What was said of the run itself, without choices and hints."""
    return [line for line in stdout.splitlines() if not line.startswith(("chose ", "hint: "))]


def assert_refused(result: Result, message: str, out: Path) -> None:
    """Exit code 2, one line that begins `error:` and holds `message`, and neither a file nor a
    traceback."""
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert isinstance(result.exception, SystemExit)
    assert not out.is_file()
    assert not list(out.parent.glob(".tmp-*"))


def test_a_run(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A run writes a file that `adapters validate` finds valid and true, and says in whole lines
    what it did."""
    out = tmp_path / "toy.safetensors"
    result = invoke(rows, out, bert_folder)
    assert result.exit_code == 0, result.output
    adapter = load(out)
    first, *steps, dev, last = run_lines(result.stdout)
    assert first == "toy: 8 rows, single_label_classification, labels negative, positive; cpu"
    assert [step.split()[1] for step in steps] == ["1/2", "2/2"]
    assert dev.startswith("dev (8 rows, merged adapter): accuracy ")
    assert (
        last == f"{out}: version {adapter.version}, {adapter.bytes:,} bytes, {adapter.parameters:,}"
        " parameters"
    )
    assert adapter.spec.labels == ("negative", "positive")
    checked = CliRunner().invoke(
        adapters_app, ["validate", str(out), "--backbone", str(bert_folder)]
    )
    assert checked.exit_code == 0, checked.output
    assert checked.stdout == f"{out}: a valid adapter for task toy, version {adapter.version}\n"


def test_a_longer_run_tells_twenty_times(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """Without a terminal a run of more than twenty steps has twenty lines of them, the last step's
    among them."""
    result = invoke(rows, tmp_path / "toy.safetensors", bert_folder, "--epochs", "18")
    steps = [line.split()[1] for line in result.stdout.splitlines() if line.startswith("step ")]
    assert (len(steps), steps[-1]) == (20, "36/36")


def test_a_run_as_json(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """With --json stdout is one JSON line, the run with its scores, recipe and version; the rest is
    told on stderr."""
    out = tmp_path / "toy.safetensors"
    result = invoke(rows, out, bert_folder, "--json")
    assert result.exit_code == 0, result.output
    run = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert (run["task"], run["version"]) == ("toy", load(out).version)
    assert run["metrics"] == load(out).spec.training["dev_scores"]
    assert "step 1/2" in result.stderr
    assert "merged adapter" in result.stderr


def test_a_run_of_the_program(rows: Path, tmp_path: Path) -> None:
    """The program itself, on the embedded backbone, learns a separable task; its log has no line
    broken in two."""
    out = tmp_path / "toy.safetensors"
    command = [
        sys.executable,
        "-m",
        "training",
        *arguments(rows, out, "embedded", "--epochs", "6", "--learning-rate", "0.02"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert load(out).spec.training["dev_scores"]["accuracy"] == 1.0
    assert (
        run_lines(run.stdout)[-2]
        == "dev (8 rows, merged adapter): accuracy 1.0000  f1_macro 1.0000  matthews 1.0000"
    )


CSV = 'text,label\n"it is good, very good",a\n"it is\nbad",b\n"the ""film""",a\n'
TSV = 'first\tsecond\ty\n"it is good\tbad"\ta\nnot "good\tthe film\tb\n'
KINDS: dict[str, tuple[str, str, list[str], dict[str, Any]]] = {
    "csv": ("d.csv", CSV, [], {"labels": ("a", "b"), "problem_type": "single_label_classification", "text_pair": False}),
    "csv with semicolons": (
        "d.csv", CSV.replace(",label", ";label").replace('",', '";'), [], {"labels": ("a", "b"), "text_pair": False},
    ),
    "tsv of pairs": (
        "d.tsv", TSV, ["--text-column", "first", "--pair-column", "second", "--label-column", "y"],
        {"labels": ("a", "b"), "text_pair": True},
    ),
    "pairs": (
        "d.jsonl", "".join(json.dumps({"text": "a", "text_pair": "b", "label": i}) + "\n" for i in range(3)), [],
        {"labels": ("0", "1", "2"), "text_pair": True},
    ),
    "regression": (
        "d.csv", "text,label\na film,0.5\nthe plot,1.5\ngood,3\n", [],
        {"labels": ("score",), "problem_type": "regression"},
    ),
    "named regression": (
        "d.csv", "text,label\na film,1\nthe plot,2\n", ["--problem-type", "regression"],
        {"labels": ("score",), "problem_type": "regression"},
    ),
    "multi-label": (
        "d.csv", "text,label\na film,x;y\nthe plot,\ngood,y\n",
        ["--problem-type", "multi_label_classification", "--label-separator", ";"],
        {"labels": ("x", "y"), "problem_type": "multi_label_classification"},
    ),
    "labels of markup": (
        "d.csv", "text,label\na film,[/bold]\nthe plot,:smile:\n", [], {"labels": (":smile:", "[/bold]")},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_tasks(tmp_path: Path, bert_folder: Path, kind: str) -> None:
    """Each file format and kind of task gives a file whose spec says what it is, and that can be
    looked at."""
    name, content, options, expected = KINDS[kind]
    (tmp_path / name).write_text(content)
    result = invoke(tmp_path / name, tmp_path / "out.safetensors", bert_folder, *options)
    assert result.exit_code == 0, result.output
    spec = load(tmp_path / "out.safetensors").spec
    assert {key: getattr(spec, key) for key in expected} == expected
    assert ", ".join(spec.labels) in result.stdout
    shown = CliRunner().invoke(adapters_app, ["inspect", str(tmp_path / "out.safetensors")])
    assert ", ".join(spec.labels) in shown.stdout


BAD_DATA: list[tuple[str, str | bytes | None, str]] = [
    (
        "d.jsonl",
        '{"sentence": "a", "label": 1}\n',
        "line 1, has no column 'text'; it has 'sentence', 'label'",
    ),
    ("d.csv", "text,gold\na,1\n", "line 2, has no column 'label'; it has 'text', 'gold'"),
    ("d.jsonl", "", "holds no examples; expected at least one"),
    ("d.csv", "text,label\na,x\nb,x\n", "holds the one label 'x'; expected two or more"),
    (
        "d.jsonl",
        b'{"text": "caf\xe9", "label": 1}\n',
        "line 1, holds the byte 0xe9; expected UTF-8",
    ),
    ("d.jsonl", '{"text": "a", "label": 1\n', "line 1, is not JSON"),
    ("d.jsonl", None, "cannot be read: No such file or directory"),
    ("d.xlsx", b"PK", "ends in '.xlsx'; expected .jsonl, .csv, .tsv or .parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_DATA)
def test_bad_data(
    tmp_path: Path, bert_folder: Path, name: str, content: str | bytes | None, message: str
) -> None:
    """Data that cannot be used end the program with one sentence that names the file, and nothing
    is written."""
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    out = tmp_path / "out.safetensors"
    result = invoke(tmp_path / name, out, bert_folder)
    assert_refused(result, message, out)
    assert str(tmp_path / name) in result.stderr


BAD_OPTIONS: list[tuple[list[str], str]] = [
    (["--task", "../x"], "task is '../x'; expected a name of ^[a-z0-9]"),
    (["--task", "SST2"], "task is 'SST2'; expected a name of"),
    (
        ["--out", "TMP/nowhere/out.safetensors"],
        "the folder of --out TMP/nowhere/out.safetensors does not exist",
    ),
    (["--out", "TMP"], "--out TMP is a folder; expected a file's path"),
    (["--out", os.devnull], f"--out {os.devnull} is no regular file; expected a file's path"),
    (["--experts", "0"], "experts is 0; expected 1 to 64"),
    (["--learning-rate", "nan"], "learning_rate is nan; expected"),
    (["--positive", "good"], "positive is 'good'; expected one of negative, positive"),
    (["--backbone", "TMP/nothing"], "backbone 'TMP/nothing' is no folder"),
    (["--device", "meta"], "device is 'meta'; expected cpu or cuda"),
    (["--device", "gpu"], "device is 'gpu'; expected cpu or cuda"),
    (["--device", "cuda:77"], "device 'cuda:77' cannot be used: "),
    (["--text-column", "body"], "has no column 'body'; it has 'text', 'label'"),
    (
        ["--problem-type", "regression"],
        "row 1, column 'label', is 'positive'; expected a finite number",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(tmp_path: Path, bert_folder: Path, options: list[str], message: str) -> None:
    """Options that cannot be followed end the program with one sentence before any training."""
    data = jsonl(tmp_path / "data.jsonl", [row | {"long": "good " * 30} for row in ROWS])
    options = [option.replace("TMP", str(tmp_path)) for option in options]
    if "body" in options:
        data = jsonl(data, ROWS)
    result = invoke(data, tmp_path / "out.safetensors", bert_folder, *options)
    assert_refused(result, message.replace("TMP", str(tmp_path)), tmp_path / "out.safetensors")
    assert "step" not in result.stdout


@pytest.mark.parametrize(
    ("option", "value", "choices"),
    [
        ("--method", "prefix", "'adamix', 'adapter'"),
        ("--pooling", "mask", "'cls', 'pooler'"),
        ("--dtype", "int8", "'bfloat16'"),
    ],
)
def test_unknown_choices(
    rows: Path, tmp_path: Path, bert_folder: Path, option: str, value: str, choices: str
) -> None:
    """A choice that there is not ends the program with exit code 2, its name and the choices there
    are."""
    result = invoke(rows, tmp_path / "out.safetensors", bert_folder, option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert value in result.stderr
    assert choices in " ".join(result.stderr.replace("│", "").split())
    assert not (tmp_path / "out.safetensors").exists()


def test_a_dev_label_that_train_lacks(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A dev label unknown to the training file ends the program with the row, the label and those
    expected."""
    dev = jsonl(tmp_path / "dev.jsonl", [*ROWS, {"text": "so so", "label": "neutral"}])
    out = tmp_path / "out.safetensors"
    result = invoke(rows, out, bert_folder, "--dev", str(dev))
    assert_refused(
        result,
        f"{dev}, row 9, has the label 'neutral', which {rows} lacks; expected one of 'negative',"
        " 'positive'",
        out,
    )


def test_a_loss_that_is_not_finite(rows: Path, tmp_path: Path) -> None:
    """A loss that is not finite ends the program with one sentence, and the file that was there
    stays."""
    folder = tiny_backbone(tmp_path / "broken", "bert")
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["encoder.layer.0.output.dense.bias"][0] = float("nan")
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"before")
    result = invoke(rows, out, folder)
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "error: the loss is nan at step 1 of 2 (learning rate 0.003); expected a finite number"
    )
    assert out.read_bytes() == b"before"


def test_refusals_of_the_program(rows: Path, tmp_path: Path) -> None:
    """The program itself ends with exit code 2 and one line on stderr, without a traceback."""
    command = [
        sys.executable,
        "-m",
        "training",
        *arguments(rows, tmp_path / "out.safetensors", "nobody/nothing"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1].startswith(
        "error: backbone 'nobody/nothing' cannot be loaded: "
    )
    assert not (tmp_path / "out.safetensors").exists()


def test_without_the_extra(rows: Path, tmp_path: Path) -> None:
    """Where what training needs is not installed, one sentence says how to install it."""
    program = "import sys; sys.modules['torch'] = None; from training.__main__ import app; app()"
    command = [
        sys.executable,
        "-c",
        program,
        *arguments(rows, tmp_path / "out.safetensors", "embedded"),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert run.stderr.startswith("error: torch is not installed; ")
    assert run.stderr.endswith("pip install -c constraints.txt -e '.[train]'\n")
    assert run.stderr.count("\n") == 1


def test_ctrl_c(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """Ctrl-C during the training ends it early: the adapter so far is merged, written and says
    so."""
    out = tmp_path / "out.safetensors"
    command = [
        sys.executable,
        "-m",
        "training",
        *arguments(rows, out, bert_folder, "--epochs", "2000"),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        for line in run.stdout:
            if line.startswith("step "):
                run.send_signal(signal.SIGINT)
                break
        rest, errors = run.communicate(timeout=60)
    assert run.returncode == 0, errors
    said = load(out).spec.training
    assert 200 <= said["steps"] < said["planned_steps"] == 4000
    assert f"stopped early, after {said['steps']} of 4000 steps\n" in rest
    checked = CliRunner().invoke(
        adapters_app, ["validate", str(out), "--backbone", str(bert_folder)]
    )
    assert checked.exit_code == 0, checked.output


def test_help() -> None:
    """The help names every option with the program's example."""
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
    assert result.exit_code == 0
    for word in ("--task", "--label-separator", "--experts", "python -m training --task mrpc"):
        assert word in result.stdout


def test_the_backbone_is_only_read(rows: Path, tmp_path: Path, bert_folder: Path) -> None:
    """A run leaves the backbone's folder as it was."""
    copy = Path(shutil.copytree(bert_folder, tmp_path / "copy"))
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    assert invoke(rows, tmp_path / "out.safetensors", copy).exit_code == 0
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
