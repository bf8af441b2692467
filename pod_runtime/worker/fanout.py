"""What a room tells its clients: gathered for one turn of the loop, encoded once, written to each.

Thirty people who type cost a room thirty writes for each change; so changes that come together go out
together, cursors with them, and a change is not sent back to the client that made it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from pycrdt import create_awareness_message, create_update_message, merge_updates

from pod_runtime.worker import presence
from pod_runtime.worker.channel import SocketChannel
from pod_runtime.worker.frames import BINARY, encode
from pod_runtime.worker.presence import State

log = logging.getLogger(__name__)

#: A client is sent its own change back all the same when that was not done for so many seconds: y-websocket
#: takes a server from which nothing comes for 30 s for dead, whatever it is told.
ECHO_EVERY = 10.0


class FanOut:
    """One room's ``channels``, and what they are to be told at the end of this turn of the loop."""

    def __init__(self) -> None:
        self.channels: set[SocketChannel] = set()
        self._updates: list[bytes] = []
        self._sender: SocketChannel | None = None
        self._states: dict[int, State] = {}
        self._scheduled = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def update(self, update: bytes, sender: SocketChannel | None) -> None:
        """A change. ``sender`` already has exactly this; None when that is not known of anybody."""
        if not self._updates:
            self._sender = sender
        elif self._sender is not sender:
            self._sender = None
        self._updates.append(update)
        self._schedule()

    def states(self, states: Iterable[State]) -> None:
        """Presence, for everybody; of one client's states in one turn, the last is told."""
        for state in states:
            self._states[state.client] = state
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop = self._loop or asyncio.get_running_loop()
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        change = b"".join(encode(BINARY, create_update_message(u)) for u in self._merged())
        people = b""
        if self._states:
            people = encode(BINARY, create_awareness_message(presence.encode(self._states.values())))
            self._states = {}
        everything = change + people
        now = self._loop.time() if self._loop is not None else 0.0
        for channel in self.channels:
            data = everything
            if channel is self._sender:
                if now - channel.echoed < ECHO_EVERY:
                    data = people
                else:
                    channel.echoed = now
            try:
                if data:
                    channel.post_frames(data)
            except Exception:
                log.exception("a client of %r could not be told", channel.path)
                channel.abort()
        self._sender = None

    def _merged(self) -> list[bytes]:
        """The changes as one, if need be as they came."""
        updates, self._updates = self._updates, []
        if len(updates) > 1:
            try:
                return [merge_updates(*updates)]
            except ValueError:
                log.exception("changes could not be merged")
        return updates
