"""Who may read, write and predict, under which host, and what becomes of keys."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import structlog

from service.http.auth import UnsafeKeyFile, kept_admin_key
from service.http.wrong_keys import ADDRESSES, ATTEMPTS, DISTINCT, SECONDS, WrongKeys
from service.refusals import TooManyWrongKeys
from tests.service.conftest import ADMIN_KEY, Server, running, until

FILM = {"inputs": "it is a good film"}
API_KEY = "an-api-key-for-tests"
TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["good"]}
PREDICTIONS = {
    ("POST", "/predict?task=sst2"): FILM,
    ("POST", "/v2/models/sst2/infer"): {"inputs": [TENSOR]},
}
READS = (
    *(("GET", f"/{path}") for path in ("adapters", "adapters/sst2", "storage", "v2/models/sst2")),
    ("GET", "/v2/models/sst2/ready"),
    ("POST", "/v2/repository/index"),
)
OPEN = ("/", "/health", "/ready", "/docs", "/openapi.json", "/v2", "/v2/health/ready", "/metrics")


def bearing(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def guarded(filled_store: Path) -> Any:
    """A server with both keys."""
    with running(filled_store, api_key=API_KEY, admin_key=ADMIN_KEY) as server:
        yield server


def test_an_api_key_guards_reads_too(guarded: Server) -> None:
    """Where an API key is set, lists, files, metadata and sizes need it or the admin key;
    predictions need the API key; health, metrics and the page need none."""
    with guarded.client() as client:
        version = client.get("/adapters/sst2", headers=bearing(API_KEY)).json()["version"]
        file = ("GET", f"/adapters/sst2/versions/{version}/file")
        for method, path in (*READS, file):
            refused = client.request(method, path)
            assert (refused.status_code, refused.json()["error_type"]) == (401, "MissingKey"), path
            for key in (API_KEY, ADMIN_KEY):
                answer = client.request(method, path, headers=bearing(key))
                assert answer.status_code == 200, (path, answer.text)
        for (method, path), body in PREDICTIONS.items():
            for headers, status in (({}, 401), (bearing(ADMIN_KEY), 401), (bearing(API_KEY), 200)):
                assert (
                    client.request(method, path, json=body, headers=headers).status_code == status
                )
        for path in OPEN:
            assert client.get(path).status_code == 200, path


def test_metrics_can_be_guarded(filled_store: Path) -> None:
    """With ADAMIX_OPEN_METRICS=false and an API key, /metrics needs a key and health does not."""
    with (
        running(filled_store, read_only=True, api_key=API_KEY, open_metrics="false") as server,
        server.client() as client,
    ):
        assert client.get("/metrics").status_code == 401
        assert client.get("/metrics", headers=bearing(API_KEY)).status_code == 200
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


@pytest.mark.parametrize(
    "host", ["rebound.example", "rebound.example:8000", "[", "", "127.0.0.1.example", "h" * 10_000]
)
def test_a_service_on_loopback_is_asked_as_loopback(host: str, client: httpx2.Client) -> None:
    """Every path refuses a request for a host that is not loopback, also one that is no host: a web
    page can let its own name point to this machine."""
    for method, path in (*READS, *PREDICTIONS, *(("GET", path) for path in OPEN)):
        answer = client.request(method, path, headers={"Host": host})
        assert (answer.status_code, answer.json()["error_type"]) == (403, "ForeignHost"), path
        assert len(answer.json()["error"]) < 300
        assert "X-Request-ID" in answer.headers
    wanted = client.post("/adapters", headers={"Host": host}, files={"file": b""})
    assert (wanted.status_code, wanted.json()["error_type"]) == (403, "ForeignHost")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.1.2.3", "[::1]:80", "localhost."]
)
def test_loopback_has_many_names(host: str, client: httpx2.Client) -> None:
    """Each name and address of loopback is answered, with a port or without one."""
    assert client.get("/storage", headers={"Host": host}).status_code == 200


def test_more_hosts_can_be_allowed(filled_store: Path) -> None:
    """ADAMIX_ALLOWED_HOSTS lists the names under which a proxy on the same machine asks."""
    with (
        running(
            filled_store, read_only=True, allowed_hosts="models.example, Other.Example"
        ) as server,
        server.client() as client,
    ):
        for host, status in (
            ("models.example", 200),
            ("other.example:443", 200),
            ("third.example", 403),
            ("localhost", 200),
        ):
            answer = client.post("/predict?task=sst2", json=FILM, headers={"Host": host})
            assert answer.status_code == status, host


def start(**settings: str) -> subprocess.CompletedProcess[str]:
    """A server that cannot start."""
    environment = {**os.environ, **{f"ADAMIX_{name}": value for name, value in settings.items()}}
    return subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["API_KEY", "ADMIN_KEY"])
@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("x", "has 1 characters; expected at least 8"),
        ("pass word 1", "holds white space"),
        ("pass\nword1", "holds white space"),
        ("schlüssel-1", "not ASCII"),
        ("   ", "expected"),
    ],
)
def test_a_key_that_is_none_is_refused_at_the_start(name: str, key: str, reason: str) -> None:
    """A key that is too short, or that no header can carry, is refused with exit code 2, and not
    shown."""
    done = start(**{name: key})
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert f"ADAMIX_{name}" in line
    assert reason in line
    assert "word" not in line
    assert "ssel" not in line


def test_a_key_made_of_a_file_ends_in_a_new_line(filled_store: Path) -> None:
    """White space at the ends of a key does not belong to it, in a setting as in a request."""
    with (
        running(
            filled_store, read_only=True, api_key=f"{API_KEY}\n", admin_key=f" {ADMIN_KEY}\r\n"
        ) as server,
        server.client() as client,
    ):
        assert (
            client.post("/predict?task=sst2", json=FILM, headers=bearing(API_KEY)).status_code
            == 200
        )
        deleted = client.delete("/adapters/nonesuch", headers=bearing(ADMIN_KEY))
        assert deleted.status_code == 503  # the key is right; the store is read-only here


@pytest.mark.parametrize("fault", ["mode", "link", "pipe", "bytes", "lines"])
def test_a_key_file_that_others_can_use_is_refused(fault: str, tmp_path: Path) -> None:
    """A kept admin key whose file every user may read, that is a symbolic link or a pipe, or whose
    content no header can carry, is refused by a sentence that names the file; one that its group
    may read, as on a volume, is taken."""
    path = tmp_path / "store.admin-key"
    if fault == "mode":
        path.write_text(f"{ADMIN_KEY}\n")
        path.chmod(0o666)
    elif fault == "pipe":
        os.mkfifo(path, 0o600)
    elif fault in ("bytes", "lines"):
        path.write_bytes(b"\xff\xfe" if fault == "bytes" else f"{ADMIN_KEY}\nmore\n".encode())
        path.chmod(0o600)
    else:
        (tmp_path / "elsewhere").write_text(f"{ADMIN_KEY}\n")
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeKeyFile, match=re.escape(str(path))) as refused:
        kept_admin_key(tmp_path / "store")
    assert ADMIN_KEY not in str(refused.value)
    path.unlink()
    path.write_text(f"{ADMIN_KEY}\n")
    path.chmod(0o660)
    assert kept_admin_key(tmp_path / "store") == (ADMIN_KEY, path, False)


def test_a_made_key_is_in_its_file_and_not_in_the_log(tmp_path: Path) -> None:
    """The log names the file of a key that was made, and never has the key: logs are kept and sent
    elsewhere."""
    with running(tmp_path / "store", host="0.0.0.0") as server:
        kept = tmp_path / "store.admin-key"
        key = kept.read_text().strip()
        assert len(key) >= 32
        (made,) = [line for line in server.lines if line["event"] == "made an admin key"]
        assert made["kept_in"] == str(kept)
        assert key not in str(server.lines)


def test_wrong_keys_are_limited(tmp_path: Path) -> None:
    """An address that sends a wrong key again and again gets a 429 that says when to come back,
    while the right key is still answered; one that tries many keys is refused with any key."""
    with (
        running(tmp_path / "store", api_key=API_KEY, admin_key=ADMIN_KEY) as server,
        server.client() as client,
    ):

        def delete(key: str) -> httpx2.Response:
            return client.delete("/adapters/nonesuch", headers=bearing(key))

        statuses = [delete("outdated").status_code for _ in range(ATTEMPTS + 1)]
        assert statuses == [401] * ATTEMPTS + [429]
        refused = delete("outdated")
        assert refused.json()["error_type"] == "TooManyWrongKeys"
        assert 0 < int(refused.headers["Retry-After"]) <= SECONDS
        assert delete(ADMIN_KEY).status_code == 404
        for guess in range(DISTINCT):
            delete(f"guess-{guess}")
        assert delete(ADMIN_KEY).status_code == 429
        until(lambda: any("tries many keys" in line["event"] for line in list(server.lines)))
        warned = [line for line in list(server.lines) if "tries many keys" in line["event"]]
        assert [line["client"] for line in warned] == ["127.0.0.1"]
        assert "guess" not in str(server.lines)


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def guess(wrong: WrongKeys, address: str, keys: int) -> None:
    for key in range(keys):
        wrong.count(address, f"guess-{key}")


def test_an_address_is_refused_for_a_minute() -> None:
    """The minute begins with the first wrong key; after it the address is as any other one."""
    clock = Clock()
    wrong = WrongKeys(clock)
    with structlog.testing.capture_logs():
        guess(wrong, "192.0.2.1", DISTINCT)
    clock.now = SECONDS - 0.5
    with pytest.raises(TooManyWrongKeys) as refused:
        wrong.check("192.0.2.1")
    assert refused.value.retry_after == 1
    wrong.check("192.0.2.2")
    clock.now = SECONDS
    wrong.check("192.0.2.1")
    wrong.count("192.0.2.1", "once more")
    wrong.check("192.0.2.1")


def test_an_ipv6_network_is_one_address() -> None:
    """Whoever has one address of a /64 has all of them."""
    wrong = WrongKeys(Clock())
    with structlog.testing.capture_logs():
        guess(wrong, "2001:db8::1", DISTINCT)
    with pytest.raises(TooManyWrongKeys):
        wrong.check("2001:db8::ffff:2")
    wrong.check("2001:db8:0:1::1")


def test_few_addresses_are_remembered() -> None:
    """Addresses beyond a fixed number are forgotten, oldest first, so that memory is bounded."""
    wrong = WrongKeys(Clock())
    with structlog.testing.capture_logs():
        guess(wrong, "first", DISTINCT)
        guess(wrong, "second", DISTINCT)
    for address in range(ADDRESSES - 1):
        wrong.count(str(address), "wrong")
    wrong.check("first")
    with pytest.raises(TooManyWrongKeys):
        wrong.check("second")


def test_the_log_names_the_client(client: httpx2.Client, server: Server) -> None:
    """A request's line in the log has the address that it came from, and not all of a long path."""
    client.get(f"/{'long' * 1000}", headers={"X-Request-ID": "from-where"})
    until(lambda: any(line.get("request_id") == "from-where" for line in list(server.lines)))
    client.get("/storage")  # its line comes after the other's
    (line,) = [line for line in list(server.lines) if line.get("request_id") == "from-where"]
    assert line["client"] == "127.0.0.1"
    assert len(line["path"]) == 200


def test_a_client_s_control_characters_are_not_written_raw() -> None:
    """On a console, what a client sent neither drives the terminal nor looks like a line of its
    own."""
    script = (
        "import structlog; from service.telemetry import logs; logs.configure('info', 'console');"
        r"structlog.get_logger('a').info('request', path='/\x1b]0;owned\x07\nforged\u202e')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert r"/\x1b]0;owned\x07\nforged\u202e" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
