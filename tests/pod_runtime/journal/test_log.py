"""The log's promises, with faults, races and crashes at every step."""

from __future__ import annotations

import asyncio
import contextlib
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pod_runtime.journal import projects, reader, writer
from pod_runtime.journal.format import Area, DocMeta, Member, Meta, encode_body, meta_frame
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import Checkpoint, Head, LogError, journal_key, snapshot_key
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.writer import Commit, Fenced, LogWriter, Moved, compact

Tree = dict[str, bytes]
LATER = timedelta(days=2)


class TreeSink:
    def __init__(self) -> None:
        self.tree: Tree = {}
        self._name = ""

    def meta(self, meta: Meta) -> None:
        for name in meta.deleted:
            self.tree.pop(name, None)

    def begin(self, member: Member) -> bool:
        self._name = member.name
        self.tree[self._name] = b""
        return True

    def data(self, chunk: bytes) -> None:
        self.tree[self._name] += chunk

    def end(self) -> None:
        pass


async def state(store: MemoryStore, at: int | None = None) -> Tree:
    sink = TreeSink()
    async for _ in reader.replay(store, await reader.plan(store, await reader.load(store, at)), sink):
        pass
    return sink.tree


async def naive(store: MemoryStore) -> Tree:
    """The same by the book: every record in order, one after the other."""
    log = await reader.load(store)
    sink = TreeSink()
    if log.snapshot is not None:
        await reader.decode(store, snapshot_key(log.snapshot), sink)
    for seq in log.tail:
        await reader.decode(store, journal_key(seq), sink)
    return sink.tree


def commit(files: Tree, deleted: tuple[str, ...] = (), docs: dict[str, bytes] | None = None) -> Commit:
    members = [(Member(Area.WORKSPACE, path, size=len(d)), d) for path, d in files.items()]
    members += [(Member(Area.DOCS, path, size=len(d)), d) for path, d in (docs or {}).items()]
    metas = {path: DocMeta(1, "00") for path in docs or {}}
    return Commit(encode_body(members), tuple(f"workspace/{p}" for p in deleted), metas)


async def opened(store: MemoryStore, generation: int) -> LogWriter:
    w = LogWriter(store, generation)
    while True:
        await w.position(await reader.load(store))
        try:
            await w.open()
            return w
        except Moved:
            continue


async def test_commits_follow_each_other() -> None:
    store = MemoryStore()
    w = await opened(store, 1)
    assert await w.append(commit({"a": b"1", "b": b"1"})) == 2
    assert await w.append(commit({"a": b"2"}, deleted=("b",), docs={"a": b"h"})) == 3
    assert await state(store) == {"workspace/a": b"2", "docs/a": b"h"}
    assert await state(store, 2) == {"workspace/a": b"1", "workspace/b": b"1"}
    assert await state(store, 1) == {}
    with pytest.raises(NotFound):
        await state(store, 4)


async def test_a_lost_answer_is_found_again() -> None:
    store = MemoryStore()
    w = await opened(store, 1)

    async def lost(operation: str, key: str, phase: str) -> None:
        if operation == "put" and phase == "after":
            raise StoreError("timeout")

    store.fault = lost
    c = commit({"a": b"1"})
    with pytest.raises(StoreError):
        await w.append(c)
    store.fault = None
    assert await w.append(c) == 2
    assert await w.append(commit({"b": b"1"})) == 3
    assert len(store.objects) == 3


async def test_the_older_generation_is_fenced_and_the_newer_goes_on() -> None:
    store = MemoryStore()
    old = await opened(store, 1)
    await old.append(commit({"a": b"old"}))
    new = await opened(store, 2)
    with pytest.raises(Fenced) as caught:
        await old.append(commit({"a": b"stale"}))
    assert caught.value.generation == 2
    assert await new.append(commit({"b": b"new"})) == 4
    assert await state(store) == {"workspace/a": b"old", "workspace/b": b"new"}
    with pytest.raises(Fenced):
        await opened(store, 1)


async def test_the_newer_takes_in_what_an_older_one_slipped_in() -> None:
    store = MemoryStore()
    old = await opened(store, 1)
    new = LogWriter(store, 2)
    await new.position(await reader.load(store))
    await old.append(commit({"a": b"just in time"}))
    with pytest.raises(Moved) as caught:
        await new.open()
    assert caught.value.seq == 2
    assert await new.open() == 3


