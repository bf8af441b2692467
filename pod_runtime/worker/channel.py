"""One client's WebSocket as a room sees it: bounded both ways, and never raising into the room.

It stands on the socket's transport itself. A keystroke goes to everybody, so what one frame costs is what a
room costs: reading is one ``recv``, telling a client is one ``send`` of bytes that all clients share.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, cast

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import frames
from pod_runtime.worker.frames import BINARY, CLOSE, PING, TEXT, FrameError, FrameReader

if TYPE_CHECKING:
    from pod_runtime.protocol.tokens import Claims

log = logging.getLogger(__name__)

#: The person may not do this (any more).
CLOSE_FORBIDDEN = 4403
#: The file is gone.
CLOSE_GONE = 4404
#: The client holds another history.
CLOSE_OTHER_HISTORY = 4409
#: The document is larger than allowed.
CLOSE_TOO_LARGE = 4413
#: The file is not text.
CLOSE_NOT_TEXT = 4415
#: The client sent what is not the protocol (RFC 6455: 1002 is the frame layer's, 1008 policy).
CLOSE_BAD_MESSAGE = 4400
#: Come back later: too slow, too many documents, stopping.
CLOSE_TRY_AGAIN = 1013

#: Messages, and about how many bytes of them, that one client gets handled in one turn of the loop.
TURN_MESSAGES = 64
TURN_BYTES = 64 * 1024
#: How long what waits for a client may take to leave, seconds.
SEND_TIMEOUT = 30.0
#: Seconds between two pings, and for the client to be heard after one.
PING_INTERVAL = 25.0
PING_TIMEOUT = 20.0
#: Seconds for a client to answer a close frame.
CLOSE_GRACE = 5.0

Deliver = Callable[[list[bytes]], None]


class Pace(Protocol):
    """How long a client's message waits."""

    def pause(self, message: bytes, now: float) -> float:
        """Seconds; ``now`` is the loop's time."""


