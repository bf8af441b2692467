"""A spawner and pods in memory, well and ill, for tests of what stands above them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from codevo.spawner.base import (
    PodAddress,
    Progress,
    ServerState,
    Spawner,
    SpawnError,
    WorkspaceSpec,
    WorkspaceStatus,
)
from pod_runtime.protocol.config import StoreConfig


class FakeSpawner(Spawner):
    """Workspaces that exist as entries of a dict. ``gate`` holds starts back until it is set."""

    def __init__(self) -> None:
        super().__init__()
        self.running: dict[str, WorkspaceStatus] = {}
        self.starts: list[WorkspaceSpec] = []
        self.stops: list[str] = []
        self.removed: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.stop_gate = asyncio.Event()
        self.stop_gate.set()
        self.now_starting = 0
        self.most_starting = 0
        self.queue: asyncio.Queue[WorkspaceStatus] = asyncio.Queue()

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def add(self, project: str, generation: int = 1, state: ServerState = ServerState.READY) -> None:
        address = PodAddress(f"unix:/{project}/r", f"unix:/{project}/g", f"unix:/{project}/w")
        self.running[project] = WorkspaceStatus(project, generation, state, address, datetime.now(UTC))

    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        self.starts.append(spec)
        self.now_starting += 1
        self.most_starting = max(self.most_starting, self.now_starting)
        try:
            progress(Progress(50, "Making the sandbox"))
            await self.gate.wait()
        finally:
            self.now_starting -= 1
        self.add(spec.project, spec.worker.generation)
        address = self.running[spec.project].address
        assert address
        return address

    async def stop(self, project: str, *, grace: float = 30.0) -> None:
        self.stops.append(project)
        await self.stop_gate.wait()
        self.running.pop(project, None)

    async def remove(self, project: str) -> None:
        self.running.pop(project, None)
        self.removed.append(project)

    async def poll(self, project: str) -> WorkspaceStatus | None:
        return self.running.get(project)

    async def list(self) -> dict[str, WorkspaceStatus]:
        return dict(self.running)

    async def events(self) -> AsyncIterator[WorkspaceStatus]:
        while True:
            yield await self.queue.get()


class NeverSpawner(FakeSpawner):
    """Begins and never comes to an end."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()


class BadSpawner(FakeSpawner):
    """Cannot start anything, and says why."""

    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        self.starts.append(spec)
        raise SpawnError("bubblewrap is not installed")


class BrokenSpawner(FakeSpawner):
    """Raises what it should not, with a secret in it."""

    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        raise KeyError("hunter2")


class FakePods:
    """Pods that answer from ``health`` and ``activity`` by container; an exception there is raised."""

    def __init__(self) -> None:
        self.health: dict[str, Any] = {"runner": {"state": "ready"}, "worker": {"state": "ready"}}
        self.activity: dict[str, Any] = {"runner": {}, "worker": {}}
        self.flush: Any = {"pending": False}
        #: answers of the worker's calls about checkpoints, and what it was told
        self.checkpoint: Any = None
        self.restore: Any = None
        self.told: list[Any] = []
        self.calls: list[tuple[str, str, str, str]] = []
        self.ended: list[tuple[str, str]] = []
        self.on_project_changed: list[Any] = []
        self.forgotten: list[str] = []
        self.relays = self
        self.connected: set[str] = set()

    async def call(
        self, project: str, container: str, method: str, path: str, *, json: Any = None, timeout: float = 10.0
    ) -> Any:
        self.calls.append((project, container, method, path))
        self.told.append(json)
        await asyncio.sleep(0)
        what = path.removeprefix("/_codevo/").partition("?")[0]
        whole = what in ("flush", "checkpoint", "restore")
        answer = getattr(self, what) if whole else getattr(self, what)[container]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def end_right(self, project: str, subject: str) -> None:
        self.ended.append((project, subject))

    async def forget(self, project: str) -> None:
        self.forgotten.append(project)

    def subjects(self, project: str) -> set[str]:
        return set(self.connected)


class FakeRecords:
    """Generations counted in memory."""

    def __init__(self) -> None:
        self.generation = 0
        self.gone: set[str] = set()
        self.activity: dict[str, datetime] = {}

    async def next_generation(self, project: str) -> int:
        if project in self.gone:
            raise LookupError(project)
        self.generation += 1
        return self.generation

    async def owners(self, projects: Iterable[str]) -> dict[str, str]:
        return {p: "ann" for p in projects if p not in self.gone}

    async def record_activity(self, project: str, when: datetime) -> None:
        self.activity[project] = when


class FakeStores:
    def store_config(self, project: str) -> StoreConfig:
        return StoreConfig("http://127.0.0.1:1", "b", f"projects/{project}/", "id", "key")
