"""What comes and goes, told to whoever listens at ``api/events``."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, Protocol


class Listener(Protocol):
    def send(self, frame: str) -> None: ...


class Events:
    """Named sources of state. A change is told once per turn of the loop, and only when the state differs."""

    def __init__(self) -> None:
        self._sources: dict[str, Callable[[], dict[str, Any]]] = {}
        self._last: dict[str, str] = {}
        self._due: set[str] = set()
        self._listeners: set[Listener] = set()

    def add_source(self, kind: str, source: Callable[[], dict[str, Any]]) -> None:
        """``source`` gives the event's fields."""
        self._sources[kind] = source

    @property
    def listening(self) -> bool:
        return bool(self._listeners)

    def _frame(self, kind: str) -> str:
        return json.dumps({"type": kind, **self._sources[kind]()}, ensure_ascii=False)

    def attach(self, listener: Listener) -> None:
        """Add a listener; it gets the present state of everything."""
        for kind in self._sources:
            self._last[kind] = self._frame(kind)
            listener.send(self._last[kind])
        self._listeners.add(listener)

    def detach(self, listener: Listener) -> None:
        self._listeners.discard(listener)

    def changed(self, kind: str) -> None:
        """Something of this kind may have changed."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._tell)
        self._due.add(kind)

    def _tell(self) -> None:
        due, self._due = self._due, set()
        for kind in due:
            frame = self._frame(kind)
            if frame != self._last.get(kind):
                self._last[kind] = frame
                for listener in list(self._listeners):
                    listener.send(frame)
