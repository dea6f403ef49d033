"""The many forms of `inputs`, and logits made into scores."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from adapters.errors import AdaMixError, InvalidText
from adapters.spec import ProblemType
from service.http.inputs import read_inputs
from service.http.schemas import Parameters, PredictRequest
from service.predictor import Signature
from service.refusals import InvalidRequest
from service.scores import Function, scored

SINGLE = Signature(
    task="sst2",
    labels=("no", "yes"),
    problem_type="single_label_classification",
    text_pair=False,
    max_length=64,
    template=None,
)
PAIR = replace(SINGLE, task="rte", text_pair=True)


@pytest.mark.parametrize(
    ("inputs", "rows", "several"),
    [
        ("a", [("a",)], False),
        ({"text": "a"}, [("a",)], False),
        ({"text": "a", "text_pair": None}, [("a",)], False),
        (["a"], [("a",)], True),
        (["a", "b"], [("a",), ("b",)], True),
        (["a", "b", "c"], [("a",), ("b",), ("c",)], True),
        ([{"text": "a"}, {"text": "b"}], [("a",), ("b",)], True),
        ([["a"]], [("a",)], True),
        ([["a"], ["b"]], [("a",), ("b",)], True),
        (["a", {"text": "b"}, ["c"]], [("a",), ("b",), ("c",)], True),
    ],
)
def test_inputs_of_a_task_of_single_texts(
    inputs: Any, rows: list[tuple[str]], several: bool
) -> None:
    """A task of single texts takes a text, an object, or a list of either or of one-text lists; two
    texts are two rows."""
    assert read_inputs(inputs, SINGLE) == (rows, several)


@pytest.mark.parametrize(
    ("inputs", "rows", "several"),
    [
        ({"text": "a", "text_pair": "b"}, [("a", "b")], False),
        (["a", "b"], [("a", "b")], False),
        ([["a", "b"]], [("a", "b")], True),
        ([["a", "b"], ["c", "d"]], [("a", "b"), ("c", "d")], True),
        ([{"text": "a", "text_pair": "b"}], [("a", "b")], True),
        ([{"text": "a", "text_pair": "b"}, ["c", "d"]], [("a", "b"), ("c", "d")], True),
    ],
)
def test_inputs_of_a_task_of_pairs(inputs: Any, rows: list[tuple[str, str]], several: bool) -> None:
    """A task of pairs takes an object, a flat list of two texts as one pair, or a list of objects
    or two-text lists."""
    assert read_inputs(inputs, PAIR) == (rows, several)


KINDS = 'expected a text, {"text", "text_pair"} or a list of one or two texts'
ONE, TWO = (
    "task 'sst2' expects one text",
    'task \'rte\' expects a pair, such as {"text": …, "text_pair": …}',
)


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (SINGLE, [], "inputs is an empty list; expected at least one text"),
        (PAIR, [], "inputs is an empty list; expected at least one text"),
        (SINGLE, None, f"inputs is None; {KINDS}"),
        (SINGLE, 7, f"inputs is 7; {KINDS}"),
        (SINGLE, True, f"inputs is True; {KINDS}"),
        (SINGLE, ["a", 7], f"inputs[1] is 7; {KINDS}"),
        (SINGLE, ["a", ["b", 7]], f"inputs[1] is ['b', 7]; {KINDS}"),
        (SINGLE, [[["a"]]], f"inputs[0] is [['a']]; {KINDS}"),
        (SINGLE, ["a", None], f"inputs[1] is None; {KINDS}"),
        (SINGLE, ["a", []], "inputs[1] holds 0 texts; expected one or two"),
        (SINGLE, [["a", "b", "c"]], "inputs[0] holds 3 texts; expected one or two"),
        (SINGLE, {}, 'inputs has the keys []; expected "text" and perhaps "text_pair"'),
        (
            SINGLE,
            {"text_pair": "b"},
            'inputs has the keys [\'text_pair\']; expected "text" and perhaps "text_pair"',
        ),
        (
            SINGLE,
            {"text": "a", "x": 1},
            "inputs has the keys ['text', 'x']; expected \"text\" and perhaps \"text_pair\"",
        ),
        (SINGLE, {"text": 7}, f"inputs is {{'text': 7}}; {KINDS}"),
        (SINGLE, {"text": None}, f"inputs is {{'text': None}}; {KINDS}"),
        (
            PAIR,
            {"text": "a", "text_pair": 7},
            f"inputs is {{'text': 'a', 'text_pair': 7}}; {KINDS}",
        ),
        (SINGLE, {"text": "a", "text_pair": "b"}, f"inputs holds 2 texts; {ONE}"),
        (SINGLE, ["a", ["b", "c"]], f"inputs[1] holds 2 texts; {ONE}"),
        (PAIR, "a", f"inputs holds 1 text; {TWO}"),
        (PAIR, {"text": "a", "text_pair": None}, f"inputs holds 1 text; {TWO}"),
        (PAIR, ["a"], f"inputs[0] holds 1 text; {TWO}"),
        (PAIR, ["a", "b", "c"], f"inputs[0] holds 1 text; {TWO}"),
        (PAIR, [["a", "b"], "c"], f"inputs[1] holds 1 text; {TWO}"),
    ],
)
def test_inputs_refused(signature: Signature, inputs: Any, message: str) -> None:
    """Inputs of another form are refused with one sentence: where, what was found, what the task
    expects."""
    with pytest.raises(InvalidRequest) as refused:
        read_inputs(inputs, signature)
    assert str(refused.value) == message


@pytest.mark.parametrize(
    ("signature", "inputs", "message"),
    [
        (SINGLE, "", "inputs is empty; expected a text"),
        (SINGLE, " \n\t", "inputs is only white space; expected a text"),
        (SINGLE, ["a", ""], "inputs[1] is empty; expected a text"),
        (SINGLE, {"text": ""}, "inputs is empty; expected a text"),
        (
            SINGLE,
            ["a\x00b"],
            "inputs[0] holds the control character U+0000 at position 1; expected text",
        ),
        (SINGLE, "ab\ud800", "inputs holds the lone surrogate U+D800 at position 2; expected text"),
        (PAIR, ["", "b"], "the first text of inputs is empty; expected a text"),
        (
            PAIR,
            [["a", "b"], ["c", " "]],
            "the second text of inputs[1] is only white space; expected a text",
        ),
    ],
)
def test_texts_refused(signature: Signature, inputs: Any, message: str) -> None:
    """A text that no tokeniser should see is refused by its place in the inputs."""
    with pytest.raises(InvalidText) as refused:
        read_inputs(inputs, signature)
    assert str(refused.value) == message


def test_a_refusal_is_short() -> None:
    """A refusal shows no more than eighty characters of a huge input."""
    for inputs in ([7] * 10000, [["a", "b", {"c": "d" * 10000}]], {"text": "a", "x" * 10000: 1}):
        with pytest.raises(InvalidRequest) as refused:
            read_inputs(inputs, SINGLE)
        assert len(str(refused.value)) < 250


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text", "text_pair", "x"]), inner)
    ),
    max_leaves=6,
)


@given(inputs=JSON, signature=st.sampled_from([SINGLE, PAIR]))
def test_any_json_is_read_or_refused(inputs: Any, signature: Signature) -> None:
    """Any JSON is either rows of as many texts as the task takes, or refused with a sentence that
    begins with its place."""
    try:
        rows, several = read_inputs(inputs, signature)
    except AdaMixError as refusal:
        message = str(refusal)
    else:
        assert all(len(row) == (2 if signature.text_pair else 1) for row in rows)
        assert len(rows) >= 1 if several else len(rows) == 1
        return
    assert re.match(r"(the (first|second) text of )?inputs(\[\d+\])? .*expect", message), message


def labels_of(logits: list[float], function: Function, top_k: int | None = None) -> str:
    return "".join(
        entry["label"]
        for entry in scored(logits, tuple("abcdefgh"[: len(logits)]), function, top_k)
    )


def scores_of(logits: list[float], function: Function) -> dict[str, float]:
    return {
        entry["label"]: entry["score"]
        for entry in scored(logits, tuple("abcdefgh"[: len(logits)]), function, None)
    }


def test_softmax() -> None:
    """Softmax scores are the exponentials over their sum, best first."""
    total = sum(math.exp(x) for x in (1.0, 3.0, -2.0))
    expected = [
        ("b", math.exp(3.0) / total),
        ("a", math.exp(1.0) / total),
        ("c", math.exp(-2.0) / total),
    ]
    found = scored([1.0, 3.0, -2.0], ("a", "b", "c"), "softmax", None)
    assert [entry["label"] for entry in found] == [label for label, _ in expected]
    assert [entry["score"] for entry in found] == pytest.approx([score for _, score in expected])


def test_sigmoid() -> None:
    """Sigmoid scores each label by itself."""
    expected = {"a": 0.5, "b": 1 / (1 + math.exp(-2.0)), "c": 1 / (1 + math.exp(3.0))}
    assert scores_of([0.0, 2.0, -3.0], "sigmoid") == pytest.approx(expected)
    assert labels_of([0.0, 2.0, -3.0], "sigmoid") == "bac"


def test_none() -> None:
    """Without a function the scores are the logits themselves."""
    assert scored([0.25, -7.5], ("a", "b"), "none", None) == [
        {"label": "a", "score": 0.25},
        {"label": "b", "score": -7.5},
    ]
    assert scored([3.75], ("score",), "none", None) == [{"label": "score", "score": 3.75}]


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_large_logits(function: Function) -> None:
    """Logits of ten thousand either way overflow nothing and keep their order."""
    assert labels_of([-1e4, 1e4, 0.0], function) == "bca"
    scores = scores_of([-1e4, 1e4, 0.0], function)
    if function != "none":
        assert scores["b"] == 1.0
        assert scores["a"] == 0.0
    assert scores_of([1e4], function) == {"a": 1e4 if function == "none" else 1.0}


def test_small_sigmoids_are_exact() -> None:
    """A very negative logit has its own tiny sigmoid, not zero."""
    for x in (-20.0, -40.0, -300.0):
        assert scores_of([x], "sigmoid")["a"] == pytest.approx(math.exp(x), rel=1e-8, abs=0)


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize(
    "logits", [[40.0, 50.0, 45.0], [-8e3, -7e3, -7.5e3, 0.0], [1e3, 2e3, -1.0]]
)
def test_best_first_by_the_logits(logits: list[float], function: Function) -> None:
    """Where scores saturate at 0 or 1, the label of the largest logit still comes first."""
    order = sorted(range(len(logits)), key=lambda i: -logits[i])
    assert labels_of(logits, function) == "".join("abcdefgh"[i] for i in order)
    assert labels_of(logits, function, top_k=1) == "abcdefgh"[order[0]]


@pytest.mark.parametrize("function", ["softmax", "sigmoid", "none"])
def test_ties(function: Function) -> None:
    """Equal logits keep the order of the spec's labels."""
    assert labels_of([1.0, 2.0, 1.0, 2.0, 1.0], function) == "bdace"


