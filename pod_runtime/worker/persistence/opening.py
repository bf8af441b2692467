"""Deciding at the start between the local files and the log, and taking the log's state in."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
from collections.abc import Callable
from pathlib import Path

from pod_runtime.journal import reader
from pod_runtime.journal.format import Kind, Member, Meta
from pod_runtime.journal.ignore import MAX_TOML, Ignore, patterns_of
from pod_runtime.journal.reader import Log, journal_key
from pod_runtime.journal.store import NotFound
from pod_runtime.journal.writer import Fenced, LogWriter, Moved
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.aside import PREFIX, SetAside, aside_folder
from pod_runtime.worker.persistence.changes import Changes, Notice
from pod_runtime.worker.persistence.manifest import HELD_FULL, UNKNOWN, Delta, Entry, Manifest
from pod_runtime.worker.persistence.restore import Restorer
from pod_runtime.worker.ports import Documents

log = logging.getLogger(__name__)

Progress = Callable[[int, str], None]


class Opener:
    """One start: `run` leaves the workspace at the log's end (or ahead of it) and the log opened by us."""

    def __init__(
        self,
        root: safefs.Root,
        documents: Documents,
        manifest: Manifest,
        writer: LogWriter,
        *,
        spool: Path,
        max_workspace: int,
        notice: Notice,
        progress: Progress,
    ) -> None:
        self._root, self._documents, self._manifest, self._writer = root, documents, manifest, writer
        self._spool, self._max, self._notice, self._progress = spool, max_workspace, notice, progress
        self._store = writer.store

    async def run(self) -> None:
        """Raises `Fenced`, `StoreError`, `LogError`, `OSError` (disk full)."""
        while True:
            info = self._manifest.info
            guess = int(info.get("snapshot") or 0) if self._manifest.usable else None
            found = await reader.load(self._store, guess=guess)
            known = None
            if self._manifest.usable and self._manifest.seq == found.last and info.get("generation"):
                known = int(info["generation"])
            generation = await self._writer.position(found, known)
            await self._take(found)
            try:
                # before the put: if its answer is lost and we die, the next start knows our id
                self._note(found, found.last, generation)
                seq = await self._writer.open()
            except Moved:
                continue
            self._note(found, seq, self._writer.generation)
            return

    def _note(self, found: Log, seq: int, generation: int) -> None:
        writers = [*self._writers(), self._writer.writer][-20:]
        self._manifest.apply(
            Delta(),
            {
                "state": "ok",
                "seq": seq,
                "generation": generation,
                "snapshot": found.snapshot or 0,
                "writer": " ".join(dict.fromkeys(writers)),
            },
        )

    def _writers(self) -> list[str]:
        return self._manifest.info.get("writer", "").split()

    async def _take(self, found: Log) -> None:
        manifest = self._manifest
        if manifest.usable and manifest.seq == found.last:
            # what differs on disk is work that came after; the first look finds it
            await self._retry(found)
            return
        if manifest.usable and manifest.seq > found.last:
            log.warning("the log ends at %d, before what was committed here (%d)", found.last, manifest.seq)
            self._notice("warning", "The object store has lost recent commits; they are written again")
            await self._distrust(found)
            return
        if manifest.usable and await self._only_ours(found):
            await self._index(found)
            return
        if found.snapshot is None and not found.tail:
            manifest.reset({"state": "ok", "seq": 0, "generation": ""})
            return
        await self._restore(found)

    async def _only_ours(self, found: Log) -> bool:
        """Whether all that the manifest lacks was committed from this very disk."""
        ours = set(self._writers())
        newer = [seq for seq in found.tail if seq > self._manifest.seq]
        if found.last - self._manifest.seq != len(newer):
            return False
        for seq in newer:
            try:
                meta = await reader.read_meta(self._store, journal_key(seq))
            except NotFound:
                return False
            if meta.writer not in ours:
                return False
        return True

    async def _index(self, found: Log) -> None:
        """Note that records of ours are in the log, without their content: it is looked at again."""
        newer = tuple(seq for seq in found.tail if seq > self._manifest.seq)
        some = await reader.plan(self._store, Log(None, None, None, newer, found.tail_bytes))
        delta = Delta()
        for name in some.last:
            area, _, path = name.partition("/")
            if area == "workspace":
                delta.entries[path] = UNKNOWN
        self._manifest.apply(delta, {"seq": found.last, "generation": ""})

    async def _distrust(self, found: Log) -> None:
        """Make the manifest say: the log has these names, with unknown content."""
        names = _Names()
        async for _ in reader.replay(self._store, await reader.plan(self._store, found), names):
            pass
        held = {path: e for path, e in self._manifest.entries.items() if e.held and path in names.entries}
        self._manifest.reset({"state": "ok", "seq": found.last, "generation": ""})
        self._manifest.apply(Delta({**names.entries, **held}), {})

    async def _restore(self, found: Log) -> None:
        manifest = self._manifest
        known = set(manifest.entries)
        aside = SetAside(self._root, aside_folder())
        if manifest.info.get("state") == "restoring":
            # done again: what the interrupted one wrote is nobody's work, what it had still to set aside is
            unsaved = set(json.loads(manifest.info.get("unsaved") or "[]"))
        else:
            unsaved = await asyncio.to_thread(self._unsaved)
            await self._set_documents_aside(aside)
            manifest.apply(Delta(), {"state": "restoring", "unsaved": json.dumps(sorted(unsaved))})
        plan = await reader.plan(self._store, found)
        total = await self._size(found)
        restorer = Restorer(self._root, aside, unsaved)
        self._progress(0, "Restoring files")
        try:
            async for done in reader.replay(self._store, plan, restorer, max_bytes=4 * self._max):
                self._import(restorer)
                percent = min(99, done * 100 // total) if total else 99
                self._progress(percent, f"Restoring {restorer.files} files")
        except BaseException:
            restorer.abort()
            raise
        self._import(restorer)
        await asyncio.to_thread(restorer.finish, known)
        if aside.count:
            self._notice(
                "warning",
                f"Unsaved work from an earlier session is in {aside.folder} ({aside.count} files)",
            )
        self._tell_skipped(restorer)
        manifest.reset({"state": "ok", "seq": found.last, "generation": "", "unsaved": ""})
        manifest.apply(restorer.delta, {})
        self._progress(100, f"Restored {restorer.files} files")

    async def _retry(self, found: Log) -> None:
        """Once more what found no space at an earlier start; a place that somebody has used is left alone."""
        wanted = {
            path
            for path, entry in self._manifest.entries.items()
            if entry.mtime_ns == HELD_FULL and not self._root.exists(path)
        }
        if not wanted:
            return
        restorer = Restorer(self._root, SetAside(self._root, aside_folder()), set(), wanted)
        try:
            async for _ in reader.replay(self._store, await reader.plan(self._store, found), restorer):
                self._progress(0, "Restoring files")
        finally:
            restorer.abort()
        self._tell_skipped(restorer)
        self._manifest.apply(restorer.delta, {})

    def _tell_skipped(self, restorer: Restorer) -> None:
        if not restorer.skipped:
            return
        names = ", ".join(ascii(path[:100]) for path in restorer.skipped[:3])
        more = ", …" if len(restorer.skipped) > 3 else ""
        log.warning("%d files could not be restored: %s%s", len(restorer.skipped), names, more)
        self._notice(
            "error",
            f"{len(restorer.skipped)} files could not be restored here; they stay saved: {names}{more}",
        )

    def _import(self, restorer: Restorer) -> None:
        for h in restorer.histories:
            self._documents.import_history(h.path, h.data, h.doc.epoch, h.doc.text_sha256)
        restorer.histories.clear()

    async def _size(self, found: Log) -> int:
        size = found.tail_bytes
        if found.snapshot is not None:
            async for item in self._store.list(reader.snapshot_key(found.snapshot)):
                size += item.size
        return size

    def _unsaved(self) -> set[str]:
        """Paths whose content on disk is not what was last committed from here."""
        patterns: tuple[str, ...] = ()
        with contextlib.suppress(OSError, ValueError):
            patterns = patterns_of(self._root.read_bytes("codevo.toml", MAX_TOML))
        prepared = Changes(
            self._root,
            self._manifest,
            Ignore(patterns),
            spool=self._spool,
            live=set(),
            max_workspace=2**62,
            notice=lambda level, message: None,
        ).build((), set(self._manifest.docs), None)
        prepared.discard()
        old = self._manifest.entries
        return {
            path
            for path, entry in prepared.delta.entries.items()
            if entry is not None
            and entry.kind is not Kind.DIRECTORY
            and not path.startswith(PREFIX)
            and (path not in old or (old[path].kind, old[path].digest) != (entry.kind, entry.digest))
        }

    async def _set_documents_aside(self, aside: SetAside) -> None:
        """Texts of histories that neither disk nor log have."""
        for capture in self._documents.capture({}):
            text = hashlib.sha256(capture.text).hexdigest()
            known = self._manifest.docs.get(capture.path)
            if known is not None and known.text == text:
                continue
            try:
                on_disk = self._root.read_bytes(capture.path, len(capture.text))
            except (OSError, safefs.InvalidPath):
                on_disk = None
            if on_disk != capture.text:
                aside.write(capture.path, capture.text)


class _Names:
    """Collects names only."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry | None] = {}

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        if member.area == "workspace":
            self.entries[member.path] = UNKNOWN
        return False

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass


__all__ = ["Fenced", "Opener", "Progress"]
