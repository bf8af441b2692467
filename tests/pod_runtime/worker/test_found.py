"""What the random lives of `test_model` found, each once more by hand."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Doc, Text

from pod_runtime.protocol.config import StoreConfig, WorkerConfig
from pod_runtime.worker.diskfile import read_file
from pod_runtime.worker.document import Document
from pod_runtime.worker.documents import LiveDocuments
from pod_runtime.worker.events import Events
from pod_runtime.worker.histories import HistoryStore, SavedMark, finish
from pod_runtime.worker.merge import apply, edits, merge
from pod_runtime.worker.safefs import Root
from pod_runtime.worker.textfile import TextFile, sha256


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "ws").mkdir()
    return Root(tmp_path / "ws")


def opened(root: Root, tmp_path: Path) -> Document:
    store = HistoryStore(tmp_path / "state")
    return Document.load(
        "f", root, store, 10**6, read_file(root, "f", 10**6), store.read("f"), lambda d: None
    )


@pytest.mark.parametrize(
    ("base", "ours", "theirs", "both"),
    [
        # typing at the end of a file without a final newline, while a terminal appends
        ("a\nb", "a\nb typed", "a\nb\nappended\n", "a\nb typed\nappended\n"),
        ("a\nb", "a\nb\ntyped", "a\nb\nappended\n", "a\nb\ntyped\nappended\n"),
        # one line, two words
        ("f(a,b)\n", "f(a,b) # why\n", "f(a, b)\n", "f(a, b) # why\n"),
        ("one two three\n", "one 2 three\n", "one two 3\n", "one 2 3\n"),
        # the same words: both, by whole lines, the rest once
        ("k\nx = 1\nl\n", "k\nx = 2\nl\n", "k\nx = 3\nl\n", "k\nx = 2\nx = 3\nl\n"),
        # one has what the other has, and more
        ("a\n", "a\nnew\n", "a\nnew\nmore\n", "a\nnew\nmore\n"),
        ("", "same\nours\n", "same\ntheirs\n", "same\nours\ntheirs\n"),
    ],
)
def test_merges(base: str, ours: str, theirs: str, both: str) -> None:
    assert merge(base, ours, theirs) == both


def test_edits_never_join_halves_of_words() -> None:
    """A line between two words goes; kept were the head of the first and the tail of the second."""
    old, new = "alpha beta1\nalpha gamma1\n", "alpha gamma1\n"
    changes = edits(old, new)
    assert apply(old, changes) == new
    for change in changes:
        for at in (change.start, change.end):
            assert not (old[at - 1 : at].isalnum() and old[at : at + 1].isalnum()), changes


def test_lines_that_stand_once_are_never_moved() -> None:
    old = "".join(f"line {n}\n\n\n" for n in range(30))
    new = old.replace("line 7\n\n\nline 8\n", "line 8\n").replace("line 20\n", "\n\n\nline 20\n")
    kept = apply(old, [e for e in edits(old, new) if not e.text])
    assert all(f"line {n}\n" in kept for n in range(30) if n != 7)


def test_a_file_of_windows_stays_one() -> None:
    assert TextFile("a\r\nb\n", True).encode() == b"a\r\nb\r\n"


async def test_mixed_line_ends_are_no_conflict(root: Root, tmp_path: Path) -> None:
    root.write_atomic("f", b"one\r\ntwo\r\n")
    document = opened(root, tmp_path)
    document._source.insert(3, " typed")
    with open(os.path.join(root.path, "f"), "ab") as f:
        f.write(b"echo\n")
    await document.save()
    assert root.read_bytes("f", 100) == b"one typed\r\ntwo\r\necho\n"
    await document.close(1000, "")


async def test_killed_after_a_save_and_changed_before_the_restart(root: Root, tmp_path: Path) -> None:
    """The log knows of the save's beginning only; the file is that text and more."""
    root.write_atomic("f", b"a\n")
    document = opened(root, tmp_path)
    document._source += "typed\nunder\n"
    document.history.mark(SavedMark(sha256(b"a\ntyped\nunder\n"), document.history.count, False))
    document._source.insert(0, "late\n")
    await document.history.sync()
    root.write_atomic("f", b"a\ntyped\nbetween\nunder\nappended\n")
    again = opened(root, tmp_path)
    assert again.text == "late\na\ntyped\nbetween\nunder\nappended\n"
    await again.close(1000, "")
    await document.room.end(1000, "")