class SocketChannel(asyncio.Protocol):
    """The server's end of a WebSocket, after the handshake.

    `post` writes at once; a client that lets more than ``max_outgoing`` bytes pile up, or of what waits lets
    nothing leave for `SEND_TIMEOUT`, is closed with 1013 and comes back by itself. What the client sends is
    given to what `deliver` named, several messages at a time, at most `TURN_MESSAGES` in one turn of the
    loop; until it did, and while there is more than that, the socket is not read. A message above
    ``max_message`` bytes closes it with 1009.

    ``closed``: nothing can be sent any more. ``ended`` is set at the same moment.
    """

    def __init__(
        self,
        claims: Claims,
        path: str,
        *,
        max_message: int,
        max_outgoing: int,
        active: Callable[[], None] = lambda: None,
        pace: Pace | None = None,
    ) -> None:
        self.path = path
        self.claims = claims
        #: Whether the person may change anything.
        self.writes = claims.role.allows(Role.EDITOR)
        #: To be called when the person did something, which keep-alives are not.
        self.active = active
        self.closed = False
        self.ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        #: When the room last sent the client its own change back (`FanOut`), by the loop's clock.
        self.echoed = self._loop.time()
        self._reader = FrameReader(max_message)
        self._max_outgoing = max_outgoing
        self._pace = pace
        self._deliver: Deliver | None = None
        self._transport: asyncio.Transport | None = None
        self._lost = asyncio.Event()
        self._held: bytes | None = None
        self._turn: asyncio.Handle | None = None
        self._reading = True
        self._heard = True
        self._keeper: asyncio.TimerHandle | None = None
        self._closer: asyncio.TimerHandle | None = None
        self._stall: asyncio.TimerHandle | None = None
        self._waited = self._added = 0

    # -- for rooms

    def deliver(self, take: Deliver) -> None:
        """From now on ``take`` gets the client's messages."""
        self._deliver = take
        self._soon()

    def post(self, message: bytes) -> None:
        """Send a message; drops silently when closed."""
        self.post_frames(frames.encode(BINARY, message))

    def post_frames(self, data: bytes) -> None:
        """Send encoded frames; drops silently when closed."""
        transport = self._transport
        if self.closed or transport is None:
            return
        if self._stall is not None:
            if transport.get_write_buffer_size() + len(data) > self._max_outgoing:
                self.close(CLOSE_TRY_AGAIN, "too slow")
                return
            self._added += len(data)
        transport.write(data)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close once; later calls do nothing. ``reason`` is cut to 123 bytes."""
        if self.closed:
            return
        self._end()
        if self._transport is not None:
            self._transport.write(frames.encode_close(code, reason))
            self._closer = self._loop.call_later(CLOSE_GRACE, self._transport.abort)
            # its answer is still to be read
            self._soon()

    def abort(self) -> None:
        """End without a word."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    async def finish(self) -> None:
        """Wait until the connection is gone, which it is soon after `close`; cancelled, it goes at once."""
        try:
            await self._lost.wait()
        except asyncio.CancelledError:
            self.abort()
            await self._lost.wait()
            raise

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # told of every byte that the kernel does not take at once
        self._transport.set_write_buffer_limits(high=0)
        self._keeper = self._loop.call_later(PING_INTERVAL, self._ping)

    def connection_lost(self, error: Exception | None) -> None:
        self._end()
        self._lost.set()
        for timer in (self._keeper, self._closer, self._stall, self._turn):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._heard = True
        self._reader.feed(data)
        if self._turn is None:
            self._take_turn()

    def pause_writing(self) -> None:
        self._await_progress()

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # -- inside

    def _end(self) -> None:
        self.closed = True
        self.ended.set()

    def _soon(self) -> None:
        if self._turn is None and self._held is None and self._transport is not None:
            self._turn = self._loop.call_soon(self._take_turn)

    def _read(self, on: bool) -> None:
        transport = self._transport
        if on != self._reading and transport is not None and not transport.is_closing():
            self._reading = on
            if on:
                transport.resume_reading()
            else:
                transport.pause_reading()

    def _take_turn(self) -> None:
        self._turn = None
        if self._deliver is None and not self.closed:
            self._read(False)
            return
        messages, more = self._gather()
        if messages and self._deliver is not None:
            try:
                self._deliver(messages)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException:
                # a panic of the native code is a BaseException: it ends this client, not the worker
                log.exception("a client of %r failed", self.path)
                self.close(1011, "internal error")
        self._read(not more)
        if more:
            self._soon()

    def _gather(self) -> tuple[list[bytes], bool]:
        """The messages of one turn, and whether there is more to do than to wait for the socket."""
        messages: list[bytes] = []
        size = 0
        if self._held is not None and not self.closed:
            messages.append(self._held)
            size = len(self._held)
        self._held = None
        try:
            for _ in range(TURN_MESSAGES):
                found = self._reader.next()
                if found is None:
                    return messages, False
                opcode, message = found
                if opcode != BINARY:
                    self._control(opcode, message)
                elif not self.closed:
                    if self._pace is not None and (wait := self._pace.pause(message, self._loop.time())):
                        self._held = message
                        self._turn = self._loop.call_later(wait, self._take_turn)
                        return messages, True
                    messages.append(message)
                    size += len(message)
                    if size >= TURN_BYTES:
                        break
        except FrameError as e:
            self.close(e.code, str(e))
            # what follows cannot be read, an answer neither
            if self._transport is not None:
                self._transport.close()
            return messages, False
        return messages, True

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == PING:
            self.post_frames(frames.encode(frames.PONG, payload))
        elif opcode == CLOSE and self._transport is not None:
            self.close(frames.close_code(payload))
            self._transport.close()
        elif opcode == TEXT:
            self.close(CLOSE_BAD_MESSAGE, "bad message: text")

    def _ping(self) -> None:
        # who is not read cannot be heard
        self._heard = not self._reading
        self.post_frames(frames.encode(PING, b""))
        self._keeper = self._loop.call_later(PING_TIMEOUT, self._expect)

    def _expect(self) -> None:
        if self._heard or not self._reading:
            self._keeper = self._loop.call_later(PING_INTERVAL - PING_TIMEOUT, self._ping)
        else:
            self.abort()

    def _await_progress(self) -> None:
        assert self._transport is not None
        self._waited, self._added = self._transport.get_write_buffer_size(), 0
        self._stall = self._loop.call_later(SEND_TIMEOUT, self._check_progress)

    def _check_progress(self) -> None:
        assert self._transport is not None
        # all that waited when the time began must have left by now
        if self._transport.get_write_buffer_size() > self._added:
            self.close(CLOSE_TRY_AGAIN, "too slow")
        elif not self.closed:
            self._await_progress()
