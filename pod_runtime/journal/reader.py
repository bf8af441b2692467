"""Reading the log: where it stands, and its state at any sequence number as one stream of members."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pod_runtime.journal.format import BodyWriter, Decoder, DocMeta, FormatError, Member, Meta, Sink
from pod_runtime.journal.head import (
    DIGITS,
    HEAD,
    JOURNAL,
    SNAPSHOTS,
    SUFFIX,
    Checkpoint,
    Head,
    LogError,
    journal_key,
    seq_of,
    snapshot_key,
)
from pod_runtime.journal.store import NotFound, ObjectStore

__all__ = [
    "DIGITS",
    "HEAD",
    "JOURNAL",
    "KEEP_BYTES",
    "PARALLEL",
    "SNAPSHOTS",
    "SUFFIX",
    "Checkpoint",
    "Head",
    "Log",
    "LogError",
    "Plan",
    "archive",
    "decode",
    "generation_of",
    "journal_key",
    "load",
    "plan",
    "read_head",
    "read_meta",
    "replay",
    "seq_of",
    "snapshot_key",
]

#: Journal records up to this many bytes together are kept in memory between the two passes of a replay.
KEEP_BYTES = 8 * 2**20
#: Records that are asked for at a time, and that are held until their turn comes.
PARALLEL = 16
BATCH = 64
#: What is read of a record whose meta data alone is wanted, bytes.
FIRST_BYTES = 2**15


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Log:
    """Where a log stands: its HEAD, the snapshot to start from (None: from nothing), the records after it."""

    head: Head | None
    head_etag: str | None
    snapshot: int | None
    tail: tuple[int, ...]
    tail_bytes: int = 0

    @property
    def last(self) -> int:
        """The last sequence number, 0 for an empty log."""
        return self.tail[-1] if self.tail else (self.snapshot or 0)


async def read_head(store: ObjectStore) -> tuple[Head | None, str | None]:
    """HEAD and its ETag, or nothing for a log without snapshot."""
    try:
        raw, etag = await store.get(HEAD)
    except NotFound:
        return None, None
    return Head.from_json(raw), etag


async def load(store: ObjectStore, at: int | None = None, *, guess: int | None = None) -> Log:
    """Where the log stands, or stood at ``at``. A hole raises `LogError`, a state not kept `NotFound`.

    ``guess`` is a number that HEAD's snapshot had once (0: there was none): the journal is then listed from
    there while HEAD is read, which spares one round trip.
    """
    if guess is not None and at is None:
        return await _load_at_once(store, guess)
    head, etag = await read_head(store)
    snapshot = head.snapshot if head else None
    if at is not None and snapshot is not None and at < snapshot:
        older = [s async for i in store.list(SNAPSHOTS) if (s := seq_of(i.key)) is not None and s <= at]
        snapshot = max(older, default=None)
    tail: list[int] = []
    size = 0
    async for seq, length in _records(store, snapshot):
        if at is not None and seq > at:
            break
        expected = (tail[-1] if tail else snapshot or 0) + 1
        if seq != expected:
            if at is not None:
                raise NotFound(f"the state at {at} is no longer kept")
            raise _hole(expected, seq)
        tail.append(seq)
        size += length
    log = Log(head, etag, snapshot, tuple(tail), size)
    if at is not None and log.last != at:
        raise NotFound(f"the log has no state {at}")
    return log


async def _records(store: ObjectStore, after: int | None) -> AsyncIterator[tuple[int, int]]:
    """Numbers and sizes of the journal's records from there on."""
    async for item in store.list(JOURNAL, start_after=journal_key(after) if after else ""):
        seq = seq_of(item.key)
        if seq is not None:
            yield seq, item.size


async def _load_at_once(store: ObjectStore, guess: int) -> Log:
    async def listed() -> list[tuple[int, int]]:
        return [record async for record in _records(store, guess)]

    listing = asyncio.create_task(listed())
    try:
        head, etag = await read_head(store)
        records = await listing
    finally:
        listing.cancel()
        await asyncio.gather(listing, return_exceptions=True)
    snapshot = head.snapshot if head else None
    if (snapshot or 0) < guess:
        return await load(store)  # another log than the one that was guessed
    tail = [record for record in records if record[0] > (snapshot or 0)]
    for expected, (seq, _) in enumerate(tail, (snapshot or 0) + 1):
        if seq != expected:
            raise _hole(expected, seq)
    return Log(head, etag, snapshot, tuple(s for s, _ in tail), sum(size for _, size in tail))


