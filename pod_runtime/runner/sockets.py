"""WebSockets whose unsent output is counted, bounded and, when nobody reads it, dropped with the client."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import ClassVar

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from pod_runtime.protocol.web import CLOSE_REVOKED, PodHandler

log = logging.getLogger(__name__)

#: The client did not read for too long.
CLOSE_SLOW = 4408
SEND_BUFFER = 128 * 1024
#: How long a closing handshake may take, seconds.
CLOSE_GRACE = 2.0


class BoundedSocket(PodHandler, WebSocketHandler):
    """Base of the runner's WebSockets.

    A client with more than ``high`` unsent bytes is ``stalled`` until it is below ``low`` again; stalled for
    ``patience`` seconds, or above ``hard`` bytes, it is closed with `CLOSE_SLOW`. Subclasses override
    ``opened``, ``received``, ``closed`` and ``drained``.
    """

    high: ClassVar[int] = 256 * 1024
    low: ClassVar[int] = 64 * 1024
    hard: ClassVar[int] = 8 * 2**20
    patience: ClassVar[float] = 10.0

    def initialize(self) -> None:
        self.pending = 0
        self._stall: asyncio.TimerHandle | None = None
        self._connected = False

    @property
    def stalled(self) -> bool:
        return self._stall is not None

    def check_origin(self, origin: str) -> bool:
        """The hub has compared the origin; a token it alone can sign came with the request."""
        return True

    def opened(self) -> None:
        """The handshake is done."""

    async def received(self, message: str | bytes) -> None:
        """One message; the next is not read before this returns."""

    def closed(self) -> None:
        """The connection is gone; called once, and only after ``opened``."""

    def drained(self) -> None:
        """The client is no longer stalled."""

    async def get(self, *args: str, **kwargs: str) -> None:
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise HTTPError(400, reason="This address speaks WebSocket only")
        await super().get(*args, **kwargs)

    def open(self, *args: str, **kwargs: str) -> None:
        self._connected = True
        self.set_nodelay(True)
        # what the kernel holds for a client that does not read is beyond our flow control: keep it small
        stream = getattr(self.ws_connection, "stream", None)
        if stream is not None:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.gatekeeper.add_socket(self.claims.subject, self._revoked)
        self.opened()

    async def on_message(self, message: str | bytes) -> None:
        if self._connected:
            await self.received(message)

    def on_close(self) -> None:
        if not self._connected:
            return
        self._connected = False
        self.gatekeeper.remove_socket(self.claims.subject, self._revoked)
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        self.closed()

    def _revoked(self) -> None:
        self.cut(CLOSE_REVOKED, "Your right to this project has ended")

    def cut(self, code: int, reason: str) -> None:
        """Close now as far as the rest of the program goes; the peer gets a moment to take the code."""
        self.close(code, reason)
        connection = self.ws_connection
        stream = getattr(connection, "stream", None)
        self.on_close()
        if stream is not None:
            asyncio.get_running_loop().call_later(CLOSE_GRACE, stream.close)

    def send(self, frame: str | bytes, *, binary: bool = False) -> None:
        """Queue one message; never raises and never waits."""
        if not self._connected:
            return
        size = len(frame)
        try:
            future = self.write_message(frame, binary=binary)
        except WebSocketClosedError:
            return
        self.pending += size
        future.add_done_callback(lambda done: self._sent(done, size))
        if self.pending > self.hard:
            self._too_slow()
        elif self.pending > self.high and self._stall is None:
            self._stall = asyncio.get_running_loop().call_later(self.patience, self._too_slow)

    def _sent(self, done: asyncio.Future[None], size: int) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            if not isinstance(error, WebSocketClosedError | StreamClosedError):
                log.warning("a websocket write failed: %r", error)
            return
        self.pending -= size
        if self._stall is not None and self.pending <= self.low:
            self._stall.cancel()
            self._stall = None
            self.drained()

    def _too_slow(self) -> None:
        log.info("closing a websocket that does not read (%d bytes unsent)", self.pending)
        self.cut(CLOSE_SLOW, "The connection is too slow")
