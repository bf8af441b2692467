"""Writing the log: one writer at a time, by generation and by conditional puts. See `docs/journal.md`."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pod_runtime.journal import reader
from pod_runtime.journal.format import DocMeta, Meta, encode_body, meta_frame, now
from pod_runtime.journal.reader import HEAD, JOURNAL, SNAPSHOTS, Head, Log, journal_key, seq_of, snapshot_key
from pod_runtime.journal.store import ObjectStore, PreconditionFailed, StoreError

#: A writer that was silent for longer looks at the log and commits a new ``open`` record first, seconds.
MAX_SILENCE = 600.0
#: Compaction keeps what is younger: longer than any sleeper's request can live.
KEEP = timedelta(hours=24)
SNAPSHOT_BYTES = 8 * 2**20
SNAPSHOT_RECORDS = 200
#: A snapshot is read and written as a whole, so one that is large beside what came after waits for more.
SNAPSHOT_SHARE = 64
MAX_RECORDS = 1000


class Fenced(Exception):
    """Another writer of the same or a higher ``generation`` owns the log; this one must stop for good."""

    def __init__(self, generation: int) -> None:
        super().__init__(f"generation {generation} has taken over the log")
        self.generation = generation


class Moved(Exception):
    """A writer of a lower generation has committed ``seq`` before us: take its record in, then go on."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"record {seq} came first")
        self.seq = seq


@dataclass(slots=True)
class Commit:
    """What is to be committed: ``body`` (see `format.BodyWriter`), and what `format.Meta` says of it.

    A body that is a file is joined with its meta data into a second file beside it while it is sent.

    Give the same object again after a `StoreError`: its ``id`` tells whether it stands in the log already.
    """

    body: bytes | Path
    deleted: tuple[str, ...] = ()
    docs: dict[str, DocMeta] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] | None = None
    changed_count: int = 0
    kind: str = "commit"
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    time: str = field(default_factory=now)
    #: where it stands, once it does
    seq: int | None = None


def boottime() -> float:
    """Seconds that also count while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LogWriter:
    """Appends to one log. Not for concurrent use: one call at a time."""

    def __init__(
        self,
        store: ObjectStore,
        generation: int,
        *,
        writer: str | None = None,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self.store = store
        self.generation = generation
        self.writer = writer or secrets.token_hex(8)
        self.last = 0
        self._clock = clock
        self._heard = float("-inf")
        self._landed: dict[str, int] = {}

    async def position(self, log: Log, known: int | None = None) -> int:
        """Stand at the end of ``log``; gives its generation. Raises `Fenced` if that is higher than ours.

        ``known`` is the generation of the log's last record when the caller knows it.
        """
        found = await reader.generation_of(self.store, log) if known is None else known
        if found > self.generation:
            raise Fenced(found)
        self.last = log.last
        return found

    async def open(self) -> int:
        """Commit the ``open`` record at our position, which fences every older writer; gives its number.

        Raises `Moved` when somebody older was faster (replay, `position`, call again), `Fenced`,
        `StoreError`.
        """
        self._heard = self._clock()
        return await self.append(Commit(encode_body(()), kind="open"))

    async def append(self, commit: Commit) -> int:
        """Put ``commit`` behind the last record; gives its number when it is durable.

        Raises `StoreError` when the store is away (it may be in or not: call again with the same object),
        `Fenced`, `Moved`.
        """
        if commit.id not in self._landed and self._clock() - self._heard > MAX_SILENCE:
            await self._reopen()
        while commit.id not in self._landed:
            seq = self.last + 1
            meta = Meta(
                commit.kind,
                seq,
                self.writer,
                self.generation,
                commit.id,
                commit.time,
                commit.deleted,
                commit.docs,
                commit.changed,
                commit.changed_count,
            )
            frame = meta_frame(meta)
            try:
                await self._put(seq, frame, commit.body)
            except PreconditionFailed:
                theirs = await reader.read_meta(self.store, journal_key(seq))
                self._judge(seq, theirs)
            else:
                self._accept(seq, commit.id)
        commit.seq = self._landed.pop(commit.id)
        return commit.seq

    async def _put(self, seq: int, frame: bytes, body: bytes | Path) -> None:
        if isinstance(body, bytes):
            await self.store.put(journal_key(seq), frame + body, if_none_match=True)
            return

        whole = body.with_name(body.name + ".record")
        try:
            await asyncio.to_thread(_join, whole, frame, body)
            await self.store.put(journal_key(seq), whole, if_none_match=True)
        finally:
            whole.unlink(missing_ok=True)

    def _accept(self, seq: int, identity: str) -> None:
        self.last = seq
        self._heard = self._clock()
        self._landed[identity] = seq

    def _judge(self, seq: int, theirs: Meta) -> None:
        """Somebody's record stands where ours should: whose?"""
        if theirs.writer == self.writer:
            self._accept(seq, theirs.id)  # an earlier put of ours, whose answer was lost
        elif theirs.generation >= self.generation:
            raise Fenced(theirs.generation)
        else:
            self.last = seq
            raise Moved(seq)

    async def _reopen(self) -> None:
        """After a long silence the next number may be a hole of compaction: look before writing."""
        log = await reader.load(self.store)
        if log.last < self.last:
            raise reader.LogError(f"the log ends at {log.last}, but {self.last} was committed")
        first = max(self.last, log.snapshot or 0)
        if first > self.last:
            # compacted past us, so somebody else was here
            raise Fenced(max(await reader.generation_of(self.store, log), self.generation))
        for seq in log.tail:
            if seq > self.last:
                self._judge(seq, await reader.read_meta(self.store, journal_key(seq)))
        await self.open()

    # -- snapshots

    async def snapshot_due(self) -> bool:
        """Whether the journal has outgrown its snapshot, in bytes or in number."""
        log = await reader.load(self.store)
        many, much = len(log.tail) >= SNAPSHOT_RECORDS, log.tail_bytes >= SNAPSHOT_BYTES
        if not many and not much:
            return False
        size = 0
        if log.snapshot is not None:
            async for item in self.store.list(snapshot_key(log.snapshot)):
                size = item.size
        if many and (len(log.tail) >= MAX_RECORDS or log.tail_bytes * SNAPSHOT_SHARE >= size):
            return True
        return much and log.tail_bytes > size

    async def snapshot(self) -> int:
        """Write a snapshot of the log's end, move HEAD to it; gives its number.

        It is merged from the last snapshot and the journal, not read from a disk that changes meanwhile, so
        it is exactly the state at its number. Raises `StoreError` also when this process slept meanwhile.
        """
        began = self._clock()
        log = await reader.load(self.store)
        plan = await reader.plan(self.store, log)
        generation = await reader.generation_of(self.store, log)
        meta = Meta(
            "snapshot", log.last, self.writer, generation, secrets.token_hex(8), now(), docs=plan.docs
        )
        if log.last != log.snapshot:
            await self.store.put_stream(
                snapshot_key(log.last), reader.archive(self.store, plan, first_frame=meta_frame(meta))
            )
        if self._clock() - began > KEEP.total_seconds() / 2:
            # what HEAD does not point at is collected after `KEEP`
            raise StoreError(f"the snapshot {log.last} was not finished in time")
        await move_head(self.store, log.last, generation)
        return log.last


