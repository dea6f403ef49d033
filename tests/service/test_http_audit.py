"""The audit log: a line for each write, in a file that may be rotated."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters.file import parse
from service.audit import AuditLog, Write
from tests.service.conftest import ADMIN_KEY, running, sample, until
from tests.service.keys_files import bearing, key, write
from tests.service.test_http_access import start

FIELDS = {"time", "what", "task", "key", "client", "request_id", "version", "digest", "result"}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("workers", [1, 2])
def test_each_write_has_a_line(
    tmp_path: Path, adapter_bytes: Callable[..., bytes], workers: int
) -> None:
    """Each kind of write is told with its key, client, version, result and request id, also one
    that is refused; what is no write, or was refused before it began, is not."""
    path = tmp_path / "audit.jsonl"
    keys = write(tmp_path / "keys.toml", key("team-b", ["write"], ["new*"]))
    files = [adapter_bytes("new", seed=seed) for seed in range(2)]
    old, new = (parse(file).digest for file in files)
    admin = {"Authorization": f"Bearer {ADMIN_KEY}"}
    asked: list[tuple[dict[str, str], str, str, Any, int]] = [
        (bearing("team-b"), "POST", "/adapters", files[0], 201),
        (bearing("team-b"), "POST", "/adapters", files[0], 200),
        (admin, "POST", "/adapters", files[1], 201),
        (
            bearing("team-b"),
            "PUT",
            "/adapters/new/traffic",
            {"active": new[:12], "canary": {"version": old[:12], "percent": 5}},
            200,
        ),
        (bearing("team-b"), "DELETE", "/adapters/new/traffic", None, 204),
        (bearing("team-b"), "POST", "/adapters/new/activate", {"version": old[:8]}, 200),
        (bearing("team-b"), "POST", "/adapters/new/activate", {"version": "beef"}, 404),
        (bearing("team-b"), "DELETE", f"/adapters/new/versions/{old[:12]}", None, 409),
        (bearing("team-b"), "DELETE", f"/adapters/new/versions/{new[:12]}", None, 204),
        (admin, "DELETE", "/adapters/new", None, 204),
        (bearing("team-b"), "DELETE", "/adapters/other", None, 404),  # not its own
        ({}, "DELETE", "/adapters/other", None, 401),
        (bearing("team-b"), "GET", "/adapters", None, 200),
    ]
    with running(
        tmp_path / "store", audit_log=path, keys_file=keys, admin_key=ADMIN_KEY, workers=workers
    ) as server:
        assert stat.S_IMODE(path.stat().st_mode) & stat.S_IRWXO == 0
        with server.client() as client:
            for number, (headers, method, url, body, status) in enumerate(asked):
                named = {**headers, "X-Request-ID": f"request-{number}"}
                sent = {"files": {"file": body}} if isinstance(body, bytes) else {"json": body}
                answer = client.request(method, url, headers=named, **sent)
                assert answer.status_code == status, (number, answer.text)
    told = lines(path)
    wanted = [
        ("upload", "team-b", old, "done"),
        ("upload", "team-b", old, "unchanged"),
        ("upload", "the admin key (ADAMIX_ADMIN_KEY)", new, "done"),
        ("divide traffic", "team-b", new, "done"),
        ("end split", "team-b", new, "done"),
        ("activate", "team-b", old, "done"),
        ("activate", "team-b", None, "UnknownVersion"),
        ("delete version", "team-b", None, "VersionIsActive"),
        ("delete version", "team-b", new, "done"),
        ("delete task", "the admin key (ADAMIX_ADMIN_KEY)", old, "done"),
    ]
    assert [(each["what"], each["key"], each["digest"], each["result"]) for each in told] == wanted
    for number, line in enumerate(told):
        assert set(line) >= FIELDS, line
        assert (line["task"], line["client"]) == ("new", "127.0.0.1")
        assert line["request_id"] == f"request-{number}"
        assert line["digest"] is None or line["version"] == line["digest"][:12]
    assert told[3]["traffic"] == {"canary": {"digest": old, "percent": 5.0}}
    assert told[6]["version"] == "beef"
    assert "secret" not in path.read_text()


def test_a_rollback_by_a_rule_has_a_line(
    tmp_path: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """A canary that its rule ends is told with the reason and without a key."""
    path = tmp_path / "audit.jsonl"
    files = [adapter_bytes("new"), adapter_bytes("new", labels=["low", "high"])]
    old, new = (parse(file).digest for file in files)
    with running(tmp_path / "store", audit_log=path) as server, server.client() as client:
        for file in reversed(files):
            client.post("/adapters", files={"file": file})
        split = {
            "active": old[:12],
            "canary": {"version": new[:12], "percent": 100},
            "rollback": {"disagreement": 0, "after": 1},
            "labels_may_differ": True,
        }
        assert client.put("/adapters/new/traffic", json=split).status_code == 200
        texts = iter(range(10_000))

        def left() -> bool:
            client.post("/predict?task=new", json={"inputs": f"film {next(texts)} is good"})
            return client.get("/adapters/new/traffic").json()["left"] is not None

        until(left)
    line = lines(path)[-1]
    assert (line["what"], line["task"], line["digest"]) == ("rollback", "new", new)
    assert (line["key"], line["client"], line["request_id"]) == (None, None, None)
    assert "another label" in line["reason"]


def test_a_rotated_log_goes_on_in_a_new_file(tmp_path: Path) -> None:
    """A log that was renamed or deleted is made anew with the next line; one that was cut goes on
    at its end."""
    path = tmp_path / "audit.jsonl"
    audit = AuditLog(str(path), failed=lambda: pytest.fail("it can be written"))
    audit.add(Write("upload", "a"))
    path.rename(tmp_path / "audit.1")
    audit.add(Write("upload", "b"))
    assert [line["task"] for line in lines(tmp_path / "audit.1")] == ["a"]
    assert [line["task"] for line in lines(path)] == ["b"]
    path.write_text("")
    audit.add(Write("upload", "c"))
    assert [line["task"] for line in lines(path)] == ["c"]
    path.unlink()
    audit.add(Write("upload", "d"))
    assert [line["task"] for line in lines(path)] == ["d"]


def test_a_line_that_cannot_be_written_loses_no_write(
    tmp_path: Path, filled_store: Path, adapter_bytes: Callable[..., bytes]
) -> None:
    """Where the log cannot be written, the write to the store is done, an error in the service's
    log holds the line, and a metric counts it."""
    shutil.copytree(filled_store, tmp_path / "store")
    path = tmp_path / "logs" / "audit.jsonl"
    path.parent.mkdir()
    with running(tmp_path / "store", audit_log=path) as server, server.client() as client:
        path.unlink()
        path.parent.rmdir()
        made = client.post("/adapters", files={"file": adapter_bytes("new")})
        assert made.status_code == 201
        assert client.get("/adapters/new").status_code == 200
        assert sample(client, "adamix_audit_failures_total") == 1
        (error,) = (line for line in server.lines if "audit log" in line["event"])
    assert error["level"] == "error"
    assert error["line"]["task"] == "new"
    assert len(error["line"]["digest"]) == 64


def test_a_log_that_cannot_be_made_stops_a_start(tmp_path: Path) -> None:
    """An audit log in no folder ends the start with exit code 2 and one sentence."""
    done = start(AUDIT_LOG=str(tmp_path / "none" / "x"), STORE=str(tmp_path / "store"), PORT="0")
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "ADAMIX_AUDIT_LOG" in line
    assert "No such file or directory" in line


def test_a_line_that_was_cut_spoils_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a line of which the disk took a part, the next one is a line of its own."""
    path, failures = tmp_path / "audit.jsonl", []
    audit = AuditLog(str(path), lambda: failures.append(1))
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: whole(descriptor, data[:10]))
        audit.add(Write("upload", "first"))
    audit.add(Write("upload", "second"))
    assert len(failures) == 1
    cut, second = path.read_text().splitlines()
    assert len(cut) == 10
    assert json.loads(second)["task"] == "second"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_audit_log_on_stdout(
    tmp_path: Path,
    adapter_bytes: Callable[..., bytes],
    capfd: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    """With `-`, stdout has the lines of the audit log and nothing else."""
    with (
        running(tmp_path / "store", forked=False, audit_log="-", workers=workers) as server,
        server.client() as client,
    ):
        assert client.post("/adapters", files={"file": adapter_bytes("new")}).status_code == 201
        assert client.delete("/adapters/new").status_code == 204
        assert client.delete("/adapters/new").status_code == 404
        said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    found = [(line["what"], line["task"], line["result"]) for line in said]
    assert found[:2] == [("upload", "new", "done"), ("delete task", "new", "done")]
    assert [line[2] for line in found[2:]] in ([], ["UnknownTask"])
    assert all(line.keys() >= FIELDS for line in said)


def test_shipped_adapters_have_lines(tmp_path: Path, adapter_bytes: Callable[..., bytes]) -> None:
    """Each shipped adapter that a new store is given has a line that names no key and no client;
    one that is left out has none, and a second start gives none."""
    seed, path = tmp_path / "seed", tmp_path / "audit.jsonl"
    seed.mkdir()
    files = {name: adapter_bytes(name) for name in ("a", "b")}
    for name, data in files.items():
        (seed / f"{name}.safetensors").write_bytes(data)
    (seed / "c.safetensors").write_bytes(b"damaged")
    for _ in range(2):
        with running(tmp_path / "store", audit_log=path, seed=seed) as server:
            assert server.url
    said = lines(path)
    assert [(line["what"], line["task"], line["result"]) for line in said] == [
        ("seed", "a", "done"),
        ("seed", "b", "done"),
    ]
    for line, data in zip(said, files.values(), strict=True):
        assert line["digest"] == parse(data).digest
        assert line["version"] == line["digest"][:12]
        assert (line["key"], line["client"], line["request_id"]) == (None, None, None)