async def test_of_one_generation_the_later_opener_wins() -> None:
    store = MemoryStore()
    first = await opened(store, 1)
    second = await opened(store, 1)
    with pytest.raises(Fenced):
        await first.append(commit({"a": b"1"}))
    assert await second.append(commit({"a": b"2"})) == 3


async def test_a_sleeper_cannot_write_into_a_hole() -> None:
    store = MemoryStore()
    clock = [0.0]
    sleeper = LogWriter(store, 1, clock=lambda: clock[0])
    await sleeper.position(await reader.load(store))
    await sleeper.open()
    other = await opened(store, 2)
    await other.append(commit({"a": b"1"}))
    await other.snapshot()
    gone = await compact(store, at=datetime.now(UTC) + LATER)
    assert journal_key(2) in gone  # the very number that the sleeper would use
    clock[0] += 3600
    with pytest.raises(Fenced):
        await sleeper.append(commit({"a": b"stale"}))
    assert await state(store) == {"workspace/a": b"1"}


async def test_a_writer_that_slept_alone_opens_again_and_goes_on() -> None:
    store = MemoryStore()
    clock = [0.0]
    w = LogWriter(store, 1, clock=lambda: clock[0])
    await w.open()
    clock[0] += 3600
    assert await w.append(commit({"a": b"1"})) == 3
    assert (await reader.read_meta(store, journal_key(2))).kind == "open"


async def test_a_writer_that_slept_over_a_snapshot_does_not_point_head_at_it() -> None:
    store = MemoryStore()
    clock = [0.0]
    w = LogWriter(store, 1, clock=lambda: clock[0])
    await w.open()
    await w.append(commit({"a": b"1"}))

    async def sleep(operation: str, key: str, phase: str) -> None:
        if (operation, phase) == ("put_stream", "after"):
            clock[0] += 25 * 3600  # long enough for `codevo gc` to take it away

    store.fault = sleep
    with pytest.raises(StoreError, match="in time"):
        await w.snapshot()
    store.fault = None
    await store.delete(snapshot_key(2))
    assert await state(store) == {"workspace/a": b"1"}
    assert await w.snapshot() == 2
    assert await state(store) == {"workspace/a": b"1"}


async def test_a_commit_in_doubt_over_a_sleep_is_not_doubled() -> None:
    store = MemoryStore()
    clock = [0.0]
    w = LogWriter(store, 1, clock=lambda: clock[0])
    await w.open()

    async def lost(operation: str, key: str, phase: str) -> None:
        if operation == "put" and phase == "after":
            raise StoreError("timeout")

    store.fault = lost
    c = commit({"a": b"1"})
    with pytest.raises(StoreError):
        await w.append(c)
    store.fault = None
    clock[0] += 3600
    assert await w.append(c) == 2
    kinds = [(await reader.read_meta(store, k)).kind for k in sorted(store.objects)]
    assert kinds == ["open", "commit", "open"]


async def test_a_hole_is_damage() -> None:
    store = MemoryStore()
    w = await opened(store, 1)
    await w.append(commit({"a": b"1"}))
    await w.append(commit({"a": b"2"}))
    del store.objects[journal_key(2)]
    with pytest.raises(LogError, match="hole"):
        await reader.load(store)


@pytest.mark.parametrize("raw", [b"", b"[]", b'{"format": 9}', b"\xff\xfe"])
async def test_a_damaged_head_or_record_is_told(raw: bytes) -> None:
    store = MemoryStore()
    await store.put("HEAD.json", raw)
    with pytest.raises(LogError):
        await reader.load(store)
    other = MemoryStore()
    await other.put(journal_key(1), raw)
    with pytest.raises(LogError):
        await state(other)


async def test_foreign_keys_are_passed_over() -> None:
    store = MemoryStore()
    w = await opened(store, 1)
    for key in ("journal/README", "journal/1.tar.zst", "journal/000000000000000x.tar.zst"):
        await store.put(key, b"")
    assert await w.append(commit({"a": b"1"})) == 2
    assert (await reader.load(store)).last == 2


