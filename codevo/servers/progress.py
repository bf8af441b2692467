"""What one start has done so far, as numbered events that any number of readers can follow."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime

from codevo.spawner.base import ServerState

#: Events that a log keeps; a reader who was behind goes on with the oldest kept.
MAX_EVENTS = 200
#: Longest message or reason, characters.
MAX_TEXT = 500

#: States after which nothing more happens by itself.
SETTLED = frozenset({ServerState.STOPPED, ServerState.READY, ServerState.FAILED})


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """A server at one instant: in ``state`` since ``since``; ``percent`` is of the start, 0–100."""

    state: ServerState
    since: datetime | None
    percent: int = 0
    message: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """``id`` is unique over all logs, so that one of another start is known to be another's."""

    id: str
    status: ServerStatus


class ProgressLog:
    """The events of one start: appended by the manager, read by many, at most `MAX_EVENTS` kept.

    It is closed with the start's end (ready, failed or stopped); readers get what is left, then end.
    """

    def __init__(self) -> None:
        self._prefix = secrets.token_hex(6)
        self._events: deque[tuple[int, ServerStatus]] = deque(maxlen=MAX_EVENTS)
        self._last = 0
        self._changed = asyncio.Event()
        self.closed = False

    @property
    def empty(self) -> bool:
        return not self._events

    def append(self, status: ServerStatus) -> None:
        """Add an event and wake the readers. A closed log takes nothing more."""
        if self.closed:
            return
        self._last += 1
        self._events.append((self._last, status))
        self._wake()

    def close(self) -> None:
        """No more events. Idempotent."""
        self.closed = True
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _position(self, last_event_id: str | None) -> int:
        prefix, _, number = (last_event_id or "").partition("-")
        if prefix == self._prefix and number.isascii() and number.isdigit() and len(number) < 10:
            return min(int(number), self._last)
        return 0

    async def follow(
        self, last_event_id: str | None = None, *, heartbeat: float = 15.0
    ) -> AsyncIterator[ProgressEvent | None]:
        """Events after ``last_event_id`` (all, when missing or of another start), until the log closes.

        Gives None when nothing happened for ``heartbeat`` seconds. A reader who already has the last event
        of a closed log gets it once more, so that each reading ends with the outcome.
        """
        at = self._position(last_event_id)
        if self.closed and self._events and at >= self._last:
            at = self._last - 1
        while True:
            changed = self._changed
            for number, status in [e for e in self._events if e[0] > at]:
                at = number
                yield ProgressEvent(f"{self._prefix}-{number}", status)
            if changed is not self._changed:
                continue
            if self.closed:
                return
            try:
                async with asyncio.timeout(heartbeat):
                    await changed.wait()
            except TimeoutError:
                yield None