def _hole(expected: int, seq: int) -> LogError:
    return LogError(f"the log has a hole: record {expected} is missing, {seq} is there")


async def read_meta(store: ObjectStore, key: str) -> Meta:
    """The meta data of one record, without reading the rest. Raises `NotFound`, `LogError`."""
    decoder = Decoder(_Nothing())
    await _feed(decoder, await store.first(key, FIRST_BYTES), key)
    if decoder.meta is not None:
        return decoder.meta
    decoder = Decoder(_Nothing())
    stream = store.stream(key)
    try:
        async for chunk in stream:
            await _feed(decoder, chunk, key)
            if decoder.meta is not None:
                return decoder.meta
    finally:
        await _aclose(stream)
    raise LogError(f"{key}: the record ends early")


async def generation_of(store: ObjectStore, log: Log) -> int:
    """The generation that wrote last; 0 for an empty or freshly copied log."""
    inherited = log.head.inherited if log.head else 0
    found = log.head.generation if log.head else 0
    if log.tail and log.last > inherited:
        found = max(found, (await read_meta(store, journal_key(log.last))).generation)
    return found


async def decode(store: ObjectStore, key: str, sink: Sink, *, max_bytes: int = 2**40) -> None:
    """Stream one record into ``sink`` (called in a thread, one call at a time)."""
    decoder = Decoder(sink, max_bytes=max_bytes)
    stream = store.stream(key)
    try:
        async for chunk in stream:
            await _feed(decoder, chunk, key)
    finally:
        await _aclose(stream)
    _close(decoder, key)


@dataclass(slots=True)
class Plan:
    """What a replay will give: for each name that the journal's tail touches, the record that has it last."""

    log: Log
    #: name → sequence number; -1 for deleted
    last: dict[str, int] = field(default_factory=dict)
    docs: dict[str, DocMeta] = field(default_factory=dict)
    metas: list[Meta] = field(default_factory=list)
    kept: dict[int, bytes] = field(default_factory=dict)
    #: files in the snapshot and the tail together; an upper bound of what comes
    files: int = 0


async def plan(store: ObjectStore, log: Log) -> Plan:
    """The first pass over the tail: headers only."""
    found = Plan(log)
    if log.snapshot is not None:
        found.docs.update((await read_meta(store, snapshot_key(log.snapshot))).docs)
    keep = log.tail_bytes <= KEEP_BYTES

    async def fetch(seq: int) -> bytes | Meta:
        key = journal_key(seq)
        return (await _get(store, key))[0] if keep else await read_meta(store, key)

    for start in range(0, len(log.tail), BATCH):
        batch = log.tail[start : start + BATCH]
        for seq, got in zip(batch, await _together(fetch, batch), strict=True):
            key = journal_key(seq)
            index = _Index(seq, found)
            if isinstance(got, Meta):
                if not index.by_meta(got):
                    await decode(store, key, index)
                continue
            found.kept[seq] = got
            decoder = Decoder(index)
            await _feed(decoder, got, key)
            _close(decoder, key)
    return found


async def _together(fetch: Callable[[int], Awaitable[T]], seqs: Iterable[int]) -> list[T]:
    """Fetch records, `PARALLEL` at a time; raises what the first of them raised, once all have ended."""
    gate = asyncio.Semaphore(PARALLEL)

    async def one(seq: int) -> T:
        async with gate:
            return await fetch(seq)

    ends = await asyncio.gather(*map(one, seqs), return_exceptions=True)
    for end in ends:
        if isinstance(end, BaseException):
            raise end
    return [end for end in ends if not isinstance(end, BaseException)]


