"""Wires the worker: configuration, restore, documents, watcher, persistence, routes, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Any, Protocol

from tornado.httpserver import HTTPServer
from tornado.web import Application, RequestHandler

from pod_runtime.protocol.config import WorkerConfig
from pod_runtime.protocol.tokens import Audience, load_public_key
from pod_runtime.protocol.web import Gatekeeper, common_routes
from pod_runtime.worker import file_handlers, handlers
from pod_runtime.worker.collab_handlers import CollabHandler, PresenceHandler
from pod_runtime.worker.contents import Checkpoints
from pod_runtime.worker.documents import LiveDocuments
from pod_runtime.worker.events import Event, Events
from pod_runtime.worker.history_handlers import HistoryHandler, KeepHandler, RestoreHandler
from pod_runtime.worker.ports import DurabilityStatus, Persistence
from pod_runtime.worker.room import PresenceRoom
from pod_runtime.worker.safefs import Root
from pod_runtime.worker.search_handlers import Searches, SearchHandler
from pod_runtime.worker.watcher import Change, Watcher

if TYPE_CHECKING:
    from pod_runtime.worker.handlers import Stoppable

log = logging.getLogger(__name__)

#: The exit code that says: another worker has taken the log over, do not restart.
EXIT_FENCED = 3
#: Longest time for the last flush, seconds.
LAST_FLUSH = 20.0


class RunningPersistence(Persistence, Protocol):
    """`ports.Persistence` with its life, as the application drives it.

    ``fenced`` is set when another worker has taken the log over: this one has to end.
    """

    fenced: asyncio.Event

    async def open(self, progress: Callable[[int, str], None]) -> None:
        """Restore the workspace and take the log over. ``progress(percent, message)``."""

    def start(self) -> None:
        """Begin committing."""

    def subscribe(self, callback: Callable[[DurabilityStatus], None]) -> object:
        """``callback`` is called at each change of the status."""

    async def close(self) -> None:
        """The last flush, and the end."""


Notice = Callable[[str, str], None]
MakePersistence = Callable[[WorkerConfig, Root, LiveDocuments, Notice], RunningPersistence]


def make_persister(
    config: WorkerConfig, root: Root, documents: LiveDocuments, notice: Notice
) -> RunningPersistence:
    """The real one, imported late: its S3 client is the largest part of the worker's memory."""
    from pod_runtime.worker.persistence import Persister

    persister: RunningPersistence = Persister(config, root, documents, notice=notice)
    return persister


