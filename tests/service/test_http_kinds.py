"""Both kinds of adapter over HTTP: bottlenecks and LoRA of several ranks and label counts in one
batch, and all that says which kind a task has."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch

from adapters.backbone import Backbone
from adapters.file import parse
from adapters.store import Store
from adapters.text import encode
from service.engine.row import Row
from tests.adapters.test_file import join, split
from tests.service.conftest import Server, running, sample
from tests.service.test_sites import wanted

AdapterBytes = Callable[..., bytes]

ALL_SITES = dict.fromkeys(("query", "key", "value", "attention_out", "up", "down"), 64)
TASKS: dict[str, dict[str, Any]] = {
    "narrow": {"ranks": {"query": 8, "value": 8}, "labels": ["no", "yes"]},
    "wide": {"ranks": ALL_SITES, "labels": [f"label {i}" for i in range(20)]},
    "uneven": {
        "ranks": {"key": 1, "down": 256},
        "labels": ["score"],
        "problem_type": "regression",
        "first_layer": 3,
    },
    "bottleneck": {"labels": list("abcde")},
    "late": {"labels": ["no", "yes", "maybe"], "first_layer": 4, "bottleneck": 48},
}
TEXTS = [
    "it is a good film",
    "the plot was awful",
    "not very good, and of a length that is not the others'",
    "red",
    "it was not a good film and the plot was not very good, or was it",
]
RAW = {"parameters": {"function_to_apply": "none"}}


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, adapter_bytes: AdapterBytes
) -> Iterator[Server]:
    """A server with the tasks above, which were uploaded to it."""
    with running(tmp_path_factory.mktemp("kinds") / "store") as server, server.client() as client:
        for i, (task, options) in enumerate(TASKS.items()):
            data = adapter_bytes(task, seed=i, scale=0.5, **options)
            answer = client.post("/adapters", files={"file": data})
            assert answer.status_code == 201, answer.text
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx2.Client]:
    with server.client() as client:
        yield client


def asked(client: httpx2.Client, tasks: list[str], inputs: list[str]) -> dict[str, Any]:
    """Each task's logits by label, for each text."""
    answer = client.post("/predict", params={"task": tasks}, json={"inputs": inputs, **RAW})
    assert answer.status_code == 200, answer.text
    found = answer.json() if len(tasks) > 1 else {tasks[0]: answer.json()}
    return {
        task: [{entry["label"]: entry["score"] for entry in row} for row in rows]
        for task, rows in found.items()
    }


def test_one_batch_of_both_kinds(server: Server, client: httpx2.Client, embedded: Backbone) -> None:
    """In one batch of five tasks of both kinds, each text gets from each task what it gets alone,
    and what the formulas give in float64 with W + scale · B·A in each weight's place."""
    names = list(TASKS)
    before = {name: sample(client, f"adamix_batch_tasks_{name}") for name in ("count", "sum")}
    together = asked(client, names, TEXTS)
    after = {name: sample(client, f"adamix_batch_tasks_{name}") for name in ("count", "sum")}
    assert after["count"] - before["count"] == 1
    assert after["sum"] - before["sum"] == len(names)
    store = Store(server.store, read_only=True)
    # in float64 once, not for every row
    exact_backbone = replace(embedded, encoder=copy.deepcopy(embedded.encoder).double())
    for task in names:
        adapter = store.get(task)
        rows = encode(embedded.tokenizer, [(text,) for text in TEXTS], 64)
        for i, row in enumerate(rows):
            alone = asked(client, [task], [TEXTS[i]])[task][0]
            assert together[task][i] == pytest.approx(alone, rel=1e-4, abs=1e-4)
            exact = wanted(exact_backbone, Row(adapter, row.ids, row.types)).tolist()
            found = [together[task][i][label] for label in adapter.spec.labels]
            assert found == pytest.approx(exact, rel=1e-4, abs=1e-4)


