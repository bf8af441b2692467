"""What the worker tells pages: files changed, durability, notices. One bounded queue a listener."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

Event = dict[str, Any]
#: Events that a listener may be behind before it is dropped (it reconnects and reads anew).
MAX_BEHIND = 256
#: Most changes in one event; a larger batch says so and names none, and pages list anew.
MAX_CHANGES = 500


class Listener:
    """One listener's queue; `get` gives None when the listener was too slow and is to be closed."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue(MAX_BEHIND + 1)
        self._dropped = False

    def put(self, event: Event) -> None:
        if self._dropped:
            return
        if self._queue.qsize() >= MAX_BEHIND:
            self._dropped = True
            self._queue.put_nowait(None)
        else:
            self._queue.put_nowait(event)

    def end(self) -> None:
        """No more events: the worker stops."""
        if not self._dropped:
            self._dropped = True
            self._queue.put_nowait(None)

    async def get(self) -> Event | None:
        return await self._queue.get()


class Events:
    """All listeners, and the last time that a person did something (not keep-alives)."""

    def __init__(self) -> None:
        self._listeners: set[Listener] = set()
        self.last_activity: float | None = None

    def active(self) -> None:
        """A person did something."""
        self.last_activity = time.time()

    def listen(self) -> Listener:
        listener = Listener()
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def send(self, event: Event) -> None:
        for listener in list(self._listeners):
            listener.put(event)

    def files(self, changes: Iterable[dict[str, str]]) -> None:
        """``[{path, kind: created|modified|deleted|moved, to?}]``."""
        listed = list(changes)
        if len(listed) > MAX_CHANGES:
            self.everything()
        elif listed:
            self.send({"type": "files", "changes": listed})

    def everything(self) -> None:
        """Anything may have changed: pages list anew."""
        self.send({"type": "files", "changes": [], "truncated": True})

    def notice(self, level: str, message: str) -> None:
        self.send({"type": "notice", "level": level, "message": message})

    def close(self) -> None:
        for listener in list(self._listeners):
            listener.end()
