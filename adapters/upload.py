"""Send an adapter file to a running server; connect to one, and ask it."""

from __future__ import annotations

import hashlib
import ipaddress
import math
import os
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote
from urllib.request import getproxies, proxy_bypass

import httpx2

from adapters.errors import CannotUpload
from adapters.spec import legible, shortened, shown

SECONDS = 60  # the server replays the probe before it answers
TRIES = 20  # where the server is overloaded
BUSY = (429, 503)
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def upload(
    name: str, data: bytes | bytearray | memoryview, url: str, key: str | None, *, activate: bool
) -> bool:
    """Upload a file's bytes; returns whether they were new to the server.

    Uses the proxy that the environment names, except for a server on this machine. No message
    holds the key or a password. Raises CannotUpload.
    """
    with connected(url, key) as client:
        answer = client.post(
            "/adapters",
            files={"file": (name, bytes(data))},
            data={"activate": "true" if activate else "false"},
        )
    target = _parsed(url)
    shown_url = without_user(target) if target.userinfo else url
    if answer.status_code not in (200, 201):
        raise CannotUpload(f"{shown_url} {refusal(answer)}")
    if not _has(parsed_json(answer), hashlib.sha256(data).hexdigest()):
        raise CannotUpload(
            f"{shown_url} answered {answer.status_code}, but not with this file's version; expected"
            " the address of an adamix-serve"
        )
    return answer.status_code == 201


@contextmanager
def connected(url: str, key: str | None) -> Iterator[httpx2.Client]:
    """A client of a server, whose paths are below `url`, with the proxy that the environment names.
    Raises CannotUpload, also for what fails within the context."""
    target = _parsed(url)
    shown_url = without_user(target) if target.userinfo else url
    headers = _authorization(key)
    proxy = _proxy(target)
    try:
        with _client(target, proxy) as client:
            client.base_url = target
            client.headers.update(headers)
            yield client
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        by = "" if proxy is None else f" by the proxy of {proxy}"
        doubt = f"; {_certificates()}" if "CERTIFICATE_VERIFY_FAILED" in str(error) else ""
        raise CannotUpload(
            f"{shown_url} cannot be reached{by}: {shortened(error)}{doubt}"
        ) from None


def path_of(*parts: str) -> str:
    """A path of these parts, of which a user may have written any: `sst2?x` is no `sst2`."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)


def asked(client: httpx2.Client, method: str, path: str, **more: Any) -> httpx2.Response:
    """A server's answer with status 200. One that is overloaded is asked again when it says. Raises
    CannotUpload."""
    for left in reversed(range(TRIES)):
        answer = client.request(method, path, **more)
        if answer.status_code == 200:
            return answer
        if answer.status_code not in BUSY or not left:
            break
        time.sleep(_seconds(answer.headers.get("Retry-After")))
    raise CannotUpload(f"{without_user(client.base_url).rstrip('/')} {refusal(answer)}")


def _seconds(said: str | None) -> float:
    """What `Retry-After` says, at most a minute; one second where it says nothing."""
    try:
        seconds = float(said or 1)
    except ValueError:
        return 1.0
    return 1.0 if math.isnan(seconds) else min(max(seconds, 0.1), 60.0)


def parsed_json(answer: httpx2.Response) -> Any:
    """What a server answered; None if that is no JSON."""
    try:
        return answer.json()
    except (ValueError, RecursionError):
        return None


def refusal(answer: httpx2.Response) -> str:
    """What a server refused with: the end of a sentence that begins with its address."""
    said = parsed_json(answer)
    reason = said["error"] if isinstance(said, dict) and "error" in said else _start(answer)
    return f"answered {answer.status_code}: {legible(shortened(reason, 500))}"


def _start(answer: httpx2.Response) -> str:
    """Of a page of text: its charset may be one that Python knows and cannot decode."""
    return answer.content[:200].decode("utf-8", "replace")


def _has(said: Any, digest: str) -> bool:
    """Whether a server's answer lists the version that was uploaded. Something else than this
    service, such as the page of a login, may answer 200 too."""
    versions = said.get("versions") if isinstance(said, dict) else None
    found = versions if isinstance(versions, list) else []
    names = [each.get("version") for each in found if isinstance(each, dict)]
    return any(isinstance(name, str) and name and digest.startswith(name) for name in names)


@dataclass(frozen=True)
class _Proxy:
    """A proxy, and the variable of the environment that names it."""

    variable: str
    url: str

    def __str__(self) -> str:
        """Without a password."""
        try:
            return f"{self.variable} ({without_user(httpx2.URL(self.url))})"
        except httpx2.InvalidURL:
            return self.variable


def _parsed(url: str) -> httpx2.URL:
    try:
        target = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise CannotUpload(f"{shortened(url)} cannot be reached: {shortened(error)}") from None
    try:
        target.host.encode("idna")  # as its address is looked up
        usable = target.scheme in ("http", "https") and target.host != ""
    except UnicodeError:  # an empty label, or one of more than 63 characters
        usable = False
    if not usable:
        raise CannotUpload(
            f"{shortened(url)} cannot be reached: it is no address; expected http://HOST:PORT"
        )
    return target


def _authorization(key: str | None) -> dict[str, str]:
    key = (key or "").strip()  # one that was read from a file ends in a newline
    if not key.isascii() or not key.isprintable():
        raise CannotUpload(
            "the key holds a character that no header takes; expected printable ASCII"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}


def _proxy(target: httpx2.URL) -> _Proxy | None:
    """The proxy that the environment names for a server, as urllib reads it."""
    if _is_loopback(target.host) or proxy_bypass(target.host):
        return None
    proxies = getproxies()
    for kind in (target.scheme, "all"):
        if proxies.get(kind):
            name = f"{kind}_proxy"
            variable = name if os.environ.get(name) else name.upper()
            url = proxies[kind]
            return _Proxy(variable, url if "://" in url else f"http://{url}")
    return None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _client(target: httpx2.URL, proxy: _Proxy | None) -> httpx2.Client:
    """A client with what the environment says, of which each fault names its variable."""
    try:
        # without TLS no certificates are read, so that wrong variables for them do not matter
        verify = httpx2.create_ssl_context() if target.scheme == "https" else False
    except (OSError, ssl.SSLError) as error:
        raise CannotUpload(
            f"{_certificates()}, which cannot be read: {shortened(error)}; expected a file of"
            " certificates, or the variable to be unset"
        ) from None
    try:
        return httpx2.Client(
            proxy=None if proxy is None else proxy.url,
            verify=verify,
            trust_env=False,
            timeout=SECONDS,
        )
    except (ImportError, ValueError, httpx2.InvalidURL) as error:
        raise CannotUpload(
            f"the proxy of {proxy} cannot be used: {shortened(error)}; expected http://HOST:PORT,"
            f" or NO_PROXY to name {target.host}"
        ) from None


def _certificates() -> str:
    """Which certificates servers are checked by."""
    for name in CERTIFICATES:
        if os.environ.get(name):
            return f"{name} is {shown(os.environ[name])}"
    return "SSL_CERT_FILE is unset, so that this machine's certificates are taken"


def without_user(url: httpx2.URL) -> str:
    """A server's address as it may be shown: without a password."""
    return str(url.copy_with(username="", password=""))
