"""A task's traffic divided between versions, over HTTP: who answers, what is compared, what ends a
canary, and what is refused. One process, and two front ends."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx2
import pytest
import torch
from fastapi import Response

from adapters.backbone import Backbone
from adapters.file import parse, serialize
from adapters.store import Store
from adapters.traffic import PLACES, Canary, Rollback, Shadow, Split, place_of
from service.http.routes.prediction import answered_by
from service.predictor import Admitted, Predictor, Signature
from service.refusals import NotFinite
from tests.service.conftest import Server, running, sample, until
from tests.tiny import random_adapter

pytestmark = pytest.mark.timeout(400)  # servers are started, on a busy machine too
TASK = "sst2"
FILM = {"inputs": "it is a good film"}
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
TEXTS = ["a good film", "the plot was awful", "not very good", "red or blue", "it was great"]
LEAVES_SECONDS = 2.0
NOT_WRITTEN = "a canary gets no more requests, but its end cannot be written"

Versions = dict[str, str]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, bert: Backbone) -> tuple[Path, Versions]:
    """A store with versions of sst2 (`v1` is active; a twin that answers the same, one with flipped
    labels, one that overflows, one with other labels, one that takes short texts alone, one for
    pairs), a regression of two versions, and a task `other`."""
    spec, tensors, data = random_adapter(bert, TASK, ["no", "yes"], dtype=torch.float32)

    def changed(**changes: Any) -> bytes:
        return serialize(spec.model_copy(update=changes), tensors)

    head = {name: tensor for name, tensor in tensors.items() if name.startswith("head.out")}
    flipped = {**tensors, **{name: -tensor for name, tensor in head.items()}}
    infinite = {**tensors, "head.out.weight": tensors["head.out.weight"].sign() * 3e38}
    files = {
        "v1": data,
        "twin": changed(training={"recipe": "the same again"}),
        "flipped": serialize(spec, flipped),
        "infinite": serialize(spec, infinite),
        "relabelled": changed(labels=("bad", "good")),
        "short": changed(max_length=8),
        "pairs": random_adapter(bert, TASK, ["no", "yes"], text_pair=True)[2],
    }
    folder = tmp_path_factory.mktemp("filled") / "store"
    with Store(folder) as store:
        versions = {
            name: store.put(parse(file), activate=name == "v1")[0].digest
            for name, file in files.items()
        }
        for seed in range(2):
            data = random_adapter(bert, "value", ["v"], problem_type="regression", seed=seed)[2]
            versions[f"value{seed}"] = store.put(parse(data), activate=not seed)[0].digest
        versions["other"] = store.put(parse(random_adapter(bert, "other", ["a", "b"])[2]))[0].digest
    return folder, {name: digest[:12] for name, digest in versions.items()}


Serve = Callable[..., Any]


@pytest.fixture(scope="module")
def serve(bert_folder: Path, filled: tuple[Path, Versions]) -> Serve:
    """Start a server on a copy of the store: `serve(folder, workers=…)`; on what is in the folder
    already, if there is something."""

    def start(folder: Path, **settings: Any) -> Any:
        if not folder.exists():
            shutil.copytree(filled[0], folder)
        return running(folder, backbone=bert_folder, **settings)

    return start


@pytest.fixture(scope="module")
def versions(filled: tuple[Path, Versions]) -> Versions:
    return filled[1]


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "two front ends"])
def divided(
    request: pytest.FixtureRequest, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("divided") / "store"
    with serve(folder, workers=request.param) as server:
        yield server


@pytest.fixture
def client(divided: Server, versions: Versions) -> Iterator[httpx2.Client]:
    """A client, before a task whose traffic is not divided, whatever the last test left."""
    with divided.client() as client:
        activated = client.post(f"/adapters/{TASK}/activate", json={"version": versions["v1"]})
        assert activated.status_code == 200, activated.text
        yield client


def put(client: httpx2.Client, task: str = TASK, **body: Any) -> httpx2.Response:
    return client.put(f"/adapters/{task}/traffic", json=body)


def traffic(client: httpx2.Client, task: str = TASK) -> Any:
    answer = client.get(f"/adapters/{task}/traffic")
    assert answer.status_code == 200, answer.text
    return answer.json()


def ask(client: httpx2.Client, key: str | None = None, **body: Any) -> httpx2.Response:
    headers = {} if key is None else {"X-Request-Key": key}
    answer = client.post("/predict", params={"task": TASK}, json=FILM | body, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer


def version(answer: httpx2.Response) -> str:
    return str(answer.headers["X-Adapter-Version"]).removeprefix(f"{TASK}@")


def expected(key: str, percent: float, versions: Versions, canary: str = "twin") -> str:
    """The version that the documented hash says."""
    takes = place_of(TASK, key.encode()) < percent * PLACES / 100
    return versions[canary if takes else "v1"]


def test_the_canary_s_share_of_a_hundred_thousand_keys() -> None:
    """Of 10⁵ keys, a canary gets its percentage to half a point, and each task its own keys; one
    that grows keeps the keys that it has."""
    places = [place_of("sst2", f"user-{i}".encode()) for i in range(100_000)]
    for percent in (0, 0.1, 5, 33.3, 50, 100):
        canary = Canary("c", percent)
        taken = sum(place < canary.places for place in places)
        assert abs(taken / 1000 - percent) <= 0.5
    assert Canary("c", 0).places == 0
    assert Canary("c", 100).places == PLACES
    others = [place_of("mrpc", f"user-{i}".encode()) for i in range(100_000)]
    both = sum(a < PLACES / 2 and b < PLACES / 2 for a, b in zip(places, others, strict=True))
    assert abs(both / 1000 - 25) <= 0.5
    assert place_of("sst2", b"user-1") == 585922  # as any other program gets it


def test_a_key_stays_with_its_version(
    client: httpx2.Client, versions: Versions, serve: Serve, tmp_path: Path
) -> None:
    """Each key gets the version that the documented hash gives it: every time, in each form of a
    request, on a second instance, and after that one was started anew."""
    body = {"active": versions["v1"], "canary": {"version": versions["twin"], "percent": 50}}
    assert put(client, **body).status_code == 200
    keys = [f"user-{i}" for i in range(20)] + ["naïve 电影"]
    wanted = [expected(key, 50, versions) for key in keys]
    assert 5 < wanted.count(versions["twin"]) < 16

    def answered(client: httpx2.Client) -> list[str]:
        found = []
        for key in keys:
            raw = [(b"X-Request-Key", key.encode())]
            for path, sent in (
                ("/predict?task=sst2", FILM),
                ("/predict?task=sst2", {"inputs": [["good"], ["bad"]], "truncate": True}),
                ("/v2/models/sst2/infer", {"inputs": [TENSOR]}),
            ):
                answer = client.post(path, json=sent, headers=raw)  # type: ignore[arg-type]
                assert answer.status_code == 200, answer.text
                if path.startswith("/v2"):
                    assert answer.json()["model_version"] == version(answer)
                found.append(version(answer))
        assert found[::3] == found[1::3] == found[2::3]
        return found[::3]

    assert answered(client) == answered(client) == wanted
    with serve(tmp_path / "store") as second, second.client() as other:
        assert put(other, **body).status_code == 200
        assert answered(other) == wanted
    with serve(tmp_path / "store") as again, again.client() as other:
        assert traffic(other)["canary"] == body["canary"]
        assert answered(other) == wanted


def test_the_first_text_decides_where_there_is_no_key(
    client: httpx2.Client, versions: Versions
) -> None:
    """Without a key, or with an empty one, a text always gets the same version, the first one also
    for those after it; a request that names a version gets that."""
    half = {"version": versions["twin"], "percent": 50}
    assert put(client, active=versions["v1"], canary=half).status_code == 200
    texts = [f"{text} {word}" for text in TEXTS for word in ("very", "not", "red", "film")]
    found = set()
    for text in texts:
        wanted = expected(text, 50, versions)
        found.add(wanted)
        for inputs in (text, [text, *texts], [[text], ["good"]], {"text": text}):
            assert version(ask(client, inputs=inputs)) == wanted
        assert version(ask(client, "", inputs=text)) == wanted
        pinned = client.post(f"/predict?task=sst2&version={versions['flipped']}", json=FILM)
        assert version(pinned) == versions["flipped"]
    assert len(found) == 2


def test_several_tasks_have_a_version_each(client: httpx2.Client, versions: Versions) -> None:
    """Of a request for two tasks, each task's own split decides for it."""
    whole = {"version": versions["twin"], "percent": 100}
    assert put(client, active=versions["v1"], canary=whole).status_code == 200
    answer = client.post("/predict?task=other&task=sst2", json=FILM)
    named = answer.headers["X-Adapter-Version"]
    assert named == f"other@{versions['other']}, sst2@{versions['twin']}"
    assert set(answer.json()) == {"other", "sst2"}


