"""A document's room: pycrdt-websocket's `YRoom`, with its faults designed out.

Ours are: the order of persistence (`Document`), the check of the client's history before anything is applied
or sent, who may write, bounds, awareness by socket, that one client's fault never reaches the others, and the
way of a change to everybody (`FanOut`), which in `YRoom` is a task for each client and change.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from pycrdt import (
    Doc,
    TransactionEvent,
    YMessageType,
    YSyncMessageType,
    create_awareness_message,
    create_sync_message,
    handle_sync_message,
    read_message,
)
from pycrdt.websocket import YRoom

from pod_runtime.worker import presence
from pod_runtime.worker.channel import (
    CLOSE_BAD_MESSAGE,
    CLOSE_FORBIDDEN,
    CLOSE_OTHER_HISTORY,
    CLOSE_TOO_LARGE,
    CLOSE_TRY_AGAIN,
    SocketChannel,
)
from pod_runtime.worker.fanout import FanOut
from pod_runtime.worker.presence import BadAwareness, Presence

log = logging.getLogger(__name__)

_QUERY_AWARENESS = 3
_SYNC = bytes([YMessageType.SYNC])
_SYNC_STEP1 = bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP1])
_SYNC_STEP2 = bytes([YMessageType.SYNC, YSyncMessageType.SYNC_STEP2])
_EMPTY_UPDATE = b"\x00\x00"
#: What parsers raise for a message that is none.
_BAD = (BadAwareness, IndexError, RuntimeError, AssertionError, ValueError)
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
        self.out = FanOut()

    @property
    def channels(self) -> set[SocketChannel]:
        """Who is in."""
        return self.out.channels

    def awareness(self, channel: SocketChannel, update: bytes) -> None:
        """Take a client's update and tell everybody, the client itself too: its watchdog needs it."""
        claims = channel.claims
        states = presence.sign(presence.decode(update), claims.name, claims.role)
        if told := self.presence.apply(channel, claims.subject, states):
            self.out.states(told)
        else:
            channel.post(create_awareness_message(presence.encode([])))

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
            self.out.states(gone)

    async def serve(self, channel: SocketChannel) -> None:
        """Until the client is gone."""
        self.join(channel)
        channel.deliver(partial(self._take, channel))
        try:
            await channel.ended.wait()
        finally:
            self.leave(channel)

    def _take(self, channel: SocketChannel, messages: list[bytes]) -> None:
        try:
            for message in messages:
                if not message:
                    raise BadAwareness("empty message")
                if message[0] == YMessageType.AWARENESS:
                    self.awareness(channel, read_message(message[1:]))
                elif message[0] == _QUERY_AWARENESS:
                    self.tell_all(channel)
                elif message[:2] == _SYNC_STEP1:
                    channel.post(_SYNC_STEP2 + b"\x02" + _EMPTY_UPDATE)
        except _BAD as e:
            channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")


