"""Who may write, read and predict, by bearer tokens; and under which hosts a service on loopback is
asked."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from starlette.requests import HTTPConnection

from adapters.errors import AdaMixError
from adapters.regular import descriptor_of
from adapters.spec import shown
from service.http.bearer import bears, key_of
from service.http.sentences import quoted
from service.http.wrong_keys import WrongKeys
from service.keys.keys import Keys
from service.loopback import is_loopback
from service.refusals import (
    ForeignHost,
    ForeignPage,
    KeyUnchecked,
    MissingKey,
    MissingScope,
    TooManyWrongKeys,
)

API_KEY = "the API key (ADAMIX_API_KEY)"
ADMIN_KEY = "the admin key (ADAMIX_ADMIN_KEY)"
MAX_HOST_CHARACTERS = 300  # of a DNS name 253, and a port
MAX_KEPT_BYTES = 4096
VISIBLE = range(ord("!"), ord("~") + 1)  # what a header can carry


class UnsafeKeyFile(AdaMixError):
    """A key file that other users can read or change, or that is a link."""


class Guard:
    """Writes need `admin_key`, predictions `api_key`, reads either if there is an `api_key`. None
    needs nothing. Where there are `keys`, all of them need one of these keys or a key of `keys`
    with the scope for it; reads need the scope `predict` or `write`.

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
        keys: Keys | None = None,
    ) -> None:
        self._admin_key, self._api_key, self._hosts = admin_key, api_key, hosts
        self._open_metrics, self._keys = open_metrics, keys
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

    async def check_write(self, request: HTTPConnection) -> None:
        """Raises as `_check_key`, or ForeignPage. Where no key is needed, a web page that is open
        in the operator's browser must not be able to upload."""
        if self._admin_key is not None or self._keys is not None:
            await self._check_key(request, self._single(admin=True), ("write",))
            return
        origin = request.headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != request.headers.get("host")
        if foreign or request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ForeignPage(
                f"a page of {shown(origin) if origin else 'another site'} asks to write; expected"
                " this service's own page"
            )

    async def check_read(self, request: HTTPConnection) -> None:
        """Raises as `_check_key`."""
        if self._api_key is not None or self._keys is not None:
            single = self._single(api=True, admin=True)
            await self._check_key(request, single, ("predict", "write"))

    async def check_metrics(self, request: HTTPConnection) -> None:
        """As a read, unless metrics are open; with a scope of its own, since they name every task.
        Raises as `_check_key`."""
        if not self._open_metrics and (self._api_key is not None or self._keys is not None):
            single = self._single(api=True, admin=True)
            await self._check_key(request, single, ("read-metrics",))

    async def check_predict(self, request: HTTPConnection) -> None:
        """Raises as `_check_key`."""
        if self._api_key is not None or self._keys is not None:
            await self._check_key(request, self._single(api=True), ("predict",))

    def take_rows(self, request: HTTPConnection, rows: int) -> None:
        """Count the rows of a request against its key's limit. Raises KeyLimited."""
        key = key_of(request)
        if key is not None and self._keys is not None:
            self._keys.limits.take_rows(key, rows)
            _count_rows(request, rows)

    def owe_rows(self, request: HTTPConnection, rows: int) -> None:
        """Count rows of a request that were not known before."""
        key = key_of(request)
        if key is not None and self._keys is not None:
            self._keys.limits.owe_rows(key, rows)
            _count_rows(request, rows)

    def give_back(self, request: HTTPConnection) -> None:
        """Count a request no more, nor its rows: another process counts it."""
        key = key_of(request)
        if key is not None and self._keys is not None:
            self._keys.limits.give_back(key, 1, getattr(request.state, "rows", 0))

    @property
    def hides_tasks(self) -> bool:
        """Whether there are clients that may not know of every task."""
        return self._keys is not None

    async def knows(self, request: HTTPConnection) -> bool:
        """Whether a request bears one of the keys, or reads need none. Tells an address that has
        tried many keys nothing."""
        if self._api_key is None and self._keys is None:
            return True
        address, token = _address(request), _token(request)
        single = self._single(api=True, admin=True)
        try:
            self._wrong_keys.check(address)
            if not token or _is_one_of(token, single):
                return bool(token)
            if self._keys is None:
                return False
            if await self._keys.of(token, address) is not None:
                return True
            # here, since the path may be one that needs no key, and the check took time
            request.state.counted = True
            self._wrong_keys.count(address, token)
        except (TooManyWrongKeys, KeyUnchecked):
            pass
        return False

    def _single(self, *, api: bool = False, admin: bool = False) -> dict[str, str]:
        """The single keys that are set, of these two, with their names."""
        keys = ((api, self._api_key, API_KEY), (admin, self._admin_key, ADMIN_KEY))
        return {key: name for wanted, key, name in keys if wanted and key is not None}

    async def _check_key(
        self, request: HTTPConnection, single: Mapping[str, str], scopes: Sequence[str]
    ) -> None:
        """Raises MissingKey, TooManyWrongKeys, KeyUnchecked, MissingScope or KeyLimited."""
        address = _address(request)
        self._wrong_keys.check(address)
        token = _token(request)
        if not token:
            raise MissingKey(
                f"this request bears no key; expected {self._expected(single, scopes)} as"
                " 'Authorization: Bearer …'"
            )
        for each, name in single.items():
            if _is_one_of(token, (each,)):
                bears(request, name, None)
                return
        if self._keys is not None:
            key = await self._keys.of(token, address)
            # others of the address were found to be wrong while this one waited
            self._wrong_keys.check(address)
            if key is not None:
                structlog.contextvars.bind_contextvars(key=key.name)
                if key.scopes.isdisjoint(scopes):
                    raise MissingScope(
                        f"the key {key.name!r} has {quoted(sorted(key.scopes))}; expected the scope"
                        f" {quoted(scopes, 'or')}"
                    )
                self._keys.limits.take_request(key)
                bears(request, key.name, key)
                return
        if not getattr(request.state, "counted", False):  # by `knows`
            self._wrong_keys.count(address, token)
        raise MissingKey(
            f"this request bears a wrong key; expected {self._expected(single, scopes)}"
        )

    def _expected(self, single: Mapping[str, str], scopes: Sequence[str]) -> str:
        of_file = (
            []
            if self._keys is None
            else [f"a key of the keys file with the scope {quoted(scopes, 'or')}"]
        )
        return " or ".join([*single.values(), *of_file])

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # such as "["
            return False
        return is_loopback(name) or name in (self._hosts or ())


def _count_rows(request: HTTPConnection, rows: int) -> None:
    request.state.rows = getattr(request.state, "rows", 0) + rows


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
    """Its key; empty where there is no file, or nothing in it."""
    if path.is_symlink():
        raise UnsafeKeyFile(f"the admin key's file {path} is a symbolic link; expected a file")
    try:
        descriptor = descriptor_of(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return ""
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise UnsafeKeyFile(f"the admin key's file {path} is no regular file; expected a file")
        mode = stat.S_IMODE(about.st_mode)
        # Its group may use it: on a volume, Kubernetes' fsGroup changes the mode so.
        if mode & stat.S_IRWXO:
            raise UnsafeKeyFile(
                f"the admin key's file {path} has mode {mode:04o}, so that every user of this"
                f" machine may know it; expected mode 0600, and a new key: rm {path}"
            )
        key = os.read(descriptor, MAX_KEPT_BYTES).strip()
    finally:
        os.close(descriptor)
    if not all(byte in VISIBLE for byte in key):
        raise UnsafeKeyFile(
            f"the admin key's file {path} holds what no header can carry; expected one line of"
            f" letters, digits and signs, or no file, and a new key: rm {path}"
        )
    return key.decode()
