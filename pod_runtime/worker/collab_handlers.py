"""Documents and presence: the WebSocket handshake, then a `SocketChannel` on the bare socket."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import logging

from tornado.web import HTTPError

from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.sockets import take_over
from pod_runtime.protocol.web import CLOSE_REVOKED
from pod_runtime.worker.channel import CLOSE_TRY_AGAIN, SocketChannel
from pod_runtime.worker.handlers import WorkerHandler

log = logging.getLogger(__name__)

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class ViewerPace:
    """How long a viewer's messages wait: what one says goes to everybody, and a question about the document
    is answered with all of it, so a stranger could keep everybody busy. Counted in bytes, at least `LEAST` a
    message and `QUESTION` a question."""

    RATE = 64 * 1024.0
    BURST = 512 * 1024.0
    LEAST = 512
    QUESTION = 64 * 1024

    def __init__(self) -> None:
        self._free, self._at = self.BURST, 0.0

    def pause(self, message: bytes, now: float) -> float:
        """Seconds to wait before this message is handled; ``now`` is a monotonic clock in seconds."""
        self._free = min(self.BURST, self._free + (now - self._at) * self.RATE)
        self._at = now
        question = message[:2] == b"\x00\x00" or message[:1] == b"\x03"
        self._free -= max(len(message), self.QUESTION if question else self.LEAST)
        return max(0.0, -self._free / self.RATE)


class _ChannelHandler(WorkerHandler):
    """A y-websocket client: closed when the person's right ends, and when the worker stops.

    The origin is not looked at: the hub has compared it, and without the hub's token nobody comes this far.
    """

    channel: SocketChannel

    async def get(self, path: str = "") -> None:
        answer = self._handshake()
        path = path.strip("/")
        limit = self.worker.config.max_document
        self.channel = SocketChannel(
            self.claims,
            path,
            # up to what the document check can answer with words; the check itself is stricter
            max_message=8 * limit + 2**20,
            max_outgoing=16 * limit + 2**20,
            active=self.worker.events.active,
            pace=None if self.claims.role.allows(Role.EDITOR) else ViewerPace(),
        )
        if not await self._take_over(answer):
            return
        self.gatekeeper.add_socket(self.claims.subject, self.revoked)
        self.worker.sockets.add(self)
        task = asyncio.create_task(self._serve(), name=f"client of {path!r}")
        self.worker.clients.add(task)
        task.add_done_callback(self.worker.clients.discard)

    def _handshake(self) -> bytes:
        """The answer that accepts the client (RFC 6455, section 4.2). Raises ``HTTPError``."""
        headers = self.request.headers
        connection = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
        if headers.get("Upgrade", "").strip().lower() != "websocket" or "upgrade" not in connection:
            raise HTTPError(400, reason="This address speaks WebSocket only")
        if headers.get("Sec-WebSocket-Version") != "13":
            self.set_header("Sec-WebSocket-Version", "13")
            raise HTTPError(426, reason="The WebSocket version is 13")
        key = headers.get("Sec-WebSocket-Key", "")
        try:
            sound = len(base64.b64decode(key, validate=True)) == 16
        except binascii.Error:
            sound = False
        if not sound:
            raise HTTPError(400, reason="Sec-WebSocket-Key: expected base64 of 16 bytes")
        accept = base64.b64encode(hashlib.sha1(key.encode() + _GUID).digest())  # noqa: S324
        return (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
        )

    async def _take_over(self, answer: bytes) -> bool:
        """Move the connection from Tornado's stream to the channel; False when the client has gone."""
        try:
            transport, early = await take_over(self.detach(), self.channel)
        except OSError:
            return False
        transport.write(answer)
        if early:
            self.channel.data_received(early)
        return True

    async def _serve(self) -> None:
        channel = self.channel
        try:
            await self.serve(channel)
        except Exception:
            log.exception("a client of %r failed", channel.path)
            channel.close(1011, "internal error")
        finally:
            self.gatekeeper.remove_socket(self.claims.subject, self.revoked)
            self.worker.sockets.discard(self)
            await channel.finish()

    async def serve(self, channel: SocketChannel) -> None:
        raise NotImplementedError

    def revoked(self) -> None:
        """The person's right has ended."""
        self.channel.close(CLOSE_REVOKED, "no longer allowed")

    def stop(self) -> None:
        """The worker stops."""
        self.channel.close(CLOSE_TRY_AGAIN, "the workspace stops")


class CollabHandler(_ChannelHandler):
    """``collab/{path}``: a document."""

    async def serve(self, channel: SocketChannel) -> None:
        await self.worker.documents.serve(channel.path, channel)


class PresenceHandler(_ChannelHandler):
    """``presence``: who is in the project."""

    async def serve(self, channel: SocketChannel) -> None:
        await self.worker.presence.serve(channel)
