"""What the hub does with logs, on a store opened at the bucket's root.

Prefixes are ``projects/{id}/``. Nothing here holds a project in memory: copies are made by the store itself,
exports are streamed.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pod_runtime.journal import checkpoints, reader
from pod_runtime.journal.format import Area, Kind, Member, Meta, check_path, encode_body, meta_frame, now
from pod_runtime.journal.reader import HEAD, Checkpoint, Head, journal_key, snapshot_key
from pod_runtime.journal.store import ObjectInfo, ObjectStore, PreconditionFailed, one_error

PARALLEL_COPIES = 16


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """One file (or, with ``target``, one symbolic link) of a template."""

    data: bytes = b""
    mode: int = 0o644
    target: str = ""


@dataclass(frozen=True, slots=True)
class Summary:
    """A project's size: last sequence number, living files, their bytes, and when it was last committed."""

    seq: int
    files: int
    bytes: int
    last_commit: str | None


def template_key(name: str, version: str) -> str:
    """Where a version of a template stands in the bucket."""
    check_path(f"{name}/{version}")
    if "/" in name or "/" in version:
        raise ValueError("a template's name and version are single path components")
    return f"templates/{name}/{version}/snapshot.tar.zst"


async def publish_template(
    store: ObjectStore, files: Mapping[str, TemplateFile | bytes], name: str, version: str
) -> str:
    """Put a template into the bucket unless this version stands there already; gives its key.

    ``version`` should be a hash of the content: a published version never changes. Raises `FormatError` for
    bad paths.
    """
    key = template_key(name, version)
    written = now()
    members: list[tuple[Member, bytes]] = []
    mtime = int(time.time()) * 10**9
    for path, given in sorted(files.items()):
        file = TemplateFile(given) if isinstance(given, bytes) else given
        kind = Kind.SYMLINK if file.target else Kind.FILE
        check_path(path)
        members.append(
            (
                Member(Area.WORKSPACE, path, kind, file.mode, mtime, len(file.data), file.target),
                file.data,
            )
        )
    body = await asyncio.to_thread(encode_body, members)
    frame = meta_frame(Meta("snapshot", 0, "template", 0, f"{name}/{version}", written))
    with contextlib.suppress(PreconditionFailed):
        await store.put(key, frame + body, if_none_match=True)
    return key


async def create_from_snapshot(store: ObjectStore, template: str, prefix: str) -> None:
    """Begin a project's log with a copy of a published template. Raises `NotFound`, `PreconditionFailed`."""
    at = Prefixed(store, prefix)
    await store.copy(template, prefix + snapshot_key(0))
    await at.put(HEAD, Head(0).to_json(), if_none_match=True)


async def fork(store: ObjectStore, source: str, target: str) -> int:
    """Begin ``target``'s log with a copy of ``source``'s last durable state; gives its sequence number.

    Snapshot and journal tail are copied by the store, the documents' histories with their epochs included:
    both projects then go on from the same history, in rooms of their own. Generations start anew (HEAD's
    ``inherited``); named checkpoints stay behind. HEAD comes last: when this fails, delete ``target``.
    """
    log = await reader.load(Prefixed(store, source))
    gate = asyncio.Semaphore(PARALLEL_COPIES)

    async def one(key: str) -> None:
        async with gate:
            await store.copy(source + key, target + key)

    with one_error():
        async with asyncio.TaskGroup() as group:
            if log.snapshot is not None:
                group.create_task(one(snapshot_key(log.snapshot)))
            for seq in log.tail:
                group.create_task(one(journal_key(seq)))
    if log.snapshot is None:
        # HEAD names a snapshot, so a log without one gets an empty one to start from
        frame = meta_frame(Meta("snapshot", 0, "fork", 0, "", now()))
        await store.put(target + snapshot_key(0), frame + encode_body(()))
    head = Head(log.snapshot or 0, 0, inherited=log.last)
    await Prefixed(store, target).put(HEAD, head.to_json(), if_none_match=True)
    return log.last


