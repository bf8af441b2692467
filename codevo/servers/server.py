"""One project's server as the manager keeps it: its state, what it tells, and what works on it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime

from codevo.servers.progress import MAX_TEXT, SETTLED, ProgressLog, ServerStatus
from codevo.spawner.base import PodAddress, ServerState

log = logging.getLogger(__name__)


class ServersBusy(Exception):
    """So many servers are starting that the queue is full. ``retry_after`` is in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many projects are starting right now. Try again in a moment.")
        self.retry_after = retry_after


class TooManyRunning(Exception):
    """The owner has as many running projects as one person may have; the text says so."""


@dataclass(eq=False)
class Server:
    """What is known about one project's server. Changed by `ServerManager` only, on the loop."""

    project: str
    owner: str
    status: ServerStatus
    log: ProgressLog
    generation: int = 0
    address: PodAddress | None = None
    #: When it was started, for one that a hub before us has started.
    adopted: datetime | None = None
    task: asyncio.Task[None] | None = None
    start_again: bool = False
    settled: asyncio.Event = field(default_factory=asyncio.Event)

    def become(
        self,
        state: ServerState,
        *,
        percent: int = 0,
        message: str = "",
        reason: str = "",
        since: datetime | None = None,
    ) -> None:
        """Come into ``state``, or say something new in it; ``since`` is now when the state is another one."""
        old = self.status
        since = since or (old.since if old.state is state else datetime.now(UTC))
        status = ServerStatus(state, since, percent, message[:MAX_TEXT], reason[:MAX_TEXT])
        if status == old and not self.log.empty:
            return
        self.status = status
        self.log.append(status)
        if state in SETTLED:
            self.log.close()
            self.settled.set()
        else:
            self.settled.clear()
        if state in (ServerState.STOPPED, ServerState.FAILED, ServerState.STOPPING):
            self.address = None
        if state is not old.state:
            log.info("server %s: %s → %s %s", self.project, old.state, state, reason)


@dataclass(frozen=True, slots=True)
class ServerEntry:
    """A server as the administrators' list shows it."""

    project: str
    owner: str
    generation: int
    status: ServerStatus


def stopped() -> ServerStatus:
    """The state before the first start."""
    return ServerStatus(ServerState.STOPPED, datetime.now(UTC))
