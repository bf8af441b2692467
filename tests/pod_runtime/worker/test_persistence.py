from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import random
import secrets
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pod_runtime.journal import projects, reader
from pod_runtime.journal.format import Member, Meta
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.store import StoreError
from pod_runtime.journal.writer import Fenced
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence import Persister, restore
from tests.pod_runtime.worker.persistence_kit import Machine, crash


@pytest.fixture
def bucket() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def here(tmp_path: Path, bucket: MemoryStore) -> Machine:
    return Machine(tmp_path / "here", bucket)


@pytest.fixture
def there(tmp_path: Path, bucket: MemoryStore) -> Machine:
    return Machine(tmp_path / "there", bucket)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.01)


def fill(folder: Path) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "main.py").write_text("print('hello')\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("src/main.py")
    (folder / "dangling").symlink_to("/nowhere")
    (folder / "new\nline \u00e9").write_bytes(b"\0\xff")
    Path(os.fsdecode(os.fsencode(folder) + b"/not-utf8-\xff")).write_bytes(b"x")
    (folder / "zero").touch()
    (folder / ".gitignore").write_text("dist\n")


async def test_what_is_committed_comes_back_elsewhere(here: Machine, there: Machine) -> None:
    fill(here.workspace)
    worker = await here.opened(1)
    worker.start()
    status = await worker.flush()
    assert not status.pending
    assert status.last_error is None
    (here.workspace / "src" / "main.py").write_text("print('bye')\n")
    (here.workspace / "zero").unlink()
    await worker.close()
    other = await there.opened(2)
    assert there.tree() == here.tree()
    for name in ("src/main.py", "run.sh"):
        assert (there.workspace / name).stat().st_mtime_ns == (here.workspace / name).stat().st_mtime_ns
    assert "Restored 7 files" in there.progress[-1]
    assert not (await other.flush()).pending
    await other.close()


async def test_the_same_place_opens_without_a_download(here: Machine, bucket: MemoryStore) -> None:
    fill(here.workspace)
    worker = await here.opened(1)
    await worker.close()
    before = here.tree()
    bucket.calls.clear()
    again = await here.opened(2)
    # the first two at the same time
    opening = [("get", "HEAD.json"), ("list", "journal/"), ("put", "journal/0000000000000003.tar.zst")]
    assert bucket.calls == opening
    assert not (await again.flush()).pending
    await again.close()
    assert here.tree() == before
    assert len([k for k in bucket.objects if k.startswith("journal/")]) == 3  # `open` alone was added


async def test_the_loop_commits_what_is_touched(here: Machine) -> None:
    worker = await here.opened(1)
    worker.start()
    seen = []
    worker.subscribe(seen.append)
    await until(lambda: not worker.status().pending)
    (here.workspace / "a").mkdir()
    (here.workspace / "a" / "b.txt").write_text("1")
    worker.touched("a/b.txt")
    assert worker.status().pending
    wanted = worker.status().saved_seq
    await until(lambda: not worker.status().pending)
    assert worker.status().durable_seq >= wanted
    assert any(s.pending for s in seen)
    assert not seen[-1].pending
    plan = await reader.plan(here.store, await reader.load(here.store))
    assert {"workspace/a", "workspace/a/b.txt"} <= plan.last.keys()
    await worker.close()


async def test_a_flush_is_not_kept_waiting_by_what_comes_after(here: Machine, bucket: MemoryStore) -> None:
    worker = await here.opened(1)

    async def busy(operation: str, key: str, phase: str) -> None:
        if operation == "put":
            worker.touched("f")

    bucket.fault = busy
    (here.workspace / "f").write_text("1")
    assert not (await worker.flush()).pending
    assert worker.status().pending
    bucket.fault = None
    await worker.close()


async def test_unsaved_work_survives_a_crash(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    (here.workspace / "kept").write_text("1")
    await worker.flush()
    (here.workspace / "kept").write_text("2, never committed")
    (here.workspace / "new").write_text("3")
    crash(worker)
    again = await here.opened(2)
    assert (here.workspace / "kept").read_text() == "2, never committed"
    await again.close()
    other = await there.opened(3)
    assert there.tree() == here.tree()
    await other.close()


async def test_unsaved_work_is_set_aside_when_another_generation_has_written(
    here: Machine, there: Machine
) -> None:
    (here.workspace / "both").write_text("base")
    (here.workspace / "mine").write_text("base")
    (here.workspace / "gone").write_text("base")
    worker = await here.opened(1)
    await worker.flush()
    (here.workspace / "both").write_text("unsaved here")
    (here.workspace / "fresh").write_text("unsaved too")
    crash(worker)
    other = await there.opened(2)
    (there.workspace / "both").write_text("committed there")
    (there.workspace / "gone").unlink()
    await other.close()
    again = await here.opened(3)
    assert (here.workspace / "both").read_text() == "committed there"
    assert (here.workspace / "mine").read_text() == "base"
    assert not (here.workspace / "gone").exists()
    assert not (here.workspace / "fresh").exists()
    [aside] = (here.workspace / ".codevo").iterdir()
    assert (aside / "both").read_text() == "unsaved here"
    assert (aside / "fresh").read_text() == "unsaved too"
    assert any("set-aside" in n for n in here.notices)
    await again.close()


async def test_a_lost_manifest_sets_aside_only_what_differs(here: Machine) -> None:
    fill(here.workspace)
    worker = await here.opened(1)
    await worker.close()
    before = here.tree()
    for left in (here.state / "persistence").glob("manifest*"):
        left.unlink()
    again = await here.opened(2)
    assert here.tree() == before
    await again.close()
    (here.state / "persistence" / "manifest.db").write_bytes(b"this is not SQLite at all" * 100)
    third = await here.opened(3)
    assert here.tree() == before
    await third.close()


async def test_the_older_generation_is_fenced(here: Machine, there: Machine) -> None:
    (here.workspace / "f").write_text("1")
    old = await here.opened(1)
    await old.flush()
    new = await there.opened(2)
    (here.workspace / "f").write_text("late")
    here.documents.edit("doc.txt", b"late text")
    status = await old.flush()
    assert old.fenced.is_set()
    assert status.pending
    assert "elsewhere" in (status.last_error or "")
    [aside] = (here.workspace / ".codevo").iterdir()
    assert (aside / "f").read_text() == "late"
    assert (aside / "doc.txt").read_text() == "late text"
    await old.close()
    late = here.worker(1)
    with pytest.raises(Fenced):
        await late.open()
    assert late.fenced.is_set()
    await late.close()
    await new.close()
    assert (there.workspace / "f").read_text() == "1"


async def test_nothing_is_lost_while_the_store_is_away(
    here: Machine, there: Machine, bucket: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pod_runtime.worker.persistence.persister._backoff", lambda failures: 0.01)
    worker = await here.opened(1)
    worker.start()
    away = True

    async def fault(operation: str, key: str, phase: str) -> None:
        if away:
            raise StoreError("503")

    bucket.fault = fault
    for n in range(5):
        (here.workspace / f"f{n}").write_text(str(n))
        worker.touched(f"f{n}")
        await until(lambda: worker.status().last_error is not None)
    status = await worker.flush()
    assert status.pending
    assert "away" in (status.last_error or "")
    away = False
    await until(lambda: not worker.status().pending)
    assert worker.status().last_error is None
    await worker.close()
    await (await there.opened(2)).close()
    assert there.tree() == here.tree()


async def test_documents_are_stored_with_the_text_of_their_history(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    (here.workspace / "doc.txt").write_text("the disk is behind")
    here.documents.edit("doc.txt", b"newest text")
    await worker.flush()
    crash(worker)
    other = await there.opened(2)
    assert (there.workspace / "doc.txt").read_bytes() == b"newest text"
    sha = hashlib.sha256(b"newest text").hexdigest()
    assert there.documents.imported == {"doc.txt": (b"history of newest text", 7, sha)}
    await other.close()


async def test_the_disk_speaks_for_closed_documents(here: Machine, there: Machine) -> None:
    """A history that is not in the log yet, of a file that somebody changed since it was closed."""
    worker = await here.opened(1)
    here.documents.edit("doc.txt", b"as it was closed")
    here.documents.open.clear()
    (here.workspace / "doc.txt").write_text("changed from outside")
    await worker.flush()
    crash(worker)
    await (await there.opened(2)).close()
    assert (there.workspace / "doc.txt").read_text() == "changed from outside"
    assert there.documents.imported["doc.txt"][0] == b"history of as it was closed"


async def test_a_deleted_document_goes_from_the_log(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    here.documents.edit("doc.txt", b"text")
    await worker.flush()
    here.documents.texts.clear()
    here.documents.open.clear()
    await worker.flush()
    await worker.close()
    await (await there.opened(2)).close()
    assert there.documents.imported == {}
    assert there.tree() == {}


async def test_a_document_made_anew_at_once_is_saved(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    for n in range(5):
        here.documents.edit("doc.txt", str(n).encode())
    await worker.flush()
    here.documents.texts.clear()
    here.documents.edit("doc.txt", b"another document, its versions begin at 1")
    worker.start()
    worker.touched("doc.txt")
    await until(lambda: not worker.status().pending)
    crash(worker)
    await (await there.opened(2)).close()
    assert (there.workspace / "doc.txt").read_text().startswith("another")


async def test_ignored_paths_stay_out(here: Machine, there: Machine) -> None:
    for name in ("node_modules/x", "src/__pycache__", "build", "keep/build"):
        (here.workspace / name).mkdir(parents=True)
        (here.workspace / name / "f").write_text("x")
    (here.workspace / "a.pyc").write_text("x")
    (here.workspace / "codevo.toml").write_text('[persist]\nignore = ["/build/"]\n')
    worker = await here.opened(1)
    await worker.flush()
    worker.touched("node_modules/x/f", "build/f", "a.pyc")
    await worker.close()
    await (await there.opened(2)).close()
    assert there.tree().keys() == {b"src", b"keep", b"keep/build", b"keep/build/f", b"codevo.toml"}


async def test_a_broken_codevo_toml_is_told(here: Machine) -> None:
    (here.workspace / "codevo.toml").write_text("[persist\n")
    worker = await here.opened(1)
    assert not (await worker.flush()).pending
    assert any("codevo.toml" in n for n in here.notices)
    await worker.close()


async def test_hostile_trees_do_no_harm(here: Machine, there: Machine, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("top secret")
    w = here.workspace
    os.mkfifo(w / "fifo")
    (w / "out").symlink_to(secret)
    (w / "up").symlink_to("../../../../etc/passwd")
    with open(w / "sparse", "wb") as f:
        f.truncate(2**40)
    (w / "fine").write_text("x")
    deep = w
    for _ in range(50):
        deep = deep / ("d" * 60)
        deep.mkdir()
    (deep / "leaf").write_text("deep")
    worker = await here.opened(1)
    worker.touched("out/key", "fifo", "../secret/key", "/etc/passwd", "fine/below")
    assert not (await worker.flush()).pending
    assert any("sparse" in n for n in here.notices)
    await worker.close()
    await (await there.opened(2)).close()
    found = there.tree()
    assert b"fifo" not in found
    assert b"sparse" not in found
    assert found[b"out"] == ("link", os.fsencode(secret))
    assert b"top secret" not in repr(found).encode()
    assert sum(1 for k in found if k.endswith(b"/leaf")) == 1


async def full_for(machine: Machine, generation: int, *names: str, number: int = errno.ENOSPC) -> Persister:
    """Open where files of these names cannot be written."""
    write = safefs.AtomicFile.write

    def fails(file: safefs.AtomicFile, data: bytes | memoryview) -> None:
        if file._path.rpartition("/")[2] in names:
            write(file, data[:1])
            if number == errno.ENOSPC:
                raise safefs.DiskFull(number, "The disk is full", file._path)
            raise OSError(number, os.strerror(number), file._path)
        write(file, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safefs.AtomicFile, "write", fails)
        return await machine.opened(generation)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
async def test_what_cannot_be_restored_stays_in_the_log(
    here: Machine, there: Machine, tmp_path: Path, bucket: MemoryStore, number: int
) -> None:
    worker = await here.opened(1)
    fill(here.workspace)
    for name in ("big", "src/big", "src/deep/big"):
        (here.workspace / name).parent.mkdir(exist_ok=True)
        (here.workspace / name).write_text(f"whole {name}")
    await worker.flush()
    await worker.close()
    whole = here.tree()
    other = await full_for(there, 2, "big", number=number)
    assert ["3 files could not be restored" in n for n in there.notices] == [True]
    assert not list(there.workspace.rglob("big"))
    assert not list(there.workspace.rglob(safefs.TEMP_PREFIX + "*"))
    await other.flush()
    # work goes on: deletions and changes of the rest are committed, by looks at one path and at all
    other.start()
    (there.workspace / "zero").write_text("not any more")
    (there.workspace / "run.sh").unlink()
    other.touched("zero", "run.sh", "src", "big")
    await until(lambda: not other.status().pending)
    (there.workspace / "src" / "big").write_text("new")
    await other.flush()
    await other.close()
    # the same place again: only what lacked space is tried again
    await (await there.opened(3)).close()
    assert (there.workspace / "big").exists() == (number == errno.ENOSPC)
    third = Machine(tmp_path / "third", bucket)
    await (await third.opened(4)).close()
    whole[b"zero"] = ("file", 0o644, b"not any more")
    whole[b"src/big"] = ("file", 0o644, b"new")
    del whole[b"run.sh"]
    assert third.tree() == whole


async def test_an_older_state_never_replaces_one_that_could_not_be_restored(
    here: Machine, there: Machine, tmp_path: Path, bucket: MemoryStore
) -> None:
    worker = await here.opened(1)
    for name in ("big", "bigger"):
        (here.workspace / name).write_text("old")
    await worker.flush()
    await worker.close()
    other = await there.opened(2)
    for name in ("big", "bigger"):
        (there.workspace / name).write_text("newer")
    await other.close()
    (here.workspace / "bigger").write_text("unsaved")
    again = await full_for(here, 3, "big", "bigger")
    await again.close()
    third = Machine(tmp_path / "third", bucket)
    await (await third.opened(4)).close()
    assert (third.workspace / "big").read_text() == (third.workspace / "bigger").read_text() == "newer"
    assert [p.read_text() for p in third.workspace.glob(".codevo/*/bigger")] == ["unsaved"]


async def test_a_file_in_the_place_of_a_folder_replaces_what_was_held(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    (here.workspace / "d").mkdir()
    (here.workspace / "d" / "big").write_text("x")
    await worker.flush()
    await worker.close()
    other = await full_for(there, 2, "big")
    (there.workspace / "d").rmdir()
    (there.workspace / "d").write_text("a file now")
    await other.flush()
    await other.close()
    await (await here.opened(3)).close()
    assert here.tree() == {b"d": ("file", 0o644, b"a file now")}


async def test_kinds_that_change_places(here: Machine, there: Machine) -> None:
    w = here.workspace
    (w / "a").write_text("file")
    (w / "b").mkdir()
    (w / "b" / "c").write_text("inner")
    (w / "l").symlink_to("a")
    worker = await here.opened(1)
    await worker.flush()
    await (await there.opened(2)).close()  # so that the other place has the first shape on disk
    crash(worker)
    worker = await here.opened(3)
    (w / "a").unlink()
    (w / "a").mkdir()
    (w / "a" / "x").write_text("now a folder")
    (w / "b" / "c").unlink()
    (w / "b").rmdir()
    (w / "b").symlink_to("a")
    (w / "l").unlink()
    (w / "l").write_text("now a file")
    await worker.close()
    await (await there.opened(4)).close()
    assert there.tree() == here.tree()


async def test_a_file_that_changes_while_it_is_read_is_committed_again(here: Machine, there: Machine) -> None:
    worker = await here.opened(1)
    worker.start()
    target = here.workspace / "log"
    process = subprocess.Popen(
        ["sh", "-c", f"for i in $(seq 1 300); do echo line $i >> {target}; sleep 0.002; done"]
    )
    while process.poll() is None:
        worker.touched("log")
        await asyncio.sleep(0.02)
    await worker.close()
    await (await there.opened(2)).close()
    assert (there.workspace / "log").read_text().splitlines()[-1] == "line 300"


async def test_large_commits_go_through_a_file(here: Machine, there: Machine) -> None:
    data = os.urandom(20 * 2**20)
    (here.workspace / "large").write_bytes(data)
    worker = await here.opened(1)
    await worker.close()
    assert not list((here.state / "persistence").glob("commit-*"))
    await (await there.opened(2)).close()
    assert (there.workspace / "large").read_bytes() == data


async def test_over_the_size_limit_is_told_and_the_rest_is_saved(here: Machine) -> None:
    (here.workspace / "big").write_bytes(b"x" * 5000)
    (here.workspace / "small").write_bytes(b"x")
    worker = await here.opened(1, max_workspace=1000)
    assert not (await worker.flush()).pending
    assert any("size limit" in n for n in here.notices)
    plan = await reader.plan(here.store, await reader.load(here.store))
    assert "workspace/small" in plan.last
    assert "workspace/big" not in plan.last
    await worker.close()


async def test_a_project_from_a_template(here: Machine, bucket: MemoryStore) -> None:
    files = {
        "main.py": projects.TemplateFile(b"print(1)\n", 0o755),
        "link": projects.TemplateFile(target="main.py"),
    }
    key = await projects.publish_template(bucket, files, "python", "1")
    await projects.create_from_snapshot(bucket, key, "projects/p/")
    here.store = bucket.view("projects/p/")
    worker = await here.opened(1)
    assert (here.workspace / "link").read_text() == "print(1)\n"
    assert os.access(here.workspace / "main.py", os.X_OK)
    await worker.close()


async def test_a_record_that_was_put_but_not_noted_is_recognised(
    here: Machine, there: Machine, bucket: MemoryStore
) -> None:
    worker = await here.opened(1)

    async def lost(operation: str, key: str, phase: str) -> None:
        if operation == "put" and phase == "after":
            crash(worker)
            raise StoreError("the answer was lost, and so is the process")

    (here.workspace / "f").write_text("1")
    bucket.fault = lost
    with pytest.raises((StoreError, AssertionError)):
        await worker._commit_once()
    bucket.fault = None
    (here.workspace / "f").write_text("2")
    again = await here.opened(1)
    assert (here.workspace / "f").read_text() == "2"
    assert not (here.workspace / ".codevo").exists()
    await again.close()
    await (await there.opened(2)).close()
    assert (there.workspace / "f").read_text() == "2"


async def test_an_interrupted_restore_still_sets_unsaved_work_aside(
    here: Machine, there: Machine, bucket: MemoryStore
) -> None:
    worker = await here.opened(1)
    for name in ("a", "b"):
        (here.workspace / name).write_text("old")
    await worker.flush()
    crash(worker)
    other = await there.opened(2)
    for name in ("a", "b"):
        (there.workspace / name).write_text("newer")
        await other.flush()
    await other.close()
    (here.workspace / "a").write_text("unsaved a")
    (here.workspace / "b").write_text("unsaved b")
    interrupted = here.worker(3)
    begin = restore.Restorer.begin

    def fails(self: restore.Restorer, member: Member) -> bool:
        if member.path == "b":
            raise Killed
        return begin(self, member)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(restore.Restorer, "begin", fails)
        await interrupted.open()
    await (await here.opened(3)).close()
    for name in ("a", "b"):
        assert (here.workspace / name).read_text() == "newer"
        assert [p.read_text() for p in here.workspace.glob(f".codevo/*/{name}")] == [f"unsaved {name}"]


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_crashes_at_every_step_lose_nothing(seed: int) -> None:
    """Edits, flushes, crashes before and after any request, moves to another machine: what was acknowledged
    is there, and what the local disk had is there or set aside."""
    dice = random.Random(seed)

    async def run(folder: Path) -> None:
        bucket = MemoryStore()
        fatal = -1

        async def fault(operation: str, key: str, phase: str) -> None:
            nonlocal fatal
            fatal -= 1
            if fatal == 0 and operation != "list":
                raise Killed
            if dice.random() < 0.05:
                raise StoreError("503")

        machines = [Machine(folder / name, bucket.view("", fault=fault)) for name in ("a", "b")]
        generation = 0
        for _ in range(dice.randrange(2, 7)):
            machine = dice.choice(machines)
            # the same worker may also be restarted with the generation that it had
            generation += dice.choice([0, 1]) if generation else 1
            fatal = dice.choice([-1, dice.randrange(1, 12)])
            worker = machine.worker(generation)
            before = {k: v for k, v in machine.tree().items() if v[0] == "file"}
            # also what was committed by a request whose answer was lost
            seen.extend((await naive(bucket)).values())
            try:
                await worker.open()
                contents = list(machine.tree().values())
                for path, value in before.items():
                    # a copy of what stood here, unless the log had it and has moved on
                    assert value in contents or value in seen, path
                for _ in range(dice.randrange(4)):
                    for _ in range(dice.randrange(1, 4)):
                        edit(machine.workspace, dice)
                    if not (await worker.flush()).pending:
                        durable = {k: v for k, v in machine.tree().items() if v[0] == "file"}
                        assert await naive(bucket) == durable
                        seen.extend(durable.values())
                    elif worker.fenced.is_set():
                        break
                if dice.random() < 0.5:
                    await worker.close()
            except (Killed, StoreError):
                pass
            finally:
                crash(worker)
                if worker._maintenance is not None and worker._maintenance.task is not None:
                    await asyncio.gather(worker._maintenance.task, return_exceptions=True)
        fatal = -1
        while True:
            with contextlib.suppress(StoreError):
                fresh = Machine(folder / secrets.token_hex(4), bucket.view(""))
                last = await fresh.opened(generation + 1)
                break
        found = fresh.tree()
        assert await naive(bucket) == {k: v for k, v in found.items() if v[0] == "file"}
        await last.close()

    seen: list[object] = []
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("pod_runtime.worker.persistence.persister._backoff", lambda failures: 0.0)
        patch.setattr("pod_runtime.worker.persistence.session.backoff", lambda failures: 0.0)
        asyncio.run(run(Path(folder)))


def edit(workspace: Path, dice: random.Random) -> None:
    path = workspace / dice.choice(["a", "b", "c/d", "c/e"])
    if dice.random() < 0.25:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(dice.randbytes(6))


async def naive(bucket: MemoryStore) -> dict[bytes, object]:
    """The log's tree by the book, each record after the other, with the modes and contents of files."""
    found: dict[bytes, object] = {}

    class Sink:
        def meta(self, meta: Meta) -> None:
            for name in meta.deleted:
                found.pop(os.fsencode(name.removeprefix("workspace/")), None)

        def begin(self, member: Member) -> bool:
            self.key = os.fsencode(member.path)
            if member.kind == "file":
                found[self.key] = ("file", member.mode, b"")
            return member.kind == "file"

        def data(self, chunk: bytes) -> None:
            kind, mode, data = found[self.key]
            found[self.key] = (kind, mode, data + chunk)

        def end(self) -> None:
            pass

    for seq in (await reader.load(bucket)).tail:
        await reader.decode(bucket, reader.journal_key(seq), Sink())
    return found
