"""Wrong keys, counted by the address that sent them."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

import structlog

from service.refusals import TooManyWrongKeys

ATTEMPTS = 20  # wrong keys of an address within a minute; further ones are answered with 429
DISTINCT = 10  # different ones; then every key of the address is answered so, the right one too
SECONDS = 60.0
ADDRESSES = 4096  # that are remembered: so many, and no more memory

log = structlog.get_logger("service")


@dataclass
class _Address:
    ends: float  # of its minute, on the clock
    attempts: int = 0
    keys: set[int] = field(default_factory=set)


class WrongKeys:
    """A client with an outdated key sends the same wrong key again and again: it is told to wait,
    and others behind the same address are not. Whoever guesses sends many different keys: then the
    whole address is refused until its minute ends, for else an answer would tell the right key."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._addresses: OrderedDict[str, _Address] = OrderedDict()

    def check(self, address: str) -> None:
        """Raises TooManyWrongKeys where the address has tried many different keys."""
        found = self._addresses.get(_network(address)) if self._addresses else None
        if found is not None and len(found.keys) >= DISTINCT:
            self._refuse_until(found.ends)

    def count(self, address: str, key: str) -> None:
        """One wrong key. Raises TooManyWrongKeys beyond `ATTEMPTS`."""
        network, now = _network(address), self._clock()
        found = self._addresses.get(network)
        if found is None or found.ends <= now:
            self._addresses.pop(network, None)
            found = self._addresses[network] = _Address(now + SECONDS)
            if len(self._addresses) > ADDRESSES:
                self._addresses.popitem(last=False)
        found.attempts += 1
        if len(found.keys) < DISTINCT:
            found.keys.add(hash(key))
            if len(found.keys) == DISTINCT:
                log.warning(
                    "an address tries many keys; it is refused for a minute", client=address
                )
        if found.attempts > ATTEMPTS:
            self._refuse_until(found.ends)

    def _refuse_until(self, end: float) -> None:
        left = end - self._clock()
        if left > 0:
            raise TooManyWrongKeys(math.ceil(left))


def _network(address: str) -> str:
    """An IPv4 address, or the /64 of an IPv6 one: whoever has one of its addresses has all."""
    if ":" not in address:
        return address
    try:
        return str(ipaddress.ip_network(f"{address.partition('%')[0]}/64", strict=False))
    except ValueError:
        return address
