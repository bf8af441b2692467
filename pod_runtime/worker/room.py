"""A document's room: pycrdt-websocket's `YRoom`, with its faults designed out.

What `YRoom` does here is to apply what clients send and to broadcast what changes. Ours are: the order of
persistence (`Document`), the check of the client's history before anything is applied or sent, who may write,
bounds, awareness by socket, and that one client's fault never reaches the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from pycrdt import Doc, YMessageType, YSyncMessageType, create_awareness_message, read_message
from pycrdt.websocket import YRoom

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import presence
from pod_runtime.worker.channel import (
    CLOSE_BAD_MESSAGE,
    CLOSE_FORBIDDEN,
    CLOSE_OTHER_HISTORY,
    CLOSE_TOO_LARGE,
    SocketChannel,
)
from pod_runtime.worker.presence import BadAwareness, Presence

log = logging.getLogger(__name__)

_QUERY_AWARENESS = 3
_EMPTY_UPDATE = b"\x00\x00"
#: Seconds that a client has for its first sync message.
FIRST_MESSAGE_TIMEOUT = 60.0


class Refused(Exception):
    """The client is closed with ``code`` and these words."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def state_vector_clients(vector: bytes) -> set[int]:
    """The client ids of an encoded state vector. Raises ``ValueError`` when malformed."""
    numbers: list[int] = []
    value = shift = 0
    for byte in vector:
        value |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise ValueError("state vector is malformed")
        if byte < 128:
            numbers.append(value)
            value = shift = 0
    if shift or not numbers or len(numbers) != 1 + 2 * numbers[0]:
        raise ValueError("state vector is malformed")
    return set(numbers[1::2])


class PresenceRoom:
    """Awareness alone: who is in the project. Sync messages are answered with an empty document."""

    def __init__(self) -> None:
        self.presence = Presence()
        self.channels: set[SocketChannel] = set()

    def awareness(self, channel: SocketChannel, update: bytes) -> None:
        """Take a client's update and tell everybody, the client itself too: its watchdog needs it."""
        claims = channel.claims
        states = presence.sign(presence.decode(update), claims.name, claims.role)
        told = self.presence.apply(channel, claims.subject, states)
        message = create_awareness_message(presence.encode(told))
        for other in list(self.channels) if told else [channel]:
            other.post(message)

    def join(self, channel: SocketChannel) -> None:
        """Count the client in and tell it who is there."""
        self.channels.add(channel)
        self.tell_all(channel)

    def tell_all(self, channel: SocketChannel) -> None:
        """Send every present state."""
        if states := self.presence.states():
            channel.post(create_awareness_message(presence.encode(states)))

    def leave(self, channel: SocketChannel) -> None:
        """Take the client's states away, at once and for all."""
        self.channels.discard(channel)
        if gone := self.presence.leave(channel):
            message = create_awareness_message(presence.encode(gone))
            for other in list(self.channels):
                other.post(message)

    async def serve(self, channel: SocketChannel) -> None:
        """Until the client is gone."""
        self.join(channel)
        try:
            async for message in channel:
                if not message:
                    raise BadAwareness("empty message")
                if message[0] == YMessageType.AWARENESS:
                    self.awareness(channel, read_message(message[1:]))
                elif message[0] == _QUERY_AWARENESS:
                    self.tell_all(channel)
                elif message[:2] == bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP1]):
                    channel.post(bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP2, 2]) + _EMPTY_UPDATE)
        except (BadAwareness, IndexError, RuntimeError, AssertionError) as e:
            channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")
        finally:
            self.leave(channel)


class _Filter:
    """The channel that `YRoom.serve` reads: only messages that may be applied come out of it."""

    def __init__(self, room: Room, channel: SocketChannel, first: bytes) -> None:
        self._room, self._channel, self._first = room, channel, first
        self.path = channel.path

    async def send(self, message: bytes) -> None:
        self._channel.post(message)

    async def recv(self) -> bytes:
        return await self.__anext__()

    def __aiter__(self) -> _Filter:
        return self

    async def __anext__(self) -> bytes:
        if self._first:
            first, self._first = self._first, b""
            return first
        while True:
            # a client with many messages waiting must not keep the loop to itself
            await asyncio.sleep(0)
            message = await self._channel.recv()
            try:
                if self._room.admits(self._channel, message):
                    return message
            except Refused as e:
                self._channel.close(e.code, str(e))
                raise StopAsyncIteration from e
            except (BadAwareness, IndexError, RuntimeError, AssertionError, ValueError) as e:
                self._channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")
                raise StopAsyncIteration from e


