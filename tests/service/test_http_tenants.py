"""What one key's requests learn of tasks that are not its own: nothing.

Each request goes to two servers that have the same tasks of one's own. The first has another
tenant's tasks too; to the second, those surely do not exist. All answers must be equal. 10,000
requests take a minute; FUZZ_REQUESTS=10000 makes so many.
"""

from __future__ import annotations

import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest

from adapters.file import parse
from adapters.store import Store
from tests.service.conftest import running
from tests.service.keys_files import bearing, key, write

OWN = ("mine-alpha", "mine-beta")
OTHERS = ("zebra-ledger", "zebra-payroll", "minezebra", "mine_zebra")
LABELS = ["zebrastripe", "zebrahoof"]
WRITTEN = "mine-new"
REQUESTS = int(os.environ.get("FUZZ_REQUESTS", "2000"))
SECRET_WORDS = ("zebra", "stripe", "hoof", "ledger", "payroll")
BODIES: tuple[Any, ...] = (
    {"inputs": "a good film"},
    {"inputs": ["good", "bad"], "parameters": {"top_k": 1}},
    {"inputs": []},
    {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}]},
    {"version": "0000"},
    {"ready": True},
    {},
)
OF_NO_TASK = (
    *("/", "/docs", "/fresh", "/health", "/metrics", "/openapi.json", "/ready"),
    *("/v2", "/v2/health/live", "/v2/health/ready"),
)
# Of one's own tasks these change from answer to answer.
TIMES = re.compile(rb'"(created|since|at)":"[^"]*"|"latency":(null|\{[^}]*\})|"tier":"[a-z]*"')
SCORES = re.compile(rb"\d\.\d{5,}(e-?\d+)?")
VARYING = {"date", "server-timing", "x-request-id"}


class Asker:
    """Makes requests, all of one seed."""

    def __init__(self, seed: int, versions: dict[str, list[str]], files: dict[str, bytes]) -> None:
        self._random, self._versions, self._files = random.Random(seed), versions, files

    def request(self) -> dict[str, Any]:
        """One request: of any route and method, with or without sense."""
        choose = self._random.choice
        task, version = self._task(), self._version()
        place, query = quote(task, safe=""), f"task={quote(task)}"
        asked: dict[str, Any] = {"headers": bearing("team-a")}
        kinds: list[tuple[str, str, Any]] = [
            ("POST", f"/predict?{query}", choose(BODIES)),
            ("POST", f"/predict?{query}&version={version}", choose(BODIES)),
            ("POST", f"/predict?task={OWN[0]}&{query}", choose(BODIES)),
            ("POST", choose(("/predict", "/predict?task=", "/")), choose(BODIES)),
            ("GET", f"/adapters/{place}", None),
            ("GET", f"/adapters?search={quote(task[:5])}&details={choose(('true', 'x'))}", None),
            ("GET", f"/adapters?offset={choose((0, 1, 5))}&limit={choose((0, 1, 9))}", None),
            ("GET", f"/adapters/{place}/versions/{version}/file", None),
            ("GET", f"/adapters/{place}/traffic", None),
            ("PUT", f"/adapters/{place}/traffic", {"active": version}),
            ("PUT", f"/adapters/{place}/traffic", choose(BODIES)),
            ("DELETE", f"/adapters/{place}/traffic", None),
            ("POST", f"/adapters/{place}/activate", {"version": version}),
            ("POST", f"/adapters/{place}/activate", choose(BODIES)),
            ("GET", f"/storage?adapters={choose(('true', 'false', 'x'))}", None),
            ("GET", choose(OF_NO_TASK), None),
            ("GET", f"/v2/models/{place}{choose(('', '/ready'))}", None),
            ("GET", f"/v2/models/{place}/versions/{version}{choose(('', '/ready'))}", None),
            ("POST", f"/v2/models/{place}/infer", choose(BODIES)),
            ("POST", f"/v2/models/{place}/versions/{version}/infer", choose(BODIES)),
            ("POST", "/v2/repository/index", choose((None, {}, {"ready": True}, {"x": 1}))),
            (choose(("PATCH", "OPTIONS", "HEAD", "PUT", "TRACE")), f"/adapters/{place}", None),
        ]
        if task not in OWN:  # which the later requests ask for
            kinds += [
                ("DELETE", f"/adapters/{place}", None),
                ("DELETE", f"/adapters/{place}/versions/{version}", None),
            ]
        asked["method"], asked["url"], body = choose(kinds)
        if body is not None:
            asked["json"] = body
            if self._random.random() < 0.1:
                del asked["json"]
                asked["content"] = choose((b"{", b"", b"\xff", b"[]", b"null"))
        if self._random.random() < 0.01:
            file = self._files[choose(sorted(self._files))]
            asked = {"method": "POST", "url": "/adapters", "files": {"file": file}}
            asked["headers"] = bearing("team-a")
        return asked

    def _task(self) -> str:
        choose = self._random.choice
        task = choose((*OWN, *OTHERS, *OTHERS, WRITTEN, "quartz-missing"))
        way = self._random.random()
        if way < 0.1:
            return task[:-1]
        if way < 0.15:
            return task.upper()
        if way < 0.2:
            return choose((f"{task}/", f"{task}%", f"{task}\x00", f"../{task}", f"{task}*", "*"))
        return task

    def _version(self) -> str:
        versions = self._versions[self._random.choice(sorted(self._versions))]
        version = self._random.choice(versions)
        return self._random.choice((version, version[:12], version[:4], "beef", "x", "active"))


