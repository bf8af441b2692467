"""One owner for the server of every project: the only place where a server's state changes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import UTC, datetime
from typing import Any

from traitlets import Float, Int
from traitlets.config import LoggingConfigurable

from codevo.servers.health import ActivityPoll, StartFailed, Watchdog, wait_until_ready
from codevo.servers.ports import PodCalls, ServerRecords, StoreConfigs
from codevo.servers.progress import ProgressLog, ServerStatus
from codevo.servers.queue import StartQueue, Turn
from codevo.servers.server import Server, ServerEntry, ServersBusy, TooManyRunning, stopped
from codevo.spawner.base import (
    PodAddress,
    Progress,
    ServerState,
    Spawner,
    SpawnError,
    WorkspaceSpec,
    WorkspaceStatus,
)
from pod_runtime.protocol.config import RunnerConfig, WorkerConfig

log = logging.getLogger(__name__)

#: The spawner's part of a start ends at this percentage, the restore's at 95.
_SPAWNED = 40
_RESTORED = 95
_CONCURRENT_LOOKS = 64
_CONCURRENT_STOPS = 32


class ServerManager(LoggingConfigurable):
    """Starts, watches and stops the servers of projects.

    Each project has at most one task that changes it. Deciding what to do next is synchronous, so two people
    who ask at once get one answer. Servers that are stopped and have nothing to tell are not kept.
    """

    concurrent_starts = Int(8, min=1, help="How many servers may start at the same time.").tag(config=True)
    max_queue = Int(
        100, min=0, help="How many starts may wait for their turn; further ones are answered 429."
    ).tag(config=True)
    start_timeout = Float(
        120.0, min=1.0, help="Seconds without any progress after which a start has failed."
    ).tag(config=True)
    stop_grace = Float(30.0, min=0.0, help="Seconds that a server has for its last flush.").tag(config=True)
    max_running = Int(20, min=1, help="How many running projects one owner may have at the same time.").tag(
        config=True
    )
    activity_interval = Float(
        30.0, min=0.1, help="Seconds between two looks at what people do in running projects."
    ).tag(config=True)
    adoption_wait = Float(
        5.0, min=0.0, help="Longest time, in seconds, that the hub's start waits for running servers' health."
    ).tag(config=True)

    def __init__(
        self,
        *,
        spawner: Spawner,
        records: ServerRecords,
        pods: PodCalls,
        stores: StoreConfigs,
        public_key: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._spawner = spawner
        self._records = records
        self._pods = pods
        self._stores = stores
        self._public_key = public_key
        self._servers: dict[str, Server] = {}
        self._queue = StartQueue(self.concurrent_starts, self.max_queue)
        self._looks = asyncio.Semaphore(_CONCURRENT_LOOKS)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False

    # -- life of the manager ------------------------------------------------------------------------------

    async def open(self) -> None:
        """Adopt what runs, then watch it. The spawner is already open."""
        found = await self._spawner.list()
        owners = await self._records.owners(found)
        for project, status in found.items():
            self._adopt(project, owners.get(project, ""), status)
            if project not in owners:
                log.warning("server %s runs, but its project was deleted: stopping it", project)
                self.begin_stop(project)
        # Servers that are well say so at once; others go on being looked at while the hub serves.
        adopting = [s.settled.wait() for s in self._servers.values() if s.task]
        if adopting:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.adoption_wait):
                    await asyncio.gather(*adopting)
        self._own(self._watch_spawner())
        self._own(ActivityPoll(self._pods, self._records, self._ready, self.activity_interval).run())

    async def close(self) -> None:
        """End every task of the manager; servers go on running."""
        self._closing = True
        tasks = [*self._tasks, *(s.task for s in self._servers.values() if s.task)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers.values():
            server.log.close()

    async def stop_all(self, grace: float | None = None) -> None:
        """Stop everything, flushed, some at a time; used when the hub itself ends for good."""
        self._closing = True
        limit = asyncio.Semaphore(_CONCURRENT_STOPS)

        async def one(project: str) -> None:
            async with limit:
                await self.stop(project, grace=grace)

        await asyncio.gather(*(one(p) for p in list(self._servers)), return_exceptions=True)

    # -- what others ask ----------------------------------------------------------------------------------

    def status(self, project: str) -> ServerStatus:
        """The state of a project's server; never asks anybody, never waits."""
        server = self._servers.get(project)
        return server.status if server else ServerStatus(ServerState.STOPPED, None)

    def address(self, project: str) -> PodAddress | None:
        """Where the pod listens, from the moment it does until it is told to stop."""
        server = self._servers.get(project)
        return server.address if server else None

    def progress(self, project: str) -> ProgressLog:
        """The log of the present or last start. For a project without one: a closed log of its state."""
        server = self._servers.get(project)
        if server:
            return server.log
        found = ProgressLog()
        found.append(self.status(project))
        found.close()
        return found

    def list(self) -> Sequence[ServerEntry]:
        """Every server that is not simply stopped."""
        return [
            ServerEntry(s.project, s.owner, s.generation, s.status)
            for s in self._servers.values()
            if s.status.state is not ServerState.STOPPED
        ]

    def running(self, owner: str) -> int:
        """How many of ``owner``'s projects run or start."""
        idle = (ServerState.STOPPED, ServerState.FAILED)
        return sum(s.owner == owner and s.status.state not in idle for s in self._servers.values())

    def start(self, project: str, owner: str) -> ServerStatus:
        """See to it that the server runs or will run. Returns at once; follow `progress` or `wait`.

        Raises `ServersBusy` when the queue is full, `TooManyRunning` at the owner's quota.
        """
        server = self._servers.get(project)
        if server and server.status.state is ServerState.STOPPING:
            if not server.start_again:
                server.start_again = True
                server.log.close()
                server.log = ProgressLog()
                server.become(ServerState.STOPPING, message="Waiting for the last session to be saved")
            return server.status
        if server and server.status.state not in (ServerState.STOPPED, ServerState.FAILED):
            return server.status
        if self._closing:
            raise ServersBusy(30)
        if self._queue.full:
            raise ServersBusy(10)
        if self.running(owner) >= self.max_running:
            raise TooManyRunning(
                f"{self.max_running} projects of one owner run already. Stop one of them to start another."
            )
        server = Server(project, owner, stopped(), ProgressLog())
        self._servers[project] = server
        self._begin(server)
        return server.status

    async def stop(self, project: str, *, grace: float | None = None) -> None:
        """Stop the server, flushed, and return when it is stopped. A start on its way is cancelled.

        Raises `SpawnError` when the spawner could not stop it. A cancelled caller does not cancel the stop.
        """
        task = self.begin_stop(project, grace=grace)
        if task is not None:
            await asyncio.shield(task)
            status = self.status(project)
            if status.state is ServerState.FAILED:
                raise SpawnError(status.reason)

    def begin_stop(self, project: str, *, grace: float | None = None) -> asyncio.Task[None] | None:
        """Like `stop`, but gives the task that does it, which never raises; None when nothing is there.

        Stopping a failed server clears its failure.
        """
        server = self._servers.get(project)
        if server is None:
            return None
        server.start_again = False
        if server.status.state is not ServerState.STOPPING:
            starting = server.task
            if starting is not None:
                starting.cancel()  # now: after its next step it might say that it is ready
            if server.log.closed:
                server.log = ProgressLog()
            server.become(ServerState.STOPPING, message="Saving and stopping")
            server.task = asyncio.create_task(
                self._stop(server, starting, self.stop_grace if grace is None else grace)
            )
        return server.task

    async def wait(self, project: str, timeout: float) -> ServerStatus:
        """The state after at most ``timeout`` seconds, sooner when it is ready, failed or stopped."""
        server = self._servers.get(project)
        if server and not server.settled.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await server.settled.wait()
        return self.status(project)

    async def forget(self, project: str) -> None:
        """Stop the server at once and delete what it keeps on its machine. For a deleted project."""
        while (task := self.begin_stop(project, grace=0.0)) is not None:
            await asyncio.shield(task)
            if self.status(project).state is ServerState.FAILED:
                break
        await self._spawner.remove(project)
        self._servers.pop(project, None)

    # -- changes of state ---------------------------------------------------------------------------------

    def _begin(self, server: Server) -> None:
        server.start_again, server.adopted = False, None
        if server.log.closed:
            server.log = ProgressLog()
        server.become(ServerState.STARTING, message="Starting")

        def tell(place: int) -> None:
            if server.status.state is ServerState.STARTING:
                server.become(ServerState.STARTING, message=f"Waiting in line: place {place}")

        turn = self._queue.join(tell)
        server.task = asyncio.create_task(self._start(server, turn))
        # here and not in the task: one that is cancelled before its first step has no "finally"
        server.task.add_done_callback(lambda _: self._queue.leave(turn))

    async def _start(self, server: Server, turn: Turn) -> None:
        await turn.granted.wait()
        await self._until_ready(server, self._bring_up)

    async def _until_ready(self, server: Server, work: Callable[[Server, Watchdog], Awaitable[None]]) -> None:
        """The task of one start or adoption: ends in ready or failed; who cancels it answers for it."""
        try:
            async with Watchdog(self.start_timeout) as watchdog:
                await work(server, watchdog)
        except Exception as e:
            await self._fail(server, self._reason(server, e))
        else:
            if server.task is not asyncio.current_task():
                return  # a spawner that does not hear of its cancellation
            server.task = None
            since = server.adopted or datetime.now(UTC)
            server.become(ServerState.READY, percent=100, message="Ready", since=since)

    async def _bring_up(self, server: Server, watchdog: Watchdog) -> None:
        server.become(ServerState.STARTING, percent=2, message="Preparing the workspace")
        try:
            server.generation = await self._records.next_generation(server.project)
        except LookupError as e:
            raise StartFailed("This project no longer exists.") from e
        watchdog.fed()
        spec = WorkspaceSpec(
            project=server.project,
            owner=server.owner,
            worker=WorkerConfig(
                project=server.project,
                public_key=self._public_key,
                generation=server.generation,
                store=self._stores.store_config(server.project),
            ),
            runner=RunnerConfig(project=server.project, public_key=self._public_key),
        )
        current = asyncio.current_task()

        def progressed(step: Progress) -> None:
            if server.task is current and server.status.state is ServerState.STARTING:
                percent = 5 + (_SPAWNED - 5) * min(max(step.percent, 0), 100) // 100
                server.become(ServerState.STARTING, percent=percent, message=step.message)
                watchdog.fed()

        server.address = await self._spawner.start(spec, progressed)
        watchdog.fed()
        await self._restore(server, watchdog)

    async def _restore(self, server: Server, watchdog: Watchdog) -> None:
        server.become(ServerState.RESTORING, percent=_SPAWNED, message="Restoring the files")

        def progressed(percent: int, message: str) -> None:
            at = _SPAWNED + (_RESTORED - _SPAWNED) * percent // 100
            server.become(ServerState.RESTORING, percent=at, message=message or "Restoring the files")

        await wait_until_ready(self._pods, server.project, progressed, watchdog, self._looks)

    def _reason(self, server: Server, error: Exception) -> str:
        """Why a start failed, in words for people."""
        if isinstance(error, SpawnError | StartFailed):
            return str(error) or "The workspace could not be started."
        if isinstance(error, TimeoutError):
            return f"There was no progress for {self.start_timeout:.0f} seconds. Try again."
        log.error("server %s: the start broke", server.project, exc_info=error)
        return "The workspace could not be started because of an error in the hub. Try again."

    async def _fail(self, server: Server, reason: str) -> None:
        """Clean up after a start that failed or a workspace that died, then say why."""
        server.become(server.status.state, percent=server.status.percent, message="Cleaning up")
        server.address = None
        try:
            async with asyncio.timeout(15):
                await self._spawner.stop(server.project, grace=5.0)
        except Exception as e:
            log.warning("server %s: could not clean up after a failure: %r", server.project, e)
        if server.task is not asyncio.current_task():
            return
        server.task = None
        if server.start_again and not self._closing:
            self._begin(server)
        else:
            server.become(ServerState.FAILED, reason=reason)

    async def _stop(self, server: Server, starting: asyncio.Task[None] | None, grace: float) -> None:
        """The task of one stop. Ends in stopped, or failed when the spawner could not."""
        if starting is not None:
            await asyncio.gather(starting, return_exceptions=True)
        failure = ""
        try:
            async with asyncio.timeout(grace + 15):
                await self._pods.forget(server.project)
                await self._spawner.stop(server.project, grace=grace)
        except Exception as e:
            log.error("server %s: could not be stopped: %r", server.project, e)
            failure = str(e) if isinstance(e, SpawnError) else ""
            failure = failure or "The workspace could not be stopped. Try again."
        server.task = None
        if server.start_again and not self._closing:
            self._begin(server)
        elif failure:
            server.become(ServerState.FAILED, reason=failure)
        else:
            server.become(ServerState.STOPPED)
            if self._servers.get(server.project) is server:
                del self._servers[server.project]

    # -- what happens by itself ---------------------------------------------------------------------------

    def _adopt(self, project: str, owner: str, found: WorkspaceStatus) -> None:
        status = ServerStatus(ServerState.STOPPED, found.started)
        server = Server(
            project, owner, status, ProgressLog(), found.generation, found.address, adopted=found.started
        )
        self._servers[project] = server
        if found.state is ServerState.FAILED or found.address is None:
            reason = found.reason or "The workspace was not running any more when the hub came back."
            server.task = asyncio.create_task(self._fail(server, reason))
            return
        server.status = ServerStatus(ServerState.RESTORING, found.started, _SPAWNED, "Finding the workspace")
        server.log.append(server.status)
        server.task = asyncio.create_task(self._until_ready(server, self._restore))

    async def _watch_spawner(self) -> None:
        delay = 0.1
        while True:
            try:
                await self._reconcile()
                async for event in self._spawner.events():
                    delay = 0.1
                    self._happened(event)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("the spawner's events broke off; listening again in %.1f s", delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 30.0)

    def _happened(self, event: WorkspaceStatus) -> None:
        """A workspace failed or vanished although nobody asked for it."""
        server = self._servers.get(event.project)
        if server is None or server.status.state in (ServerState.STOPPING, *_DOWN):
            return
        if event.generation and event.generation != server.generation:
            return  # of an earlier start
        if event.state not in _DOWN:
            return
        self._died(server, event.reason)

    async def _reconcile(self) -> None:
        """Notice what went away while nobody listened."""
        ready = {p: s.generation for p, s in self._servers.items() if s.status.state is ServerState.READY}
        found = await self._spawner.list()
        for project, generation in ready.items():
            server = self._servers.get(project)
            same = server is not None and server.generation == generation
            if server and same and project not in found and server.status.state is ServerState.READY:
                self._died(server, "")

    def _died(self, server: Server, reason: str) -> None:
        reason = reason or "The workspace ended unexpectedly. Start it again; saved work is kept."
        before = server.task
        if before is not None:
            before.cancel()
        if server.log.closed:
            server.log = ProgressLog()
        server.become(ServerState.STOPPING, message="The workspace ended unexpectedly")

        async def clean_up() -> None:
            if before is not None:
                await asyncio.gather(before, return_exceptions=True)
            await self._fail(server, reason)

        server.task = asyncio.create_task(clean_up())

    def _ready(self) -> Sequence[str]:
        return [p for p, s in self._servers.items() if s.status.state is ServerState.READY]

    def _own(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_DOWN = (ServerState.STOPPED, ServerState.FAILED)