async def test_snapshots_are_due_by_bytes_and_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    w = await opened(store, 1)
    assert not await w.snapshot_due()
    monkeypatch.setattr(writer, "SNAPSHOT_BYTES", 3000)
    await w.append(commit({"a": random.Random(1).randbytes(4000)}))
    assert await w.snapshot_due()
    await w.snapshot()
    assert not await w.snapshot_due()
    await w.append(commit({"a": random.Random(2).randbytes(3500)}))
    assert not await w.snapshot_due()  # not yet larger than the snapshot
    await w.append(commit({"a": random.Random(3).randbytes(3500)}))
    assert await w.snapshot_due()
    await w.snapshot()
    monkeypatch.setattr(writer, "SNAPSHOT_RECORDS", 1)
    await w.append(commit({"b": b""}))
    assert await w.snapshot_due()
    # a large snapshot is not written again for a few letters
    monkeypatch.setattr(writer, "SNAPSHOT_SHARE", 1)
    assert not await w.snapshot_due()
    monkeypatch.setattr(writer, "MAX_RECORDS", 1)
    assert await w.snapshot_due()


async def test_compaction_keeps_a_day_and_checkpoints() -> None:
    store = MemoryStore()
    view = store.view("projects/p/")
    w = await opened(view, 1)
    for n in range(2, 6):
        await w.append(commit({"f": str(n).encode()}))
    await projects.add_checkpoint(store, "projects/p/", "exam", 3)
    await w.snapshot()
    await w.append(commit({"f": b"6"}))
    await w.snapshot()
    assert await compact(view) == []
    gone = await compact(view, at=datetime.now(UTC) + LATER)
    assert journal_key(2) not in gone
    assert journal_key(4) in gone
    assert await state(view, 3) == {"workspace/f": b"3"}
    with pytest.raises(NotFound):
        await state(view, 4)
    assert await state(view) == {"workspace/f": b"6"}
    assert (await reader.read_head(view))[0] == Head(
        6, 1, 0, ((await reader.read_head(view))[0] or Head(0)).checkpoints
    )
    with pytest.raises(NotFound):
        await projects.add_checkpoint(store, "projects/p/", "late", 4)


async def test_a_log_is_found_from_any_guess() -> None:
    """HEAD and the journal are read at the same time, from where HEAD once was."""
    store = MemoryStore()
    w = await opened(store, 1)
    assert await reader.load(store, guess=0) == await reader.load(store)
    for n in range(4):
        await w.append(commit({"f": str(n).encode()}))
        if n in (1, 3):
            await w.snapshot()
    await w.append(commit({"f": b"x"}))
    assert (await reader.load(store)).snapshot == 5
    # 9: a guess from a log that is not this one
    for guess in (0, 1, 3, 5, 6, 9):
        assert await reader.load(store, guess=guess) == await reader.load(store), guess
    await compact(store, at=datetime.now(UTC) + LATER)
    for guess in (0, 1, 3, 5, 6):
        assert await reader.load(store, guess=guess) == await reader.load(store), guess
    await w.append(commit({"f": b"y"}))
    await w.append(commit({"f": b"z"}))
    await store.delete(journal_key(7))
    with pytest.raises(LogError, match="hole"):
        await reader.load(store, guess=3)

    async def away(operation: str, key: str, phase: str) -> None:
        raise StoreError("503")

    with pytest.raises(StoreError):
        await reader.load(store.view("", fault=away), guess=3)


async def test_head_moves_forward_only_and_keeps_what_others_wrote() -> None:
    store = MemoryStore()
    await writer.move_head(store, 5, 2)
    mark = Checkpoint("x", 5, "t")
    raced = False

    async def race(operation: str, key: str, phase: str) -> None:
        nonlocal raced
        if operation == "put" and phase == "before" and not raced:
            raced = True
            await writer.change_head(store, lambda h: replace(h, checkpoints=(mark,)), Head(0))

    store.fault = race
    await writer.move_head(store, 9, 3)
    await writer.move_head(store, 7, 3)
    assert (await reader.read_head(store))[0] == Head(9, 3, 0, (mark,))


