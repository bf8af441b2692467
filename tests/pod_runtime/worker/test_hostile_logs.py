"""The way in: logs and trees that were made to break a restore. Refused, or kept inside the workspace."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from pod_runtime.journal import reader
from pod_runtime.journal.format import Area, Kind, Member, Meta, encode_body, meta_frame
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.projects import export
from pod_runtime.journal.reader import LogError, journal_key
from pod_runtime.worker.persistence import changes
from tests.pod_runtime.worker.persistence_kit import Machine, crash


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return Machine(tmp_path / "here", MemoryStore())


async def record(machine: Machine, *members: tuple[Member, bytes], seq: int = 1) -> None:
    body = encode_body(members)
    await machine.store.put(journal_key(seq), meta_frame(Meta("commit", seq, "w", 1)) + body)


def file(path: str, data: bytes = b"x", mode: int = 0o644) -> tuple[Member, bytes]:
    return Member(Area.WORKSPACE, path, mode=mode, size=len(data)), data


def link(path: str, target: object) -> tuple[Member, bytes]:
    return Member(Area.WORKSPACE, path, Kind.SYMLINK, target=str(target)), b""


def folder(path: str) -> tuple[Member, bytes]:
    return Member(Area.WORKSPACE, path, Kind.DIRECTORY, 0o755), b""


def untouched(tmp_path: Path) -> bool:
    outside = tmp_path / "outside"
    return os.listdir(outside) == ["secret"] and (outside / "secret").read_text() == "secret"


async def test_members_through_links_stay_inside(machine: Machine, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    await record(
        machine,
        *(link("out", outside), file("out/new"), file("out/secret", b"stolen"), folder("out/folder")),
        *(link("up", "../../outside"), folder("up"), file("up/secret", b"stolen")),
        *(link("f", outside / "secret"), file("f", b"stolen")),
        *(file("g"), link("g", outside / "secret"), file("g", b"stolen")),
        *(file("h"), link("h", outside / "new")),
        *(file("i"), file("i/below"), folder("j"), link("j", outside), file("j/a/b")),
        *(link("loop", "loop"), file("loop/x"), link("k", outside), link("k/inner", outside)),
        file("suid", mode=0o6755),
        *(link(".codevo", outside), file(".codevo/x")),
    )
    worker = await machine.opened(2)
    assert untouched(tmp_path)
    ws = machine.workspace
    assert (ws / "out/secret").read_bytes() == b"stolen" and not (ws / "out").is_symlink()
    assert (ws / "f").read_bytes() == (ws / "g").read_bytes() == b"stolen"
    assert os.readlink(ws / "h") == str(outside / "new")
    assert (ws / "suid").stat().st_mode & 0o7777 == 0o755
    worker.start()
    await worker.flush()
    assert not worker.status().pending
    await worker.close()
    # what it made of it is read again elsewhere
    there = Machine(tmp_path / "there", machine.store)
    await (await there.opened(3)).close()
    assert there.tree() == machine.tree()
    assert untouched(tmp_path)


async def test_links_that_wait_in_the_workspace(machine: Machine, tmp_path: Path) -> None:
    """User code has planted links where the log has files and folders."""
    outside = tmp_path / "outside"
    await record(machine, folder("d"), file("d/secret", b"mine"), file("secret", b"mine"), file("e/f/g"))
    for name in ("d", "e"):
        (machine.workspace / name).symlink_to(outside)
    (machine.workspace / "secret").symlink_to(outside / "secret")
    worker = await machine.opened(2)
    await worker.close()
    assert untouched(tmp_path)
    assert (machine.workspace / "d/secret").read_bytes() == b"mine"
    assert (machine.workspace / "secret").read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("workspace/../../outside/new", tarfile.REGTYPE, ""),
        ("/workspace/x", tarfile.REGTYPE, ""),
        ("workspace//etc/x", tarfile.REGTYPE, ""),
        ("workspace/hard", tarfile.LNKTYPE, "../outside/secret"),
        ("workspace/device", tarfile.CHRTYPE, ""),
        ("workspace/block", tarfile.BLKTYPE, ""),
        ("workspace/fifo", tarfile.FIFOTYPE, ""),
        ("state/x", tarfile.REGTYPE, ""),
    ],
)
async def test_bad_members_end_the_restore(
    machine: Machine, tmp_path: Path, name: str, kind: bytes, target: str
) -> None:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w") as tar:
        good, bad = tarfile.TarInfo("workspace/good"), tarfile.TarInfo(name)
        bad.type, bad.linkname = kind, target
        tar.addfile(good)
        tar.addfile(bad)
    data = meta_frame(Meta("commit", 1, "w", 1)) + zstandard.compress(body.getvalue())
    await machine.store.put(journal_key(1), data)
    with pytest.raises(LogError):
        await machine.opened(2)
    assert untouched(tmp_path)
    assert not set(os.listdir(machine.workspace)) - {"good"}


async def test_what_is_too_deep_does_not_break_the_log(machine: Machine) -> None:
    worker = await machine.opened(1)
    (machine.workspace / "f").write_text("f")
    top = os.open(machine.workspace, os.O_PATH)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=top)
        inner = os.open("d" * 200, os.O_PATH, dir_fd=top)
        os.close(top)
        top = inner
    os.close(top)
    await worker.flush()
    assert any("lies too deep and is not saved" in notice for notice in machine.notices)
    assert [chunk async for chunk in export(machine.store, "")]
    await worker.close()
    log = await reader.load(machine.store)
    assert (await reader.plan(machine.store, log)).last["workspace/f"] > 0


@pytest.mark.parametrize("kind", ["link", "file", "fifo"])
async def test_something_else_stands_where_work_is_set_aside(
    machine: Machine, tmp_path: Path, kind: str
) -> None:
    worker = await machine.opened(1)
    (machine.workspace / "f").write_text("one")
    if kind == "link":
        (machine.workspace / ".codevo").symlink_to(tmp_path / "outside")
    elif kind == "file":
        (machine.workspace / ".codevo").write_text("mine")
    else:
        os.mkfifo(machine.workspace / ".codevo")
    long = "n" * 240 + "/" + "n" * 255
    (machine.workspace / long).parent.mkdir()
    await worker.flush()
    crash(worker)
    other = Machine(tmp_path / "other", machine.store)
    worker = await other.opened(2)
    (other.workspace / "f").write_text("two")
    (other.workspace / long).write_text("theirs")
    await worker.flush()
    await worker.close()
    (machine.workspace / "f").write_text("unsaved")
    (machine.workspace / long).write_text("unsaved, too")
    worker = await machine.opened(3)
    assert (machine.workspace / "f").read_text() == "two"
    saved = [p.read_text() for p in machine.workspace.glob(".codevo/set-aside-*/**/*") if p.is_file()]
    assert sorted(saved) == ["unsaved", "unsaved, too"]
    assert untouched(tmp_path)
    if kind == "file":
        assert [p.read_text() for p in machine.workspace.glob(".codevo-*")] == ["mine"]
    await worker.close()


async def test_many_deletions_are_told_in_several_records(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_DELETED", 2000)
    worker = await machine.opened(1)
    for n in range(300):
        (machine.workspace / f"{n:040}").touch()
    await worker.flush()
    before = worker._writer.last if worker._writer else 0
    for path in machine.workspace.iterdir():
        path.unlink()
    worker.start()
    await worker.flush()
    async with asyncio.timeout(20):
        while worker.status().pending:
            await asyncio.sleep(0.02)
    await worker.close()
    log = await reader.load(machine.store)
    assert log.last - before >= 5
    assert set((await reader.plan(machine.store, log)).last.values()) == {-1}
