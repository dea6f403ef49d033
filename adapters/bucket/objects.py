"""The objects of one prefix of a bucket: read, create, list, delete, each within a time limit.

obstore speaks S3, Google Cloud Storage and Azure; its errors become ours here, and only here.
Credentials are the clouds' own variables (AWS_…, GOOGLE_…, AZURE_…).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from adapters.errors import StoreError, StoreUnreachable
from adapters.pieces import copied
from adapters.spec import shortened

if TYPE_CHECKING:  # an extra
    from obstore.store import ClientConfig, ObjectStore

SCHEMES = ("s3", "gs", "az")
OWN = ("blobs", "trash", "log", "snapshots", "probe")  # what a store keeps under its prefix
NAMED = 3  # objects that a sentence names


@dataclass(frozen=True, slots=True)
class Listed:
    """One object: its key under the prefix, its size in bytes, and when it was last written, by the
    bucket's clock."""

    key: str
    bytes: int
    modified: datetime


class NotPermitted(StoreError):
    """The bucket refuses this access."""


class Objects:
    """The objects under one prefix. Safe to use from several threads.

    Each call raises StoreUnreachable where the bucket gives no answer within the time limit or
    answers with a fault of its own, and NotPermitted where it refuses.
    """

    def __init__(self, url: str, store: ObjectStore) -> None:
        self.url, self._store = url, store

    def read(self, key: str) -> bytes | None:
        """A small object's content; None if there is none."""
        found = self.fetch(key)
        return None if found is None else bytes(found)

    def fetch(self, key: str) -> memoryview | None:
        """An object's content, in a buffer of its own; None if there is none."""
        import obstore

        try:
            return copied(memoryview(obstore.get(self._store, key).bytes()))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("read", key, error) from None

    def fetch_start(self, key: str, most: int) -> memoryview | None:
        """The first bytes of an object, at most so many; None if there is none."""
        import obstore

        try:
            return copied(memoryview(obstore.get_range(self._store, key, start=0, length=most)))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("read", key, error) from None

    def create(self, key: str, data: bytes) -> bool:
        """Write an object only if there is none of that key; whether this call wrote it. Of several
        writers one wins. After StoreUnreachable it is unknown."""
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            obstore.put(self._store, key, data, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return False
        except Exception as error:
            raise self._error("write", key, error) from None
        return True

    def write(self, key: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object, over one that may be there."""
        import obstore

        try:
            obstore.put(self._store, key, data)
        except Exception as error:
            raise self._error("write", key, error) from None

    def exists(self, key: str) -> bool:
        """Whether there is such an object."""
        return self.modified(key) is not None

    def modified(self, key: str) -> datetime | None:
        """When an object was last written, by the bucket's clock; None if there is none."""
        import obstore

        try:
            return obstore.head(self._store, key)["last_modified"]
        except FileNotFoundError:
            return None
        except Exception as error:
            raise self._error("read", key, error) from None

    def under(self, folder: str, after: str | None = None) -> Iterator[Listed]:
        """The objects whose keys begin with `folder/`, those behind the key `after`."""
        import obstore

        try:
            for page in obstore.list(self._store, f"{folder}/", offset=after):
                for found in page:
                    yield Listed(found["path"], found["size"], found["last_modified"])
        except Exception as error:
            raise self._error("list", f"{folder}/", error) from None

    def foreign(self) -> list[str]:
        """Some of the names directly under the prefix that are no store's."""
        import obstore

        try:
            found = obstore.list_with_delimiter(self._store)
        except Exception as error:
            raise self._error("list", "", error) from None
        names = [prefix.rstrip("/") for prefix in found["common_prefixes"]]
        names += [each["path"] for each in found["objects"]]
        return [name for name in names if name not in OWN][:NAMED]

    def delete(self, key: str) -> None:
        """Delete an object, if it is there."""
        import obstore

        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return
        except Exception as error:
            raise self._error("delete", key, error) from None

    def check_conditions(self) -> None:
        """Create one probe twice. Raises StoreError if the bucket creates it the second time, too:
        two writers would then both believe that their change is the next one."""
        key = f"probe/{secrets.token_hex(16)}"
        created = [self.create(key, b"first"), self.create(key, b"second")]
        self.delete(key)
        if created != [True, False]:
            raise StoreError(
                f"the bucket {self.url} ignores the condition of a write (If-None-Match: *): it"
                " created one object twice; expected a bucket that refuses the second time"
            )

    def _error(self, what: str, key: str, error: Exception) -> StoreError:
        from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

        reason = shortened(str(error).splitlines()[0])
        where = f"{key!r} of the bucket {self.url}"
        if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
            return NotPermitted(
                f"the bucket's rights do not let this service {what} {where}; expected rights to"
                " list, read, write and delete",
                reason,
            )
        return StoreUnreachable(f"could not {what} {where}; expected an answer in time", reason)


def connect(url: str, timeout: float) -> Objects:
    """The objects under `url`, such as s3://bucket/prefix. `timeout` is in seconds, of one call
    with its repetitions. Connects to nothing yet. Raises StoreError for an address that is none, or
    where obstore is not installed."""
    check_address(url)
    try:
        import obstore.store
    except ModuleNotFoundError:
        raise StoreError(
            f"the store is {url}, but obstore is not installed; expected pip install"
            " 'adamix-serve[bucket]'"
        ) from None
    limit = timedelta(seconds=timeout)
    options: ClientConfig = {"timeout": limit, "connect_timeout": limit}
    # The cloud's own variable, which obstore passes over where it is given other options.
    options["allow_http"] = os.environ.get("AWS_ALLOW_HTTP", "").lower() in ("true", "1")
    try:
        store = obstore.store.from_url(
            url,
            client_options=options,
            # By itself it repeats for 180 seconds.
            retry_config={"max_retries": 3, "retry_timeout": limit},
        )
    except Exception as error:
        reason = shortened(str(error).splitlines()[0])
        raise StoreError(
            f"the store {url} cannot be opened: {reason}; expected s3://BUCKET/PREFIX,"
            " gs://BUCKET/PREFIX or az://CONTAINER/PREFIX"
        ) from None
    return Objects(url, store)


def check_address(url: str) -> None:
    """Raises StoreError for an address with a user, a query or a fragment. obstore passes them
    over, where a user means them as credentials; and the address is shown to clients and in logs,
    as this sentence is."""
    scheme, _, rest = url.partition("://")
    host = rest.partition("/")[0]
    if any(sign in host for sign in "@:") or any(sign in rest for sign in "?#"):
        raise StoreError(
            f"the store's address, {scheme}://…, is more than a bucket and a prefix: it holds a"
            f" user or a query, perhaps with a password; expected {scheme}://BUCKET/PREFIX alone,"
            " and credentials in the cloud's own variables"
        )


def is_bucket(store: str) -> bool:
    """Whether a store's address is a bucket's, not a folder's."""
    scheme, separator, _ = store.partition("://")
    return bool(separator) and scheme in SCHEMES
