"""Versions of a file: the index, and ``api/history`` of a real worker."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pod_runtime.journal import checkpoints, projects, writer
from pod_runtime.journal.format import Area, Kind, Member, encode_body
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import journal_key
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.versions import Change
from pod_runtime.journal.writer import Commit, LogWriter
from pod_runtime.protocol.roles import Role
from pod_runtime.worker.persistence import index, timeline
from pod_runtime.worker.persistence.index import Index, Known, Shot, merged
from pod_runtime.worker.persistence.timeline import Timeline
from tests.pod_runtime.worker.logged import LoggedSite

LATER = datetime.now(UTC) + timedelta(days=2)


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[LoggedSite]:
    site = LoggedSite(tmp_path)
    await site.start()
    yield site
    await site.stop()


async def listed(
    site: LoggedSite, path: str, query: str = ""
) -> list[tuple[int, str, list[str], int | None]]:
    status, answer = await site.call("GET", f"/api/history/{path}{query}", role=Role.VIEWER)
    assert status == 200, answer
    return [(v["seq"], v["kind"], v["people"], v["size"]) for v in answer["versions"]]


async def at(site: LoggedSite, path: str, seq: int) -> tuple[int, Any]:
    return await site.call("GET", f"/api/history/{path}?seq={seq}", role=Role.VIEWER)


def forget(site: LoggedSite) -> None:
    """Let the worker's index be lost, as with a new /state."""
    for file in (Path(site.config.state) / "persistence").glob("index.db*"):
        file.unlink()


async def history(site: LoggedSite) -> dict[str, int]:
    """A file that is made, edited by two people, deleted and made again."""
    found = {}
    (site.path / "main.py").write_text("one\n")
    (site.path / "other").write_text("x")
    found["made"] = await site.flush()
    ana = await site.client("main.py", subject="ana")
    ana.text += "two\n"
    await site.on_disk("main.py", "one\ntwo\n")
    found["ana"] = await site.flush()
    bo = await site.client("main.py", subject="bo")
    bo.text += "three\n"
    await site.on_disk("main.py", "one\ntwo\nthree\n")
    found["bo"] = await site.flush()
    (site.path / "other").write_text("y")
    found["other"] = await site.flush()
    assert (await site.call("DELETE", "/api/contents/main.py"))[0] == 204
    found["deleted"] = await site.flush()
    (site.path / "main.py").write_text("again\n")
    found["again"] = await site.flush()
    return found


async def test_the_versions_of_a_file(logged: LoggedSite) -> None:
    seqs = await history(logged)
    expected = [
        (seqs["again"], "changed", [], 6),
        (seqs["deleted"], "deleted", ["Ann"], None),
        (seqs["bo"], "changed", ["Bo"], 14),
        (seqs["ana"], "changed", ["Ana"], 8),
        (seqs["made"], "changed", [], 4),
    ]
    assert await listed(logged, "main.py") == expected
    contents = {
        "made": b"one\n",
        "ana": b"one\ntwo\n",
        "bo": b"one\ntwo\nthree\n",
        "other": b"one\ntwo\nthree\n",
        "again": b"again\n",
    }
    for name, content in contents.items():
        assert await at(logged, "main.py", seqs[name]) == (200, content), name
    assert (await at(logged, "main.py", seqs["deleted"]))[0] == 404
    assert (await at(logged, "main.py", 1))[0] == 404
    assert (await at(logged, "main.py", 999))[0] == 404
    # the same from the records' first frames alone, which know no sizes
    await logged.stop()
    forget(logged)
    await logged.start()
    assert await listed(logged, "main.py") == [(*v[:3], None) for v in expected]
    # page by page
    status, page = await logged.call("GET", "/api/history/main.py?limit=2")
    assert (status, page["more"], len(page["versions"])) == (200, True, 2)
    assert await listed(logged, "main.py", f"?limit=9&before={page['versions'][1]['seq']}") == [
        (*v[:3], None) for v in expected[2:]
    ]
    assert await listed(logged, "never") == []


