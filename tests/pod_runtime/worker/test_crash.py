"""A real worker process, killed at bad moments; and logs that a crash has torn."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycrdt import Doc, Text

from pod_runtime.protocol.config import WorkerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.worker.diskfile import read_file
from pod_runtime.worker.document import Document
from pod_runtime.worker.documents import LiveDocuments
from pod_runtime.worker.events import Events
from pod_runtime.worker.histories import HistoryStore, Record, SavedMark, decode_log, encode_record
from pod_runtime.worker.lineage import new_history
from pod_runtime.worker.safefs import Root
from pod_runtime.worker.textfile import sha256
from tests.harness import within
from tests.pod_runtime.worker.harness import Site

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]


class ProcessSite(Site):
    process: asyncio.subprocess.Process

    async def start(self, **options: Any) -> None:
        config = self.path.parent / "config.json"
        config.write_text(self.config.to_json())
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(HERE / "process.py"),
            str(config),
            str(sock.fileno()),
            *options.get("more", ()),
            pass_fds=(sock.fileno(),),
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )
        sock.close()
        self.session = aiohttp.ClientSession()
        _, health = await self.call("GET", "/_codevo/health?wait=20", role=Role.HUB)
        assert health["state"] == "ready"

    async def kill(self, number: int) -> int:
        self.process.send_signal(number)
        return await within(self.process.wait(), 30)

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        self.clients.clear()
        await self.session.close()
        if self.process.returncode is None:
            await self.kill(signal.SIGKILL)


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[ProcessSite]:
    site = ProcessSite(tmp_path)
    await site.start()
    yield site
    await site.stop()


async def test_killed_between_edit_and_save(process: ProcessSite) -> None:
    site = process
    (site.path / "f").write_text("start\n")
    docs: list[Doc[Any]] = []
    chance = random.Random(7)
    expected = "start\n"
    for life in range(4):
        ann = await site.client("f", doc=docs[0] if docs else None)
        bob = await site.client("f", doc=docs[1] if docs else None, subject="bob")
        await ann.has(expected)
        for n in range(3):
            ann.text += f"ann {life} {n} 😀\n"
            expected += f"ann {life} {n} 😀\n"
            await asyncio.sleep(chance.random() * 0.3)
        await bob.has(expected)
        await site.kill(signal.SIGKILL)
        docs = [ann.doc, bob.doc]
        # typed while the worker is away
        docs[1].get("source", type=Text).insert(0, f"bob {life}\n")
        expected = f"bob {life}\n" + expected
        await site.stop()
        await site.start()
    ann = await site.client("f", doc=docs[0])
    bob = await site.client("f", doc=docs[1])
    await ann.has(expected)
    await bob.has(expected)
    fresh = await site.client("f")
    await fresh.has(expected)
    await site.on_disk("f", expected)


@pytest.mark.parametrize("changed", [False, True])
async def test_killed_before_the_text_is_written(tmp_path: Path, changed: bool) -> None:
    """Nobody opens the document again, and yet its file gets the text; a file that changed is merged."""
    site = ProcessSite(tmp_path)
    (site.path / "f").write_text("one\ntwo\nthree\n")
    (site.path / "other").write_text("x")
    await site.start(more=["die"])
    try:
        await site.client("other")
        ann = await site.client("f")
        ann.text += "four\n"
        assert await within(site.process.wait(), 30) == -signal.SIGKILL
        assert (site.path / "f").read_text() == "one\ntwo\nthree\n"
        if changed:
            (site.path / "f").write_text("zero\none\ntwo\nthree\n")
        expected = ("zero\n" if changed else "") + "one\ntwo\nthree\nfour\n"
        await site.stop()
        await site.start()
        # it was written before the worker became ready
        assert (site.path / "f").read_text() == expected
        assert (site.path / "other").read_text() == "x"
        assert HistoryStore(tmp_path / "state").unfinished() == []
        await (await site.client("f", doc=ann.doc)).has(expected)
    finally:
        await site.stop()


async def test_term_saves_and_exits_with_0(process: ProcessSite) -> None:
    (process.path / "f").write_text("a")
    ann = await process.client("f")
    ann.text += "b"
    await (await process.client("f")).has("ab")
    assert await process.kill(signal.SIGTERM) == 0
    assert (process.path / "f").read_text() == "ab"
    assert await ann.closed() == 1013


async def test_memory_when_idle(process: ProcessSite) -> None:
    assert (await process.call("GET", "/api/contents/"))[0] == 200
    pages = int(Path(f"/proc/{process.process.pid}/statm").read_text().split()[1])
    resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    assert resident < 70, f"{resident:.0f} MiB"


async def test_full_disk(tmp_path: Path) -> None:
    site = ProcessSite(tmp_path)
    (site.path / "f").write_text("a")
    await site.start(more=["20000"])
    try:
        ws = await site.session.ws_connect(site.url + "/api/worker/events", headers=site.headers())
        ann, bob = await site.client("f"), await site.client("f", subject="bob")
        ann.text += "x" * 30_000
        await bob.has("a" + "x" * 30_000)
        async with asyncio.timeout(15):
            while (await ws.receive_json())["type"] != "notice":
                pass
        assert (site.path / "f").read_text() == "a"
        body = b"y" * 30_000
        assert (await site.call("PUT", "/files/g", data=body))[0] == 507
        with ann.doc.transaction():
            ann.text.clear()
            ann.text += "small again"
        await bob.has("small again")
        assert os.listdir(site.path) == ["f"]
    finally:
        await site.stop()


# -- logs


def log(updates: int = 3) -> bytes:
    records = [encode_record(Record.META, b'{"path": "f", "epoch": 7}')]
    records += [encode_record(Record.UPDATE, b"update %d" % n) for n in range(updates)]
    return b"".join(records)


@given(st.integers(0, len(log())), st.binary(max_size=30))
def test_torn_logs(cut: int, junk: bytes) -> None:
    whole = log()
    found = decode_log(whole[:cut] + (junk if cut < len(whole) else b""))
    assert found.updates == [b"update %d" % n for n in range(len(found.updates))]
    assert found.size <= max(cut, 0) + len(junk)
    assert decode_log(whole + junk[:8]).updates == [b"update 0", b"update 1", b"update 2"]


@given(st.integers(0, len(log()) - 1), st.integers(1, 255))
def test_flipped_bits_end_the_log(at: int, mask: int) -> None:
    data = bytearray(log())
    data[at] ^= mask
    found = decode_log(bytes(data))
    assert found.updates == [b"update %d" % n for n in range(len(found.updates))]


def open_document(root: Root, store: HistoryStore, path: str = "f") -> Document:
    return Document.load(
        path, root, store, 10**6, read_file(root, path, 10**6), store.read(path), lambda d: None
    )


@pytest.fixture
def root(tmp_path: Path) -> Root:
    (tmp_path / "ws").mkdir()
    return Root(tmp_path / "ws")


async def test_compaction_keeps_the_history(root: Root, tmp_path: Path) -> None:
    store = HistoryStore(tmp_path / "state")
    root.write_atomic("f", b"x")
    document = open_document(root, store)
    log_file = next((tmp_path / "state/docs").glob("*.log"))
    largest = 0
    for n in range(400):
        document._source.insert(0, "y" * 1000)
        del document._source[0:1000]
        document._source.insert(0, f"{n % 10}")
        del document._source[1:2]
        if n % 20 == 0:
            await document.save()
            largest = max(largest, log_file.stat().st_size)
    await document.save()
    assert largest > 256 * 1024
    assert log_file.stat().st_size < largest
    epoch, text = document.history.epoch, document.text
    await document.close(1000, "")
    again = open_document(root, HistoryStore(tmp_path / "state"))
    assert (again.history.epoch, again.text) == (epoch, text)
    await again.close(1000, "")


@pytest.mark.parametrize("crash", ["before the text", "after the text"])
async def test_both_sides_of_a_save(root: Root, tmp_path: Path, crash: str) -> None:
    """The log is ahead of the file, or the file was written and the log does not say so yet."""
    store = HistoryStore(tmp_path / "state")
    root.write_atomic("f", b"one\n")
    document = open_document(root, store)
    document._source += "two\n"
    count = document.history.count
    document.history.mark(SavedMark(sha256(b"one\ntwo\n"), count, False))
    document._source.insert(4, "one and a half\n")
    await document.history.sync()
    if crash == "after the text":
        root.write_atomic("f", b"one\ntwo\n")
    again = open_document(root, HistoryStore(tmp_path / "state"))
    assert again.text == "one\none and a half\ntwo\n"
    await again.save()
    assert root.read_bytes("f", 100) == b"one\none and a half\ntwo\n"
    await again.close(1000, "")
    await document.room.end(1000, "")


async def test_import_and_capture(root: Root, tmp_path: Path) -> None:
    from pod_runtime.protocol.config import StoreConfig

    root.write_atomic("f", b"from the log\n")
    config = WorkerConfig("p", "k", 1, StoreConfig("", "", "", "", ""), root.path, str(tmp_path / "state"))
    documents = LiveDocuments(config, root, Events())
    epoch, update = new_history("from the log\n")
    documents.import_history("f", update, epoch, sha256(b"from the log\n"))
    assert documents.histories() == {"f"}
    assert list(documents.capture({})) == []
    root.write_atomic("f", b"from the log\nand from outside\n")
    document = await documents._get("f")
    assert document.history.epoch == epoch
    assert document.text == "from the log\nand from outside\n"
    (captured,) = list(documents.capture({}))
    assert captured.text == b"from the log\nand from outside\n"
    doc: Doc[Any] = Doc()
    doc.apply_update(captured.history)
    assert str(doc.get("source", type=Text)) == document.text
    assert list(documents.capture({"f": captured.version})) == []
    document._source += "x"
    assert [c.version > captured.version for c in list(documents.capture({"f": captured.version}))] == [True]
    await documents.close()


async def test_histories_of_files_that_are_gone_are_forgotten(root: Root, tmp_path: Path) -> None:
    store = HistoryStore(tmp_path / "state")
    for name in ("stays", "goes"):
        root.write_atomic(name, b"x")
        document = open_document(root, store, name)
        if name == "stays":
            async with document.lock:
                await document.history.sync()
                root.rename("stays", "moved")
                document.moved("moved", store)
        await document.close(1000, "")
    root.unlink("goes")
    (tmp_path / "state/docs/torn.log").write_bytes(b"junk")
    assert HistoryStore(tmp_path / "state").paths() == {"moved", "goes"}
    from pod_runtime.protocol.config import StoreConfig

    config = WorkerConfig("p", "k", 1, StoreConfig("", "", "", "", ""), root.path, str(tmp_path / "state"))
    documents = LiveDocuments(config, root, Events())
    documents.start()
    assert documents.histories() == {"moved"}
    await documents.close()