def test_a_canary_is_not_blamed_for_another_task_s() -> None:
    """Of a request for two tasks, both with a canary, only the canary that an error names is
    counted; all of it is answered by the active versions."""
    failed: list[str] = []
    signatures = [
        Signature(task, ("a", "b"), "single_label_classification", False, 128, None)
        for task in ("sst2", "other")
    ]
    canaries = [Admitted(each, each.task[0] * 64, None, "canary", 10) for each in signatures]

    class Recorded:
        async def fall_back(self, canary: Admitted) -> Admitted:
            return replace(canary, role="active")

        def failed(self, canary: Admitted, _error: Exception) -> None:
            failed.append(canary.signature.task)

    def answer_with(error: Exception) -> Callable[[Sequence[Admitted]], Awaitable[Response]]:
        async def answer(adapters: Sequence[Admitted]) -> Response:
            if any(adapter.role == "canary" for adapter in adapters):
                raise error
            return Response()

        return answer

    for error in (NotFinite("o" * 64, "NaN"), RuntimeError("of nobody knows which")):
        response = asyncio.run(
            answered_by(cast("Predictor", Recorded()), canaries, answer_with(error))
        )
        assert response.status_code == 200
    assert failed == ["other"]


def test_what_versions_did_is_seen(client: httpx2.Client, versions: Versions) -> None:
    """A canary's rows are compared with the active version's, a shadow's with those that it
    shadows; the counts, label shares and scores are those of the answers, over HTTP and in
    Prometheus, and begin anew with each PUT."""
    body = {
        "active": versions["v1"],
        "canary": {"version": versions["flipped"], "percent": 50},
        "shadow": {"version": versions["twin"], "percent": 100},
        "rollback": {"disagreement": 0.5, "errors": 0.1, "after": 10_000},
        "labels_may_differ": True,
    }
    answer = put(client, **body)
    assert answer.status_code == 200
    assert body.items() <= answer.json().items()
    assert all(seen["requests"] == seen["rows"] == 0 for seen in answer.json()["seen"].values())
    answers: dict[str, list[Any]] = {versions["v1"]: [], versions["flipped"]: []}
    for i in range(40):
        answer = ask(client, f"user-{i}", inputs=[TEXTS[i % 5], TEXTS[(i + 1) % 5]])
        answers[version(answer)] += [scores[0] for scores in answer.json()]
    rows = {name: len(found) for name, found in answers.items()}

    def compared() -> bool:
        seen = traffic(client)["seen"]
        done = [seen[role]["compared"] + seen[role]["dropped"] for role in ("canary", "shadow")]
        return done == [rows[versions["flipped"]], rows[versions["v1"]]]

    until(compared)
    shown = traffic(client)
    assert body.items() <= shown.items()
    assert shown["left"] is None
    seen = shown["seen"]
    for role, name in (("active", "v1"), ("canary", "flipped")):
        best = answers[versions[name]]
        assert seen[role]["requests"] == len(best) // 2
        assert seen[role]["rows"] == len(best)
        for label, share in seen[role]["labels"].items():
            assert share == sum(score["label"] == label for score in best) / len(best)
        mean = sum(score["score"] for score in best) / len(best)
        assert seen[role]["mean_score"] == pytest.approx(mean)
        assert 0 < seen[role]["latency"]["p50"] <= seen[role]["latency"]["p99"]
        assert seen[role]["errors"] == seen[role]["non_finite"] == 0
    assert seen["active"]["compared"] == 0
    assert seen["canary"]["disagreement"] == 1.0
    assert seen["shadow"]["disagreement"] == 0.0
    assert seen["shadow"]["mean_difference"] == pytest.approx(0, abs=1e-4)
    if not seen["shadow"]["dropped"]:
        assert seen["shadow"]["labels"] == seen["active"]["labels"]
    for role in ("active", "canary", "shadow"):
        for name in ("requests", "rows", "compared"):
            found = sample(client, f"adamix_traffic_{name}_total", task=TASK, role=role)
            assert found == seen[role][name]
    disagreed = sample(client, "adamix_traffic_disagreed_total", task=TASK, role="canary")
    assert disagreed == seen["canary"]["compared"]
    assert sample(client, "adamix_traffic_percent", task=TASK, role="canary") == 50
    labels = {"task": TASK, "role": "canary", "label": "yes"}
    yes = sample(client, "adamix_traffic_labels_total", **labels)
    assert yes == seen["canary"]["labels"].get("yes", 0) * seen["canary"]["rows"]
    listed = client.get("/adapters?search=sst2&details=true").json()
    assert [each["canary"] for each in listed] == [50]
    assert put(client, **body).json()["seen"]["canary"]["rows"] == 0
    assert client.delete(f"/adapters/{TASK}/traffic").status_code == 204
    ended = traffic(client)
    assert (ended["active"], ended["canary"], ended["seen"]) == (versions["v1"], None, {})
    assert sample(client, "adamix_traffic_rows_total", task=TASK) == 0


