"""The timeline of a file: its versions by the log, and its content at any state that is still kept.

The index of what changed when is filled by the commits as they are made, and for older records when somebody
asks: a bounded number at a time, from the newest, each by a read of its first bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

from pod_runtime.journal import files, reader
from pod_runtime.journal.format import Kind
from pod_runtime.journal.reader import journal_key, seq_of, snapshot_key
from pod_runtime.journal.store import NotFound, ObjectInfo, ObjectStore
from pod_runtime.journal.versions import Change, Version, kept_ranges, versions
from pod_runtime.worker.persistence.changes import Prepared
from pod_runtime.worker.persistence.index import Index, Known, Shot

log = logging.getLogger(__name__)

#: Records that one question looks at, at most.
MAX_LOOKED = 2000
PARALLEL = 16
#: Records that do not say what they changed are read as a whole up to this size, bytes.
MAX_READ = 32 * 2**20
#: Snapshots are read for their names up to this size together in one question, bytes.
MAX_SHOTS = 512 * 2**20
#: Files that one snapshot may add to the index.
MAX_NAMES = 100_000


class Timeline:
    """For the event loop; one for the life of a worker."""

    def __init__(self, store: ObjectStore, file: Path) -> None:
        self._store = store
        self._index = Index(file)
        self._lock = asyncio.Lock()
        self._records: dict[int, int] | None = None
        self._snapshots: dict[int, int] = {}

    def close(self) -> None:
        self._index.close()

    # -- what persistence tells

    async def committed(self, seq: int, prepared: Prepared) -> None:
        """Record ``seq`` of ours is in the log."""
        commit = prepared.commit
        if self._records is not None and (seq - 1 in self._records or seq - 1 in self._snapshots):
            self._records[seq] = 0
        else:
            self._records = None  # an `open` came before
        found: dict[str, Change] = {}
        named = commit.changed or {}
        gone = {n.removeprefix("workspace/") for n in commit.deleted if n.startswith("workspace/")}
        for path in gone:
            found[path] = Change(seq, commit.time, named.get(path, ()), gone=True)
        for path, entry in prepared.delta.entries.items():
            if entry is not None and entry.kind is not Kind.DIRECTORY and path in prepared.written:
                size = entry.size if entry.kind is Kind.FILE else None
                found[path] = Change(seq, commit.time, named.get(path, ()), size=size)
        try:
            await asyncio.to_thread(self._index.add, [Known(seq, commit.time, found)])
        except sqlite3.Error as e:
            log.warning("the index of changes cannot be written: %s", e)  # it is read again when asked for

    def listing_changed(self) -> None:
        """Records or snapshots came or went otherwise."""
        self._records = None

    # -- what people ask

    async def versions(self, path: str, *, before: int | None, limit: int) -> tuple[list[Version], bool]:
        """Versions of ``path``, newest first, with numbers below ``before``; whether there may be more."""
        async with self._lock:
            complete = await self._fill()
            assert self._records is not None
            kept = kept_ranges(self._snapshots, self._records)
        head, _ = await reader.read_head(self._store)
        marks = head.checkpoints if head else ()

        def look() -> list[Version]:
            return versions(self._index.changes(path), kept, marks)

        found = await asyncio.to_thread(look)
        if before is not None:
            found = [v for v in found if v.seq < before]
        return found[:limit], not complete or len(found) > limit

    async def read(self, path: str, seq: int, limit: int) -> bytes | None:
        """The file as it was after record ``seq``; None: there was none.

        Raises `NotFound` when that state is no longer kept, `files.TooLarge` above ``limit`` bytes.
        """
        found = await reader.load(self._store, seq)
        async with self._lock:
            await self._look_at(found.tail, await self._sizes())
        first = found.tail[0] if found.tail else seq + 1
        for at, gone in await asyncio.to_thread(self._index.holders, path, first, seq):
            if gone:
                return None
            data = await files.read_member(self._store, journal_key(at), path, limit)
            if data is not None or gone is False:
                return data
            meta = await reader.read_meta(self._store, journal_key(at))
            if f"workspace/{path}" in meta.deleted:
                return None
        if found.snapshot is None:
            return None
        if await asyncio.to_thread(self._index.in_shot, path, found.snapshot) is False:
            return None
        return await files.read_member(self._store, snapshot_key(found.snapshot), path, limit)

    # -- filling the index

    async def _sizes(self) -> dict[int, int]:
        """The journal's records with their sizes (0: one of ours)."""
        if self._records is None:
            self._snapshots = _numbered([i async for i in self._store.list(reader.SNAPSHOTS)])
            self._records = _numbered([i async for i in self._store.list(reader.JOURNAL)])
        return self._records

    async def _fill(self) -> bool:
        """Look at records that are not in the index, the newest first; whether none are left."""
        sizes = await self._sizes()
        unknown = await asyncio.to_thread(self._index.unknown, sorted(sizes, reverse=True))
        await self._look_at(unknown[:MAX_LOOKED], sizes)
        if len(unknown) > MAX_LOOKED:
            return False
        return await self._fill_shots()

    async def _look_at(self, seqs: Iterable[int], sizes: dict[int, int]) -> None:
        unknown = await asyncio.to_thread(self._index.unknown, seqs)
        for start in range(0, len(unknown), 10 * PARALLEL):
            batch: list[Known] = []
            gate = asyncio.Semaphore(PARALLEL)

            async def one(seq: int, batch: list[Known] = batch, gate: asyncio.Semaphore = gate) -> None:
                async with gate:
                    with contextlib.suppress(NotFound):  # compaction was faster
                        batch.append(await self._look(seq, sizes.get(seq, 0)))

            ends = await asyncio.gather(
                *map(one, unknown[start : start + 10 * PARALLEL]), return_exceptions=True
            )
            await asyncio.to_thread(self._index.add, batch)
            for error in ends:
                if error is not None:
                    raise error

    async def _look(self, seq: int, size: int) -> Known:
        key = journal_key(seq)
        meta = await reader.read_meta(self._store, key)
        people = meta.changed or {}
        whole = meta.names_all or meta.kind == "open"
        written: dict[str, int | None] = dict.fromkeys(people)
        if not whole and size <= MAX_READ:
            _, members = await files.read_names(self._store, key)
            written = {path: length for path, (length, _) in members.items()}
            whole = True
        gone = {n.removeprefix("workspace/") for n in meta.deleted if n.startswith("workspace/")}
        found = {path: Change(seq, meta.time, people.get(path, ()), gone=True) for path in gone}
        for path, length in written.items():
            if path not in gone:
                found[path] = Change(seq, meta.time, people.get(path, ()), size=length)
        return Known(seq, meta.time, found, whole)

    async def _fill_shots(self) -> bool:
        """Look into the snapshots where the records before them are not known; whether none are left."""
        left = MAX_SHOTS
        for seq in await asyncio.to_thread(self._wanted):
            size = self._snapshots[seq]
            if size > left and left < MAX_SHOTS:
                return False
            left -= size
            shot = Shot(seq, "", {}, here=False)
            if size <= MAX_SHOTS:
                with contextlib.suppress(NotFound):
                    meta, members = await files.read_names(self._store, snapshot_key(seq))
                    if len(members) <= MAX_NAMES:
                        shot = Shot(seq, meta.time, members)
            await asyncio.to_thread(self._index.add_shot, shot)
        return True

    def _wanted(self) -> list[int]:
        """Snapshots whose files do not follow from what is known before them, newest first."""
        shots = self._index.shots()
        found: list[int] = []
        reach = -1 if 0 in self._snapshots else 0
        for seq in sorted(self._snapshots):
            if seq not in shots and not (reach >= 0 and self._index.complete(reach, seq)):
                found.append(seq)
            reach = seq
        return found[::-1]


def _numbered(items: Iterable[ObjectInfo]) -> dict[int, int]:
    return {seq: i.size for i in items if (seq := seq_of(i.key)) is not None}