def _join(whole: Path, frame: bytes, body: Path) -> None:

    with whole.open("wb") as out, body.open("rb") as source:
        out.write(frame)
        shutil.copyfileobj(source, out, 2**20)


async def move_head(store: ObjectStore, snapshot: int, generation: int) -> Head:
    """Point HEAD at a newer snapshot by If-Match; one that is newer already stays."""
    return await change_head(
        store,
        lambda head: (
            head
            if head.snapshot >= snapshot
            else replace(head, snapshot=snapshot, generation=max(generation, head.generation))
        ),
        Head(snapshot, generation),
    )


async def change_head(store: ObjectStore, change: Callable[[Head], Head], initial: Head) -> Head:
    """Read, change and write HEAD until nobody came between; ``initial`` is written when there is none."""
    while True:
        head, etag = await reader.read_head(store)
        new = change(head) if head else initial
        if new == head:
            return new
        try:
            if etag is None:
                await store.put(HEAD, new.to_json(), if_none_match=True)
            else:
                await store.put(HEAD, new.to_json(), if_match=etag)
        except PreconditionFailed:
            continue
        return new


async def compact(store: ObjectStore, *, at: datetime | None = None) -> list[str]:
    """Delete what no reader, sleeper or checkpoint can need; gives the deleted keys.

    Journal records go when HEAD's snapshot covers them, they are older than 24 hours and no checkpoint needs
    them; a snapshot goes 24 hours after a newer one was written, unless a checkpoint starts from it.
    """
    head, _ = await reader.read_head(store)
    if head is None:
        return []
    limit = (at or datetime.now(UTC)) - KEEP
    snapshots = [(s, i) async for i in store.list(SNAPSHOTS) if (s := seq_of(i.key)) is not None]
    bases: dict[int, int] = {}
    for mark in head.checkpoints:
        bases[mark.seq] = max((s for s, _ in snapshots if s <= mark.seq), default=0)
    doomed: list[str] = []
    for n, (seq, item) in enumerate(snapshots):
        if seq < head.snapshot and seq not in bases.values() and snapshots[n + 1][1].modified < limit:
            doomed.append(item.key)
    async for item in store.list(JOURNAL):
        found = seq_of(item.key)
        if found is None or found > head.snapshot or item.modified >= limit:
            continue
        if not any(base < found <= mark for mark, base in bases.items()):
            doomed.append(item.key)
    await store.delete(*doomed)
    return doomed