def test_a_shadow_changes_no_byte(client: httpx2.Client, versions: Versions) -> None:
    """Answers with a shadow of all requests are to the byte those without it."""
    texts = [*TEXTS, [*TEXTS], TEXTS[0]] * 3
    without = [ask(client, inputs=each).content for each in texts]
    shadow = {"version": versions["flipped"], "percent": 100}
    assert put(client, active=versions["v1"], shadow=shadow).status_code == 200
    assert [ask(client, inputs=each).content for each in texts] == without
    until(lambda: traffic(client)["seen"]["shadow"]["compared"] > 0)
    assert traffic(client)["seen"]["shadow"]["disagreement"] == 1.0
    half = {"version": versions["twin"], "percent": 25}
    assert put(client, active=versions["v1"], shadow=half).status_code == 200
    for _ in range(40):
        ask(client)
    until(lambda: sum(_done(client, "shadow")) == 10)
    assert traffic(client)["seen"]["shadow"]["requests"] == 10


def _done(client: httpx2.Client, role: str) -> list[int]:
    seen = traffic(client)["seen"][role]
    return [seen["compared"], seen["dropped"], seen["errors"]]


def test_a_shadow_that_cannot_answer(client: httpx2.Client, versions: Versions) -> None:
    """What a shadow answers with NaN or infinity is its error alone."""
    shadow = {"version": versions["infinite"], "percent": 100}
    assert put(client, active=versions["v1"], shadow=shadow).status_code == 200
    assert version(ask(client)) == versions["v1"]
    until(lambda: sum(_done(client, "shadow")) == 1)
    seen = traffic(client)["seen"]["shadow"]
    assert (seen["errors"], seen["non_finite"], seen["compared"]) == (1, 1, 0)


