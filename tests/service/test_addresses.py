"""Where the service listens, and what an operator is told who names no such place."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from service.http.addresses import bound
from service.settings import InvalidSettings, read_settings
from tests.service.conftest import running


def has_ipv6() -> bool:
    try:
        bound("::1", 0).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def told(folder: Path, **settings: str) -> str:
    """The one line that a service says which cannot start; it ends with exit code 2, and has made
    nothing."""
    environment = {**os.environ, **settings, "ADAMIX_STORE": str(folder / "store")}
    done = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert not list(folder.iterdir())  # neither a store nor an admin key
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("workers", ["1", "2"])
def test_addresses_that_are_none(tmp_path: Path, workers: str) -> None:
    """A name that has no address, and an address of another machine, are told as the host's
    setting, a port that is taken as the port's, before anything is made."""
    line = told(tmp_path, ADAMIX_WORKERS=workers, ADAMIX_HOST="nowhere.invalid")
    assert line.startswith("error: setting ADAMIX_HOST is 'nowhere.invalid', which is no address: ")
    line = told(tmp_path, ADAMIX_WORKERS=workers, ADAMIX_HOST="192.0.2.1")
    assert line.startswith(
        "error: setting ADAMIX_HOST is '192.0.2.1', which is no address of this machine: "
    )
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = told(tmp_path, ADAMIX_WORKERS=workers, ADAMIX_PORT=str(port))
    assert line == f"error: setting ADAMIX_PORT is {port}, but on 127.0.0.1: address already in use"


@pytest.mark.parametrize("host", ["a" * 70, "a..b", "[::1", "[]", "1.2.3.4.5", "\u2024"])
def test_hosts_that_are_no_names(tmp_path: Path, host: str) -> None:
    """What cannot be a name of a host is told as that setting, with what was found."""
    line = told(tmp_path, ADAMIX_HOST=host)
    assert line.startswith("error: setting ADAMIX_HOST is "), line


@ipv6
@pytest.mark.parametrize("workers", [1, 2])
def test_an_ipv6_address_in_brackets(filled_store: Path, workers: int) -> None:
    """`[::1]`, as it stands in URLs, is the address ::1, and is loopback; uvicorn's own variables
    change nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEB_CONCURRENCY", "auto")
        with running(filled_store, host="[::1]", workers=workers) as server:
            assert server.url.startswith("http://[::1]:")
            assert httpx2.get(f"{server.url}/health").status_code == 200
            assert httpx2.delete(f"{server.url}/adapters/none").status_code == 404  # without a key


@ipv6
@pytest.mark.parametrize("workers", [1, 2])
def test_both_families(filled_store: Path, workers: int) -> None:
    """`::` takes clients of IPv6 and of IPv4."""
    with running(filled_store, host="::", workers=workers, admin_key="a" * 40) as server:
        port = urlsplit(server.url).port
        for host in ("127.0.0.1", "[::1]"):
            assert httpx2.get(f"http://{host}:{port}/health").status_code == 200


def test_a_name_is_its_first_ipv4_address() -> None:
    """`localhost` is 127.0.0.1, as clients of IPv4 expect."""
    with bound("localhost", 0) as place:
        assert place.getsockname()[0] == "127.0.0.1"


def test_proxies_that_are_none() -> None:
    """What is no address and no network is told with the setting's name; blanks are no part of
    one."""
    with pytest.raises(InvalidSettings, match=r"setting ADAMIX_TRUSTED_PROXIES .*'proxy'"):
        read_settings(trusted_proxies="127.0.0.1, proxy")
    with pytest.raises(InvalidSettings, match="has host bits set"):
        read_settings(trusted_proxies="10.0.0.1/8")
    assert read_settings(trusted_proxies=" 10.0.0.0/8 , ::1 ").trusted_proxies == "10.0.0.0/8,::1"
    assert read_settings(trusted_proxies="*").trusted_proxies == "*"
