"""Who may write, read and predict, by bearer tokens; and under which hosts a service on loopback is
asked."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection

from adapters.errors import AdaMixError
from adapters.spec import shown
from service.http.wrong_keys import WrongKeys
from service.loopback import is_loopback
from service.refusals import ForeignHost, ForeignPage, MissingKey, TooManyWrongKeys

API_KEY = "the API key (ADAMIX_API_KEY)"
ADMIN_KEY = "the admin key (ADAMIX_ADMIN_KEY)"
MAX_HOST_CHARACTERS = 300  # of a DNS name 253, and a port


class UnsafeKeyFile(AdaMixError):
    """A key file that other users can read or change, or that is a link."""


class Guard:
    """Writes need `admin_key`, predictions `api_key`, reads either if there is an `api_key`. None
    needs nothing.

    `hosts` are the names under which a service on loopback is asked, beside loopback's own; None
    where it listens on another address.
    """

    def __init__(
        self,
        admin_key: str | None,
        api_key: str | None,
        *,
        hosts: frozenset[str] | None = None,
        open_metrics: bool = True,
    ) -> None:
        self._admin_key, self._api_key, self._hosts = admin_key, api_key, hosts
        self._open_metrics = open_metrics
        self._known_hosts = lru_cache(256)(self._is_ours)
        self._wrong_keys = WrongKeys()

    def check_host(self, host: str) -> None:
        """Raises ForeignHost. A web page can let its own name point to 127.0.0.1 (DNS rebinding):
        the browser then asks this service under that name, and lets the page read the answers."""
        if self._hosts is None:
            return
        if len(host) > MAX_HOST_CHARACTERS or not self._known_hosts(host):
            raise ForeignHost(
                f"this request is for the host {shown(host)}; expected localhost, or a name that"
                " ADAMIX_ALLOWED_HOSTS lists"
            )

    def check_write(self, request: HTTPConnection) -> None:
        """Raises MissingKey, TooManyWrongKeys or ForeignPage. Where no key is needed, a web page
        that is open in the operator's browser must not be able to upload."""
        if self._admin_key is not None:
            self._check_key(request, {self._admin_key: ADMIN_KEY})
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
        if foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ForeignPage(
                f"a page of {shown(origin) if origin else 'another site'} asks to write; expected"
                " this service's own page"
            )

    def check_read(self, request: HTTPConnection) -> None:
        """Raises MissingKey or TooManyWrongKeys."""
        if self._api_key is not None:
            admin = {} if self._admin_key is None else {self._admin_key: ADMIN_KEY}
            self._check_key(request, {self._api_key: API_KEY, **admin})

    def check_metrics(self, request: HTTPConnection) -> None:
        """As a read, unless metrics are open. Raises MissingKey or TooManyWrongKeys."""
        if not self._open_metrics:
            self.check_read(request)

    def check_predict(self, request: HTTPConnection) -> None:
        """Raises MissingKey or TooManyWrongKeys."""
        if self._api_key is not None:
            self._check_key(request, {self._api_key: API_KEY})

    def knows(self, request: HTTPConnection) -> bool:
        """Whether a request bears one of the keys, or reads need none. Counts nothing, and tells an
        address that has tried many keys nothing."""
        if self._api_key is None:
            return True
        try:
            self._wrong_keys.check(_address(request))
        except TooManyWrongKeys:
            return False
        keys = [key for key in (self._api_key, self._admin_key) if key is not None]
        return _is_one_of(_token(request), keys)

    def _check_key(self, request: HTTPConnection, keys: Mapping[str, str]) -> None:
        address = _address(request)
        self._wrong_keys.check(address)
        expected = " or ".join(keys.values())
        token = _token(request)
        if not token:
            raise MissingKey(
                f"this request bears no key; expected {expected} as 'Authorization: Bearer …'"
            )
        if not _is_one_of(token, keys):
            self._wrong_keys.count(address, token)
            raise MissingKey(f"this request bears a wrong key; expected {expected}")

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as "["
            return False
        return is_loopback(name) or name in (self._hosts or ())


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client is not None else ""


def _token(request: HTTPConnection) -> str:
    """The bearer token; empty if there is none."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _is_one_of(token: str, keys: Iterable[str]) -> bool:
    return any(hmac.compare_digest(token.encode(), key.encode()) for key in keys)


def kept_admin_key(store: Path) -> tuple[str, Path, bool]:
    """The admin key in the file beside the store, which is made if there is none: the key, its
    file, and whether it is new. Raises UnsafeKeyFile, or OSError."""
    path = store.with_name(f"{store.name}.admin-key")
    key = _kept(path)
    if key:  # empty: a first start crashed before it wrote the key
        return key, path, False
    key = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key}\n")
    return key, path, True


def _kept(path: Path) -> str:
    if path.is_symlink():
        raise UnsafeKeyFile(f"the admin key's file {path} is a symbolic link; expected a file")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    with os.fdopen(descriptor) as file:
        mode = stat.S_IMODE(os.fstat(descriptor).st_mode)
        # Its group may use it: on a volume, Kubernetes' fsGroup changes the mode so.
        if mode & stat.S_IRWXO:
            raise UnsafeKeyFile(
                f"the admin key's file {path} has mode {mode:04o}, so that every user of this"
                f" machine may know it; expected mode 0600, and a new key: rm {path}"
            )
        return file.read().strip()
