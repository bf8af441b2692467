"""The worker's base handler, and the handlers of control, durability and events."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
from typing import TYPE_CHECKING, Any, Protocol, cast

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.web import CLOSE_REVOKED, PodHandler
from pod_runtime.worker.channel import CLOSE_TRY_AGAIN

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


class Stoppable(Protocol):
    """An open socket."""

    def stop(self) -> None:
        """The worker stops."""


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
