"""``codevo gc`` on a real object store: what nothing reaches goes, what anything reaches stays."""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from codevo.embedded.s3 import S3Settings
from codevo.objects.config import Bucket, ObjectStore, project_prefix
from codevo.objects.gc import AGE, Collector, Finding, Suspicious, words
from codevo.objects.inventory import Inventory
from codevo.store import Project, Store, new_id
from pod_runtime.journal import checkpoints, reader
from pod_runtime.journal import projects as journal
from pod_runtime.journal.format import Area, DocMeta, Kind, Member, encode_body
from pod_runtime.journal.projects import Prefixed
from pod_runtime.journal.reader import HEAD, Head, journal_key, snapshot_key
from pod_runtime.journal.store import NotFound
from pod_runtime.journal.writer import Commit, LogWriter, compact

LATER = timedelta(hours=25)


@pytest.fixture
async def bucket(s3: S3Settings) -> AsyncIterator[Inventory]:
    """A bucket of its own, since a run looks at all of it."""
    objects = ObjectStore(
        endpoint_url=s3.endpoint_url,
        bucket=f"gc-{secrets.token_hex(4)}",
        region=s3.region,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
    )
    async with Bucket(objects) as found:
        yield found.inventory


class Run:
    """Collects and remembers what was said."""

    def __init__(self, store: Store, bucket: Inventory, *, current: tuple[str, ...] = ()) -> None:
        self.store, self.bucket, self.current = store, bucket, current
        self.told: list[Finding] = []

    async def __call__(self, after: timedelta = LATER, **options: Any) -> list[str]:
        """The keys that are gone."""
        before = await keys(self.bucket)
        self.told = []
        self.totals = await Collector(
            self.store,
            self.bucket,
            self.current,
            tell=self.told.append,
            at=datetime.now(UTC) + after,
            **options,
        ).run()
        left = await keys(self.bucket)
        assert set(left) <= set(before)
        gone = set(before) - set(left)
        if not options.get("dry_run"):
            assert sum(before[key] for key in gone) == sum(
                f.bytes for f in self.told if "never finished" not in f.why
            )
        return sorted(gone)


async def keys(bucket: Inventory) -> dict[str, int]:
    return {i.key: i.size async for i in bucket.list("")}


async def project(store: Store) -> str:
    found = Project(new_id(), "One", "python")
    await store.projects.create(found)
    return found.id


async def begin(bucket: Inventory, ident: str) -> LogWriter:
    at = Prefixed(bucket, project_prefix(ident))
    writer = LogWriter(at, 1)
    await writer.position(await reader.load(at))
    await writer.open()
    return writer


def change(number: int) -> Commit:
    """Files, a folder, a link and a document, changed at random; the whole state tells every record."""
    files: list[tuple[Member, bytes]] = []
    for _ in range(random.randint(1, 4)):
        data = f"{number} {random.random()}".encode()
        files.append((Member(Area.WORKSPACE, f"f{random.randrange(8)}.txt", size=len(data)), data))
    text = f"history {number}".encode()
    files.append((Member(Area.DOCS, "d.md", size=len(text)), text))
    files.append((Member(Area.WORKSPACE, "link", Kind.SYMLINK, target=str(number)), b""))
    docs = {"d.md": DocMeta(number, "0" * 64)}
    deleted = (f"workspace/f{random.randrange(8)}.txt",) if random.random() < 0.5 else ()
    unique = {member.name: (member, data) for member, data in files}
    return Commit(encode_body(unique.values()), deleted=deleted, docs=docs)


async def state(bucket: Inventory, ident: str, at: int | None = None) -> list[tuple[Any, ...]]:
    """Everything that a restore would give, members with their content."""
    log = Prefixed(bucket, project_prefix(ident))
    plan = await reader.plan(log, await reader.load(log, at))
    sink = _Whole()
    async for _ in reader.replay(log, plan, sink):
        pass
    return sorted(sink.found)


class _Whole:
    def __init__(self) -> None:
        self.found: list[tuple[Any, ...]] = []
        self._now: list[Any] = []

    def meta(self, meta: Any) -> None:
        pass

    def begin(self, member: Member) -> bool:
        self._now = [member.name, member.kind, member.mode, member.target, str(member.doc), b""]
        if member.kind is not Kind.FILE:
            self.found.append(tuple(self._now))
        return True

    def data(self, chunk: bytes) -> None:
        self._now[-1] += chunk

    def end(self) -> None:
        if self._now[1] is Kind.FILE:
            self.found.append(tuple(self._now))


