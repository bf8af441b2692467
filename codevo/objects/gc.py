"""``codevo gc``: collects the objects that nothing reaches. Safe beside running hubs and workspaces.

Everything has to be older than `AGE` by the store's own clock before it goes: a project that is just being
made, a snapshot that is just being written, an upload on its way are left alone. What a HEAD or a checkpoint
reaches stays, whatever its age. Keys that are not of our shapes are never touched.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

from codevo.objects.config import project_prefix
from codevo.objects.inventory import Inventory
from codevo.store import Store
from pod_runtime.journal import projects as journal
from pod_runtime.journal import reader
from pod_runtime.journal.projects import Prefixed
from pod_runtime.journal.reader import JOURNAL, SNAPSHOTS, LogError, journal_key, seq_of
from pod_runtime.journal.store import ObjectInfo, ObjectStore, one_error
from pod_runtime.journal.writer import KEEP, compact

#: The age below which nothing is collected.
AGE = KEEP
_PROJECTS = "projects/"
_TEMPLATES = "templates/"
_BATCH = 200
#: Projects whose logs are looked at together.
_PARALLEL = 8
_PROJECT = re.compile(r"projects/[a-z2-7]{16}/")
_TEMPLATE = re.compile(r"templates/[a-z][a-z0-9-]{0,31}/[0-9a-f]{16}/")


class Suspicious(Exception):
    """The bucket and the database do not seem to belong together; the text is for people."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is collected. ``problem``: something that was left alone, and why."""

    what: str
    why: str
    objects: int = 0
    bytes: int = 0
    problem: bool = False


@dataclass(slots=True)
class Totals:
    """What was, or with a dry run would be, collected."""

    objects: int = 0
    bytes: int = 0
    problems: int = 0


@dataclass(slots=True)
class _Group:
    """The objects below one prefix."""

    prefix: str
    newest: datetime
    objects: int = 0
    bytes: int = 0