class Room(YRoom):
    """One document's clients.

    ``admit_update(update)`` is asked before a change is applied and raises `Refused` to close its sender.
    `YRoom` keeps the document and its life; messages are handled as they come, without tasks of their own.
    """

    def __init__(self, doc: Doc[Any], epoch: int, admit_update: Callable[[bytes], None]) -> None:
        super().__init__(ydoc=doc, log=log)
        self.epoch = epoch
        self.people = PresenceRoom()
        #: Told who edits, before the change is applied.
        self.on_edit: Callable[[str], None] = lambda name: None
        self._admit_update = admit_update
        # the server is nobody: without a local state nothing is renewed for it
        self.awareness.set_local_state(None)
        self._task: asyncio.Task[None] | None = None
        self._served: set[SocketChannel] = set()
        self._ended = False
        # whose changes are being applied, and which
        self._sender: SocketChannel | None = None
        self._applied: list[bytes] = []

    # -- of YRoom

    def send_server_awareness(self, type: str, changes: object) -> None:
        """Nothing: awareness is `PresenceRoom`'s."""

    async def _watch_ready(self) -> None:
        await self.ready_event.wait()
        self._subscription = self.ydoc.observe(self._changed)
        self.ydoc_observed.set()

    async def _broadcast_updates(self) -> None:
        # `_changed` tells `FanOut`; the queue that `YRoom` has for it stays unused
        self._update_send_stream.close()
        self._update_receive_stream.close()

    # -- life

    async def run(self) -> None:
        """Start; returns when clients can be served."""
        self._task = asyncio.create_task(self.start(), name="room")
        await self.started.wait()
        await self.ydoc_observed.wait()

    async def end(self, code: int, words: str) -> None:
        """Close every client and stop."""
        self._ended = True
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
        for channel in list(self._served):
            channel.close(code, words)

    async def serve_client(self, channel: SocketChannel) -> None:
        """Until the client is gone: check its history, then sync."""
        loop = asyncio.get_running_loop()
        overdue = loop.call_later(FIRST_MESSAGE_TIMEOUT, channel.close, CLOSE_BAD_MESSAGE, "no sync message")
        self._served.add(channel)
        channel.deliver(partial(self._greet, channel, overdue))
        if self._ended:
            channel.close(CLOSE_TRY_AGAIN, "the document was just closed")
        try:
            await channel.ended.wait()
        finally:
            overdue.cancel()
            self._served.discard(channel)
            self.people.leave(channel)

    # -- messages

    def _greet(self, channel: SocketChannel, overdue: asyncio.TimerHandle, messages: list[bytes]) -> None:
        """Wait for the client's first sync step 1. Nothing before it is applied."""
        try:
            for number, message in enumerate(messages):
                # awareness is sent again every 15 s
                if message[:1] != _SYNC or message[1] != YSyncMessageType.SYNC_STEP1:
                    continue
                clients = state_vector_clients(read_message(message[2:]))
                if clients and self.epoch not in clients:
                    channel.close(CLOSE_OTHER_HISTORY, "this document has another history")
                    return
                overdue.cancel()
                self.people.join(channel)
                channel.post(create_sync_message(self.ydoc))
                channel.deliver(partial(self._take, channel))
                self._take(channel, messages[number:])
                return
        except _BAD as e:
            channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")

    def _take(self, channel: SocketChannel, messages: list[bytes]) -> None:
        """Handle what came at once, as one transaction; the first fault ends the client."""
        self._sender, self._applied = channel, []
        try:
            # one alone needs no transaction around it
            with self.ydoc.transaction() if len(messages) > 1 else contextlib.nullcontext():
                for message in messages:
                    if not self._handled(channel, message):
                        break
        finally:
            self._sender, self._applied = None, []

    def _handled(self, channel: SocketChannel, message: bytes) -> bool:
        """Whether the client may go on."""
        try:
            update = self._admitted(channel, message)
        except Refused as e:
            channel.close(e.code, str(e))
            return False
        except _BAD as e:
            channel.close(CLOSE_BAD_MESSAGE, f"bad message: {e}")
            return False
        if update is None:
            return True
        self._applied.append(update)
        self.on_edit(channel.claims.name)
        try:
            self.ydoc.apply_update(update)
        except Exception as e:
            log.warning("a message of a client could not be applied: %s", e)
            channel.close(CLOSE_BAD_MESSAGE, "bad message: it could not be applied")
            return False
        return True

    def _admitted(self, channel: SocketChannel, message: bytes) -> bytes | None:
        """The change to apply, if the message is one; others are answered. Raises `Refused` and `_BAD`."""
        kind = message[0]
        if kind == YMessageType.AWARENESS:
            self.people.awareness(channel, read_message(message[1:]))
            return None
        if kind == _QUERY_AWARENESS:
            self.people.tell_all(channel)
            return None
        if kind != YMessageType.SYNC:
            return None  # auth (2) goes from servers to clients only; others are not known
        step = message[1]
        payload = read_message(message[2:])
        if step == YSyncMessageType.SYNC_STEP1:
            state_vector_clients(payload)
            answer = handle_sync_message(message[1:], self.ydoc)
            assert answer is not None
            channel.post(answer)
            return None
        if step not in (YSyncMessageType.SYNC_STEP2, YSyncMessageType.SYNC_UPDATE):
            raise ValueError("unknown sync message")
        if step == YSyncMessageType.SYNC_UPDATE:
            # what people do; awareness and state vectors also come by themselves
            channel.active()
        if payload == _EMPTY_UPDATE:
            return None
        if not channel.writes:
            if step == YSyncMessageType.SYNC_UPDATE:
                raise Refused(CLOSE_FORBIDDEN, "viewers cannot edit")
            # a viewer may hold what a crash took from us; it is its author's to send again
            return None
        self._admit_update(payload)
        return payload

    def _changed(self, event: TransactionEvent) -> None:
        update = event.update
        if update == _EMPTY_UPDATE:
            return
        # more than was sent comes out when it completes what others sent before
        known = len(self._applied) == 1 and self._applied[0] == update
        self.people.out.update(update, self._sender if known else None)


def too_large(limit: int) -> Refused:
    """The document would be larger than ``limit`` bytes."""
    return Refused(CLOSE_TOO_LARGE, f"the document would be larger than {limit} bytes")
