"""Words for people, each said once."""

from __future__ import annotations

import asyncio

from pod_runtime.worker.persistence.changes import Notice

#: What was said is forgotten beyond so many.
MAX_SAID = 1000


class Notices:
    """Gives what is new to ``out(level, message)``."""

    def __init__(self, out: Notice) -> None:
        self.always = out
        self._said: set[str] = set()

    def once(self, level: str, message: str) -> None:
        """Say it unless it was said."""
        if message in self._said:
            return
        if len(self._said) >= MAX_SAID:
            self._said.clear()
        self._said.add(message)
        self.always(level, message)

    def from_threads(self) -> Notice:
        """`once`, for threads."""
        loop = asyncio.get_running_loop()

        def later(level: str, message: str) -> None:
            loop.call_soon_threadsafe(self.once, level, message)

        return later
