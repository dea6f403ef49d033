"""Prompt tasks on a real server: trained, pushed and asked as a user does, beside tasks without a
prompt."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from typer.testing import CliRunner

from adapters import backbone as backbones
from adapters.__main__ import app as adapters_app
from adapters.backbone import Backbone
from adapters.file import load
from tests.adapters.test_prompt import PAIR, with_template
from tests.service.conftest import running
from tests.tiny import random_adapter, reference_logits
from tests.training.test_label_words import PROMPT, WORDS, folder_of, masked_lm_logits, train
from tests.training.test_training_cli import ROWS, jsonl

PAIRS = [("a good film", "the plot"), ("red", "it was very very bad")]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def backbone(family: str) -> Backbone:
    return backbones.load(str(folder_of(family)))


@pytest.fixture(scope="module")
def trained(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An AdaMix adapter for the task `toy`, trained few-shot with a prompt."""
    folder = tmp_path_factory.mktemp("trained")
    out = folder / "toy.safetensors"
    words = ("--prompt", PROMPT, "--label-words", WORDS[family], "--few-shot", "6")
    result = train(
        jsonl(folder / "data.jsonl", ROWS), out, folder_of(family), *words, "--dtype", "float32"
    )
    assert result.exit_code == 0, result.output
    return out


@pytest.fixture(scope="module")
def client(
    family: str, backbone: Backbone, trained: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx2.Client]:
    """A server of the family's masked language model with the tasks `toy`, `pairs` (a prompt of two
    texts) and `plain`."""
    with (
        running(tmp_path_factory.mktemp("store"), backbone=folder_of(family)) as server,
        server.client() as client,
    ):
        pushed = CliRunner().invoke(adapters_app, ["push", str(trained), "--url", server.url])
        assert pushed.exit_code == 0, pushed.output
        pairs = random_adapter(
            backbone, "pairs", ["no", "so", "yes"], template=PAIR, text_pair=True, seed=1
        )[2]
        plain = random_adapter(backbone, "plain", ["no", "yes"], dense=True, seed=2)[2]
        for data in (pairs, plain):
            assert client.post("/adapters", files={"file": data}).status_code == 201
        yield client


def raw(client: httpx2.Client, task: str, inputs: Any, **more: Any) -> list[list[float]]:
    """The logits of a list of inputs, labels by name."""
    body = {"inputs": inputs, "parameters": {"function_to_apply": "none"}, **more}
    answer = client.post("/predict", params={"task": task}, json=body)
    assert answer.status_code == 200, answer.text
    rows = [{entry["label"]: entry["score"] for entry in row} for row in answer.json()]
    return [[row[label] for label in sorted(row)] for row in rows]


def assert_close(found: list[list[float]], expected: Any) -> None:
    for row, wanted in zip(found, expected.tolist(), strict=True):
        assert row == pytest.approx(wanted, abs=1e-5)


def test_answers_are_the_masked_language_models(
    client: httpx2.Client, trained: Path, family: str
) -> None:
    """Scores over HTTP are transformers' own masked-LM logits of the label words at the mask, the
    adapters hooked in."""
    texts = [row["text"] for row in ROWS] + ["a", "it was great, not awful"]
    assert_close(raw(client, "toy", texts), masked_lm_logits(family, load(trained), texts))


def test_prompts_and_others_share_a_batch(
    client: httpx2.Client, backbone: Backbone, trained: Path, family: str
) -> None:
    """One text over a prompt task and a plain one, and pairs beside them, each get their own task's
    logits."""
    text = "the plot was awful"
    body = {"inputs": [text], "parameters": {"function_to_apply": "none"}}
    answer = client.post("/predict?task=toy&task=plain", json=body).json()
    found = {
        task: {entry["label"]: entry["score"] for entry in rows[0]} for task, rows in answer.items()
    }
    expected = masked_lm_logits(family, load(trained), [text])[0].tolist()
    assert [found["toy"]["negative"], found["toy"]["positive"]] == pytest.approx(expected, abs=1e-5)
    spec, tensors, _ = random_adapter(backbone, "plain", ["no", "yes"], dense=True, seed=2)
    assert list(map(found["plain"].get, spec.labels)) == pytest.approx(
        reference_logits(backbone, spec, tensors, [(text,)])[0].tolist(), abs=1e-5
    )
    spec, tensors, _ = random_adapter(
        backbone, "pairs", ["no", "so", "yes"], template=PAIR, text_pair=True, seed=1
    )
    assert_close(raw(client, "pairs", PAIRS), reference_logits(backbone, spec, tensors, PAIRS))  # type: ignore[arg-type]