class Worker:
    """One worker. `serve` answers at once; ``settled`` is set when ``state`` is no longer restoring."""

    def __init__(self, config: WorkerConfig, make_persistence: MakePersistence = make_persister) -> None:
        self.config = config
        self.state, self.percent, self.message = "restoring", 0, "Opening the workspace"
        self.settled = asyncio.Event()
        self.stopping = False
        Path(config.workspace).mkdir(parents=True, exist_ok=True)
        Path(config.state).mkdir(parents=True, exist_ok=True, mode=0o700)
        self.root = Root(config.workspace)
        self.events = Events()
        self.documents = LiveDocuments(config, self.root, self.events)
        self.checkpoints = Checkpoints(Path(config.state) / "checkpoints")
        self.searches = Searches(config.workspace)
        self.presence = PresenceRoom()
        self.persistence = make_persistence(config, self.root, self.documents, self.events.notice)
        self.sockets: set[Stoppable] = set()
        self.clients: set[asyncio.Task[None]] = set()
        self.large_answers = asyncio.Semaphore(file_handlers.LARGE_ANSWERS)
        self._watcher = Watcher(self.root, self.events, self._files_changed)
        self._server: HTTPServer | None = None
        self._opening: asyncio.Task[None] | None = None
        self._began = time.time()
        self._cleaning: asyncio.Task[int] | None = None
        self._persisting = False

    # -- life

    def serve(self, sock: socket) -> None:
        """Begin to answer on a listening socket, and to restore."""
        gatekeeper = Gatekeeper(load_public_key(self.config.public_key), self.config.project, Audience.WORKER)
        self._server = HTTPServer(self._application(gatekeeper), max_body_size=file_handlers.MAX_BODY)
        self._server.add_socket(sock)
        self._opening = asyncio.create_task(self._open(), name="restore")

    async def _open(self) -> None:
        try:
            await self.persistence.open(self._progress)
            self._persisting = True
            self.documents.on_touched = self.persistence.touched
            self.persistence.subscribe(lambda status: self.events.send(self.durability_event()))
            self.documents.start()
            # before the first commit, which would take the older text from the disk
            await self.documents.recover()
            self.persistence.start()
            await self._watcher.start()
            self.state, self.percent, self.message = "ready", 100, "Ready"
            # it looks into every folder, which nobody has to wait for; files' times are a few ms behind
            cleaning = asyncio.to_thread(self.root.clean_temporaries, self._began - 1)
            self._cleaning = asyncio.create_task(cleaning, name="clean temporaries")
        except Exception as e:
            log.exception("the workspace could not be opened")
            self.state, self.message = "failed", f"The workspace could not be opened: {e}"
        self.settled.set()

    def _progress(self, percent: int, message: str) -> None:
        self.percent, self.message = percent, message

    async def close(self) -> None:
        """Stop accepting, save, flush (bounded by `LAST_FLUSH`), end."""
        self.stopping = True
        if self._server is not None:
            self._server.stop()
        if self._opening is not None and not self._opening.done():
            self._opening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._opening
        if self._cleaning is not None:
            # the thread goes on: the folder must not be closed under its feet
            await asyncio.gather(self._cleaning, return_exceptions=True)
        await self._watcher.close()
        await self.searches.close()
        try:
            async with asyncio.timeout(LAST_FLUSH):
                for connection in list(self.sockets):
                    connection.stop()
                await self.documents.save_all()
                if self._persisting:
                    await self.persistence.close()
        except TimeoutError:
            log.error("the last flush did not end in time")
        self.events.close()
        await self.documents.close()
        for task in list(self.clients):
            task.cancel()
        await asyncio.gather(*self.clients, return_exceptions=True)
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2):
                    await self._server.close_all_connections()
        self.root.close()

    def exit_code(self) -> int:
        """Of the process: `EXIT_FENCED` when another worker has taken over."""
        return EXIT_FENCED if self.persistence.fenced.is_set() else 0

    # -- what handlers ask

    def why_not(self) -> str:
        """Why a request is answered with 503."""
        if self.stopping:
            return "The workspace stops"
        return (
            "The workspace is being restored" if self.state == "restoring" else "The workspace failed to open"
        )

    async def flush(self) -> DurabilityStatus:
        """Everything to disk, then to the store."""
        await self.documents.save_all()
        return await self.persistence.flush()

    def durability_event(self) -> Event:
        return {"type": "durability", **dataclasses.asdict(self.persistence.status())}

    def last_activity(self) -> str | None:
        at = self.events.last_activity
        if at is None:
            return None
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")

    def busy(self) -> bool:
        return self.state == "restoring" or self.persistence.status().pending

    # -- inside

    async def _files_changed(self, changes: list[Change] | None) -> None:
        if changes is None:
            self.persistence.touched()
            self.events.everything()
            await self.documents.outside(self.documents.histories())
            return
        paths = [path for _, path in changes]
        self.persistence.touched(*paths)
        self.events.files({"path": path, "kind": kind} for kind, path in changes)
        await self.documents.outside(paths)

    def _application(self, gatekeeper: Gatekeeper) -> Application:
        routes: list[tuple[str, type[RequestHandler]]] = [
            (r"/api/contents/(.*?)/*checkpoints/checkpoint", file_handlers.CheckpointHandler),
            (r"/api/contents/(.*?)/*checkpoints", file_handlers.CheckpointsHandler),
            (r"/api/contents/?(.*)", file_handlers.ContentsHandler),
            (r"/files/(.*)", file_handlers.FileHandler),
            (r"/api/search", SearchHandler),
            (r"/collab/(.*)", CollabHandler),
            (r"/presence", PresenceHandler),
            (r"/api/worker/events", handlers.EventsHandler),
            (r"/api/durability", handlers.DurabilityHandler),
            (r"/_codevo/health", handlers.HealthHandler),
            (r"/_codevo/activity", handlers.ActivityHandler),
            (r"/_codevo/flush", handlers.FlushHandler),
            (r"/api/history/(.*)", HistoryHandler),
            (r"/_codevo/checkpoint", KeepHandler),
            (r"/_codevo/restore", RestoreHandler),
            *common_routes(),
        ]
        settings: dict[str, Any] = {
            "gatekeeper": gatekeeper,
            "worker": self,
            "default_handler_class": NotFoundHandler,
            "log_function": _log_request,
            # of `EventsHandler`, which listens to nothing
            "websocket_max_message_size": 64 * 1024,
            "websocket_ping_interval": 25,
            "websocket_ping_timeout": 20,
        }
        return Application(routes, **settings)


class NotFoundHandler(handlers.WorkerHandler):
    """404 for those with a token; no other path tells anything without one."""

    def prepare(self) -> None:
        super().prepare()
        self.send_error(404)


def _log_request(handler: RequestHandler) -> None:
    # never the query string
    level = logging.WARNING if handler.get_status() >= 500 else logging.DEBUG
    request = handler.request
    log.log(level, "%s %s %d", request.method, ascii(request.path), handler.get_status())
