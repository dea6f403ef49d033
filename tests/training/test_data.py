"""Data files: what each format gives, and what is refused with the file, the line and the
column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.data import Columns, Dataset, read
from training.errors import DataError

GOOD = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


COLUMNS = Columns()


def read_one(
    folder: Path, name: str, content: str | bytes, columns: Columns = COLUMNS, problem: Any = None
) -> Dataset:
    path = write(folder, name, content)
    train, dev = read(path, path, columns, problem)
    assert train == dev
    return train


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(tmp_path: Path) -> None:
    """JSON lines give texts and label indices; blank lines and a byte order mark do not matter."""
    data = read_one(
        tmp_path,
        "d.jsonl",
        "\ufeff" + GOOD.replace("\n", "\n\n") + '{"label": "x", "text": "ä\\nb", "id": 3}',
    )
    assert data.texts == [("a",), ("b",), ("ä\nb",)]
    assert (data.labels, data.targets) == (("x", "y"), [0, 1, 0])
    assert data.problem_type == "single_label_classification"
    assert not data.text_pair


def test_csv(tmp_path: Path) -> None:
    """In CSV a quoted field may hold commas, quotes and line breaks; line ends and a byte order
    mark do not matter."""
    content = '\ufefftext,label,id\r\n"one, two",x,1\r\n"three\r\nfour",y,2\r\n"say ""hi""",x,3\r\n'
    data = read_one(tmp_path, "d.csv", content)
    assert data.texts == [("one, two",), ("three\r\nfour",), ('say "hi"',)]
    assert data.targets == [0, 1, 0]


def test_csv_of_pandas(tmp_path: Path) -> None:
    """The unnamed index column that pandas writes is no obstacle."""
    assert read_one(tmp_path, "d.csv", ",text,label\n0,a,x\n1,b,y\n").texts == [("a",), ("b",)]


def test_tsv(tmp_path: Path) -> None:
    """In TSV quotes are text, also where they do not close."""
    data = read_one(tmp_path, "d.tsv", 'text\tlabel\n"a, he said\tx\nit\'s "b"\ty\n5" pipe\tx\n')
    assert data.texts == [('"a, he said',), ('it\'s "b"',), ('5" pipe',)]


def test_pairs(tmp_path: Path) -> None:
    """A `text_pair` column, or the one that is named, makes every example a pair."""
    rows = [
        {"text": "a", "text_pair": "b", "label": 0},
        {"text": "c", "text_pair": "d", "label": 1},
    ]
    data = read_one(tmp_path, "d.jsonl", jsonl(*rows))
    assert data.texts == [("a", "b"), ("c", "d")]
    assert data.text_pair
    named = read_one(tmp_path, "d.csv", "s1,s2,y\na,b,0\nc,d,1\n", Columns("s1", "s2", "y"))
    assert named.texts == data.texts


@pytest.mark.parametrize(
    ("labels", "problem", "names", "targets"),
    [
        ([1, 0, 1], "single_label_classification", ("0", "1"), [1, 0, 1]),
        ([10, 9, 2], "single_label_classification", ("2", "9", "10"), [2, 1, 0]),
        (["b", "a", "b"], "single_label_classification", ("a", "b"), [1, 0, 1]),
        ([1.0, 0.0, 1.0], "single_label_classification", ("0.0", "1.0"), [1, 0, 1]),
        (["1.0", "0.0"], "single_label_classification", ("0.0", "1.0"), [1, 0]),
        ([" b", "a ", "b"], "single_label_classification", ("a", "b"), [1, 0, 1]),
        ([[" b"], ["b", "a "]], "multi_label_classification", ("a", "b"), [[1], [1, 0]]),
        ([True, False, True], "single_label_classification", ("false", "true"), [1, 0, 1]),
        ([0.5, 1, 2.25], "regression", ("score",), [0.5, 1.0, 2.25]),
        (["0.5", "1e3", "-2"], "regression", ("score",), [0.5, 1000.0, -2.0]),
        ([["b"], [], ["a", "b"]], "multi_label_classification", ("a", "b"), [[1], [], [0, 1]]),
    ],
)
def test_problem_types(
    tmp_path: Path, labels: list[Any], problem: str, names: tuple[str, ...], targets: list[Any]
) -> None:
    """Lists make a task multi-label, fractions regression, anything else single-label; numbers sort
    as numbers."""
    data = read_one(
        tmp_path, "d.jsonl", jsonl(*({"text": "t", "label": label} for label in labels))
    )
    assert (data.problem_type, data.labels, data.targets) == (problem, names, targets)