def test_the_best_labels_of_tasks_of_both_kinds(client: httpx2.Client) -> None:
    """`top_k` cuts each task's answer after its own best labels, or leaves it whole where it has
    fewer."""
    question = {"inputs": TEXTS[0], "parameters": {"top_k": 4, "function_to_apply": "none"}}
    found = client.post("/predict", params={"task": list(TASKS)}, json=question).json()
    for task, options in TASKS.items():
        scores = asked(client, [task], TEXTS[:1])[task][0]
        best = sorted(scores, key=lambda label: -scores[label])[:4]
        assert [entry["label"] for entry in found[task]] == best
        assert len(best) == min(4, len(options["labels"]))


def test_requests_of_both_kinds_at_once(client: httpx2.Client) -> None:
    """Requests for tasks of both kinds that come at the same time get what they get one by one."""
    work = [(task, text) for task in TASKS for text in TEXTS]
    alone = [asked(client, [task], [text]) for task, text in work]
    with ThreadPoolExecutor(len(work)) as threads:
        at_once = list(threads.map(lambda one: asked(client, [one[0]], [one[1]]), work))
    for (task, _), one, other in zip(work, alone, at_once, strict=True):
        assert other[task][0] == pytest.approx(one[task][0], rel=1e-4, abs=1e-4)


def test_who_says_the_kind(server: Server, client: httpx2.Client) -> None:
    """The list, a task's page and the V2 metadata say which kind it is; the spec shows ranks and
    scale; the storage counts the files' bytes."""
    listed = {entry["task"]: entry for entry in client.get("/adapters").json()}
    for task, options in TASKS.items():
        kind = "lora" if "ranks" in options else "bottleneck"
        detail = client.get(f"/adapters/{task}").json()
        assert listed[task]["kind"] == detail["kind"] == kind
        assert client.get(f"/v2/models/{task}").json()["parameters"]["kind"] == kind
        spec = detail["spec"]
        if kind == "lora":
            assert (spec["ranks"], spec["scale"]) == (options["ranks"], 0.5)
            assert not {"bottleneck", "activation"} & spec.keys()
        else:
            assert not {"kind", "ranks", "scale", "intermediate_size"} & spec.keys()
    storage = client.get("/storage").json()
    sizes = {entry["task"]: entry["bytes"] for entry in storage["adapters"]}
    store = Store(server.store, read_only=True)
    assert sizes == {task: store.get(task).bytes for task in TASKS}
    assert sizes == {task: listed[task]["bytes"] for task in TASKS}


def test_the_device_s_adapters_by_kind(server: Server, client: httpx2.Client) -> None:
    """The metrics say how many adapters of each kind are on the device, and their bytes there."""
    asked(client, list(TASKS), TEXTS[:1])
    store = Store(server.store, read_only=True)
    for kind in ("bottleneck", "lora"):
        tasks = [
            task for task, options in TASKS.items() if ("ranks" in options) == (kind == "lora")
        ]
        # at least: other tests leave adapters of tasks that they deleted
        assert sample(client, "adamix_slots_used", kind=kind) >= len(tasks)
        wanted = 4 * sum(store.get(task).parameters for task in tasks)
        assert sample(client, "adamix_slots_bytes", kind=kind) >= wanted


def _spec(change: dict[str, Any]) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = split(data)
        spec = json.loads(header["__metadata__"]["spec"])
        header["__metadata__"]["spec"] = json.dumps(spec | change)
        return join(header, body)

    return changed


def _without(tensor: str) -> Callable[[bytes], bytes]:
    def changed(data: bytes) -> bytes:
        header, body = split(data)
        del header[tensor]
        return join(header, body)

    return changed


