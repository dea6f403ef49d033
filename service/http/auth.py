"""Who may write and who may predict: bearer tokens, compared in constant time."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from service.refusals import ForeignPage, MissingKey


class Guard:
    """Writes need `admin_key`, predictions `api_key`; None needs nothing."""

    def __init__(self, admin_key: str | None, api_key: str | None) -> None:
        self._admin_key, self._api_key = admin_key, api_key

    def check_write(self, headers: Mapping[str, str]) -> None:
        """Raises MissingKey, or ForeignPage. Without a key, a web page that is open in the
        operator's browser must not be able to upload: neither from its own address, nor under a
        name that it lets point to this machine (DNS rebinding)."""
        if self._admin_key is not None:
            _check_bearer(headers, self._admin_key, "the admin key (ADAMIX_ADMIN_KEY)")
            return
        host = headers.get("host", "localhost")
        if not is_loopback(urlsplit(f"//{host}").hostname or ""):
            raise ForeignPage(
                f"this request is for the host {host[:80]!r}; expected localhost, as long as no"
                " ADAMIX_ADMIN_KEY is set"
            )
        origin = headers.get("origin")
        foreign = origin is not None and origin.partition("://")[2] != headers.get("host")
        if foreign or headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise ForeignPage(
                f"a page of {origin or 'another site'} asks to write; expected this service's own"
                " page"
            )

    def check_predict(self, headers: Mapping[str, str]) -> None:
        """Raises MissingKey."""
        if self._api_key is not None:
            _check_bearer(headers, self._api_key, "the API key (ADAMIX_API_KEY)")


def kept_admin_key(store: Path) -> tuple[str, Path, bool]:
    """The admin key in the file beside the store, which is made if there is none: the key, its
    file, and whether it is new."""
    path = store.with_name(f"{store.name}.admin-key")
    with contextlib.suppress(FileNotFoundError):
        key = path.read_text().strip()
        if key:  # an empty file is of a first start that crashed before it wrote the key
            return key, path, False
    key = secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"{key}\n")
    return key, path, True


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_bearer(headers: Mapping[str, str], key: str, name: str) -> None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise MissingKey(f"this request bears no key; expected {name} as 'Authorization: Bearer …'")
    if not hmac.compare_digest(token.strip().encode(), key.encode()):
        raise MissingKey(f"this request bears a wrong key; expected {name}")
