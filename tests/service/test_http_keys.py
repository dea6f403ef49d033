"""A server with a keys file: scopes, tasks, limits, and the file read again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.service.conftest import ADMIN_KEY, Server, running, sample, until
from tests.service.keys_files import bearing, key, write, write_text
from tests.service.test_http_access import API_KEY, FILM, TENSOR, start
from tests.service.test_http_access import bearing as bearing_single

INFER = {"inputs": [TENSOR]}
# team-a predicts, team-b writes, both of some tasks; the rest are of one purpose each.
KEYS = (
    key("team-a", tasks=["sst2", "mr?c"]),
    key("team-b", ["write"], ["sst2", "new-*"]),
    key("metrics", ["read-metrics"], []),
    key("requests", tasks=["sst2"], requests=0.01),
    key("rows", tasks=["sst2"], rows=0.5),
    key("windows", tasks=["sst2"], rows=0.1),
    key("relayed", tasks=["sst2"], requests=0.01, rows=0.01),
)


@pytest.fixture(scope="module", params=[1, 2], ids=["one process", "front ends"])
def workers(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.fixture(scope="module")
def kept(
    workers: int, filled_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server with a keys file and both single keys, in one process and with front ends."""
    folder = tmp_path_factory.mktemp("kept")
    shutil.copytree(filled_store, folder / "store")
    with running(
        folder / "store",
        keys_file=write(folder / "keys.toml", *KEYS),
        api_key=API_KEY,
        admin_key=ADMIN_KEY,
        workers=workers,
    ) as server:
        yield server


@pytest.fixture
def client(kept: Server) -> Iterator[httpx2.Client]:
    with kept.client() as client:
        yield client