async def test_what_others_wrote_is_in_the_history_before_anybody_sees_it(root: Root, tmp_path: Path) -> None:
    root.write_atomic("f", b"a\n")
    document = opened(root, tmp_path)
    document._source += "typed\n"
    log = next((tmp_path / "state/docs").glob("*.log"))
    states: list[str] = []

    def seen(event: object) -> None:
        content = HistoryStore(tmp_path / "state").read("f")
        assert content is not None
        doc: Doc[Any] = Doc()
        for update in content.updates:
            doc.apply_update(update)
        states.append(str(doc.get("source", type=Text)))

    subscription = document._doc.observe(seen)
    root.write_atomic("f", b"outside\na\n")
    size = log.stat().st_size
    await document.save()
    assert log.stat().st_size > size
    assert states == ["outside\na\ntyped\n"]
    document._doc.unobserve(subscription)
    await document.close(1000, "")


async def test_a_change_of_the_same_size_in_the_same_tick(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File systems' clocks stand still for milliseconds: here the times are all one."""
    root.write_atomic("f", b"one\n")
    document = opened(root, tmp_path)
    stands = document._key.stat
    monkeypatch.setattr("pod_runtime.worker.diskfile._numbers", lambda st: stands)
    (tmp_path / "ws/f").write_text("two\n")
    assert await document.touched_outside()
    document._source += "typed\n"
    await document.save()
    assert root.read_bytes("f", 100) == b"two\ntyped\n"
    await document.close(1000, "")


async def test_what_is_written_while_a_save_is_being_written(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.write_atomic("f", b"a\n")
    document = opened(root, tmp_path)
    document._source += "typed\n"
    sync, calls = os.fsync, []

    def slow(fd: int) -> None:
        sync(fd)
        if not calls and threading.current_thread() is not threading.main_thread():
            calls.append(fd)
            with open(os.path.join(root.path, "f"), "a") as f:
                f.write("appended\n")

    monkeypatch.setattr("pod_runtime.worker.atomic.os.fsync", slow)
    await document.save()
    assert calls
    assert sorted(root.read_bytes("f", 100).split()) == [b"a", b"appended", b"typed"]
    await document.close(1000, "")


async def test_work_in_threads_is_finished_even_when_cancelled() -> None:
    go, began = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        go.wait(20)

    task = asyncio.create_task(finish(asyncio.to_thread(work)))
    while not began.is_set():
        await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_closed_documents_are_rendered_off_the_loop(root: Root, tmp_path: Path) -> None:
    """Hundreds of them are captured at a worker's start; `capture` itself reads none."""
    config = WorkerConfig("p", "k", 1, StoreConfig("", "", "", "", ""), root.path, str(tmp_path / "state"))
    documents = LiveDocuments(config, root, Events())
    threads: list[int] = []
    peek = documents._store.peek

    def watched(path: str) -> Any:
        threads.append(threading.get_ident())
        return peek(path)

    for n in range(20):
        root.write_atomic(f"f{n}", b"text\n")
        document = await documents._get(f"f{n}")
        document._source += "more\n"
    await documents.close()
    again = LiveDocuments(config, root, Events())
    peek = again._store.peek
    again._store.peek = watched  # type: ignore[method-assign]
    captures = again.capture({})
    assert threads == []
    found = await asyncio.to_thread(list, captures)
    assert [c.text for c in found] == [b"text\nmore\n"] * 20
    assert set(threads).isdisjoint({threading.get_ident()})
    await again.close()