def test_a_text_that_spells_the_mask(
    client: httpx2.Client, backbone: Backbone, trained: Path
) -> None:
    """A client's own mask token is a token like any other: the answer is read at the template's."""
    adapter = load(trained)
    texts = [f"{backbone.mask_token} good {backbone.mask_token}", f"{backbone.mask_token}"]
    expected = reference_logits(
        backbone, adapter.spec, dict(adapter.tensors), [(text,) for text in texts]
    )
    assert_close(raw(client, "toy", texts), expected)
    for text, found in zip(texts, raw(client, "toy", texts), strict=True):
        assert found != pytest.approx(
            raw(client, "toy", [text.replace(str(backbone.mask_token), "x")])[0], abs=1e-3
        )


def test_too_long(client: httpx2.Client, backbone: Backbone, trained: Path) -> None:
    """A text that with the template is one token too long is refused with the length; truncated, it
    keeps the template."""
    adapter = load(trained)
    own = backbone.prompt(PROMPT, 64)
    assert own is not None
    fits = " ".join(["good"] * (64 - own.length))  # a token each
    assert len(raw(client, "toy", [fits])) == 1
    refused = client.post("/predict?task=toy", json={"inputs": f"{fits} good"})
    assert refused.status_code == 413
    assert "has 65 tokens; expected at most 64" in refused.json()["error"]
    long = "good " * 500
    cut = raw(client, "toy", [long], truncate=True)
    assert_close(cut, reference_logits(backbone, adapter.spec, dict(adapter.tensors), [(long,)]))


def test_a_prompt_task_is_described_and_pinned_as_any(client: httpx2.Client, trained: Path) -> None:
    """`GET /adapters/{task}` shows the template, of a plain task none; the download is the file to
    the byte."""
    spec = client.get("/adapters/toy").json()["spec"]
    assert (spec["pooling"], spec["template"]) == ("mask", PROMPT)
    assert "template" not in client.get("/adapters/plain").json()["spec"]
    version = client.get("/adapters/toy").json()["version"]
    assert client.get(f"/adapters/toy/versions/{version}/file").content == trained.read_bytes()


def test_the_open_inference_protocol(client: httpx2.Client, trained: Path, family: str) -> None:
    """V2 infers a prompt task as any other, its template unseen."""
    assert [entry["name"] for entry in client.get("/v2/models/toy").json()["inputs"]] == ["text"]
    texts = ["the film is good", "awful"]
    tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": texts}
    answer = client.post(
        "/v2/models/toy/infer", json={"inputs": [tensor], "outputs": [{"name": "logits"}]}
    ).json()
    expected = masked_lm_logits(family, load(trained), texts).flatten().tolist()
    assert answer["outputs"][0]["data"] == pytest.approx(expected, abs=1e-5)


def test_uploads_that_lie(client: httpx2.Client, trained: Path) -> None:
    """Another template than the trained one fails the probe; one that leaves no room, or holds no
    mask, is refused first."""
    data = trained.read_bytes()
    long = "{text} " + "very " * 70 + "{mask}"
    for template, words in (
        ("{text} This is {mask}!", ["probe input 0"]),
        (long, ["tokens of a row", "room for a text"]),
        ("{text}", ["{mask}", "expected 1"]),
    ):
        answer = client.post(
            "/adapters", files={"file": with_template(data, {"template": template, "task": "lie"})}
        )
        assert answer.status_code == 422, answer.text
        assert all(word in answer.json()["error"] for word in words), answer.text
    assert client.get("/adapters/lie").status_code == 404
    assert "lie" not in json.dumps(client.get("/adapters").json())