def test_a_named_problem_type(tmp_path: Path) -> None:
    """What the data look like yields to the problem type that is named."""
    integers = "text,label\na,1\nb,2\n"
    assert read_one(tmp_path, "d.csv", integers, problem="regression").targets == [1.0, 2.0]
    several = read_one(
        tmp_path, "d.csv", "text,label\na,x | y\nb,\nc,y\n", problem="multi_label_classification"
    )
    assert (several.labels, several.targets) == (("x", "y"), [[0, 1], [], [1]])
    commas = Columns(label_separator=";")
    assert read_one(
        tmp_path, "d.csv", "text,label\na,x;y\n", commas, "multi_label_classification"
    ).targets == [[0, 1]]


REFUSED: list[tuple[str, str | bytes, str]] = [
    (
        "d.jsonl",
        jsonl({"text": "a", "label": "x" * 300}, {"text": "b", "label": "y"}),
        "a label of 300 characters, 'xxxx",
    ),
    ("d.jsonl", "", "holds no examples; expected at least one"),
    ("d.csv", "text,label\n", "holds no examples; expected at least one"),
    ("d.csv", "", "holds no examples"),
    ("d.txt", GOOD, "ends in '.txt'; expected .jsonl, .csv, .tsv or .parquet"),
    ("d.jsonl", GOOD + "{nope\n", "line 3, is not JSON: "),
    ("d.jsonl", GOOD + "[" * 100_000 + "\n", "line 3, is not JSON: "),
    ("d.jsonl", GOOD + "[1]\n", "line 3, is a JSON list; expected an object"),
    (
        "d.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "\xff", "label": 1}\n',
        "line 2, holds the byte 0xff; expected UTF-8",
    ),
    ("d.csv", b"text,label\ncaf\xe9,1\n", "line 2, holds the byte 0xe9; expected UTF-8"),
    (
        "d.csv",
        "text,label\na,1\n".encode("utf-16"),
        "line 1, holds a mark of UTF-16; expected UTF-8",
    ),
    (
        "d.json",
        '[\n  {"text": "a", "label": 1}\n]\n',
        "line 1, begins a JSON array; expected JSON lines: one object a line",
    ),
    ("d.csv", "text,text,label\na,b,1\n", "line 1, names the column 'text' 2 times; expected it"),
    ("d.csv", "text,label,label\na,1,2\n", "names the column 'label' 2 times"),
    ("d.csv", "text,text_pair,text_pair,label\na,b,c,1\n", "names the column 'text_pair' 2 times"),
    (
        "d.jsonl",
        GOOD + '{"text": "a", "text": "b", "label": "x"}\n',
        "line 3, is not JSON: it holds 'text' twice; expected one object a line",
    ),
    (
        "d.jsonl",
        jsonl(*({"text": "a", "label": hot} for hot in ([1, 0, 0], [0, 1, 0], [1, 1, 1]))),
        "column 'label', holds vectors of 0 and 1, such as [1, 0, 0]; expected a list of the names",
    ),
    (
        "d.jsonl",
        jsonl(*({"text": "a", "label": hot} for hot in ([1.0, 0.0], [0.0, 1.0]))),
        "holds vectors of 0 and 1, such as [1.0, 0.0]",
    ),
    (
        "d.jsonl",
        jsonl({"text": "a", "label": ["x", "y", "x"]}, {"text": "b", "label": ["y"]}),
        "row 1, column 'label', is ['x', 'y', 'x'], which holds 'x' twice; expected each label's",
    ),
    (
        "d.csv",
        "text,label\na,caf\u00e9\nb,cafe\u0301\n",
        "holds the labels 'cafe\\u0301' and 'caf\\xe9', which differ by white space or Unicode",
    ),
    ("d.csv", "text,label\na,x y\nb,x  y\n", "holds the labels 'x  y' and 'x y', which differ"),
    (
        "d.csv",
        "text,label\na,0.5\nb,nan\nc,1.5\n",
        "row 2, column 'label', is 'nan' among numbers; expected a number in every row",
    ),
    ("d.csv", "text,label\na,0\nb,\nc,1\n", "row 2, column 'label', is '' among numbers"),
    (
        "d.csv",
        "text,label\n,1\na,2\n ,1\n,2\n",
        "line 2: column 'text' is empty; expected a text (and 2 more such texts, on lines 4, 5)",
    ),
    (
        "d.jsonl",
        '{"sentence": "a", "label": 1}',
        "line 1, has no column 'text'; it has 'sentence', 'label'",
    ),
    ("d.jsonl", '{"text": "a", "gold": 1}', "line 1, has no column 'label'; it has 'text', 'gold'"),
    (
        "d.csv",
        "text|label\na|1\n",
        "line 2, has no columns 'text' and 'label'; it has 'text|label' (--text-column and"
        " --label-column name another",
    ),
    (
        "d.csv",
        "text;label\na;1\nb;1,5\n",
        "row 2, column 'label', is '1,5'; expected a decimal point in a number",
    ),
    ("d.csv", "text,label\na,1\nb\n", "line 3, does not have the header's 2 columns"),
    ("d.csv", "text,label\na,1\nb,2,3\n", "line 3, does not have the header's 2 columns"),
    ("d.csv", 'text,label\n"a,1\n', "is not CSV: unexpected end of data"),
    ("d.csv", 'text,label\n"a"b,1\n', "after line 1, is not CSV: ',' expected after '\"'"),
    ("d.jsonl", jsonl({"text": 3, "label": 1}), "line 1, column 'text', is 3; expected a text"),
    (
        "d.jsonl",
        jsonl({"text": None, "label": 1}),
        "line 1, column 'text', is None; expected a text",
    ),
    (
        "d.jsonl",
        jsonl({"text": " ", "label": 1}),
        "line 1: column 'text' is only white space; expected a text",
    ),
    ("d.csv", "text,label\n,1\n", "line 2: column 'text' is empty; expected a text"),
    (
        "d.jsonl",
        '{"text": "\\ud800", "label": 1}',
        "line 1: column 'text' holds the lone surrogate U+D800",
    ),
    (
        "d.jsonl",
        GOOD + jsonl({"text": "a", "text_pair": "b", "label": "x"}),
        "line 3, has a 'text_pair', which the first row has not",
    ),
    (
        "d.jsonl",
        jsonl({"text": "a", "text_pair": "b", "label": 1}) + GOOD,
        "line 2, has no column 'text_pair'",
    ),
    (
        "d.jsonl",
        jsonl({"text": "a", "label": "x"}),
        "holds the one label 'x'; expected two or more",
    ),
    ("d.jsonl", GOOD + jsonl({"text": "a", "label": ""}), "empty"),
    (
        "d.jsonl",
        GOOD + jsonl({"text": "a", "label": None}),
        "line 3, column 'label', is None; expected",
    ),
    (
        "d.jsonl",
        GOOD + jsonl({"text": "a", "label": {"x": 1}}),
        "line 3, column 'label', is {'x': 1}; expected",
    ),
    ("d.jsonl", GOOD + '{"text": "a", "label": "\\ud800"}\n', "lone surrogate U+D800"),
    ("d.jsonl", jsonl({"text": "a", "label": []}), "holds no labels; expected at least one"),
    (
        "d.csv",
        "text,label\n" + "".join(f"a,l{i}\n" for i in range(1001)),
        "holds 1001 distinct labels; expected at most 1000",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), REFUSED)