async def test_forks_are_projects_of_their_own() -> None:
    bucket = MemoryStore()
    key = await projects.publish_template(bucket, {"main.py": b"print()"}, "python", "1")
    assert await projects.publish_template(bucket, {"main.py": b"other"}, "python", "1") == key
    await projects.create_from_snapshot(bucket, key, "projects/a/")
    a = bucket.view("projects/a/")
    w = await opened(a, 7)
    await w.append(commit({"x": b"1"}, docs={"x": b"history"}))
    assert await projects.fork(bucket, "projects/a/", "projects/b/") == 2
    b = bucket.view("projects/b/")
    forked = await opened(b, 1)  # generations begin anew
    await forked.append(commit({"x": b"2"}))
    await w.append(commit({"y": b"a only"}))
    assert await state(b) == {"workspace/main.py": b"print()", "workspace/x": b"2", "docs/x": b"history"}
    assert "workspace/y" in await state(a)
    await forked.snapshot()
    with pytest.raises(Fenced):
        await opened(b, 0)
    found = await projects.summary(bucket, "projects/b/")
    assert (found.seq, found.files, found.bytes) == (4, 2, 8)
    exported = b"".join([c async for c in projects.export(bucket, "projects/b/", folder="mine")])
    assert exported.startswith(b"\x28\xb5\x2f\xfd")
    assert await projects.delete_prefix(bucket, "projects/b/") > 0
    assert not [k for k in bucket.objects if k.startswith("projects/b/")]
    for bad in ("", "projects/", "projects/a"):
        with pytest.raises(ValueError, match="prefix"):
            await projects.delete_prefix(bucket, bad)


async def test_a_fork_of_the_files_alone_holds_nothing_of_the_past() -> None:
    bucket = MemoryStore()
    a = bucket.view("projects/a/")
    w = await opened(a, 7)
    await w.append(commit({"x": b"the old secret"}, docs={"x": b"and its history"}))
    await w.append(commit({"x": b"new", "y": b"stays"}, docs={"x": b"and its history, too"}))
    await w.snapshot()
    await w.append(commit({"z": b"short-lived"}))
    gone = commit({})
    gone.deleted = ("workspace/z",)
    await w.append(gone)
    await projects.fork_files(bucket, "projects/a/", "projects/b/")
    b = bucket.view("projects/b/")
    assert sorted(k for k in bucket.objects if k.startswith("projects/b/")) == [
        "projects/b/HEAD.json",
        "projects/b/snapshots/0000000000000000.tar.zst",
    ]
    await opened(b, 1)  # generations begin anew
    assert await state(b) == {"workspace/x": b"new", "workspace/y": b"stays"}
    meta = await reader.read_meta(b, reader.snapshot_key(0))
    assert (meta.seq, meta.docs, meta.generation) == (0, {}, 0)


async def test_a_fork_of_a_project_without_snapshot() -> None:
    bucket = MemoryStore()
    w = await opened(bucket.view("projects/a/"), 3)
    await w.append(commit({"x": b"1"}))
    await projects.fork(bucket, "projects/a/", "projects/b/")
    await opened(bucket.view("projects/b/"), 1)
    assert await state(bucket.view("projects/b/")) == {"workspace/x": b"1"}


def test_an_empty_snapshot_decodes() -> None:
    frame = meta_frame(Meta("snapshot", 0, "x", 0)) + encode_body(())
    assert len(frame) < 1000


