"""A key's secret and its hash.

A key is `name.secret`. The secret has 256 random bits, so nobody guesses it. scrypt (RFC 7914)
makes the hash slow all the same: a keys file may also hold a hash of a weaker secret.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets

COST, BLOCK, PARALLEL = 1 << 14, 8, 1  # N, r, p: 16 MiB and some 50 ms
MAX_MEMORY = 64 << 20  # bytes that one hash may take: 128 · N · r
SALT_BYTES, HASH_BYTES = 16, 32
_FORM = re.compile(
    r"scrypt\$([0-9]{1,8})\$([0-9]{1,3})\$([0-9]{1,3})\$([^$]{1,100})\$([^$]{1,100})"
)


class BadHash(ValueError):
    """A text that is no hash as `hashed` makes it. The message says what is expected of it."""


def new_secret() -> str:
    """256 random bits, as characters that a header can carry."""
    return secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """`scrypt$N$r$p$salt$hash`; salt and hash in base64."""
    salt = secrets.token_bytes(SALT_BYTES)
    made = _scrypt(secret, salt, COST, BLOCK, PARALLEL)
    return "$".join(("scrypt", str(COST), str(BLOCK), str(PARALLEL), _base64(salt), _base64(made)))


def check_hash(text: str) -> None:
    """Raises BadHash."""
    _parts(text)


def matches(secret: str, text: str) -> bool:
    """Whether `text` is a hash of this secret. Takes some 50 ms, without the interpreter's lock.
    Raises BadHash."""
    cost, block, parallel, salt, expected = _parts(text)
    return hmac.compare_digest(_scrypt(secret, salt, cost, block, parallel), expected)


def _parts(text: str) -> tuple[int, int, int, bytes, bytes]:
    found = _FORM.fullmatch(text)
    if found is None:
        raise BadHash("expected scrypt$N$r$p$SALT$HASH, as python -m service keys new prints it")
    cost, block, parallel = (int(part) for part in found.groups()[:3])
    if cost < 2 or cost & (cost - 1) or not block or not 1 <= parallel <= 16:
        raise BadHash("expected a power of two as N, and r and p of at least 1, p at most 16")
    if cost >= 1 << (16 * block):  # RFC 7914, section 2
        raise BadHash(f"its N is {cost}; expected less than 2^(16 r), which is {1 << 16 * block}")
    if 128 * cost * block > MAX_MEMORY:
        raise BadHash(
            f"its N and r take {128 * cost * block} bytes of memory; expected at most {MAX_MEMORY}"
        )
    try:
        salt, made = (base64.b64decode(part, validate=True) for part in found.groups()[3:])
    except binascii.Error:
        raise BadHash("expected a salt and a hash in base64") from None
    if len(salt) < SALT_BYTES or len(made) != HASH_BYTES:
        raise BadHash(
            f"expected a salt of at least {SALT_BYTES} bytes and a hash of {HASH_BYTES} bytes"
        )
    return cost, block, parallel, salt, made


def _scrypt(secret: str, salt: bytes, cost: int, block: int, parallel: int) -> bytes:
    return hashlib.scrypt(
        secret.encode(),
        salt=salt,
        n=cost,
        r=block,
        p=parallel,
        maxmem=2 * MAX_MEMORY,
        dklen=HASH_BYTES,
    )


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