def test_a_text_that_the_other_version_cannot_take(
    client: httpx2.Client, versions: Versions
) -> None:
    """A text that is too long for the canary is answered by the active version, and is the canary's
    error; for a shadow it is left out of the comparison; one that is too long for both is a 413 and
    nobody's error."""
    long = "the film is not very good and the plot was awful"
    short = {"version": versions["short"], "percent": 100}
    assert put(client, active=versions["v1"], canary=short).status_code == 200
    assert version(ask(client, inputs="good")) == versions["short"]
    assert version(ask(client, inputs=long)) == versions["v1"]
    too_long = client.post("/predict?task=sst2", json={"inputs": long * 20})
    assert (too_long.status_code, too_long.json()["error_type"]) == (413, "InputTooLong")
    seen = traffic(client)["seen"]["canary"]
    assert (seen["requests"], seen["errors"], seen["non_finite"]) == (2, 1, 0)
    assert put(client, active=versions["v1"], shadow=short).status_code == 200
    ask(client, inputs=long)
    assert _done(client, "shadow") == [0, 1, 0]


RULES: dict[str, tuple[str, dict[str, float], str]] = {
    "disagreement": ("flipped", {"disagreement": 0.2}, "got another label than the active"),
    "errors": ("infinite", {"errors": 0.01}, "requests could not be answered by it"),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_broken_canary_leaves(
    rule: str,
    divided: Server,
    client: httpx2.Client,
    versions: Versions,
    serve: Serve,
    tmp_path: Path,
) -> None:
    """A canary that breaks its rule is out within two seconds, while no client gets an error; the
    log, the metrics and the store say so, and it stays out after a restart."""
    canary, limits, reason = RULES[rule]
    body = {"active": versions["v1"], "canary": {"version": versions[canary], "percent": 50}}
    before = sample(client, "adamix_canary_rollbacks_total")
    told = len(divided.lines)
    assert put(client, **body, rollback={**limits, "after": 20}).status_code == 200
    met = None
    for i in range(10_000):
        ask(client, f"user-{i}")  # a 200
        seen, left = (traffic(client)[name] for name in ("seen", "left"))
        if left is not None:
            break
        counted = seen["canary"]["compared" if rule == "disagreement" else "requests"]
        met = met or (time.monotonic() if counted >= 20 else None)
        assert met is None or time.monotonic() - met < LEAVES_SECONDS
    shown = traffic(client)
    assert (shown["canary"], shown["rollback"]) == (None, None)
    assert shown["left"]["version"] == versions[canary]
    assert reason in shown["left"]["reason"]
    assert {version(ask(client, f"user-{i}")) for i in range(40)} == {versions["v1"]}
    assert sample(client, "adamix_canary_rollbacks_total") == before + 1
    assert sample(client, "adamix_canary_left", task=TASK) == 1
    event = "a canary was rolled back by its rule"
    until(lambda: any(line["event"] == event for line in divided.lines[told:]))
    (line,) = (line for line in divided.lines[told:] if line["event"] == event)
    assert (line["task"], line["version"]) == (TASK, versions[canary])
    assert line["reason"] == shown["left"]["reason"]
    with serve(_copy(divided.store, tmp_path / "store")) as again, again.client() as other:
        assert traffic(other)["left"] == shown["left"]
        assert {version(ask(other, f"user-{i}")) for i in range(40)} == {versions["v1"]}
    assert put(client, **body).json()["left"] is None
    assert sample(client, "adamix_canary_left", task=TASK) == 0
    assert len({version(ask(client, f"user-{i}")) for i in range(40)}) == (
        2 if rule == "disagreement" else 1  # the active one answers for one that cannot
    )


def _copy(store: Path, folder: Path) -> Path:
    shutil.copytree(store, folder)
    return folder


def test_a_canary_that_cannot_be_read(serve: Serve, tmp_path: Path, versions: Versions) -> None:
    """A canary whose file is damaged on disk is out by its rule, and no client notices; where the
    store cannot be written, it gets no more requests all the same, and the log says why."""
    for read_only in (False, True):
        folder = tmp_path / str(read_only)
        with serve(folder):
            pass
        with Store(folder) as store:
            active, canary = (store.find(TASK, versions[name]).digest for name in ("v1", "twin"))
            split = Split(
                active=active,
                canary=Canary(canary, 100),
                shadow=Shadow(canary, 100),
                rollback=Rollback(errors=0.5, after=3),
            )
            store.set_split(TASK, split)
            path = store.path(TASK, canary)
        path.write_bytes(path.read_bytes()[:-8])
        with serve(folder, read_only=read_only) as server, server.client() as client:
            for _ in range(20):
                assert version(ask(client)) == versions["v1"]
            if read_only:
                until(lambda: any(line["event"] == NOT_WRITTEN for line in server.lines))
                assert traffic(client)["seen"]["canary"]["errors"] == 3
            else:
                until(lambda: traffic(client)["left"] is not None)
                assert "3 of 3 requests" in traffic(client)["left"]["reason"]
                until(lambda: traffic(client)["seen"]["shadow"]["errors"] > 0)


BAD: dict[str, tuple[dict[str, Any], int, str]] = {
    "no active": ({"active": None}, 422, "active is None; expected a valid string"),
    "a percent over 100": ({"canary": ("twin", 100.1)}, 422, "canary.percent is 100.1"),
    "a percent below 0": ({"shadow": ("twin", -1)}, 422, "shadow.percent is -1"),
    "a percent in words": ({"canary": ("twin", "5")}, 422, "canary.percent is '5'"),
    "an unknown version": ({"canary": ("beef", 5)}, 404, "has no version 'beef'"),
    "another task's version": ({"shadow": ("other", 5)}, 404, "has no version"),
    "the active as canary": ({"canary": ("v1", 5)}, 422, "the canary is version"),
    "the active as shadow": ({"shadow": ("v1", 5)}, 422, "the shadow is version"),
    "other labels": ({"canary": ("relabelled", 5)}, 422, 'or "labels_may_differ": true'),
    "pairs": ({"canary": ("pairs", 5)}, 422, "has text_pair True; expected False"),
    "pairs as shadow": ({"shadow": ("pairs", 5)}, 422, "has text_pair True; expected False"),
    "a rule without a canary": (
        {"rollback": {"errors": 0.1}, "shadow": ("twin", 5)},
        422,
        "a rollback without a canary",
    ),
    "a rule of nothing": (
        {"rollback": {"after": 5}, "canary": ("twin", 5)},
        422,
        "neither disagreement nor errors",
    ),
    "a share over 1": (
        {"rollback": {"errors": 20}, "canary": ("twin", 5)},
        422,
        "rollback.errors is 20",
    ),
    "after nothing": (
        {"rollback": {"errors": 0.1, "after": 0}, "canary": ("twin", 5)},
        422,
        "rollback.after is 0",
    ),
    "an unknown key": ({"canaries": []}, 422, "canaries"),
    "one that is not active": ({"active": "twin"}, 409, "is not the active one of task 'sst2'"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_split_that_is_none(what: str, client: httpx2.Client, versions: Versions) -> None:
    """What cannot be a split is refused with one sentence, and what was there stays."""
    changes, status, sentence = BAD[what]
    kept = {"active": versions["v1"], "canary": {"version": versions["flipped"], "percent": 1}}
    assert put(client, **kept).status_code == 200
    body: dict[str, Any] = {"active": versions["v1"]}
    for name, value in changes.items():
        body[name] = (
            {"version": versions.get(value[0], value[0]), "percent": value[1]}
            if isinstance(value, tuple)
            else versions.get(str(value), value)
            if name == "active"
            else value
        )
    answer = put(client, **body)
    assert answer.status_code == status, answer.text
    assert sentence in answer.json()["error"]
    assert kept.items() <= traffic(client).items()


def test_splits_that_are_allowed(client: httpx2.Client, versions: Versions) -> None:
    """Other labels are allowed where the body says so, and for a shadow; a canary may be the shadow
    too; one of 0 % waits; an unknown task is a 404; a regression has no rule of labels."""
    other = {"version": versions["relabelled"], "percent": 100}
    assert put(client, active=versions["v1"], shadow=other).status_code == 200
    body = {"active": versions["v1"], "canary": other, "shadow": other}
    assert put(client, **body).status_code == 422
    assert put(client, **body, labels_may_differ=True).status_code == 200
    assert ask(client).json()[0]["label"] in ("bad", "good")
    waits = {"version": versions["twin"], "percent": 0}
    assert put(client, active=versions["v1"], canary=waits).status_code == 200
    assert version(ask(client)) == versions["v1"]
    assert put(client, "sst3", **body).status_code == 404
    assert client.get("/adapters/sst3/traffic").status_code == 404
    assert client.delete("/adapters/sst3/traffic").status_code == 404
    value = {"active": versions["value0"], "canary": {"version": versions["value1"], "percent": 5}}
    answer = put(client, "value", **value, rollback={"disagreement": 0.1})
    assert "is a regression" in answer.json()["error"]
    assert put(client, "value", **value, rollback={"errors": 0.1}).status_code == 200
    assert put(client, "value", active=versions["value0"]).json()["canary"] is None


def test_a_regression_is_compared_by_its_values(client: httpx2.Client, versions: Versions) -> None:
    """Of a regression the distance of the two values is shown."""
    shadow = {"version": versions["value1"], "percent": 100}
    assert put(client, "value", active=versions["value0"], shadow=shadow).status_code == 200
    (mine,) = client.post("/predict?task=value", json=FILM).json()
    pinned = client.post(f"/predict?task=value&version={versions['value1']}", json=FILM)
    (other,) = pinned.json()
    until(lambda: traffic(client, "value")["seen"]["shadow"]["compared"] == 1)
    seen = traffic(client, "value")["seen"]["shadow"]
    assert seen["mean_score"] == pytest.approx(other["score"], abs=1e-4)
    distance = abs(mine["score"] - other["score"])
    assert seen["mean_difference"] == pytest.approx(distance, abs=1e-4)
    assert (seen["labels"], seen["disagreement"]) == ({}, 0.0)


def test_what_else_is_done_to_a_task(client: httpx2.Client, versions: Versions) -> None:
    """A canary and a shadow cannot be deleted; promotion is one activation, and any activation, or
    an upload that activates, ends the split; an upload that changes nothing does not."""
    body = {
        "active": versions["v1"],
        "canary": {"version": versions["twin"], "percent": 50},
        "shadow": {"version": versions["flipped"], "percent": 100},
    }

    def ended(active: str) -> None:
        shown = traffic(client)
        assert (shown["active"], shown["canary"]) == (versions[active], None)
        assert {version(ask(client, f"user-{i}")) for i in range(20)} == {versions[active]}
        again = client.post(f"/adapters/{TASK}/activate", json={"version": versions["v1"]})
        assert again.status_code == 200

    assert put(client, **body).status_code == 200
    for name in ("twin", "flipped"):
        answer = client.delete(f"/adapters/{TASK}/versions/{versions[name]}")
        assert (answer.status_code, answer.json()["error_type"]) == (409, "VersionInTraffic")
    for name in ("twin", "v1", "short"):
        assert put(client, **body).status_code == 200
        done = client.post(f"/adapters/{TASK}/activate", json={"version": versions[name]})
        assert done.status_code == 200
        ended(name)
    assert put(client, **body).status_code == 200
    active = client.get(f"/adapters/{TASK}/versions/{versions['v1']}/file").content
    assert client.post("/adapters", files={"file": active}).status_code == 200
    assert traffic(client)["canary"] == body["canary"]
    other = client.get(f"/adapters/{TASK}/versions/{versions['short']}/file").content
    assert client.post("/adapters", files={"file": other}).status_code == 200
    ended("short")


def test_a_deleted_task_takes_its_split_along(client: httpx2.Client, bert: Backbone) -> None:
    """A task is deleted with its split: uploaded again, it has none."""
    first, second = (random_adapter(bert, "brief", ["a", "b"], seed=seed)[2] for seed in range(2))
    for data in (first, second):
        assert client.post("/adapters", files={"file": data}).status_code == 201
    old, new = (each["version"] for each in client.get("/adapters/brief").json()["versions"])
    shadow = {"version": old, "percent": 100}
    assert put(client, "brief", active=new, shadow=shadow).status_code == 200
    assert client.delete("/adapters/brief").status_code == 204
    assert client.get("/adapters/brief/traffic").status_code == 404
    assert sample(client, "adamix_traffic_rows_total", task="brief") == 0
    for data in (first, second):
        assert client.post("/adapters", files={"file": data}).status_code == 201
    assert traffic(client, "brief")["shadow"] is None
    assert client.delete("/adapters/brief").status_code == 204