async def test_old_states_come_from_snapshots_and_go(logged: LoggedSite) -> None:
    """What compaction took away is told as such; what a snapshot or checkpoint has can still be read."""
    seqs = await history(logged)
    assert isinstance(logged.store, MemoryStore)
    await logged.call("POST", "/_codevo/checkpoint", role=Role.HUB, json={"name": "exam", "by": "ana"})
    await logged.persister._writer.snapshot()  # type: ignore[union-attr]
    (logged.path / "main.py").write_text("newest\n")
    last = await logged.flush()
    await checkpoints.remove(logged.store, 999)
    gone = await writer.compact(logged.store, at=LATER)
    assert journal_key(seqs["ana"]) in gone
    logged.persister.timeline.listing_changed()  # type: ignore[union-attr]
    # who changed it before is told with the state that is left
    assert await listed(logged, "main.py") == [
        (last, "changed", [], 7),
        (seqs["again"], "changed", ["Ana", "Ann", "Bo"], 6),
    ]
    _, answer = await logged.call("GET", "/api/history/main.py")
    assert [v["checkpoint"] for v in answer["versions"]] == [None, "exam"]
    assert (await at(logged, "main.py", seqs["ana"]))[0] == 410
    assert await at(logged, "main.py", seqs["again"]) == (200, b"again\n")
    # a new index finds what the snapshot holds
    await logged.stop()
    forget(logged)
    await logged.start()
    assert await listed(logged, "main.py") == [
        (last, "changed", [], None),
        (seqs["again"], "changed", [], 6),
    ]
    assert await listed(logged, "other") == [(seqs["again"], "changed", [], 1)]
    assert await at(logged, "other", last) == (200, b"y")
    assert (await at(logged, "never", last))[0] == 404


async def test_a_template_has_its_first_version(tmp_path: Path) -> None:
    bucket = MemoryStore()
    key = await projects.publish_template(bucket, {"main.py": b"from the template\n", "b": b""}, "t", "1")
    await projects.create_from_snapshot(bucket, key, "projects/p/")
    site = LoggedSite(tmp_path, bucket.view("projects/p/"))
    await site.start()
    (site.path / "main.py").write_text("mine\n")
    last = await site.flush()
    assert await listed(site, "main.py") == [(last, "changed", [], 5), (0, "changed", [], 18)]
    assert await at(site, "main.py", 0) == (200, b"from the template\n")
    assert await at(site, "b", 0) == (200, b"")
    assert (await at(site, "c", 0))[0] == 404
    await site.stop()