async def test_a_long_journal_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several records at a time; what they say of themselves spares the first of two readings."""
    store = MemoryStore()
    w = await opened(store, 1)
    model: Tree = {}
    for n in range(2, 150):
        c = commit({f"f{n % 10}": str(n).encode()}, docs={"a": str(n).encode()})
        if n % 3:
            c.changed, c.changed_count = {f"f{n % 10}": ()}, 1
        if n == 100:
            c.deleted, c.changed = ("workspace/f5", "docs/a"), {"f0": (), "f5": ()}
            c.changed_count, c.docs = 2, {}
            c.body = encode_body([(Member(Area.WORKSPACE, "f0", size=1), b"x")])
        await w.append(c)
    model = await naive(store)
    assert len(model) == 11
    for keep in (reader.KEEP_BYTES, 0):
        monkeypatch.setattr(reader, "KEEP_BYTES", keep)
        most = now = 0

        async def slow(operation: str, key: str, phase: str) -> None:
            nonlocal most, now
            if operation in ("get", "first") and key.startswith(reader.JOURNAL):
                now += 1 if phase == "before" else -1
                most = max(most, now)
                await asyncio.sleep(0)

        store.fault = slow
        assert await state(store) == model
        assert most == reader.PARALLEL
        store.fault = None
    store.calls.clear()
    await reader.plan(store, await reader.load(store))
    assert sum(what == "stream" for what, _ in store.calls) == 49  # those that do not say what they changed

    async def away(operation: str, key: str, phase: str) -> None:
        if key == journal_key(120):
            raise StoreError("503")

    store.fault = away
    with pytest.raises(StoreError, match="503"):
        await state(store)


# -- properties

paths = st.sampled_from(["a", "b", "c/d", "c/e"])
edits = st.lists(st.tuples(paths, st.one_of(st.none(), st.binary(max_size=8))), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(edits, max_size=12), st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_replay_gives_the_last_tree(
    history: list[list[tuple[str, bytes | None]]], snapshots: set[int], compactions: set[int]
) -> None:
    async def run() -> None:
        store = MemoryStore()
        w = await opened(store, 1)
        model: Tree = {}
        for n, batch in enumerate(history):
            changed = dict(batch)
            files = {p: d for p, d in changed.items() if d is not None}
            gone = tuple(p for p, d in changed.items() if d is None)
            seq = await w.append(commit(files, gone))
            model.update({f"workspace/{p}": d for p, d in files.items()})
            for p in gone:
                model.pop(f"workspace/{p}", None)
            if n in snapshots:
                assert await w.snapshot() == seq
            if n in compactions:
                await compact(store, at=datetime.now(UTC) + LATER)
            assert await state(store) == await naive(store) == model

    asyncio.run(run())


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32), st.integers(2, 4), st.floats(0, 0.4))
def test_racing_writers_lose_nothing_that_was_acknowledged(seed: int, writers: int, faults: float) -> None:
    """Writers of growing generations start while older ones still write; answers get lost, puts fail."""
    dice = random.Random(seed)
    acknowledged: dict[str, int] = {}
    opens: list[tuple[int, int]] = []
    fenced: set[int] = set()

    async def fault(operation: str, key: str, phase: str) -> None:
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)
        if dice.random() < faults:
            raise StoreError(f"{operation} {phase}")

    async def work(bucket: MemoryStore, generation: int) -> None:
        store = bucket.view("", fault=fault)
        w = LogWriter(store, generation)
        for _ in range(generation * dice.randrange(30)):
            await asyncio.sleep(0)
        try:
            while True:
                try:
                    await w.position(await reader.load(store))
                    opens.append((await w.open(), generation))
                    break
                except (StoreError, Moved):
                    continue
            for n in range(dice.randrange(1, 8)):
                c = commit({f"{generation}-{n}": b"x"})
                if dice.random() < 0.1:
                    return  # a crash
                while True:
                    try:
                        acknowledged[c.id] = await w.append(c)
                        break
                    except StoreError:
                        continue
                if dice.random() < 0.2:
                    with contextlib.suppress(StoreError):
                        await w.snapshot()
        except Fenced as e:
            assert e.generation >= generation
            fenced.add(generation)

    async def run() -> None:
        bucket = MemoryStore()
        await asyncio.gather(*(work(bucket, g) for g in range(1, writers + 1)))
        assert writers not in fenced
        records = []
        for key in sorted(k for k in bucket.objects if k.startswith("journal/")):
            records.append(await reader.read_meta(bucket, key))
        assert [r.seq for r in records] == list(range(1, len(records) + 1))
        assert [r.generation for r in records] == sorted(r.generation for r in records)
        by_id = {r.id: r.seq for r in records}
        assert len(by_id) == len(records), "a commit stands twice"
        for identity, seq in acknowledged.items():
            assert by_id[identity] == seq
        for seq, generation in opens:
            assert all(r.generation >= generation for r in records[seq - 1 :])
        assert await state(bucket) == await naive(bucket)
        # the whole journal, without snapshots, gives the same
        sink = TreeSink()
        for r in records:
            await reader.decode(bucket, journal_key(r.seq), sink)
        assert await state(bucket) == sink.tree

    asyncio.run(run())
