"""One client's socket as a room sees it: bounded both ways, and never raising into the room."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

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

#: Messages from one client that wait to be handled.
MAX_INCOMING = 32
#: How long one message may take to leave, seconds.
SEND_TIMEOUT = 30.0


class SocketChannel:
    """A pycrdt ``Channel`` over a Tornado WebSocket.

    `send` only queues. A client that lets more than ``max_outgoing`` bytes pile up, or lets one message
    wait longer than `SEND_TIMEOUT`, is closed with 1013 and comes back by itself.
    """

    def __init__(self, socket: WebSocketHandler, claims: Claims, path: str, max_outgoing: int) -> None:
        self.path = path
        self.claims = claims
        self.closed = False
        self._socket = socket
        self._max_outgoing = max_outgoing
        self._outgoing: deque[bytes] = deque()
        self._outgoing_size = 0
        self._wake = asyncio.Event()
        self._incoming: asyncio.Queue[bytes | None] = asyncio.Queue(MAX_INCOMING)
        self._writer = asyncio.create_task(self._write(), name=f"channel writer {path!r}")

    async def send(self, message: bytes) -> None:
        """Queue for the client; drops silently when it is closed."""
        self.post(message)

    def post(self, message: bytes) -> None:
        """`send`, from synchronous code."""
        if self.closed:
            return
        if self._outgoing_size and self._outgoing_size + len(message) > self._max_outgoing:
            self.close(CLOSE_TRY_AGAIN, "too slow")
            return
        self._outgoing.append(message)
        self._outgoing_size += len(message)
        self._wake.set()

    async def feed(self, message: bytes) -> None:
        """Take a message from the client; waits while the room is behind, which stops reading the socket."""
        if not self.closed:
            await self._incoming.put(message)

    async def recv(self) -> bytes:
        message = None if self.closed else await self._incoming.get()
        if message is None:
            raise StopAsyncIteration
        return message

    def __aiter__(self) -> SocketChannel:
        return self

    async def __anext__(self) -> bytes:
        return await self.recv()

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close once; later calls do nothing. ``reason`` is cut to 123 bytes."""
        if not self.closed:
            self.closed = True
            words = reason.encode()[:123].decode(errors="ignore")
            with contextlib.suppress(WebSocketClosedError, StreamClosedError):
                self._socket.close(code, words)
        self.gone()

    def gone(self) -> None:
        """The socket is closed: let the reader end."""
        self.closed = True
        self._wake.set()
        while self._incoming.full():
            self._incoming.get_nowait()
        self._incoming.put_nowait(None)

    async def finish(self) -> None:
        """Wait for the writer, which ends soon after `close`."""
        self.gone()
        self._writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writer

    async def _write(self) -> None:
        while not self.closed:
            await self._wake.wait()
            self._wake.clear()
            while self._outgoing and not self.closed:
                message = self._outgoing[0]
                try:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await self._socket.write_message(message, binary=True)
                except TimeoutError:
                    self.close(CLOSE_TRY_AGAIN, "too slow")
                    return
                except (WebSocketClosedError, StreamClosedError):
                    self.gone()
                    return
                self._outgoing.popleft()
                self._outgoing_size -= len(message)
