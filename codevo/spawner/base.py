"""What the hub asks of a spawner. Everything else about where workspaces run is the spawner's own."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from traitlets.config import LoggingConfigurable

from pod_runtime.protocol.config import RunnerConfig, WorkerConfig


class ServerState(StrEnum):
    """The one state of a project's server."""

    STOPPED = "stopped"
    STARTING = "starting"
    RESTORING = "restoring"
    READY = "ready"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class PodAddress:
    """Where a workspace listens. Each is ``unix:/path/of.sock`` or ``http(s)://host:port``."""

    runner: str
    gateway: str
    worker: str


@dataclass(frozen=True, slots=True)
class WorkspaceSpec:
    """What to start. The spawner fills in the paths inside ``worker`` and ``runner`` that only it knows."""

    project: str
    owner: str
    worker: WorkerConfig
    runner: RunnerConfig


@dataclass(frozen=True, slots=True)
class WorkspaceStatus:
    """What runs, as far as the spawner sees it. ``pids`` by name: supervisor, runner, worker."""

    project: str
    generation: int
    state: ServerState
    address: PodAddress | None
    started: datetime
    reason: str = ""
    pids: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Progress:
    """A step of a start: ``percent`` 0–100 and words for people."""

    percent: int
    message: str


class SpawnError(Exception):
    """A workspace could not be started or stopped; the text is for people and says what to do."""


class Spawner(LoggingConfigurable):
    """Starts, finds and stops workspaces. All calls are idempotent and safe to make concurrently.

    The spawner is the truth about what runs; it keeps nothing in the database.
    """

    #: A sentence that every page shows when workspaces are less isolated than they should be, or "".
    warning: str = ""

    @abstractmethod
    async def open(self) -> None:
        """Find what already runs (adoption). Raises `SpawnError` when nothing can run here."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of every workspace without stopping it."""

    @abstractmethod
    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        """Start the workspace, or find it running, and give its address.

        Returns when its sockets accept connections; whether the worker has restored the files is the
        worker's to say. Raises `SpawnError`.
        """

    @abstractmethod
    async def stop(self, project: str, *, grace: float = 30.0) -> None:
        """Flush and end the workspace; after ``grace`` seconds end it all the same. Unknown: no error."""

    @abstractmethod
    async def remove(self, project: str) -> None:
        """Stop the workspace at once and delete what it keeps on this machine. Unknown: no error."""

    @abstractmethod
    async def poll(self, project: str) -> WorkspaceStatus | None:
        """The workspace as it is now, or None when it does not run."""

    @abstractmethod
    async def list(self) -> dict[str, WorkspaceStatus]:
        """Everything that runs, by project."""

    @abstractmethod
    def events(self) -> AsyncIterator[WorkspaceStatus]:
        """Changes that nobody asked for: a workspace that failed or vanished."""

    def last_sync_age(self) -> float:
        """Seconds since the view of what runs was known to be true."""
        return 0.0