def test_top_k() -> None:
    """`top_k` keeps the best so many labels with the scores that they have among all."""
    logits = [0.1, 0.4, 0.3, 0.2]
    everything = scored(logits, tuple("abcd"), "softmax", None)
    assert len(everything) == 4
    for k in range(1, 5):
        assert scored(logits, tuple("abcd"), "softmax", k) == everything[:k]
    assert scored(logits, tuple("abcd"), "softmax", 9) == everything


LOGITS = st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=8)


@given(
    logits=LOGITS,
    function=st.sampled_from(["softmax", "sigmoid", "none"]),
    top_k=st.none() | st.integers(1, 8),
)
def test_scores_of_any_logits(logits: list[float], function: Function, top_k: int | None) -> None:
    """Any finite logits give finite scores, best first, each label once; probabilities lie in 0 to
    1, softmax's add to 1."""
    found = scored(logits, tuple("abcdefgh"[: len(logits)]), function, None)
    scores = [entry["score"] for entry in found]
    assert all(map(math.isfinite, scores))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(scores))
    assert sorted(entry["label"] for entry in found) == list("abcdefgh"[: len(logits)])
    if function != "none":
        assert all(0 <= score <= 1 for score in scores)
    if function == "softmax":
        assert math.isclose(sum(scores), 1, rel_tol=1e-9)
    assert scored(logits, tuple("abcdefgh"[: len(logits)]), function, top_k) == found[:top_k]