async def leave_a_snapshot_behind(bucket: Inventory, ident: str, seq: int) -> None:
    """What a crash between snapshot and HEAD leaves."""
    log = Prefixed(bucket, project_prefix(ident))
    head, _ = await reader.read_head(log)
    writer = LogWriter(log, 1)
    assert await writer.snapshot() == seq
    if head is None:
        await log.delete(HEAD)
    else:
        await log.put(HEAD, head.to_json())


@pytest.mark.parametrize("seed", [0, 1, 4])
async def test_nothing_that_is_reached_is_deleted(store: Store, bucket: Inventory, seed: int) -> None:
    """Random logs with snapshots, checkpoints, crashes and compactions: every state that HEAD or a
    checkpoint reaches is the same before and after, also when it is run again and the log goes on."""
    random.seed(seed)
    ident = await project(store)
    log = Prefixed(bucket, project_prefix(ident))
    writer = await begin(bucket, ident)
    run = Run(store, bucket)
    collected = 0
    for number in range(1, 30):
        await writer.append(change(number))
        roll = random.random()
        if roll < 0.12:
            await writer.snapshot()
        elif roll < 0.22:
            head = (await reader.read_head(log))[0]
            if head is None or head.snapshot < writer.last:
                await leave_a_snapshot_behind(bucket, ident, writer.last)
        elif roll < 0.38:
            await checkpoints.add(log, f"n{number}", writer.last, by="ana")
        elif roll < 0.44:
            marks = await checkpoints.listed(log)
            if marks:
                await checkpoints.remove(log, random.choice(marks).seq)
        elif roll < 0.5:
            await compact(log, at=datetime.now(UTC) + LATER)
        elif roll < 0.6 or number == 29:
            wanted = {None: await state(bucket, ident)}
            for mark in await checkpoints.listed(log):
                wanted[mark.seq] = await state(bucket, ident, mark.seq)
            head_before = await log.get(HEAD) if (await reader.read_head(log))[0] else None
            assert await run(dry_run=True) == []
            promised = [(f.what, f.why, f.objects, f.bytes) for f in run.told]
            gone = await run()
            collected += len(gone)
            assert [(f.what, f.why, f.objects, f.bytes) for f in run.told] == promised
            for seq, before in wanted.items():
                assert await state(bucket, ident, seq) == before
            assert await run() == [] and run.totals.objects == 0
            assert head_before is None or await log.get(HEAD) == head_before
    assert collected


async def test_the_young_are_left_alone(store: Store, bucket: Inventory) -> None:
    """The same leftovers, an hour before they are old enough; and a project that is just being made."""
    ident = await project(store)
    writer = await begin(bucket, ident)
    for number in range(3):
        await writer.append(change(number))
    await writer.snapshot()
    await writer.append(change(4))
    await leave_a_snapshot_behind(bucket, ident, writer.last)
    at_the_end = Run(store, bucket)
    assert await at_the_end(timedelta(0)) == [] == await at_the_end(AGE - timedelta(hours=1))
    assert len(await at_the_end()) == 4  # the records that HEAD's snapshot covers
    assert snapshot_key(writer.last) in str(await keys(bucket))  # it may still be written once more
    await writer.append(change(5))
    being_made = new_id()
    await bucket.put(project_prefix(being_made) + snapshot_key(0), b"x")
    await bucket.put("templates/old/0123456789abcdef/snapshot.tar.zst", b"x")
    run = Run(store, bucket)
    assert await run(timedelta(0)) == []
    assert await run(AGE - timedelta(hours=1)) == []
    assert len(await run()) == 1 + 1 + 1  # the snapshot beyond, the project, the template


async def test_projects_without_a_record_go_whole(store: Store, bucket: Inventory) -> None:
    kept, lost = await project(store), new_id()
    for ident in (kept, lost):
        writer = await begin(bucket, ident)
        await writer.append(change(1))
        await writer.snapshot()
    foreign = ["projects/README", "projects/UPPER/HEAD.json", "projects/abc/HEAD.json", "other/x", "x"]
    for key in foreign:
        await bucket.put(key, b"not ours")
    run = Run(store, bucket)
    assert await run(dry_run=True) == []
    assert [(f.what, f.objects) for f in run.told if f.why == "no such project"] == [
        (project_prefix(lost), 4)
    ]
    gone = await run()
    assert {key for key in gone if lost in key} == {
        project_prefix(lost) + name for name in (HEAD, snapshot_key(2), journal_key(1), journal_key(2))
    }
    left = await keys(bucket)
    assert set(foreign) < set(left) and any(kept in key for key in left)
    assert await state(bucket, kept)