def seen(answer: httpx2.Response) -> tuple[int, dict[str, str], bytes]:
    """What an answer says, but for what differs each time."""
    headers = {name: value for name, value in answer.headers.items() if name not in VARYING}
    body = SCORES.sub(b"#", TIMES.sub(b"", answer.content))
    if body != answer.content:  # numbers are as long as they are
        headers.pop("content-length", None)
    return answer.status_code, headers, body


def said(asked: dict[str, Any]) -> str:
    """All that a request says, in which the other tenant's words may stand."""
    return (
        f"{asked['url']} {asked.get('json')} {b'zebra' in asked.get('files', {}).get('file', b'')}"
    )


@pytest.mark.parametrize(
    ("workers", "requests"), [(1, REQUESTS), (2, 1_000)], ids=["one process", "front ends"]
)
def test_fuzzed_requests_learn_nothing_of_others(
    tmp_path: Path, adapter_bytes: Callable[..., bytes], workers: int, requests: int
) -> None:
    """Requests of every route and method get the same answers whether the other tenant's tasks are
    there or not, and no answer has one of that tenant's words that its request had not."""
    files = {task: adapter_bytes(task, labels=LABELS, seed=2) for task in OTHERS}
    versions = {task: [parse(file).digest] for task, file in files.items()}
    own = {task: [adapter_bytes(task, seed=seed) for seed in (0, 1)] for task in OWN}
    for task, of_task in own.items():
        versions[task] = [parse(file).digest for file in of_task]
    for name in ("both", "alone"):
        with Store(tmp_path / name) as store:
            for file in (file for of_task in own.values() for file in of_task):
                store.put(parse(file))
            for file in files.values() if name == "both" else ():
                store.put(parse(file))
    uploads = {**files, WRITTEN: adapter_bytes(WRITTEN), OWN[0]: own[OWN[0]][0]}
    keys = write(
        tmp_path / "keys.toml",
        key("team-a", ["predict", "write"], [*OWN, "mine-n*"]),
        key("zebra-team", ["predict", "write"], ["zebra-*"]),
    )
    asker = Asker(19, versions, uploads)
    secrets = [digest[:12] for task in OTHERS for digest in versions[task]]
    statuses: set[int] = set()
    known: set[tuple[str, str]] = set()
    settings = {"keys_file": keys, "workers": workers, "admin_key": "an-admin-key"}
    with (
        running(tmp_path / "both", **settings) as both,
        running(tmp_path / "alone", **settings) as alone,
        both.client() as first,
        alone.client() as second,
    ):
        for number in range(requests):
            asked = asker.request()
            answer, expected = first.request(**asked), second.request(**asked)
            assert answer.status_code < 500, (number, said(asked), answer.text)
            assert seen(answer) == seen(expected), (number, said(asked))
            words = f"{dict(answer.headers)} {answer.content.decode('latin-1')}".lower()
            for word in (*SECRET_WORDS, *secrets):
                if word not in said(asked).lower() and "files" not in asked:
                    assert word not in words, (number, word, said(asked))
            statuses.add(answer.status_code)
            known.add((asked["method"], asked["url"].partition("?")[0]))
        for path, methods in first.get("/openapi.json").json()["paths"].items():
            pattern = re.compile(re.sub(r"\{[^}]*\}", "[^/]+", path))
            for method in methods:
                assert any(
                    method.upper() == made and pattern.fullmatch(place) for made, place in known
                ), f"no request was {method} {path}"
        with both.client(headers={"Authorization": "Bearer zebra-team.secret"}) as theirs:
            listed = theirs.get("/adapters").json()
    assert {each["task"] for each in listed} == {"zebra-ledger", "zebra-payroll"}
    assert {200, 201, 204, 400, 403, 404, 405, 422} <= statuses, statuses
    assert 409 in statuses or requests < 10_000  # fewer do not meet it