async def test_records_that_do_not_say_what_they_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written by earlier versions: their members tell; one that is too large to be read is passed over."""
    store = MemoryStore()
    old = LogWriter(store, 1)
    await old.open()

    def body(content: bytes, *more: Member) -> bytes:
        members = [(Member(Area.WORKSPACE, "f", size=len(content)), content)]
        return encode_body([*members, *((m, b"") for m in more)])

    await old.append(Commit(body(b"1", Member(Area.WORKSPACE, "d", Kind.DIRECTORY))))
    await old.append(Commit(body(random.Random(1).randbytes(9000))))
    await old.append(Commit(encode_body([]), deleted=("workspace/f",)))
    monkeypatch.setattr(timeline, "MAX_READ", 5000)
    site = LoggedSite(tmp_path, store)
    await site.start()
    assert await listed(site, "f") == [(4, "deleted", [], None), (2, "changed", [], 1)]
    status, content = await at(site, "f", 3)
    assert (status, len(content)) == (200, 9000)
    assert (await at(site, "f", 4))[0] == 404
    assert (await at(site, "d", 2))[0] == 404  # a folder
    await site.stop()


async def test_a_bounded_number_of_records_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeline, "MAX_LOOKED", 4)
    site = LoggedSite(tmp_path)
    await site.start()
    await site.flush()
    for n in range(10):
        (site.path / "f").write_text("x" * n)
        (site.path / f"g{n}").touch()
        await site.flush()
    await site.stop()
    forget(site)
    await site.start()
    assert isinstance(site.store, MemoryStore)
    site.store.calls.clear()
    status, answer = await site.call("GET", "/api/history/g0")
    assert (status, answer) == (200, {"versions": [], "more": True})
    assert len([key for what, key in site.store.calls if what == "first"]) == 4
    for _ in range(3):
        status, answer = await site.call("GET", "/api/history/g0")
    assert answer["more"] is False
    assert [v["seq"] for v in answer["versions"]] == [2]
    site.store.calls.clear()
    assert (await listed(site, "g0"))[0][0] == 2
    assert [what for what, _ in site.store.calls] == ["get"]  # HEAD alone: the rest is known
    await site.stop()


async def test_what_is_asked_wrongly_or_too_much(logged: LoggedSite, monkeypatch: pytest.MonkeyPatch) -> None:
    (logged.path / "f").write_text("1" * 500)
    (logged.path / "link").symlink_to("f")
    last = await logged.flush()
    for query in ("?seq=x", "?seq=-1", "?seq=1.5", "?seq=99999999999999999", "?before=", "?limit=1000"):
        assert (await logged.call("GET", f"/api/history/f{query}"))[0] == 400, query
    for path in ("", "a/../b", "%00"):
        assert (await logged.call("GET", f"/api/history/{path}"))[0] == 400, path
    assert (await logged.call("GET", "/api/history/.codevo-tmp-1"))[0] == 404
    assert (await at(logged, "link", last))[0] == 404
    monkeypatch.setattr("pod_runtime.worker.history_handlers.MAX_FILE", 100)
    object.__setattr__(logged.worker.config, "max_document", 100)  # type: ignore[union-attr]
    assert (await at(logged, "f", last))[0] == 413

    async def away(operation: str, key: str, phase: str) -> None:
        raise StoreError("away")

    assert isinstance(logged.store, MemoryStore)
    logged.store.fault = away
    assert (await at(logged, "f", last))[0] == 503
    assert (await logged.call("GET", "/api/history/f"))[0] == 503

    async def silent(operation: str, key: str, phase: str) -> None:
        await asyncio.Event().wait()

    logged.store.fault = silent
    monkeypatch.setattr("pod_runtime.worker.history_handlers.PATIENCE", 0.1)
    assert (await at(logged, "f", last))[0] == 503
    assert (await logged.call("GET", "/api/history/f"))[0] == 503
    logged.store.fault = None
    async with logged.session.get(f"{logged.url}/api/history/f") as answer:
        assert answer.status == 401


async def test_names_of_any_bytes(logged: LoggedSite) -> None:
    shutil.copy(__file__, bytes(logged.path) + b"/\xff\n")
    last = await logged.flush()
    assert (await listed(logged, "%FF%0A"))[0][0] == last
    assert (await at(logged, "%FF%0A", last))[1] == Path(__file__).read_bytes()


def change(seq: int, *people: str, gone: bool = False, size: int | None = 1) -> Change:
    return Change(seq, f"t{seq}", people, gone, size)


def test_the_index_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "MAX_CHANGES", 100)
    monkeypatch.setattr(index, "MAX_MEMBERS", 10)
    monkeypatch.setattr(index, "MAX_RECORDS", 150)
    found = Index(tmp_path / "i.db")
    for seq in range(1, 201):
        found.add([Known(seq, f"t{seq}", {"f": change(seq, "ana"), f"g{seq}": change(seq)})])
    assert 40 <= len(found.changes("f")) <= 100
    assert found.changes("f")[-1] == change(200, "ana")
    assert found.unknown(range(1, 202)) == [201]
    assert not found.complete(100, 200)
    assert found.complete(190, 200)
    for seq in range(5):
        found.add_shot(Shot(seq, "t", {f"{seq}-{n}": (1, 1) for n in range(4)}))
    assert found.shots() == {0, 1, 2, 3, 4}
    assert found.in_shot("4-1", 4) is True
    assert found.in_shot("4-9", 4) is False
    assert found.in_shot("0-1", 0) is None
    found.close()
    again = Index(tmp_path / "i.db")
    assert again.holders("f", 199, 300) == [(200, False), (199, False)]
    again.close()
    (tmp_path / "i.db").write_bytes(b"rubbish" * 1000)
    fresh = Index(tmp_path / "i.db")
    assert fresh.changes("f") == []
    fresh.close()


def test_snapshots_fill_what_records_do_not_tell() -> None:
    rows = [change(5), change(9, gone=True)]
    known = {1, 2, 3, 4, 5, 6, 8, 9, 10}

    def complete(a: int, b: int) -> bool:
        return known.issuperset(range(a + 1, b + 1))

    def seqs(shots: list[tuple[int, str, int | None, int | None]]) -> list[tuple[int, bool]]:
        return [(c.seq, c.gone) for c in merged(rows, shots, complete)]

    assert seqs([]) == [(5, False), (9, True)]
    assert seqs([(0, "t", 3, 3)]) == [(0, False), (5, False), (9, True)]
    # 6 follows from 5, whatever it says; 7 is not known, and says the same, or not
    assert seqs([(6, "t", 99, 3), (8, "t", 99, 3)]) == [(5, False), (9, True)]
    assert seqs([(8, "t", 1, 3)]) == [(5, False), (9, True)]
    assert seqs([(8, "t", 2, 3)]) == [(5, False), (8, False), (9, True)]
    assert seqs([(8, "t", None, None)]) == [(5, False), (8, True), (9, True)]
    assert seqs([(20, "t", None, None), (30, "t", 1, 1)]) == [(5, False), (9, True), (30, False)]


# -- properties

NAMES = ("a", "b", "c/d")
Step = tuple[str, str, int]
steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.sampled_from(NAMES), st.integers(0, 3)),
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(
            st.sampled_from(["commit", "snapshot", "compact", "forget", "mark", "old"]),
            st.just(""),
            st.just(0),
        ),
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_what_is_listed_can_be_read_and_is_right(history: list[Step]) -> None:
    """Whatever was snapshotted, compacted or forgotten: each state that is kept reads as it was, each version
    that is listed can be read and is what it says, and the newest is listed."""

    async def run(folder: Path) -> None:
        store = MemoryStore()
        log = LogWriter(store, 1)
        await log.open()
        models: list[dict[str, bytes]] = [{}, {}]
        changes: dict[str, bytes | None] = {}
        found = Timeline(store, folder / "index.db")
        for what, path, value in history:
            if what == "write":
                changes[path] = bytes([value] * (value + 1))
            elif what == "delete" and (path in models[-1] or changes.get(path)):
                changes[path] = None
            elif what in ("commit", "old") and changes:
                model = dict(models[-1])
                for name, data in changes.items():
                    model.pop(name, None)
                    if data is not None:
                        model[name] = data
                body = encode_body(
                    [(Member(Area.WORKSPACE, n, size=len(d)), d) for n, d in changes.items() if d is not None]
                )
                gone = tuple(f"workspace/{n}" for n, d in changes.items() if d is None)
                said = dict.fromkeys(changes, ("ana",)) if what == "commit" else None
                seq = await log.append(Commit(body, gone, changed=said, changed_count=len(changes)))
                assert seq == len(models)
                models.append(model)
                changes = {}
                found.listing_changed()
            elif what == "snapshot":
                await log.snapshot()
                found.listing_changed()
            elif what == "compact":
                await writer.compact(store, at=LATER)
                found.listing_changed()
            elif what == "mark":
                await checkpoints.add(store, f"mark {log.last}", log.last)
            elif what == "forget":
                found.close()
                for file in folder.glob("index.db*"):
                    file.unlink()
                found = Timeline(store, folder / "index.db")
        for name in NAMES:
            readable = []
            for seq, model in enumerate(models):
                try:
                    assert await found.read(name, seq, 100) == model.get(name), (name, seq)
                except NotFound:
                    continue
                readable.append(seq)
            assert log.last in readable
            listed, more = await found.versions(name, before=None, limit=100)
            assert not more
            seqs = [v.seq for v in listed]
            assert seqs == sorted(set(seqs), reverse=True)
            for version in listed:
                content = await found.read(name, version.seq, 100)
                assert content == models[version.seq].get(name)
                assert version.gone == (content is None)
                assert version.size in (None, content and len(content))
            if name in models[-1]:
                assert listed, name
                assert models[listed[0].seq][name] == models[-1][name]
            elif listed:
                assert listed[0].gone
        found.close()

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(Path(folder)))