class Collector:
    """One run. ``current`` are the keys of the present templates' snapshots; ``tell`` hears of each finding.

    ``at`` is the present time instead of the store's. With ``dry_run`` nothing is deleted. ``force`` goes on
    where the bucket and the database do not seem to belong together.
    """

    def __init__(
        self,
        store: Store,
        bucket: Inventory,
        current: Iterable[str],
        *,
        tell: Callable[[Finding], None],
        dry_run: bool = False,
        force: bool = False,
        at: datetime | None = None,
    ) -> None:
        self._store = store
        self._bucket = bucket
        self._current = frozenset(current)
        self._told = tell
        self._dry_run = dry_run
        self._force = force
        self._at = at
        self.totals = Totals()

    async def run(self) -> Totals:
        """Collect everything. Raises `StoreError`, and `Suspicious` before anything was deleted."""
        now = self._at or await self._bucket.now()
        limit = now - AGE
        known: list[str] = []
        orphans: list[_Group] = []
        async for batch in _batches(self._groups(_PROJECTS, _PROJECT)):
            ids = {group.prefix.split("/")[1]: group for group in batch}
            records = await self._store.projects.get_many(ids)
            known += records
            orphans += [group for ident, group in ids.items() if ident not in records]
        orphans = [group for group in orphans if group.newest < limit]
        if len(orphans) > len(known) and not self._force:
            raise Suspicious(
                f"This bucket holds {len(known)} projects that the database knows, and {len(orphans)} that "
                "it does not. Is it the right database? If it is, say --force."
            )
        for group in orphans:
            await self._orphan(group, limit)
        gate = asyncio.Semaphore(_PARALLEL)
        with one_error():
            async with asyncio.TaskGroup() as tasks:
                for ident in known:
                    await gate.acquire()
                    task = tasks.create_task(self._tidy(ident, now))
                    task.add_done_callback(lambda _: gate.release())
        async for group in self._groups(_TEMPLATES, _TEMPLATE):
            if group.newest < limit and not any(key.startswith(group.prefix) for key in self._current):
                await self._drop(group, "no template of this version")
        for prefix, shape in ((_PROJECTS, _PROJECT), (_TEMPLATES, _TEMPLATE)):
            await self._uploads(prefix, shape, limit)
        return self.totals

    async def _groups(self, prefix: str, shape: re.Pattern[str]) -> AsyncIterator[_Group]:
        """What stands below each prefix of that shape, by one listing. Others are nobody's business."""
        group: _Group | None = None
        async for item in self._bucket.list(prefix):
            found = shape.match(item.key)
            if found is None:
                continue
            if group is None or group.prefix != found[0]:
                if group is not None:
                    yield group
                group = _Group(found[0], item.modified)
            group.objects += 1
            group.bytes += item.size
            group.newest = max(group.newest, item.modified)
        if group is not None:
            yield group

    async def _orphan(self, group: _Group, limit: datetime) -> None:
        """A project without a record: looked at once more, because the listing took its time."""
        if await self._store.projects.get(group.prefix.split("/")[1]) is not None:
            return
        async for item in self._bucket.list(group.prefix):
            if item.modified >= limit:
                return
        await self._drop(group, "no such project")

    async def _drop(self, group: _Group, why: str) -> None:
        if not self._dry_run:
            await journal.delete_prefix(self._bucket, group.prefix)
        self._tell(Finding(group.prefix, why, group.objects, group.bytes))

    async def _tidy(self, project: str, now: datetime) -> None:
        """What a project's own log does not need any more, and what a crash left in it."""
        log = _Watched(self._bucket, project_prefix(project), self._dry_run)
        try:
            await compact(log, at=now)
            self._tell_deleted(log, "covered by a newer snapshot")
            await log.delete(*[i.key for i in await self._beyond_head(log, now - AGE)])
            self._tell_deleted(log, "a snapshot that was never used")
        except LogError as e:
            self._tell(Finding(log.prefix, f"left alone: {e}", problem=True))

    async def _beyond_head(self, log: ObjectStore, limit: datetime) -> list[ObjectInfo]:
        """Snapshots that were written, but HEAD never came to point at them.

        Readers start from HEAD's, or for older states from one below; so does nobody from these, unless a
        checkpoint lies behind. That of the log's last record may still be written once more.
        """
        found = [(seq, item) async for item in log.list(SNAPSHOTS) if (seq := seq_of(item.key)) is not None]
        head, _ = await reader.read_head(log)  # after the listing: it only grows
        top = head.snapshot if head else -1
        marks = [mark.seq for mark in head.checkpoints] if head else []
        last = 0
        async for record in log.list(JOURNAL, start_after=journal_key(max(top, 0))):
            last = max(last, seq_of(record.key) or 0)
        return [
            item
            for seq, item in found
            if top < seq < last and item.modified < limit and not any(mark >= seq for mark in marks)
        ]

    async def _uploads(self, prefix: str, shape: re.Pattern[str], limit: datetime) -> None:
        for found in await self._bucket.unfinished(prefix):
            if found.touched < limit and shape.match(found.key):
                if not self._dry_run:
                    await self._bucket.abort(found)
                self._tell(Finding(found.key, "an upload that was never finished", 1, found.bytes))

    def _tell_deleted(self, log: _Watched, why: str) -> None:
        gone, log.gone = log.gone, []
        if gone:
            self._tell(Finding(log.prefix, why, len(gone), sum(gone)))

    def _tell(self, finding: Finding) -> None:
        self.totals.objects += finding.objects
        self.totals.bytes += finding.bytes
        self.totals.problems += finding.problem
        self._told(finding)


class _Watched(Prefixed):
    """A log whose deletions are counted, and with a dry run not done."""

    def __init__(self, store: ObjectStore, prefix: str, dry_run: bool) -> None:
        super().__init__(store, prefix)
        self.prefix = prefix
        #: sizes of what was deleted
        self.gone: list[int] = []
        self._sizes: dict[str, int] = {}
        self._dry_run = dry_run

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        async for item in super().list(prefix, start_after=start_after):
            self._sizes[item.key] = item.size
            yield item

    async def delete(self, *keys: str) -> None:
        if not self._dry_run:
            await super().delete(*keys)
        self.gone += [self._sizes.get(key, 0) for key in keys]


async def _batches(groups: AsyncIterator[_Group]) -> AsyncIterator[list[_Group]]:
    batch: list[_Group] = []
    async for group in groups:
        batch.append(group)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def words(size: int) -> str:
    """Bytes for people."""
    for unit, least in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= least:
            return f"{size / least:.1f} {unit}"
    return f"{size} bytes"
