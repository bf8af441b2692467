"""Checkpoints and their restore by a real worker with real documents."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from pod_runtime.journal import checkpoints, reader, writer
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import Checkpoint, Head, journal_key
from pod_runtime.journal.store import StoreError
from pod_runtime.protocol.roles import Role
from pod_runtime.worker.persistence import maintenance
from tests.harness import within
from tests.pod_runtime.worker.logged import LoggedSite
from tests.pod_runtime.worker.persistence_kit import Machine, tree


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[LoggedSite]:
    site = LoggedSite(tmp_path)
    await site.start()
    yield site
    await site.stop()


async def keep(site: LoggedSite, name: str = "then") -> int:
    body = {"name": name, "by": "ana"}
    status, mark = await site.call("POST", "/_codevo/checkpoint", role=Role.HUB, json=body)
    assert status == 201, mark
    assert (mark["name"], mark["by"], mark["auto"]) == (name, "ana", False)
    assert mark["time"].endswith("Z")
    return int(mark["seq"])


async def restore(site: LoggedSite, seq: int) -> dict[str, Any]:
    body = {"seq": seq, "by": "bo"}
    status, answer = await site.call("POST", "/_codevo/restore", role=Role.HUB, json=body)
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer


def without_aside(found: dict[bytes, object]) -> dict[bytes, object]:
    return {path: what for path, what in found.items() if not path.startswith(b".codevo")}


async def test_checkpoints_are_made_for_the_hub_alone(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("1")
    seq = await keep(logged, " exam ".strip())
    assert seq == (await reader.load(logged.store)).last
    (logged.path / "f").write_text("2")
    second = await keep(logged, "later")
    marks = await checkpoints.listed(logged.store)
    assert [(m.name, m.seq) for m in marks] == [("later", second), ("exam", seq)]
    for path in ("/_codevo/checkpoint", "/_codevo/restore"):
        assert (await logged.call("POST", path, role=Role.OWNER, json={"name": "x"}))[0] == 403
    for name in ("", None, "x" * 500, "a\nb"):
        answer = await logged.call("POST", "/_codevo/checkpoint", role=Role.HUB, json={"name": name})
        assert answer[0] == 400, name
    assert (await logged.call("POST", "/_codevo/checkpoint", role=Role.HUB, json={"name": "x", "by": 3}))[
        0
    ] == 400
    for bad in (None, "1", True, -1, 1.5):
        assert (await logged.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": bad}))[0] == 400, (
            bad
        )
    assert (await logged.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": 1}))[0] == 404
    many = tuple(Checkpoint(str(n), n + 100, "t") for n in range(checkpoints.MAX_NAMED))
    await writer.change_head(logged.store, lambda h: Head(h.snapshot, checkpoints=many), Head(0))
    status, problem = await logged.call("POST", "/_codevo/checkpoint", role=Role.HUB, json={"name": "more"})
    assert (status, "200 named" in problem["detail"]) == (409, True)


async def test_nothing_is_promised_while_the_store_is_away(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("1")
    seq = await keep(logged)
    (logged.path / "f").write_text("2")

    async def away(operation: str, key: str, phase: str) -> None:
        if operation == "put":
            raise StoreError("away")

    assert isinstance(logged.store, MemoryStore)
    logged.store.fault = away
    body = {"name": "x", "seq": seq}
    assert (await logged.call("POST", "/_codevo/checkpoint", role=Role.HUB, json=body))[0] == 503
    assert (await logged.call("POST", "/_codevo/restore", role=Role.HUB, json=body))[0] == 503
    assert (logged.path / "f").read_text() == "2"
    logged.store.fault = None


def fill(folder: Path) -> None:
    (folder / "same").write_text("same")
    (folder / "edited").write_text("old")
    (folder / "gone").write_text("gone")
    (folder / "gone").chmod(0o640)
    (folder / "run.sh").write_text("#!")
    (folder / "run.sh").chmod(0o755)
    (folder / "a").mkdir()
    (folder / "a" / "b").mkdir(mode=0o750)
    (folder / "a" / "b" / "deep").write_bytes(b"\0\xff" * 50_000)
    (folder / "empty").mkdir()
    (folder / "folder-or-file").mkdir()
    (folder / "folder-or-file" / "x").write_text("x")
    (folder / "file-or-folder").write_text("y")
    (folder / "link").symlink_to("same")
    (folder / "link-or-file").write_text("file")
    (folder / "shut").mkdir()
    (folder / "shut" / "in").write_text("in")
    (folder / "shut").chmod(0o555)
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff")).write_bytes(b"x")


async def test_a_whole_state_comes_back(logged: LoggedSite, tmp_path: Path) -> None:
    top = logged.path
    fill(top)
    (top / "node_modules").mkdir()
    (top / "node_modules" / "m").write_text("1")
    seq = await keep(logged)
    before = tree(top)
    inode = (top / "same").stat().st_ino

    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "deep").write_text("not ours")
    (top / "edited").write_text("new")
    (top / "gone").unlink()
    (top / "run.sh").chmod(0o644)
    (top / "link").unlink()
    (top / "link").symlink_to("elsewhere")
    (top / "link-or-file").unlink()
    (top / "link-or-file").symlink_to(secret / "deep")
    (top / "folder-or-file" / "x").unlink()
    (top / "folder-or-file").rmdir()
    (top / "folder-or-file").write_text("a file now")
    (top / "file-or-folder").unlink()
    (top / "file-or-folder").mkdir()
    (top / "file-or-folder" / "inner").write_text("1")
    (top / "shut").chmod(0o755)
    (top / "shut" / "in").unlink()
    (top / "shut").rmdir()
    (top / "new").mkdir()
    (top / "new" / "file").write_text("new")
    (top / "new" / "closed").mkdir()
    (top / "new" / "closed" / "f").write_text("1")
    (top / "new" / "closed").chmod(0o500)
    # what is ignored lives on; a pipe and a link out of the workspace stand in the way
    (top / "node_modules" / "m").write_text("2")
    (top / "a" / "b" / "deep").unlink()
    (top / "a" / "b").rmdir()
    (top / "a" / "b").symlink_to(secret)
    os.mkfifo(top / "pipe")
    (top / "empty").rmdir()
    os.mkfifo(top / "empty")

    answer = await restore(logged, seq)
    os.unlink(top / "pipe")
    found = tree(top)
    assert found.pop(b"node_modules/m") == ("file", 0o644, b"2")
    before.pop(b"node_modules/m")
    assert found == before
    assert (secret / "deep").read_text() == "not ours"
    assert (top / "same").stat().st_ino == inode  # not even written
    assert answer["skipped"] == 0
    assert (answer["restored"], answer["deleted"]) == (9, 2)
    kept = answer["checkpoint"]
    assert (kept["name"], kept["auto"], kept["by"]) == ("Before restoring then", True, "bo")
    # it is all durable, by whom it was done, and can be undone
    last = await logged.flush()
    metas = [await logged.meta(n) for n in range(kept["seq"] + 1, last + 1)]
    people = {name for meta in metas for names in (meta.changed or {}).values() for name in names}
    assert people == {"bo"}
    again = await restore(logged, kept["seq"])
    assert (top / "edited").read_text() == "new"
    assert (top / "new" / "closed" / "f").read_text() == "1"
    assert stat.S_IMODE((top / "new" / "closed").stat().st_mode) == 0o500
    assert (top / "link-or-file").is_symlink()
    assert not (top / "gone").exists()
    assert again["checkpoint"]["name"] == "Before restoring then"
    (top / "new" / "closed").chmod(0o700)
    (top / "shut").mkdir(exist_ok=True)


async def test_ignored_then_or_now_stays(logged: LoggedSite) -> None:
    top = logged.path
    (top / "codevo.toml").write_text('[persist]\nignore = ["then/"]\n')
    (top / "then").mkdir()
    (top / "then" / "f").write_text("1")
    seq = await keep(logged)
    (top / "codevo.toml").write_text('[persist]\nignore = ["now/"]\n')
    (top / "now").mkdir()
    (top / "now" / "f").write_text("1")
    (top / "plain").write_text("1")
    (top / ".codevo" / "notes").mkdir(parents=True)
    (top / ".codevo" / "notes" / "f").write_text("1")
    await restore(logged, seq)
    assert (top / "then" / "f").exists()
    assert (top / "now" / "f").exists()
    assert (top / ".codevo" / "notes" / "f").exists()
    assert not (top / "plain").exists()


async def test_open_documents_get_the_old_text_as_an_edit(logged: LoggedSite) -> None:
    (logged.path / "open").write_text("one\ntwo\nthree\n")
    (logged.path / "closed").write_text("closed then\n")
    ana = await logged.client("open", subject="ana")
    other = await logged.client("closed", subject="ana")
    other.text += "more\n"
    await logged.on_disk("closed", "closed then\nmore\n")
    (logged.path / "mode").write_text("#!\n")
    (logged.path / "mode").chmod(0o755)
    await logged.client("mode")
    seq = await keep(logged)
    (logged.path / "mode").chmod(0o600)
    (logged.path / "open").chmod(0o600)
    ana.text.insert(4, "and a half\n")
    other.text.clear()
    other.text += "closed now\n"
    await logged.on_disk("closed", "closed now\n")
    later = await logged.client("new", sync=False)  # no such file
    assert await later.closed() == 4404
    (logged.path / "new").write_text("new\n")
    fresh = await logged.client("new", subject="eve")
    fresh.text += "typed\n"
    await logged.on_disk("new", "new\ntyped\n")
    client_id = ana.doc.client_id
    answer = await restore(logged, seq)
    await ana.has("one\ntwo\nthree\n")
    await other.has("closed then\nmore\n")
    assert await fresh.closed() == 4404
    assert not (logged.path / "new").exists()
    modes = [stat.S_IMODE((logged.path / name).stat().st_mode) for name in ("mode", "open")]
    assert modes == [0o755, 0o644]
    # the room goes on, and so does the page's own history
    ana.text += "four\n"
    await logged.on_disk("open", "one\ntwo\nthree\nfour\n")
    assert ana.doc.client_id == client_id
    # nothing is lost: it is all in what was kept before
    status, text = await logged.call("GET", f"/api/history/new?seq={answer['checkpoint']['seq']}")
    assert (status, text) == (200, b"new\ntyped\n")
    await logged.again()
    reopened = await logged.client("closed")
    await reopened.has("closed then\nmore\n")


async def test_a_closed_document_merges_when_it_is_opened(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("old\n")
    seq = await keep(logged)
    ana = await logged.client("f")
    ana.text += "new\n"
    await logged.on_disk("f", "old\nnew\n")
    doc = ana.doc
    await ana.close()
    logged.worker.documents._idle_close = 0.0  # type: ignore[union-attr]
    await logged.again()
    await restore(logged, seq)
    assert (logged.path / "f").read_text() == "old\n"
    # a page that was away comes back with the history that it had
    back = await logged.client("f", doc=doc)
    await back.has("old\n")


def during(site: LoggedSite, what: Callable[[], Any]) -> None:
    """Call it once, when the restore begins to read the state: after what is there now has been kept."""
    assert isinstance(site.store, MemoryStore)
    store = site.store
    done = False

    async def fault(operation: str, key: str, phase: str) -> None:
        nonlocal done
        if not done and operation == "put" and key == "HEAD.json" and phase == "after":
            done = True
            found = what()
            if asyncio.iscoroutine(found):
                await found

    store.fault = fault


async def test_what_is_typed_during_the_restore_is_not_lost(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("one\ntwo\nthree\n")
    (logged.path / "disk").write_text("1\n")
    (logged.path / "bye").write_text("1\n")
    (logged.path / "bin").write_bytes(b"\0")
    seq = await keep(logged)
    ana = await logged.client("f", subject="ana")
    ana.text.clear()
    ana.text += "one\nTWO\nthree\n"
    (logged.path / "disk").write_text("2\n")
    (logged.path / "late").write_text("2\n")
    await logged.on_disk("f", "one\nTWO\nthree\n")

    async def meanwhile() -> None:
        ana.text += "typed\n"
        await logged.on_disk("f", "one\nTWO\nthree\ntyped\n")
        (logged.path / "disk").write_text("a program's\n")
        (logged.path / "late").write_text("3\n")
        (logged.path / "newest").write_text("4\n")

    during(logged, meanwhile)
    answer = await restore(logged, seq)
    await ana.has("one\ntwo\nthree\ntyped\n")
    await logged.on_disk("f", "one\ntwo\nthree\ntyped\n")
    assert (logged.path / "disk").read_text() == "1\n"
    assert (logged.path / "newest").read_text() == "4\n"
    (aside,) = (logged.path / ".codevo").glob("set-aside-*")
    assert {f.name: f.read_text() for f in aside.iterdir()} == {"disk": "a program's\n", "late": "3\n"}
    kept = answer["checkpoint"]["seq"]
    assert await logged.call("GET", f"/api/history/f?seq={kept}") == (200, b"one\nTWO\nthree\n")


async def test_a_restore_that_breaks_off_is_simply_repeated(logged: LoggedSite) -> None:
    for n in range(30):
        (logged.path / f"f{n:02}").write_bytes(os.urandom(2000))
        await logged.flush()
    seq = await keep(logged)
    wanted = tree(logged.path)
    for n in range(30):
        (logged.path / f"f{n:02}").write_text("overwritten")
    assert isinstance(logged.store, MemoryStore)
    await logged.flush()
    store, reads = logged.store, 0
    monkeyed = reader.KEEP_BYTES
    try:
        reader.KEEP_BYTES = 0

        async def breaks(operation: str, key: str, phase: str) -> None:
            nonlocal reads
            if operation == "stream" and phase == "before":
                reads += 1
                if reads == 15:
                    raise StoreError("gone")

        store.fault = breaks
        body = {"seq": seq, "by": "bo"}
        assert (await logged.call("POST", "/_codevo/restore", role=Role.HUB, json=body))[0] == 503
        store.fault = None
        half = tree(logged.path)
        assert half != wanted
        assert any(half[name] == wanted[name] for name in wanted)
        # the worker dies, and its successor does it again
        await logged.again()
        await restore(logged, seq)
        assert tree(logged.path) == wanted
    finally:
        reader.KEEP_BYTES = monkeyed


async def test_one_restore_at_a_time_and_it_stops_with_the_worker(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("1")
    seq = await keep(logged)
    (logged.path / "f").write_text("2")
    await logged.flush()
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold(operation: str, key: str, phase: str) -> None:
        if operation == "put" and key == "HEAD.json" and phase == "after":
            begun.set()
            await go_on.wait()

    assert isinstance(logged.store, MemoryStore)
    logged.store.fault = hold
    first = asyncio.create_task(logged.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": seq}))
    await within(begun.wait(), 15)
    assert (await logged.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": seq}))[0] == 409
    closing = asyncio.create_task(logged.persister.past.close())  # type: ignore[union-attr]
    await asyncio.sleep(0)
    go_on.set()
    await closing
    assert (await first)[0] == 503
    assert (logged.path / "f").read_text() == "2"


async def test_a_state_that_is_no_longer_kept(logged: LoggedSite) -> None:
    (logged.path / "f").write_text("1")
    seq = await keep(logged)
    (logged.path / "f").write_text("2")
    await logged.flush()
    await logged.persister._writer.snapshot()  # type: ignore[union-attr]
    await logged.store.delete(journal_key(seq))
    status, _ = await logged.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": seq})
    assert status == 410


# -- automatic ones


async def commits(machine: Machine, worker: Any, *numbers: int) -> None:
    for n in numbers:
        (machine.workspace / "f").write_text(str(n))
        await worker.flush()
        if worker._maintenance.task is not None:
            await worker._maintenance.task


async def test_a_state_is_kept_every_hour_while_things_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = datetime(2026, 1, 31, 12, tzinfo=UTC)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return clock

    monkeypatch.setattr(maintenance, "_now", lambda: clock)
    monkeypatch.setattr(maintenance.Maintenance.__init__, "__defaults__", (lambda: clock,))
    monkeypatch.setattr(checkpoints, "datetime", Clock)
    monkeypatch.setattr(checkpoints, "now", lambda: clock.isoformat())
    bucket = MemoryStore()
    here = Machine(tmp_path, bucket)
    worker = await here.opened(1)
    await commits(here, worker, 1, 2)
    assert await checkpoints.listed(bucket) == []  # a new project has nothing to keep yet
    clock += timedelta(minutes=61)
    await commits(here, worker, 3)
    clock += timedelta(minutes=30)
    await commits(here, worker, 4, 5)
    clock += timedelta(minutes=31)
    await commits(here, worker, 6, 7)
    clock += timedelta(hours=5)
    marks = await checkpoints.listed(bucket)
    assert [(m.seq, m.auto, m.by, m.name) for m in marks] == [
        (7, True, "", "Automatic"),
        (4, True, "", "Automatic"),
    ]
    await worker.close()
    # the next session keeps what the last one left, before it changes anything
    again = await here.opened(2)
    await commits(here, again, 8, 9)
    assert [m.seq for m in await checkpoints.listed(bucket)] == [9, 7, 4]
    assert await reader_text(bucket, 9) == b"7"
    # compaction keeps them all, and drops what is between
    await again._writer.snapshot()  # type: ignore[union-attr]
    clock += timedelta(hours=1)
    gone = await writer.compact(bucket, at=datetime.now(UTC) + timedelta(days=2))
    assert journal_key(10) in gone
    assert [await reader_text(bucket, m.seq) for m in await checkpoints.listed(bucket)] == [b"7", b"6", b"3"]
    # a month later only the last of each day is left, and then none
    clock += timedelta(days=29)
    await commits(here, again, 10)
    assert [m.seq for m in await checkpoints.listed(bucket)] == [12, 9]
    assert again.past is not None
    assert await again.past.read("f", 12, 100) == b"10"
    await again.close()


async def reader_text(bucket: MemoryStore, seq: int) -> bytes | None:
    from pod_runtime.journal.files import read_member

    log = await reader.load(bucket, seq)
    for key in [*(journal_key(s) for s in reversed(log.tail)), reader.snapshot_key(log.snapshot or 0)]:
        found = await read_member(bucket, key, "f", 100)
        if found is not None:
            return found
    return None
