"""Keys: those of a keys file as it is now, and who bears one.

A hash takes some 50 ms, so a secret that was checked is remembered by its HMAC under a secret of
this process. Hashes are made in one thread, and few of them wait: whoever sends wrong keys keeps
one core busy at most, and nobody waits whose key is known.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets
import threading
from collections import Counter, OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from service.keys.file import InvalidKeys, read
from service.keys.hashes import matches
from service.keys.key import Key
from service.keys.limits import Limits
from service.refusals import KeyUnchecked

POLL_SECONDS = 0.2  # a change is read when it is seen unchanged a second time
REMEMBERED = 4096  # keys that were right, and as many that were wrong
MAX_WAITING = 64  # keys that wait for their hash, of all addresses
MAX_WAITING_OF_ADDRESS = 8
MAX_KEY_CHARACTERS = 512

log = structlog.get_logger("service")

Signature = tuple[int, ...]


class Keys:
    """The keys of one process. `valid` is whether the file as it is now is in use."""

    def __init__(self, path: Path, *, required: bool = True) -> None:
        """Raises InvalidKeys. Where the keys are not `required`, a damaged file counts as one
        without keys until it changes."""
        self._path = path
        self._signature = _signature(path)
        self.limits = Limits()
        self._keys: dict[str, Key] = {}
        self.valid = False
        if required:
            self._keys, self.valid = read(path), True
        else:
            self._read_again()
        self._secret = secrets.token_bytes(32)
        # digests of presented keys, each with the hash that it did, or did not, match
        self._right: OrderedDict[bytes, str] = OrderedDict()
        self._wrong: OrderedDict[bytes, str] = OrderedDict()
        self._checks: dict[bytes, asyncio.Task[bool]] = {}
        self._waiting: Counter[str] = Counter()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._stopped = threading.Event()
        self._watching: threading.Thread | None = None

    def start(self) -> None:
        """Read the file again when it changes, from now on."""
        self._watching = threading.Thread(target=self._watch, name="keys-file", daemon=True)
        self._watching.start()

    def stop(self) -> None:
        """Read no more, and check no more keys."""
        self._stopped.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def of(self, token: str, address: str) -> Key | None:
        """The key that a token is; None for a wrong one. Raises KeyUnchecked where too many keys
        wait for their check."""
        key = self._named(token)
        if key is None:
            return None
        digest = self._digest(token)
        if self._right.get(digest) == key.hash:
            self._right.move_to_end(digest)
            return key
        if self._wrong.get(digest) == key.hash:
            return None
        right = await self._checked(digest, token, key, address)
        _remember(self._right if right else self._wrong, digest, key.hash)
        # the file may have changed meanwhile
        return key if right and self._keys.get(key.name) == key else None

    async def _checked(self, digest: bytes, token: str, key: Key, address: str) -> bool:
        check = self._checks.get(digest)
        if check is None:
            if len(self._checks) >= MAX_WAITING or self._waiting[address] >= MAX_WAITING_OF_ADDRESS:
                raise KeyUnchecked
            check = asyncio.create_task(self._check(token, key.hash))
            self._checks[digest] = check
            self._waiting[address] += 1
            check.add_done_callback(lambda _: self._ended(digest, address))
        return await asyncio.shield(check)  # another request may wait for the same

    async def _check(self, token: str, text: str) -> bool:
        secret = token.partition(".")[2]
        return await asyncio.get_running_loop().run_in_executor(self._thread, matches, secret, text)

    def _ended(self, digest: bytes, address: str) -> None:
        del self._checks[digest]
        self._waiting[address] -= 1
        if not self._waiting[address]:
            del self._waiting[address]

    def _named(self, token: str) -> Key | None:
        """The key that a token names: so only one hash is tried."""
        if len(token) > MAX_KEY_CHARACTERS:
            return None
        name, dot, _ = token.partition(".")
        return self._keys.get(name) if dot else None

    def _digest(self, token: str) -> bytes:
        return hmac.digest(self._secret, token.encode(), hashlib.sha256)

    def _watch(self) -> None:
        before = self._signature
        while not self._stopped.wait(POLL_SECONDS):
            now = _signature(self._path)
            # twice the same: else somebody may still be writing it
            if now == before and now != self._signature:
                self._signature = now
                self._read_again()
            before = now

    def _read_again(self) -> None:
        try:
            keys = read(self._path)
        except InvalidKeys as error:
            self.valid = False
            log.error("the keys file is not usable; the keys read before stay", reason=str(error))
            return
        except Exception:  # the thread goes on, and the alert is raised
            self.valid = False
            log.exception("the keys file could not be read; the keys read before stay")
            return
        self.valid, self._keys = True, keys
        self.limits.forget(set(keys))
        log.info("keys file read again", keys=len(keys))


def _signature(path: Path) -> Signature:
    """What changes when a file does; of the file behind a link. Empty where there is none."""
    try:
        about = path.stat()
    except OSError:
        return ()
    return (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


def _remember(digests: OrderedDict[bytes, str], digest: bytes, text: str) -> None:
    digests[digest] = text
    if len(digests) > REMEMBERED:
        digests.popitem(last=False)