async def fork_files(store: ObjectStore, source: str, target: str) -> None:
    """Begin ``target``'s log with ``source``'s present files and nothing of what was before.

    For people who may see what is there now, but no earlier versions: neither records that can be read back
    nor the documents' histories are copied. Streams. HEAD comes last: when this fails, delete ``target``.
    """
    at, to = Prefixed(store, source), Prefixed(store, target)
    plan = await reader.plan(at, await reader.load(at))
    frame = meta_frame(Meta("snapshot", 0, "fork", 0, "", now()))
    body = reader.archive(at, plan, first_frame=frame, workspace=Area.WORKSPACE)
    await to.put_stream(snapshot_key(0), body)
    await to.put(HEAD, Head(0).to_json(), if_none_match=True)


async def export(
    store: ObjectStore, prefix: str, *, folder: str = "workspace", at: int | None = None
) -> AsyncIterator[bytes]:
    """The project's files (not the histories) as one tar.zst under ``folder``, now or ``at`` a number.

    Streams from the log; the project need not run. Raises `NotFound` when ``at`` is no longer kept.
    """
    check_path(folder)
    at_prefix = Prefixed(store, prefix)
    plan = await reader.plan(at_prefix, await reader.load(at_prefix, at))
    async for chunk in reader.archive(at_prefix, plan, workspace=folder):
        yield chunk


async def delete_prefix(store: ObjectStore, prefix: str) -> int:
    """Delete everything under ``prefix`` (which must name one project or template); gives the number."""
    if prefix.count("/") < 2 or not prefix.endswith("/"):
        raise ValueError(f"{prefix!r} is not the prefix of one project")
    count = 0
    batch: list[str] = []
    # HEAD first: a half-deleted project must not look like one with a hole
    await store.delete(prefix + HEAD)
    async for item in store.list(prefix):
        batch.append(item.key)
        if len(batch) == 500:
            await store.delete(*batch)
            count, batch = count + len(batch), []
    await store.delete(*batch)
    return count + len(batch)


async def summary(store: ObjectStore, prefix: str) -> Summary:
    """Size up a project by reading its log once."""
    at = Prefixed(store, prefix)
    plan = await reader.plan(at, await reader.load(at))
    count = _Count()
    async for _ in reader.replay(at, plan, count):
        pass
    return Summary(plan.log.last, count.files, count.bytes, plan.metas[-1].time if plan.metas else None)


async def checkpoints_of(store: ObjectStore, prefix: str) -> list[Checkpoint]:
    """The project's checkpoints, newest first."""
    return await checkpoints.listed(Prefixed(store, prefix))


async def add_checkpoint(
    store: ObjectStore, prefix: str, name: str, seq: int | None = None, *, by: str = ""
) -> Checkpoint:
    """Name the state ``seq`` (None: the log's end) of a stopped project; see `checkpoints.add`."""
    at = Prefixed(store, prefix)
    if seq is None:
        seq = (await reader.load(at)).last
    return await checkpoints.add(at, name, seq, by=by)


async def remove_checkpoint(store: ObjectStore, prefix: str, seq: int) -> bool:
    """Forget the checkpoint of the state ``seq``; whether there was one."""
    return await checkpoints.remove(Prefixed(store, prefix), seq)


class _Count:
    def __init__(self) -> None:
        self.files = 0
        self.bytes = 0

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        if member.area is Area.WORKSPACE and member.kind is not Kind.DIRECTORY:
            self.files += 1
            self.bytes += member.size
        return False

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass


class Prefixed:
    """`ObjectStore` for a prefix inside another store."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    async def get(self, key: str) -> tuple[bytes, str]:
        return await self._store.get(self._prefix + key)

    async def first(self, key: str, size: int) -> bytes:
        return await self._store.first(self._prefix + key, size)

    def stream(self, key: str) -> AsyncIterator[bytes]:
        return self._store.stream(self._prefix + key)

    async def put(
        self, key: str, data: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        return await self._store.put(self._prefix + key, data, if_none_match=if_none_match, if_match=if_match)

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._store.put_stream(self._prefix + key, chunks)

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        after = self._prefix + start_after if start_after else ""
        async for i in self._store.list(self._prefix + prefix, start_after=after):
            yield ObjectInfo(i.key[len(self._prefix) :], i.size, i.etag, i.modified)

    async def copy(self, source: str, target: str) -> None:
        await self._store.copy(self._prefix + source, self._prefix + target)

    async def delete(self, *keys: str) -> None:
        await self._store.delete(*(self._prefix + key for key in keys))