@pytest.mark.parametrize(
    ("problem_type", "body", "function"),
    [
        ("single_label_classification", {}, "softmax"),
        ("multi_label_classification", {}, "sigmoid"),
        ("regression", {}, "none"),
        ("single_label_classification", {"raw_scores": True}, "none"),
        ("multi_label_classification", {"raw_scores": True}, "none"),
        ("single_label_classification", {"raw_scores": False}, "softmax"),
        (
            "single_label_classification",
            {"parameters": {"function_to_apply": "sigmoid"}},
            "sigmoid",
        ),
        (
            "single_label_classification",
            {"parameters": {"function_to_apply": "softmax"}, "raw_scores": True},
            "softmax",
        ),
        ("multi_label_classification", {"parameters": {"top_k": 2}}, "sigmoid"),
        ("regression", {"parameters": {"function_to_apply": "sigmoid"}}, "sigmoid"),
    ],
)
def test_the_function(problem_type: ProblemType, body: dict[str, Any], function: Function) -> None:
    """The function is the request's, else none for raw scores and regression, sigmoid for many
    labels, softmax for one."""
    assert PredictRequest.model_validate({"inputs": "a", **body}).function(problem_type) == function


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"inputs": "a", "unknown": 1},
        {"inputs": "a", "parameters": {"unknown": 1}},
        {"inputs": "a", "parameters": {"function_to_apply": "tanh"}},
        {"inputs": "a", "parameters": {"top_k": "all"}},
        {"inputs": "a", "truncate": "perhaps"},
        {"inputs": "a", "truncate": True, "truncation_direction": "left"},
    ],
)
def test_bodies_refused(body: dict[str, Any]) -> None:
    """A body without inputs, with a key we do not know or with a value of the wrong kind is
    refused."""
    with pytest.raises(ValidationError):
        PredictRequest.model_validate(body)


def test_clients_bodies() -> None:
    """The bodies of huggingface_hub and of text-embeddings-inference's clients are taken as they
    come."""
    hub = PredictRequest.model_validate(
        {"inputs": "a", "parameters": {"function_to_apply": None, "top_k": None}}
    )
    assert hub.parameters == Parameters()
    assert PredictRequest.model_validate(
        {"inputs": "a", "parameters": None, "options": {"wait_for_model": True}}
    ).options
    body = {
        "inputs": [["a", "b"]],
        "raw_scores": False,
        "truncate": False,
        "truncation_direction": "right",
    }
    assert PredictRequest.model_validate(body).truncate is False