def kind(answer: httpx2.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error_type"]


def test_scopes(client: httpx2.Client) -> None:
    """`predict` predicts and reads, `write` writes and reads, `read-metrics` reads metrics alone;
    the single keys do what they did."""
    actions: dict[str, tuple[str, str, Any]] = {
        "predict": ("POST", "/predict?task=sst2", FILM),
        "infer": ("POST", "/v2/models/sst2/infer", INFER),
        "list": ("GET", "/adapters", None),
        "show": ("GET", "/adapters/sst2", None),
        "index": ("POST", "/v2/repository/index", None),
        "split": ("DELETE", "/adapters/sst2/traffic", None),
        "metrics": ("GET", "/metrics?name[]=adamix_queue_rows", None),
    }
    reads = {"list", "show", "index"}
    may = {
        "team-a": {"predict", "infer", *reads},
        "team-b": {"split", *reads},
        "metrics": {"metrics"},
    }
    for name, allowed in may.items():
        for action, (method, path, body) in actions.items():
            answer = client.request(method, path, json=body, headers=bearing(name))
            if action in allowed:
                assert answer.status_code in (200, 204), (name, action, answer.text)
            else:
                assert kind(answer) == (403, "MissingScope"), (name, action)
                assert f"the key {name!r} has" in answer.json()["error"]
    for single, allowed in (
        (API_KEY, {"predict", "infer", "metrics", *reads}),
        (ADMIN_KEY, {"split", "metrics", *reads}),
    ):
        for action, (method, path, body) in actions.items():
            answer = client.request(method, path, json=body, headers=bearing_single(single))
            assert (answer.status_code in (200, 204)) == (action in allowed), (single, action)
    for method, path, body in actions.values():
        assert kind(client.request(method, path, json=body)) == (401, "MissingKey")
        wrong = client.request(method, path, json=body, headers=bearing_single("team-a.wrong"))
        assert kind(wrong) == (401, "MissingKey")
        assert "a key of the keys file with the scope" in wrong.json()["error"]


def test_lists_have_one_s_own_tasks(client: httpx2.Client) -> None:
    """Every list, count and sum has the tasks of the key's patterns alone."""
    headers = bearing("team-a")
    listed = client.get("/adapters?details=true", headers=headers)
    assert [each["task"] for each in listed.json()] == ["mrpc", "sst2"]
    assert listed.headers["X-Total-Count"] == "2"
    assert client.get("/adapters?search=s", headers=headers).headers["X-Total-Count"] == "1"
    storage = client.get("/storage", headers=headers).json()
    assert storage["tasks"] == len(storage["adapters"]) == 2
    assert storage["adapters_bytes"] == sum(each["bytes"] for each in storage["adapters"])
    index = client.post("/v2/repository/index", headers=headers).json()
    assert {each["name"] for each in index} == {"mrpc", "sst2"}
    assert "tasks" not in client.get("/ready").json()
    every = client.get("/adapters", headers=bearing_single(API_KEY)).json()
    assert len(every) > 2


def test_another_s_task_does_not_exist(client: httpx2.Client) -> None:
    """A task outside of the patterns is answered as one that does not exist, and only one's own
    tasks are named."""
    for task in ("mnli", "stsb", "quartz"):
        for method, path, body in (
            ("POST", f"/predict?task={task}", FILM),
            ("POST", f"/predict?task=sst2&task={task}", FILM),
            ("POST", f"/v2/models/{task}/infer", INFER),
            ("GET", f"/adapters/{task}", None),
            ("GET", f"/adapters/{task}/traffic", None),
            ("GET", f"/adapters/{task}/versions/1234/file", None),
            ("GET", f"/v2/models/{task}", None),
            ("GET", f"/v2/models/{task}/ready", None),
        ):
            answer = client.request(method, path, json=body, headers=bearing("team-a"))
            assert kind(answer) == (404, "UnknownTask"), path
            assert answer.json()["error"] == (
                f"there is no task {task!r}; expected one of 'mrpc', 'sst2'"
            )
    named = client.post("/predict", json=FILM, headers=bearing("team-a")).json()["error"]
    assert "(2 tasks: 'mrpc', 'sst2')" in named


def test_writes_are_of_one_s_own_tasks(
    client: httpx2.Client, adapter_bytes: Callable[..., bytes]
) -> None:
    """A key uploads, activates and deletes within its patterns; beyond them a task does not exist,
    also for an upload."""
    headers = bearing("team-b")
    for task in ("mnli", "quartz"):
        answer = client.post("/adapters", headers=headers, files={"file": adapter_bytes(task)})
        assert kind(answer) == (404, "UnknownTask")
        for method, path, body in (
            ("DELETE", f"/adapters/{task}", None),
            ("DELETE", f"/adapters/{task}/versions/1234", None),
            ("POST", f"/adapters/{task}/activate", {"version": "1234"}),
            ("PUT", f"/adapters/{task}/traffic", {"active": "1234"}),
            ("DELETE", f"/adapters/{task}/traffic", None),
        ):
            refused = client.request(method, path, json=body, headers=headers)
            assert kind(refused) == (404, "UnknownTask"), path
    made = client.post("/adapters", headers=headers, files={"file": adapter_bytes("new-1")})
    assert made.status_code == 201, made.text
    assert client.delete("/adapters/new-1", headers=headers).status_code == 204
    assert client.get("/adapters/mnli", headers=bearing_single(ADMIN_KEY)).status_code == 200


def test_requests_are_limited(kept: Server) -> None:
    """A key's second request within its time is a 429, and Retry-After says when it is over."""
    with kept.client(headers=bearing("requests")) as client:
        answers = [client.post("/predict?task=sst2", json=FILM) for _ in range(4)]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(refused) >= 2  # of two front ends each lets one through
    for answer in refused:
        assert kind(answer) == (429, "KeyLimited")
        assert 60 < int(answer.headers["Retry-After"]) <= 100  # a request each 100 s
        assert "the key 'requests' may send 0.01 requests a second" in answer.json()["error"]


def test_rows_are_limited(kept: Server) -> None:
    """A request with more rows than a key may send leaves a debt of rows, which the next request
    waits for; windows of a long text count as rows."""
    many = {"inputs": ["good"] * 40}
    long = {"inputs": "good film " * 200, "parameters": {"window": {"stride": 8}}}
    for name, body, least in (("rows", many, 40), ("windows", long, 20)):
        with kept.client(headers=bearing(name), limits=httpx2.Limits(max_connections=1)) as client:
            first = client.post("/predict?task=sst2", json=body)
            assert first.status_code == 200, first.text
            again = client.post("/predict?task=sst2", json=FILM)
        assert kind(again) == (429, "KeyLimited")
        assert int(again.headers["Retry-After"]) >= least
        assert f"the key {name!r} may send" in again.json()["error"]


def test_what_is_relayed_counts_once(kept: Server, workers: int) -> None:
    """A prediction that a front end relays, since it would refuse it, counts in the engine process
    alone: the front end answers the next one."""
    if workers == 1:
        pytest.skip("one process counts all")
    headers = bearing("relayed")
    # of Hugging Face's client alone, so that it fails after its row was counted
    wrong = {**FILM, "abstain": 0.9}
    with kept.client(headers=headers, limits=httpx2.Limits(max_connections=1)) as client:
        statuses = [
            client.post("/predict?task=sst2", json=body).status_code for body in (wrong, FILM, FILM)
        ]
    assert statuses == [422, 200, 429]


def test_access_lines_name_the_key(kept: Server) -> None:
    """Each request's line in the log names its key, whichever process answered."""
    asked = [("GET", "/adapters/sst2"), ("POST", "/predict"), ("DELETE", "/adapters/sst2")]
    with kept.client(headers=bearing("team-a")) as client:
        for method, path in asked:
            client.request(method, path, params={"task": "sst2"}, headers={"X-Request-ID": path})
    for method, path in asked:

        def found(method: str = method, path: str = path) -> list[Any]:
            return [
                line.get("key")
                for line in kept.lines
                if line["event"] == "request"
                and (line["method"], line["path"], line["request_id"]) == (method, path, path)
            ]

        until(lambda: found())
        assert found() == ["team-a"], (method, path)


def test_refusals_by_a_limit_say_nothing_of_the_load(kept: Server) -> None:
    """What a key's limit refuses is not counted as overload, of which an alert is made."""
    with kept.client(headers=bearing_single(API_KEY)) as client:
        assert sample(client, "adamix_requests_total", outcome="overloaded") == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_a_changed_file_is_read_again(filled_store: Path, tmp_path: Path, workers: int) -> None:
    """A key that was added answers, one that was removed does not, without a restart; a damaged
    file leaves the last keys in force, with a log line and a metric."""
    path = write(tmp_path / "keys.toml", key("team-a"), key("metrics", ["read-metrics"], []))
    with (
        running(filled_store, read_only=True, keys_file=path, workers=workers) as server,
        ExitStack() as stack,
    ):
        asking = [stack.enter_context(server.client()) for _ in range(4)]

        def status(client: httpx2.Client, name: str) -> int:
            answer = client.post("/predict?task=sst2", json=FILM, headers=bearing(name))
            return answer.status_code

        def statuses(name: str) -> set[int]:
            return {status(client, name) for client in asking}

        def until_refused(name: str) -> None:
            """Of each front end. After many wrong keys it would answer none for a minute."""
            for client in asking:
                until(lambda client=client: status(client, name) == 401)

        def valid() -> float:
            with server.client(headers=bearing("metrics")) as client:
                return sample(client, "adamix_keys_file_valid")

        assert statuses("team-a") == {200}
        assert statuses("team-b") == {401}
        assert valid() == 1
        metrics = key("metrics", ["read-metrics"], [])
        write(path, key("team-b"), metrics)
        until_refused("team-a")
        assert statuses("team-b") == {200}
        write_text(path, "[keys.team-b]\nhash = 1\n")
        until(lambda: valid() == 0)
        assert statuses("team-b") == {200}
        logged = [line for line in server.lines if "keys file is not usable" in line["event"]]
        assert len(logged) == workers if workers == 1 else logged
        assert "line 2: of the key 'team-b', scopes is missing" in logged[0]["reason"] or (
            "line 1: of the key 'team-b', scopes is missing" in logged[0]["reason"]
        )
        write(path, key("team-a"), metrics)
        until_refused("team-b")
        assert statuses("team-a") == {200}
        until(lambda: valid() == 1)


@pytest.mark.parametrize(
    ("text", "mode", "reason"),
    [
        ("[keys.a]\nhash = 1\nscopes = [", 0o600, "line 3: it is not TOML"),
        ("[keys.a]\n", 0o600, "line 1: of the key 'a', hash is missing"),
        ("[keys.a]\n", 0o644, "has mode 0644"),
    ],
)
def test_a_damaged_file_stops_a_start(tmp_path: Path, text: str, mode: int, reason: str) -> None:
    """A keys file that cannot be used ends the start with exit code 2 and one sentence."""
    path = write_text(tmp_path / "keys.toml", text)
    path.chmod(mode)
    done = start(KEYS_FILE=str(path), STORE=str(tmp_path / "store"), PORT="0")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert reason in line
    assert str(path) in line


def test_metrics_may_be_opened(filled_store: Path, tmp_path: Path) -> None:
    """With a keys file metrics need a key, unless ADAMIX_OPEN_METRICS says otherwise."""
    path = write(tmp_path / "keys.toml", key("team-a"))
    with (
        running(filled_store, read_only=True, keys_file=path, open_metrics="true") as server,
        server.client() as client,
    ):
        assert client.get("/metrics").status_code == 200
        assert client.get("/adapters").status_code == 401
