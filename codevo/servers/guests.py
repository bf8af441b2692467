"""How often strangers may start other people's public projects."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable

#: Keys that are remembered; the ones that started longest ago go first.
MAX_KEYS = 10_000


class GuestStarts:
    """At most ``each`` starts by one key and ``total`` by all together in ``window`` seconds."""

    def __init__(
        self,
        each: int = 5,
        total: int = 30,
        window: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._each, self._total, self._window, self._clock = each, total, window, clock
        self._all: deque[float] = deque()
        self._by_key: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, key: str) -> int:
        """Count a start and give 0, or give the seconds to wait for one, uncounted."""
        now = self._clock()
        own = self._by_key.setdefault(key, deque())
        self._by_key.move_to_end(key)
        for times in (own, self._all):
            while times and times[0] <= now - self._window:
                times.popleft()
        full = [t for t, bound in ((own, self._each), (self._all, self._total)) if len(t) >= bound]
        if full:
            return max(1, int(max(t[0] for t in full) + self._window - now) + 1)
        own.append(now)
        self._all.append(now)
        if len(self._by_key) > MAX_KEYS:
            self._by_key.popitem(last=False)
        return 0