async def test_a_record_that_comes_while_it_looks_saves_a_project(store: Store, bucket: Inventory) -> None:
    lost = new_id()
    await bucket.put(project_prefix(lost) + snapshot_key(0), b"old")
    run = Run(store, bucket)
    seen: list[str] = []
    real = store.projects.get

    async def get(ident: str) -> Project | None:
        seen.append(ident)
        return Project(ident, "One", "python")

    store.projects.get = get  # type: ignore[method-assign]
    assert await run(force=True) == [] and seen == [lost]
    store.projects.get = real  # type: ignore[method-assign]
    assert len(await run(force=True)) == 1


async def test_another_database_is_noticed(store: Store, bucket: Inventory) -> None:
    for _ in range(3):
        await bucket.put(project_prefix(new_id()) + HEAD, Head(0).to_json())
    await project(store)
    run = Run(store, bucket)
    with pytest.raises(Suspicious, match="right database"):
        await run()
    with pytest.raises(Suspicious):
        await run(dry_run=True)
    assert len(await keys(bucket)) == 3
    assert len(await run(force=True)) == 3


async def test_templates_that_are_not_of_today(store: Store, bucket: Inventory) -> None:
    old = await journal.publish_template(bucket, {"a": b"1"}, "python", "0" * 16)
    new = await journal.publish_template(bucket, {"a": b"2"}, "python", "1" * 16)
    await bucket.put("templates/python/notes.txt", b"mine")
    run = Run(store, bucket, current=(new,))
    assert await run() == [old]
    assert run.told[0].why == "no template of this version"
    with pytest.raises(NotFound):
        await bucket.get(old)


async def test_unfinished_uploads(store: Store, bucket: Inventory) -> None:
    ident = await project(store)
    key = project_prefix(ident) + snapshot_key(3)
    where = {"Bucket": bucket._config.bucket}
    begun = [
        (await bucket._client.create_multipart_upload(**where, Key=name))["UploadId"]
        for name in (key, key, "elsewhere/x", "projects/foreign/x")
    ]
    await bucket._client.upload_part(**where, Key=key, UploadId=begun[0], PartNumber=1, Body=b"x" * 6_000_000)
    assert {u.upload: u.bytes for u in await bucket.unfinished("projects/")} == {
        begun[0]: 6_000_000, begun[1]: 0, begun[3]: 0,
    }  # fmt: skip
    run = Run(store, bucket)
    await run(timedelta(hours=23))
    await run(dry_run=True)
    assert run.totals.bytes == 6_000_000 and len(await bucket.unfinished("")) == 4
    await run()
    assert {u.upload for u in await bucket.unfinished("")} == set(begun[2:])
    assert [f.what for f in run.told] == [key, key]


async def test_a_damaged_log_is_left_alone_and_told(store: Store, bucket: Inventory) -> None:
    bad, good = await project(store), await project(store)
    await bucket.put(project_prefix(bad) + HEAD, b"{")
    await bucket.put(project_prefix(bad) + snapshot_key(0), b"x")
    writer = await begin(bucket, good)
    await writer.append(change(1))
    await writer.snapshot()
    run = Run(store, bucket)
    gone = await run()
    assert run.totals.problems == 1 and all(good in key for key in gone) and len(gone) == 2
    assert [f.what for f in run.told if f.problem] == [project_prefix(bad)]


async def test_the_stores_clock(bucket: Inventory) -> None:
    now = await bucket.now()
    assert now.tzinfo is not None and abs(now - datetime.now(UTC)) < timedelta(minutes=1)


async def test_by_the_stores_own_clock_nothing_is_old_yet(store: Store, bucket: Inventory) -> None:
    lost = new_id()
    await bucket.put(project_prefix(lost) + HEAD, b"x")
    totals = await Collector(store, bucket, (), tell=lambda f: pytest.fail(str(f))).run()
    assert totals.objects == 0 and len(await keys(bucket)) == 1


def test_sizes_for_people() -> None:
    assert [words(n) for n in (0, 1023, 1024, 3 * 2**20, 2**31)] == [
        "0 bytes", "1023 bytes", "1.0 KiB", "3.0 MiB", "2.0 GiB",
    ]  # fmt: skip