async def replay(store: ObjectStore, plan: Plan, sink: Sink, *, max_bytes: int = 2**40) -> AsyncIterator[int]:
    """Stream the state into ``sink``: each living name once (``sink.meta`` is never called).

    Yields after each piece of work, so that the caller can drain what the sink has gathered; the number is
    the compressed bytes read so far. Parents may come after what they hold.
    """
    done = 0
    sources = [(None, snapshot_key(plan.log.snapshot))] if plan.log.snapshot is not None else []
    for seq, key in [*sources, *((s, journal_key(s)) for s in plan.log.tail)]:
        chosen = _Living(sink, plan.last, seq)
        decoder = Decoder(chosen, max_bytes=max_bytes)
        if seq is not None and seq in plan.kept:
            await _feed(decoder, plan.kept.pop(seq), key)
            yield done
        else:
            stream = store.stream(key)
            try:
                async for chunk in stream:
                    await _feed(decoder, chunk, key)
                    done += len(chunk)
                    yield done
            finally:
                await _aclose(stream)
        _close(decoder, key)


async def archive(
    store: ObjectStore, plan: Plan, *, first_frame: bytes = b"", workspace: str | None = None
) -> AsyncIterator[bytes]:
    """The state as one tar.zst, in constant memory.

    ``first_frame`` makes it a snapshot. ``workspace`` instead gives the files alone, under that folder name.
    """
    out = bytearray(first_frame)
    sink = _Archive(BodyWriter(out.extend), workspace)
    async for _ in replay(store, plan, sink):
        if len(out) >= 2**18:
            yield bytes(out)
            out.clear()
    sink.writer.close()
    yield bytes(out)


class _Nothing:
    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        return False

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass


class _Index(_Nothing):
    def __init__(self, seq: int, plan: Plan) -> None:
        self._seq, self._plan = seq, plan

    def meta(self, meta: Meta) -> None:
        if meta.seq != self._seq and meta.kind != "snapshot":
            raise FormatError(f"the record says that it is number {meta.seq}")
        for name in meta.deleted:
            self._plan.last[name] = -1
            if name.startswith("docs/"):
                self._plan.docs.pop(name.removeprefix("docs/"), None)
        self._plan.docs.update(meta.docs)
        self._plan.metas.append(replace(meta, docs={}, deleted=()))

    def begin(self, member: Member) -> bool:
        self._plan.last[member.name] = self._seq
        return False

    def by_meta(self, meta: Meta) -> bool:
        """Take the record in by its meta data alone, where that names all that it holds."""
        if not meta.names_all and meta.kind != "open":
            return False
        if meta.seq != self._seq:
            raise LogError(f"{journal_key(self._seq)}: the record says that it is number {meta.seq}")
        for path in meta.changed or ():
            self._plan.last[f"workspace/{path}"] = self._seq
        for path in meta.docs:
            self._plan.last[f"docs/{path}"] = self._seq
        self.meta(meta)  # what it deletes is in `changed`, too
        return True


class _Living:
    """Lets through what no later record replaces."""

    def __init__(self, sink: Sink, last: dict[str, int], seq: int | None) -> None:
        self._sink, self._last, self._seq = sink, last, seq

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        return self._last.get(member.name) == self._seq and self._sink.begin(member)

    def data(self, chunk: bytes) -> None:
        self._sink.data(chunk)

    def end(self) -> None:
        self._sink.end()


class _Archive(_Nothing):
    def __init__(self, writer: BodyWriter, workspace: str | None) -> None:
        self.writer, self._workspace = writer, workspace

    def begin(self, member: Member) -> bool:
        if self._workspace is None:
            self.writer.begin(member)
        elif member.area == "workspace":
            self.writer.begin(member, f"{self._workspace}/{member.path}")
        else:
            return False
        return True

    def data(self, chunk: bytes) -> None:
        self.writer.data(chunk)


async def _get(store: ObjectStore, key: str) -> tuple[bytes, str]:
    try:
        return await store.get(key)
    except NotFound as e:
        raise LogError(f"{key}: the record has gone") from e


async def _feed(decoder: Decoder, chunk: bytes, key: str) -> None:
    try:
        if len(chunk) < 2**14:
            decoder.feed(chunk)
        else:
            await asyncio.to_thread(decoder.feed, chunk)
    except FormatError as e:
        raise LogError(f"{key}: {e}") from e


def _close(decoder: Decoder, key: str) -> None:
    try:
        decoder.close()
    except FormatError as e:
        raise LogError(f"{key}: {e}") from e


async def _aclose(stream: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(AttributeError):
        await stream.aclose()  # type: ignore[attr-defined]
