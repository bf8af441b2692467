"""What is done to the log beside committing: automatic checkpoints, snapshots, compaction."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

from pod_runtime.journal import checkpoints
from pod_runtime.journal import writer as journal
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.writer import LogWriter
from pod_runtime.worker.persistence.timeline import Timeline

log = logging.getLogger(__name__)

#: Commits between two looks at whether a snapshot is due.
SNAPSHOT_CHECK = 50
#: Between two automatic checkpoints, at least.
CHECKPOINT_EVERY = timedelta(hours=1)
AUTOMATIC = "Automatic"


def _now() -> datetime:
    return datetime.now(UTC)


class Maintenance:
    """One for the life of a worker, and one run at a time (``task``).

    ``start``: the log's last number when it was opened, None when the log was new.
    """

    def __init__(
        self,
        writer: LogWriter,
        timeline: Timeline,
        start: int | None,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._writer, self._timeline, self._clock = writer, timeline, clock
        self._start = start
        self._commits = 0
        self._due = clock() + CHECKPOINT_EVERY
        self._asked = False
        self._pauses = 0
        self.task: asyncio.Task[None] | None = None

    def committed(self, *, large: bool) -> None:
        """A commit has landed, perhaps a ``large`` one."""
        self._commits += 1
        wanted = large or self._commits % SNAPSHOT_CHECK == 1 or self._clock() >= self._due
        if wanted and self.task is None and not self._pauses:
            self.task = asyncio.create_task(self._run(), name="snapshots")

    @contextlib.asynccontextmanager
    async def paused(self) -> AsyncIterator[None]:
        """Nothing of it runs meanwhile."""
        self._pauses += 1
        try:
            if self.task is not None:
                await asyncio.wait([self.task])
            yield
        finally:
            self._pauses -= 1

    async def close(self) -> None:
        """Break off; all that it does can be done again."""
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _run(self) -> None:
        try:
            await self._checkpoint()
            if await self._writer.snapshot_due():
                log.info("snapshot %d", await self._writer.snapshot())
                self._timeline.listing_changed()
            if await journal.compact(self._writer.store):
                self._timeline.listing_changed()
        except StoreError as e:
            log.warning("no snapshot: %s", e)
        finally:
            self.task = None

    async def _checkpoint(self) -> None:
        """Keep a state when an hour has passed; the first one of a session is the one that was found."""
        store = self._writer.store
        first = not self._asked
        if first:
            automatic = [m for m in await checkpoints.listed(store) if m.auto and not m.by]
            if automatic:
                self._due = checkpoints.moment(automatic[0].time) + CHECKPOINT_EVERY
            elif self._start is not None:
                self._due = self._clock()
            self._asked = True
        if self._clock() < self._due:
            return
        seq = self._start if first and self._start is not None else self._writer.last
        try:
            await checkpoints.add(store, AUTOMATIC, seq, auto=True, known=seq == self._writer.last)
        except NotFound:
            await checkpoints.add(store, AUTOMATIC, self._writer.last, auto=True, known=True)
        self._due = self._clock() + CHECKPOINT_EVERY
        log.info("automatic checkpoint of %d", seq)
