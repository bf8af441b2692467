from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pod_runtime.journal import reader
from pod_runtime.journal.format import MAX_CHANGED
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import journal_key
from pod_runtime.journal.store import StoreError
from pod_runtime.protocol.roles import Role
from pod_runtime.worker import authors
from pod_runtime.worker.authors import Authors
from tests.pod_runtime.worker.logged import LoggedSite
from tests.pod_runtime.worker.persistence_kit import Machine


@pytest.fixture
async def logged(tmp_path: Path) -> AsyncIterator[LoggedSite]:
    site = LoggedSite(tmp_path)
    await site.start()
    yield site
    await site.stop()


def test_names_are_taken_once_and_given_back() -> None:
    found = Authors()
    found.note("bo", "a/x", "b")
    found.note("ana", "a/x", "c")
    taken = found.take()
    assert taken.of("a/x") == ("ana", "bo")
    assert taken.of("b") == ("bo",)
    assert taken.of("b/beneath") == ("bo",)
    assert taken.of("a") == taken.of("other") == found.take().of("b") == ()
    found.note("eve", "b")
    found.give_back(taken)
    assert found.take().of("b") == ("bo", "eve")


def test_names_move_along() -> None:
    found = Authors()
    found.note("ana", "d/x", "d", "dd")
    found.moved("d", "e")
    taken = found.take()
    assert taken.of("e/x") == taken.of("d/x") == taken.of("dd") == ("ana",)
    assert taken.of("ee") == ()


def test_bounds() -> None:
    found = Authors()
    for n in range(authors.MAX_PATHS + 5):
        found.note("a" * 1000, str(n))
    for n in range(100):
        found.note(f"{n:03}", "0")
    taken = found.take()
    assert len(taken.names) == authors.MAX_PATHS
    assert len(taken.of("0")) == authors.MAX_NAMES
    assert len(taken.of("1")[0]) == authors.MAX_NAME


async def test_the_record_names_its_people(logged: LoggedSite) -> None:
    (logged.path / "main.py").write_text("one\n")
    (logged.path / "disk").write_text("1")
    (logged.path / "idle").write_text("1")
    first = await logged.flush()
    meta = await logged.meta(first)
    assert meta.changed == {"disk": (), "idle": (), "main.py": ()}
    assert meta.names_all
    ana = await logged.client("main.py", subject="ana")
    bo = await logged.client("main.py", subject="bo")
    eve = await logged.client("idle", subject="eve", role=Role.VIEWER)
    await eve.has("1")
    ana.text += "two\n"
    await bo.has("one\ntwo\n")
    bo.text += "three\n"
    await ana.has("one\ntwo\nthree\n")
    (logged.path / "disk").write_text("2")
    await logged.call("PUT", "/api/contents/api", json={"content": "x"})
    second = await logged.flush()
    changed = (await logged.meta(second)).changed
    assert changed == {"api": ("Ann",), "disk": (), "main.py": ("Ana", "Bo")}
    # nothing is said twice
    (logged.path / "main.py").write_text("one\ntwo\nthree\nfour\n")
    await ana.has("one\ntwo\nthree\nfour\n")
    assert (await logged.meta(await logged.flush())).changed == {"main.py": ()}


async def test_renames_uploads_and_deletions_name_their_caller(logged: LoggedSite) -> None:
    (logged.path / "d").mkdir()
    (logged.path / "d" / "f").write_text("1\n")
    (logged.path / "old").write_text("1")
    await logged.flush()
    ana = await logged.client("d/f", subject="ana")
    ana.text += "2\n"
    await logged.on_disk("d/f", "1\n2\n")
    assert (await logged.call("PATCH", "/api/contents/d", json={"path": "e"}))[0] == 200
    assert (await logged.call("PUT", "/files/up", data=b"\xff"))[0] == 201
    assert (await logged.call("DELETE", "/api/contents/old"))[0] == 204
    changed = (await logged.meta(await logged.flush())).changed
    assert changed == {
        "d": ("Ann",),
        "d/f": ("Ana", "Ann"),
        "e": ("Ann",),
        "e/f": ("Ana", "Ann"),
        "old": ("Ann",),
        "up": ("Ann",),
    }


async def test_a_failed_commit_keeps_its_people(tmp_path: Path) -> None:
    bucket = MemoryStore()
    here = Machine(tmp_path, bucket)
    worker = await here.opened(1)
    (here.workspace / "f").write_text("1")
    here.documents.authors.note("Ana", "f")
    away = True

    async def fault(operation: str, key: str, phase: str) -> None:
        if away and operation == "put" and phase == "before":
            raise StoreError("away")

    bucket.fault = fault
    with pytest.raises(StoreError):
        await worker._commit_once()
    here.documents.authors.note("Bo", "g")
    (here.workspace / "g").write_text("1")
    worker.touched("g")
    away = False
    await worker.flush()
    seqs = (await reader.load(bucket)).tail
    found = [(await reader.read_meta(bucket, journal_key(seq))).changed for seq in seqs]
    assert found == [None, {"f": ("Ana",)}, {"g": ("Bo",)}]
    # nor does a look that fails lose them
    here.documents.authors.note("Eve", "h")
    (here.workspace / "h").write_text("1")
    worker._stopping, worker._everything = True, True
    with pytest.raises(Exception, match=r"^$"):
        await worker._commit_once()
    worker._stopping = False
    worker.touched("h")
    await worker.flush()
    last = (await reader.load(bucket)).last
    assert (await reader.read_meta(bucket, journal_key(last))).changed == {"h": ("Eve",)}
    await worker.close()


async def test_many_paths_are_counted_not_named(tmp_path: Path) -> None:
    here = Machine(tmp_path, MemoryStore())
    worker = await here.opened(1)
    for n in range(MAX_CHANGED + 5):
        (here.workspace / f"{n:05}").touch()
    here.documents.authors.note("Ana", f"{MAX_CHANGED + 4:05}")
    await worker.flush()
    meta = await reader.read_meta(here.store, journal_key(2))
    assert meta.changed is not None
    assert (len(meta.changed), meta.changed_count, meta.names_all) == (MAX_CHANGED, MAX_CHANGED + 5, False)
    assert meta.changed[f"{MAX_CHANGED + 4:05}"] == ("Ana",)
    await worker.close()
