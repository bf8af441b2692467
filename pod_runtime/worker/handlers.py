"""The worker's base handler, and the handlers of control, durability, events, documents and presence."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from typing import TYPE_CHECKING, Any, cast

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.web import CLOSE_REVOKED, PodHandler
from pod_runtime.worker.channel import CLOSE_BAD_MESSAGE, CLOSE_TRY_AGAIN, SocketChannel

if TYPE_CHECKING:
    from pod_runtime.worker.app import Worker

log = logging.getLogger(__name__)

#: Longest wait of a health request, seconds.
MAX_HEALTH_WAIT = 30.0


class WorkerHandler(PodHandler):
    """503 with Retry-After until the workspace is restored, and while the worker stops."""

    @property
    def worker(self) -> Worker:
        return cast("Worker", self.application.settings["worker"])

    def prepare(self) -> None:
        super().prepare()
        if self.worker.state != "ready" or self.worker.stopping:
            raise HTTPError(503, reason=self.worker.why_not())

    def set_default_headers(self) -> None:
        self.set_header("X-Content-Type-Options", "nosniff")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if status_code == 503:
            self.set_header("Retry-After", "1")
        super().write_error(status_code, **kwargs)

    def decode_argument(self, value: bytes, name: str | None = None) -> str:
        # parts of the path are file names, which may be any bytes
        return super().decode_argument(value, name) if name is not None else os.fsdecode(value)

    def write_json(self, value: object, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        # escaped, since names of files may hold lone surrogates
        self.finish(json.dumps(value))


class HealthHandler(PodHandler):
    reading = Role.HUB

    async def get(self) -> None:
        worker = cast("Worker", self.application.settings["worker"])
        try:
            wait = min(max(float(self.get_query_argument("wait", "0")), 0.0), MAX_HEALTH_WAIT)
        except ValueError as e:
            raise HTTPError(400, reason="wait: expected seconds") from e
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await worker.settled.wait()
        self.write_json({"state": worker.state, "percent": worker.percent, "message": worker.message})


class ActivityHandler(PodHandler):
    reading = Role.HUB

    def get(self) -> None:
        worker = cast("Worker", self.application.settings["worker"])
        self.write_json({"last_activity": worker.last_activity(), "busy": worker.busy()})


class FlushHandler(WorkerHandler):
    writing = Role.HUB

    async def post(self) -> None:
        status = await self.worker.flush()
        if status.pending:
            raise HTTPError(503, reason=status.last_error or "The store did not take everything yet")
        self.write_json(dataclasses.asdict(status))


class DurabilityHandler(WorkerHandler):
    def get(self) -> None:
        self.write_json(dataclasses.asdict(self.worker.persistence.status()))


class _Socket(WorkerHandler, WebSocketHandler):
    """A WebSocket of a person: closed when the right ends, and when the worker stops."""

    _registered = False

    def check_origin(self, origin: str) -> bool:
        # the hub has compared it, and without the hub's token nobody comes this far
        return True

    async def get(self, *args: Any, **kwargs: Any) -> None:
        await WebSocketHandler.get(self, *args, **kwargs)

    def register(self) -> None:
        """Call in ``open``."""
        self._registered = True
        self.gatekeeper.add_socket(self.claims.subject, self.revoked)
        self.worker.sockets.add(self)

    def revoked(self) -> None:
        """The person's right has ended."""
        self.close(CLOSE_REVOKED, "no longer allowed")

    def stop(self) -> None:
        """The worker stops."""
        self.close(CLOSE_TRY_AGAIN, "the workspace stops")

    def on_close(self) -> None:
        if self._registered:
            self.gatekeeper.remove_socket(self.claims.subject, self.revoked)
            self.worker.sockets.discard(self)


class EventsHandler(_Socket):
    """``api/worker/events``: what happens, as JSON text frames. What a client sends is ignored."""

    _task: asyncio.Task[None] | None = None

    def open(self, *args: str, **kwargs: str) -> None:
        self.register()
        self._task = asyncio.create_task(self._send_events(), name="events")

    async def _send_events(self) -> None:
        listener = self.worker.events.listen()
        try:
            listener.put(self.worker.durability_event())
            while (event := await listener.get()) is not None:
                await self.write_message(json.dumps(event))
            self.close(CLOSE_TRY_AGAIN, "too slow, or the workspace stops")
        except WebSocketClosedError:
            pass
        finally:
            self.worker.events.leave(listener)

    def on_message(self, message: str | bytes) -> None:
        pass

    def on_close(self) -> None:
        super().on_close()
        if self._task is not None:
            self._task.cancel()


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


class _ChannelSocket(_Socket):
    """A y-websocket client."""

    channel: SocketChannel | None = None
    _task: asyncio.Task[None] | None = None

    def open(self, *args: str, **kwargs: str) -> None:
        self.register()
        path = (args[0] if args else "").strip("/")
        limit = self.worker.config.max_document
        self._pace = ViewerPace()
        self.channel = SocketChannel(self, self.claims, path, 16 * limit + 2**20)
        self._task = asyncio.create_task(self._serve(self.channel), name=f"client of {path!r}")
        self.worker.clients.add(self._task)
        self._task.add_done_callback(self.worker.clients.discard)

    async def _serve(self, channel: SocketChannel) -> None:
        try:
            await self.serve(channel)
        except asyncio.CancelledError:
            raise
        except BaseException:
            # a panic of the native code is a BaseException: it ends this client, not the worker
            log.exception("a client of %r failed", channel.path)
            channel.close(1011, "internal error")
        finally:
            await channel.finish()

    async def serve(self, channel: SocketChannel) -> None:
        raise NotImplementedError

    async def on_message(self, message: str | bytes) -> None:
        if self.channel is None:
            return
        if isinstance(message, str):
            self.channel.close(CLOSE_BAD_MESSAGE, "bad message: text")
            return
        if not self.claims.role.allows(Role.EDITOR):
            # while we wait, nothing more is read from the socket
            await asyncio.sleep(self._pace.pause(message, asyncio.get_running_loop().time()))
        # sync updates are what people do; awareness and state vectors also come by themselves
        if message[:2] == b"\x00\x02":
            self.worker.events.active()
        await self.channel.feed(message)

    def revoked(self) -> None:
        if self.channel is not None:
            self.channel.close(CLOSE_REVOKED, "no longer allowed")

    def stop(self) -> None:
        if self.channel is not None:
            self.channel.close(CLOSE_TRY_AGAIN, "the workspace stops")

    def on_close(self) -> None:
        super().on_close()
        if self.channel is not None:
            self.channel.gone()


class CollabHandler(_ChannelSocket):
    async def serve(self, channel: SocketChannel) -> None:
        await self.worker.documents.serve(channel.path, channel)


class PresenceHandler(_ChannelSocket):
    async def serve(self, channel: SocketChannel) -> None:
        await self.worker.presence.serve(channel)