BAD: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "another rank": (
        _spec({"ranks": {"query": 4, "value": 8}}),
        "tensor 'lora.query.a' has shape [6, 8, 384]; expected [6, 4, 384] by the file's spec",
    ),
    "an unknown site": (_spec({"ranks": {"pooler": 8}}), "ranks.pooler is 'pooler'; expected 'que"),
    "A without B": (_without("lora.value.b"), "the tensor 'lora.value.b' is missing; expected"),
    "a scale of 0": (_spec({"scale": 0.0}), "scale is 0.0; expected greater than 0"),
    "a scale that is NaN": (_spec({"scale": float("nan")}), "scale is nan; expected a finite"),
    "a huge scale": (_spec({"scale": 1e9}), "scale is 1000000000.0; expected less than or equal"),
    "another scale": (_spec({"scale": 2.0}), "the adapter's probe input 0 gives the logits"),
    "another kind": (_spec({"kind": "prefix"}), "kind is 'prefix'; expected 'bottleneck' or 'lora"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(case: str, client: httpx2.Client, adapter_bytes: AdapterBytes) -> None:
    """A LoRA file that breaks the format, or does not compute what it says, is refused with a
    sentence, and nothing of it is stored."""
    breaking, message = BAD[case]
    data = breaking(adapter_bytes("bad", ranks={"query": 8, "value": 8}, scale=0.5))
    answer = client.post("/adapters", files={"file": data})
    assert answer.status_code == 422, answer.text
    assert message in answer.json()["error"]
    assert client.get("/adapters/bad").status_code == 404


def test_another_backbones_file(client: httpx2.Client, adapter_bytes: AdapterBytes) -> None:
    """A LoRA file for another backbone, or for another inner layer, is refused with what was
    found."""
    data = adapter_bytes("bad", ranks={"up": 8})
    header, body = split(data)
    spec = json.loads(header["__metadata__"]["spec"])
    spec["backbone"]["fingerprint"] = "0" * 64
    header["__metadata__"]["spec"] = json.dumps(spec)
    answer = client.post("/adapters", files={"file": join(header, body)})
    assert answer.status_code == 422
    assert "with fingerprint 000000000000; expected 'embedded'" in answer.json()["error"]
    assert client.get("/adapters/bad").status_code == 404


def test_both_kinds_take_the_place_of_each_other(
    client: httpx2.Client, adapter_bytes: AdapterBytes, server: Server
) -> None:
    """A task's next version may be of the other kind, and a rollback brings the first one back."""
    texts = TEXTS[:2]
    try:
        versions, answers = [], []
        for ranks in (None, {"attention_out": 16}):
            data = adapter_bytes("changing", seed=9, ranks=ranks)
            assert client.post("/adapters", files={"file": data}).status_code == 201
            versions.append(parse(data).version)
            answers.append(asked(client, ["changing"], texts)["changing"])
        assert answers[0] != answers[1]
        client.post("/adapters/changing/activate", json={"version": versions[0]})
        assert client.get("/adapters/changing").json()["kind"] == "bottleneck"
        assert asked(client, ["changing"], texts)["changing"] == answers[0]
    finally:
        client.delete("/adapters/changing")
    assert not (Path(server.store) / "changing").exists()


def test_a_small_host_cache(tmp_path: Path, adapter_bytes: AdapterBytes) -> None:
    """With one slot and little memory, tasks of both kinds still take turns and answer alike."""
    store = tmp_path / "store"
    with Store(store) as filled:
        for i, (task, options) in enumerate(TASKS.items()):
            filled.put(parse(adapter_bytes(task, seed=i, scale=0.5, **options)))
    with running(store, slots=1) as server, server.client() as client:
        first = {task: asked(client, [task], TEXTS[:1])[task] for task in TASKS}
        again = {task: asked(client, [task], TEXTS[:1])[task] for task in TASKS}
        assert first == again
        assert sample(client, "adamix_adapter_evictions_total") >= len(TASKS)


def test_logits_do_not_depend_on_the_dtype_of_the_file(
    client: httpx2.Client, adapter_bytes: AdapterBytes
) -> None:
    """A LoRA file in float32 and its rounding to float16 answer nearly alike."""
    answers = []
    try:
        for dtype in (torch.float32, torch.float16):
            data = adapter_bytes("rounded", ranks={"value": 8}, dtype=dtype)
            assert client.post("/adapters", files={"file": data}).status_code == 201
            answers.append(asked(client, ["rounded"], TEXTS[:1])["rounded"][0])
    finally:
        client.delete("/adapters/rounded")
    assert answers[0] == pytest.approx(answers[1], abs=0.05)
