"""What people ask of the past: versions of a file, checkpoints, and the restore of one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pod_runtime.journal import checkpoints, reader
from pod_runtime.journal.ignore import Ignore
from pod_runtime.journal.reader import Checkpoint
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.versions import Version
from pod_runtime.worker import merge, safefs
from pod_runtime.worker.persistence.aside import SetAside, aside_folder
from pod_runtime.worker.persistence.changes import Stopped
from pod_runtime.worker.persistence.notices import Notices
from pod_runtime.worker.persistence.rewind import Rewinder, Waiting
from pod_runtime.worker.persistence.session import Session
from pod_runtime.worker.ports import Documents, DurabilityStatus
from pod_runtime.worker.textfile import NotText, TextFile

log = logging.getLogger(__name__)

_BEFORE = "Before restoring "

#: Files that are deleted in one step.
BATCH = 100


class NotDurable(Exception):
    """The store is away, so what is there now cannot be kept first. With words for people."""


class UnknownCheckpoint(Exception):
    """HEAD names no such state."""


class Busy(Exception):
    """Another restore is under way."""


@dataclass(frozen=True, slots=True)
class Restored:
    """Files written and deleted, files that could not be, and what was kept before."""

    restored: int
    deleted: int
    skipped: int
    checkpoint: Checkpoint


@dataclass(slots=True)
class Parts:
    """What of the persistence the past works with."""

    root: safefs.Root
    documents: Documents
    session: Session
    notices: Notices
    spool: Path
    flush: Callable[[], Awaitable[DurabilityStatus]]
    touched: Callable[..., None]
    ignore: Callable[[], Ignore]
    max_document: int


class Past:
    """One for the life of a worker."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._restore: asyncio.Task[Restored] | None = None
        self._rewinder: Rewinder | None = None
        self._closing = False

    async def close(self) -> None:
        """Break a restore off; it can be done again."""
        self._closing = True
        if self._rewinder is not None:
            self._rewinder.stop = True
        if self._restore is not None:
            await asyncio.gather(self._restore, return_exceptions=True)

    # -- files

    async def versions(
        self, path: str, *, before: int | None = None, limit: int = 50
    ) -> tuple[list[Version], bool]:
        """See `Timeline.versions`."""
        return await self._parts.session.timeline.versions(path, before=before, limit=limit)

    async def read(self, path: str, seq: int, limit: int) -> bytes | None:
        """See `Timeline.read`. A state that is yet to come has no files."""
        if seq > self._parts.session.writer.last:
            return None
        return await self._parts.session.timeline.read(path, seq, limit)

    # -- checkpoints

    async def checkpoint(self, name: str, *, by: str = "", auto: bool = False) -> Checkpoint:
        """Commit what is there and keep it under this name. Raises `NotDurable`, `TooManyCheckpoints`,
        `StoreError`."""
        parts = self._parts
        status = await parts.flush()
        if status.pending:
            raise NotDurable(status.last_error or "The object store did not take everything yet")
        return await checkpoints.add(
            parts.session.writer.store, name, parts.session.writer.last, by=by, auto=auto, known=True
        )

    async def restore(self, seq: int, *, by: str) -> Restored:
        """Bring the workspace to the state of the checkpoint ``seq``; what is there now is kept as one first.

        Broken off half-way (a crash, the store), it can be done again. Raises `UnknownCheckpoint`, `NotFound`
        (no longer kept), `NotDurable`, `Busy`, `StoreError`, ``OSError`` (disk full).
        """
        if self._restore is not None or self._closing:
            raise Busy
        # a task of its own: whoever asked may go away
        self._restore = asyncio.create_task(self._run(seq, by), name="restore of a checkpoint")
        try:
            return await asyncio.shield(self._restore)
        finally:
            if self._restore.done():
                self._restore = None
            else:
                self._restore.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Restored]) -> None:
        self._restore = None
        if not task.cancelled() and task.exception() is not None:
            log.warning("a restore failed: %s", task.exception())

    async def _run(self, seq: int, by: str) -> Restored:
        parts = self._parts
        store = parts.session.writer.store
        mark = next((m for m in await checkpoints.listed(store) if m.seq == seq), None)
        if mark is None:
            raise UnknownCheckpoint
        async with parts.session.maintenance.paused():  # compaction must not take away what we read
            plan = await reader.plan(store, await reader.load(store, seq))
            # the way back of a way back is named after the same checkpoint
            name = _BEFORE + mark.name.removeprefix(_BEFORE)
            kept = await self.checkpoint(name[: checkpoints.MAX_NAME], by=by, auto=True)
            rewinder = Rewinder(
                parts.root,
                SetAside(parts.root, aside_folder()),
                dict(parts.session.manifest.entries),
                parts.ignore(),
                parts.spool,
            )
            self._rewinder = rewinder
            rewinder.stop = self._closing
            try:
                rewinder.live = parts.documents.open_paths()
                async for _ in reader.replay(store, plan, rewinder):
                    await self._deliver(rewinder, by, kept.seq)
                    rewinder.live = parts.documents.open_paths()
                await self._deliver(rewinder, by, kept.seq)
                await self._delete(rewinder, by)
                await asyncio.to_thread(rewinder.finish)
            finally:
                self._rewinder = None
                rewinder.abort()
                parts.touched()
        with contextlib.suppress(StoreError, OSError):
            await parts.flush()
        self._tell(rewinder, mark, by)
        return Restored(rewinder.restored, rewinder.deleted, len(rewinder.skipped), kept)

    def _tell(self, rewinder: Rewinder, mark: Checkpoint, by: str) -> None:
        notices = self._parts.notices
        notices.always("info", f"{by or 'Somebody'} restored the project to {mark.name}")
        if rewinder.aside.count:
            notices.always(
                "warning",
                f"{rewinder.aside.count} files changed during the restore: see {rewinder.aside.folder}",
            )
        if rewinder.skipped:
            names = ", ".join(ascii(path[:100]) for path in rewinder.skipped[:3])
            notices.always("error", f"{len(rewinder.skipped)} files could not be restored: {names}")

    async def _deliver(self, rewinder: Rewinder, by: str, before: int) -> None:
        """Give open documents their texts, and say who changed what."""
        waiting, rewinder.waiting = rewinder.waiting, []
        try:
            while waiting:
                with contextlib.closing(waiting[0].content):
                    await self._document(rewinder, waiting.pop(0), by, before)
        finally:
            rewinder.waiting = waiting
        self._note(rewinder, by)

    def _note(self, rewinder: Rewinder, by: str) -> None:
        changed, rewinder.changed = rewinder.changed, []
        if by:
            self._parts.documents.authors.note(by, *changed)
        if changed:
            self._parts.touched(*changed)

    async def _document(self, rewinder: Rewinder, item: Waiting, by: str, before: int) -> None:
        documents = self._parts.documents
        await documents.saved(item.path)
        # its lock keeps the document from writing the file between our look and our write
        async with documents.removing(item.path):
            await self._write(rewinder, item, before)
        self._note(rewinder, by)
        await documents.outside([item.path])

    async def _write(self, rewinder: Rewinder, item: Waiting, before: int) -> None:
        def look() -> tuple[bytes, bytes | None, bool]:
            item.content.seek(0)
            new = item.content.read()
            try:
                now: bytes | None = self._parts.root.read_bytes(item.path, 4 * self._parts.max_document)
            except (OSError, safefs.InvalidPath):
                now = None
            return new, now, rewinder.known(item.path)

        new, now, known = await asyncio.to_thread(look)
        if not known and now is not None:
            # typed since the checkpoint: it stays, merged with the old text as anybody's edit would be
            new = await self._merged(rewinder, item.path, before, now, new)
        if new != now:
            await asyncio.to_thread(rewinder.put, item.path, item.mode, new)
        else:
            await asyncio.to_thread(rewinder.set_mode, item.path, item.mode)

    async def _merged(self, rewinder: Rewinder, path: str, before: int, now: bytes, new: bytes) -> bytes:
        base = await self._parts.session.timeline.read(path, before, self._parts.max_document)
        try:
            texts = [TextFile.decode(data or b"") for data in (base, now, new)]
        except NotText:
            await asyncio.to_thread(rewinder.keep, path)
            return new
        old, ours, theirs = (t.text for t in texts)
        text = await asyncio.to_thread(merge.merge, old, ours, theirs)
        return TextFile(text, texts[2].crlf).encode()

    async def _delete(self, rewinder: Rewinder, by: str) -> None:
        documents = self._parts.documents
        doomed = await asyncio.to_thread(rewinder.doomed)
        live = documents.open_paths()
        for path in doomed:
            if path in live:
                await documents.saved(path)
                async with documents.removing(path):
                    await asyncio.to_thread(rewinder.delete, [path])
                self._note(rewinder, by)
        rest = [path for path in doomed if path not in live]
        for start in range(0, len(rest), BATCH):
            await asyncio.to_thread(rewinder.delete, rest[start : start + BATCH])
            self._note(rewinder, by)


__all__ = ["Busy", "NotDurable", "NotFound", "Parts", "Past", "Restored", "Stopped", "UnknownCheckpoint"]