class Room(YRoom):
    """One document's clients.

    ``admit_update(update)`` is asked before a change is applied and raises `Refused` to close its sender.
    """

    def __init__(self, doc: Doc[Any], epoch: int, admit_update: Callable[[bytes], None]) -> None:
        super().__init__(ydoc=doc, log=log)
        self.epoch = epoch
        self.people = PresenceRoom()
        self._admit_update = admit_update
        #: called with the person's name for each of their updates that is admitted
        self.on_edit: Callable[[str], None] = lambda name: None
        # the server is nobody: without a local state nothing is renewed for it
        self.awareness.set_local_state(None)
        self.on_message_error = self._on_error
        self._task: asyncio.Task[None] | None = None

    def send_server_awareness(self, type: str, changes: object) -> None:
        """Nothing: awareness is `PresenceRoom`'s."""

    def _on_error(self, error: Exception, message: bytes, channel: object) -> bool:
        log.warning("a message of a client could not be applied: %s", error)
        if isinstance(channel, _Filter):
            channel._channel.close(CLOSE_BAD_MESSAGE, "bad message: it could not be applied")
        return True

    async def run(self) -> None:
        """Start; returns when clients can be served."""
        self._task = asyncio.create_task(self.start(), name="room")
        await self.started.wait()
        await self.ydoc_observed.wait()

    async def end(self, code: int, words: str) -> None:
        """Close every client and stop."""
        self.close_all(code, words)
        if self._task is not None:
            # what is queued for broadcasting has nobody left to go to
            await self.stop()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None

    def close_all(self, code: int, words: str) -> None:
        """Close every client."""
        for channel in list(self.people.channels):
            channel.close(code, words)

    async def serve_client(self, channel: SocketChannel) -> None:
        """Until the client is gone: check its history, then sync."""
        first = await self._first_message(channel)
        if first is None:
            return
        self.people.join(channel)
        try:
            await self.serve(_Filter(self, channel, first))
        finally:
            self.people.leave(channel)

    async def _first_message(self, channel: SocketChannel) -> bytes | None:
        """The client's first sync step 1, or None when it was closed. Nothing before it is applied."""
        try:
            async with asyncio.timeout(FIRST_MESSAGE_TIMEOUT):
                async for message in channel:
                    if message[:1] != bytes([YMessageType.SYNC]):
                        continue  # awareness is sent again every 15 s
                    if message[1] != YSyncMessageType.SYNC_STEP1:
                        continue
                    clients = state_vector_clients(read_message(message[2:]))
                    if clients and self.epoch not in clients:
                        channel.close(CLOSE_OTHER_HISTORY, "this document has another history")
                        return None
                    return message
        except TimeoutError:
            channel.close(CLOSE_BAD_MESSAGE, "no sync message")
        except (IndexError, RuntimeError, AssertionError, ValueError) as e:
            channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")
        return None

    def admits(self, channel: SocketChannel, message: bytes) -> bool:
        """Whether `YRoom` shall handle this message. Raises `Refused` and parsers' errors."""
        kind = message[0]
        if kind == YMessageType.AWARENESS:
            self.people.awareness(channel, read_message(message[1:]))
            return False
        if kind == _QUERY_AWARENESS:
            self.people.tell_all(channel)
            return False
        if kind != YMessageType.SYNC:
            return False  # auth (2) goes from servers to clients only; others are not known
        if message[1] == YSyncMessageType.SYNC_STEP1:
            state_vector_clients(read_message(message[2:]))
            return True
        if message[1] not in (YSyncMessageType.SYNC_STEP2, YSyncMessageType.SYNC_UPDATE):
            raise ValueError("unknown sync message")
        update = read_message(message[2:])
        if update == _EMPTY_UPDATE:
            return False
        if not channel.claims.role.allows(Role.EDITOR):
            if message[1] == YSyncMessageType.SYNC_UPDATE:
                raise Refused(CLOSE_FORBIDDEN, "viewers cannot edit")
            # a viewer may hold what a crash took from us; it is its author's to send again
            return False
        self._admit_update(update)
        self.on_edit(channel.claims.name)
        return True


def too_large(limit: int) -> Refused:
    """The document would be larger than ``limit`` bytes."""
    return Refused(CLOSE_TOO_LARGE, f"the document would be larger than {limit} bytes")
