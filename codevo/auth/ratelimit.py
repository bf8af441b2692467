"""Counting attempts in bounded memory."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable


class RateLimit:
    """At most ``count`` attempts per key in any ``seconds``.

    At most ``keys`` keys are remembered; beyond that the one unused for longest is forgotten, which makes
    the limit softer under a flood of keys and never harder for anybody else.
    """

    def __init__(
        self,
        count: int,
        seconds: float,
        *,
        keys: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = count
        self.seconds = seconds
        self._keys = keys
        self._clock = clock
        self._attempts: OrderedDict[str, deque[float]] = OrderedDict()

    def wait(self, key: str) -> int:
        """Seconds until the next attempt is allowed, rounded up; 0 means now."""
        attempts = self._attempts.get(key)
        if attempts is None:
            return 0
        now = self._clock()
        while attempts and attempts[0] <= now - self.seconds:
            attempts.popleft()
        if len(attempts) < self.count:
            return 0
        return max(1, math.ceil(attempts[0] + self.seconds - now))

    def add(self, key: str) -> None:
        """Count one attempt."""
        attempts = self._attempts.setdefault(key, deque(maxlen=self.count))
        attempts.append(self._clock())
        self._attempts.move_to_end(key)
        while len(self._attempts) > self._keys:
            self._attempts.popitem(last=False)

    def clear(self, key: str) -> None:
        """Forget a key's attempts: the last one succeeded."""
        self._attempts.pop(key, None)

    def __len__(self) -> int:
        return len(self._attempts)


def address_key(address: str) -> str:
    """What an address is counted under: itself, or its /64 for IPv6 (one household has 2^64 of them)."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped:
            return str(ip.ipv4_mapped)
        return str(ipaddress.IPv6Network((ip, 64), strict=False))
    return str(ip)


def is_loopback(address: str) -> bool:
    """Whether the address is this machine's own loopback; False for what is no address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        return ip.ipv4_mapped.is_loopback
    return ip.is_loopback