def test_refused(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    """A file that training cannot use is refused by its name, and the line and column where there
    is one."""
    path = write(tmp_path, name, content)
    with pytest.raises(DataError) as caught:
        read(path, path, Columns())
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_is_no_single_label(tmp_path: Path) -> None:
    """A list of labels is refused where a task is said to have one label a row."""
    path = write(
        tmp_path, "d.jsonl", jsonl({"text": "a", "label": ["x"]}, {"text": "b", "label": "y"})
    )
    with pytest.raises(
        DataError, match=r"row 1, column 'label', is \['x'\]; expected one name, or"
    ):
        read(path, path, Columns(), "single_label_classification")


def test_an_extension_in_capitals(tmp_path: Path) -> None:
    """An extension in capitals is the same extension."""
    assert read_one(tmp_path, "D.CSV", "text,label\na,x\nb,y\n").labels == ("x", "y")
    assert read_one(tmp_path, "D.TSV", "text\tlabel\na\tx\nb\ty\n").labels == ("x", "y")


@pytest.mark.parametrize("label", ['"x"', "NaN", "Infinity", "null", "true", "[1]"])
def test_regression_wants_numbers(tmp_path: Path, label: str) -> None:
    """A label of a regression task that is no finite number is refused by its row."""
    path = write(
        tmp_path,
        "d.jsonl",
        jsonl({"text": "a", "label": 1}) + '{"text": "a", "label": LABEL}'.replace("LABEL", label),
    )
    with pytest.raises(DataError, match=r"(row|line) 2, column 'label', is .*; expected a"):
        read(path, path, Columns(), "regression")


def test_files_that_do_not_match(tmp_path: Path) -> None:
    """A dev file with a label that the training file lacks, with pairs for single texts, or absent,
    is refused."""
    train = write(tmp_path, "train.jsonl", GOOD)
    (tmp_path / "d.csv").mkdir()
    strange = write(tmp_path, "strange.jsonl", GOOD + jsonl({"text": "c", "label": "z"}))
    pairs = write(tmp_path, "pairs.jsonl", jsonl({"text": "a", "text_pair": "b", "label": "x"}))
    with pytest.raises(
        DataError,
        match=(
            r"strange.jsonl, row 3, has the label 'z', which .*train.jsonl lacks; expected one of"
            r" 'x', 'y'"
        ),
    ):
        read(train, strange, Columns())
    with pytest.raises(
        DataError, match=r"train.jsonl holds single texts, .*pairs.jsonl pairs; expected the same"
    ):
        read(train, pairs, Columns())
    with pytest.raises(DataError, match=r"absent.jsonl cannot be read: No such file"):
        read(train, tmp_path / "absent.jsonl", Columns())
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        read(tmp_path / "d.csv", train, Columns())


def test_stray_control_characters_are_taken(tmp_path: Path) -> None:
    """A control character in a training text, as real corpora hold, is no reason to refuse the
    file."""
    path = write(tmp_path, "d.jsonl", GOOD + '{"text": "a\\u0012b", "label": "yes"}\n')
    train, _ = read(path, path, Columns())
    assert train.texts[-1] == ("a\x12b",)


def test_a_number_that_no_float_holds_is_refused(tmp_path: Path) -> None:
    """NaN and infinity are refused with their line; a whole number beyond every float could only be
    a name, a long one."""
    for number in ("NaN", "-Infinity"):
        path = write(
            tmp_path,
            "n.jsonl",
            f'{{"text": "a", "label": {number}}}\n{{"text": "b", "label": 1.5}}\n',
        )
        with pytest.raises(DataError, match=r"line 1, column 'label'"):
            read(path, path, Columns())
    path = write(
        tmp_path, "n.jsonl", f'{{"text": "a", "label": {"9" * 400}}}\n{{"text": "b", "label": 1}}\n'
    )
    with pytest.raises(DataError, match="a label of 400 characters"):
        read(path, path, Columns())
    with pytest.raises(DataError, match="expected a finite number"):
        read(path, path, Columns(), "regression")
