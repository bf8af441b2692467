"""The line in which starts wait for their turn."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Turn:
    """One start's place. ``tell`` hears the place (1 = next) each time it changes."""

    tell: Callable[[int], None]
    granted: asyncio.Event = field(default_factory=asyncio.Event)


class StartQueue:
    """At most ``concurrent`` turns are granted at a time, in order; at most ``waiting`` others wait.

    Joining and leaving are synchronous, so that a burst of requests in one step of the loop is counted.
    """

    def __init__(self, concurrent: int, waiting: int) -> None:
        self._concurrent = concurrent
        self._bound = waiting
        self._granted: set[Turn] = set()
        self._waiting: deque[Turn] = deque()

    @property
    def full(self) -> bool:
        """Whether one more start would be one too many."""
        return len(self._granted) >= self._concurrent and len(self._waiting) >= self._bound

    def join(self, tell: Callable[[int], None]) -> Turn:
        """Get in line; the turn may be granted at once. Callers look at `full` before."""
        turn = Turn(tell)
        if len(self._granted) < self._concurrent:
            self._grant(turn)
        else:
            self._waiting.append(turn)
            tell(len(self._waiting))
        return turn

    def leave(self, turn: Turn) -> None:
        """Done, failed or cancelled: the next one may go. Idempotent."""
        if turn in self._granted:
            self._granted.discard(turn)
        elif turn in self._waiting:
            self._waiting.remove(turn)
        else:
            return
        while self._waiting and len(self._granted) < self._concurrent:
            self._grant(self._waiting.popleft())
        for place, waiting in enumerate(self._waiting, 1):
            waiting.tell(place)

    def _grant(self, turn: Turn) -> None:
        self._granted.add(turn)
        turn.granted.set()
