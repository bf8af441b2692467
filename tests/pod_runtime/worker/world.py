"""What the model-based test of the worker plays with: pages, a disk that others write, a store that fails.

Every inserted piece of text is a word of its own, ``t17é``, so that nothing can be lost, doubled or torn
without a trace. A token is *doubtful* once somebody has deleted it (a conflict may keep it) or once its only
copies were in what was lost by design: a page closed before its edits arrived, a machine that is gone before
the status said durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import socket
import stat
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
from pycrdt import Doc, Text, create_sync_message, create_update_message, handle_sync_message
from yarl import URL

from pod_runtime.journal import reader
from pod_runtime.journal.format import Area, Kind, Member, Meta
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.store import StoreError
from pod_runtime.protocol.roles import Role
from pod_runtime.worker import merge, safefs
from pod_runtime.worker.app import Worker
from pod_runtime.worker.persistence import Persister
from pod_runtime.worker.textfile import TextFile, sha256
from tests.pod_runtime.worker.harness import Site
from tests.pod_runtime.worker.persistence_kit import crash
from tests.pod_runtime.worker.virtual import Chance, Life

TOKEN = re.compile(r"t\d+[eé]")
#: What stands between tokens.
BETWEEN = re.compile(r"[\s😀𝄞]*")
NAMES = ("a.py", "b.txt", "dir/c.md", "dir/ü 😀")
SECONDS = 400
_STACKED = merge._stacked


def tokens(text: str) -> list[str]:
    return TOKEN.findall(text)


class Page:
    """A browser's tab on one file: a y-websocket client that comes back by itself."""

    def __init__(self, world: World, path: str) -> None:
        self.world, self.path = world, path
        self.name = world.next_name()
        self.doc: Doc[Any] = Doc()
        self.text: Text
        self.wanted = True
        self.synced = False
        #: a page lets nobody type before it has the text
        self.ready = False
        #: whether the file was deleted, moved or lost since the page was last in step
        self.excused = path not in world.files()
        self._applying = False
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._socket: aiohttp.ClientWebSocketResponse | None = None
        self.fresh()
        self._task = asyncio.create_task(self._run())

    def fresh(self) -> None:
        self.doc = Doc(client_id=self.world.chance.random.randrange(1, 2**32))
        self.text = self.doc.get("source", type=Text)
        self.doc.observe(self._observe)
        self.ready = False

    def _observe(self, event: Any) -> None:
        if not self._applying and event.update != b"\0\0":
            self._out.put_nowait(create_update_message(event.update))

    async def _run(self) -> None:
        while True:
            if self.wanted and self.world.url:
                self.world.log(f"{self.name} connects to {self.path}")
                try:
                    self._closed(await self._session())
                except (aiohttp.ClientError, ConnectionError, TimeoutError) as e:
                    self.world.log(f"{self.name}: {type(e).__name__}")
            await asyncio.sleep(0.1 + self.world.chance.random.random())

    async def _session(self) -> int | None:
        world = self.world
        url = URL(f"{world.url}/collab/{world.quote(self.path)}", encoded=True)
        while not self._out.empty():
            self._out.get_nowait()
        # a killed process closes its sockets, what stands for one here may leave some
        async with asyncio.timeout(20):
            self._socket = ws = await world.http.ws_connect(url, headers=world.headers(), max_msg_size=0)
        writer = asyncio.create_task(self._write(ws))
        try:
            await ws.send_bytes(create_sync_message(self.doc))
            async for message in ws:
                await world.chance.pause()
                data = message.data
                if data[0] == 0:
                    self._applying = True
                    reply = handle_sync_message(data[1:], self.doc)
                    self._applying = False
                    if reply is not None:
                        self._out.put_nowait(reply)
                    self.synced = self.synced or data[1] == 1
                    self.ready = self.ready or self.synced
            return ws.close_code
        finally:
            self.synced = False
            self._socket = None
            writer.cancel()
            await ws.close()

    async def _write(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        with contextlib.suppress(ConnectionError, aiohttp.ClientError):
            while True:
                message = await self._out.get()
                await self.world.chance.pause()
                await ws.send_bytes(message)

    def _closed(self, code: int | None) -> None:
        self.world.log(f"{self.name} closed with {code} on {self.path}")
        if code in (4404, 4409):
            assert self.excused, f"{self.name} was closed with {code} on {self.path}"
            self.world.doubt(tokens(str(self.text)), stashed=True)
            self.fresh()
            if code == 4404:
                self.path = self.world.some_path()
        else:
            assert code in (None, 1000, 1001, 1006, 1011, 1012, 1013), (
                f"{self.name} was closed with {code} on {self.path}"
            )

    def drop(self) -> None:
        """The connection breaks: what is on its way is lost."""
        if self._socket is not None:
            connection = self._socket._response.connection
            if connection is not None and connection.transport is not None:
                connection.transport.abort()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self.wanted = False
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    def check(self) -> None:
        if self._task.done():
            self._task.result()

    # -- what its person does

    def _places(self, text: str) -> list[int]:
        inside = {i for m in TOKEN.finditer(text) for i in range(m.start() + 1, m.end())}
        return [i for i in range(len(text) + 1) if i not in inside]

    def type(self) -> None:
        if not self.ready:
            return
        chance = self.world.chance.random
        text = str(self.text)
        at = chance.choice(self._places(text))
        if chance.random() < 0.2:
            at = len(text)
        new = self.world.new_token()
        form = chance.random()
        if form < 0.5:
            new = f"{new}\n"
        elif form < 0.65:
            new = f"\n{new}"
        elif form < 0.7:
            new += "".join(f"\n{self.world.new_token()}" for _ in range(chance.randrange(1, 6)))
        self.text.insert(len(text[:at].encode()), new)

    def erase(self) -> None:
        text = str(self.text)
        found = list(TOKEN.finditer(text))
        if not found:
            return
        chance = self.world.chance.random
        first = chance.randrange(len(found))
        last = min(len(found) - 1, first + (chance.randrange(4) if chance.random() < 0.2 else 0))
        start, end = found[first].start(), found[last].end()
        self.world.doubt(tokens(text[start:end]))
        del self.text[len(text[:start].encode()) : len(text[:end].encode())]


class World:
    """One project: worker, machine, bucket, pages."""

    def __init__(self, chance: Chance, folder: Path) -> None:
        self.chance, self.folder = chance, folder
        # over TCP bytes may need a moment, in which the clock would jump
        self.address = folder / "socket"
        self.bucket = MemoryStore("")
        self.pages: list[Page] = []
        self.known: set[str] = set()
        self.doubtful: set[str] = set()
        self.durable: set[str] = set()
        #: tokens that both sides of a conflict had, which keeps the lines of both
        self.clashed: set[str] = set()
        self.url = ""
        self.http: aiohttp.ClientSession
        self.steps: list[str] = []
        self.trouble = "none"
        self._count = 0
        self._machine = 0
        self._generation = 0
        self._site: Site
        self.life: Life | None = None
        self.worker: Worker | None = None

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[None]:
        """Within, pages can connect."""
        connector = aiohttp.UnixConnector(str(self.address), limit=0, force_close=True)
        forever = aiohttp.ClientTimeout(None)
        async with aiohttp.ClientSession(timeout=forever, connector=connector) as self.http:
            yield

    def stacked(self, mine: list[str], yours: list[str]) -> list[str]:
        """What `merge` does with a conflict, and what that says of its words."""
        self.clashed |= set(tokens("".join(mine))) & set(tokens("".join(yours)))
        return _STACKED(mine, yours)

    async def finish(self) -> None:
        """Everybody leaves, the worker stops."""
        for page in self.pages:
            await page.close()
        await self.stop()

    # -- names and tokens

    def log(self, words: str) -> None:
        self.steps.append(f"{asyncio.get_running_loop().time():.3f} {words}")

    def next_name(self) -> str:
        self._count += 1
        return f"p{self._count}"

    def new_word(self, length: int = 0) -> str:
        """A token; of so many bytes, if possible."""
        self._count += 1
        last = self.chance.random.choice("eeé")
        digits = max(0, length - 1 - len(last.encode()))
        word = f"t{self._count:0{digits}d}{last}"
        self.known.add(word)
        return word

    def new_token(self) -> str:
        """A token with what keeps it apart from others."""
        return f" {self.chance.random.choice(['', '', '', '😀', '𝄞'])}{self.new_word()} "

    def doubt(self, which: list[str] | set[str], *, stashed: bool = False) -> None:
        """These may be missing from now on; when ``stashed`` only as far as they were not durable."""
        gone = set(which)
        self.doubtful |= gone - self.durable if stashed else gone

    def some_path(self) -> str:
        path = self.chance.random.choice(self.files() or [NAMES[0]])
        self.log(f"  {path}")
        return path

    def quote(self, path: str) -> str:
        from urllib.parse import quote

        return quote(os.fsencode(path))

    def headers(self, role: Role = Role.EDITOR) -> dict[str, str]:
        return self._site.headers(role)

    # -- the disk

    @property
    def workspace(self) -> Path:
        return self._site.path

    def files(self) -> list[str]:
        """Paths of ordinary files."""
        return sorted(
            str(p.relative_to(self.workspace))
            for p in self.workspace.rglob("*")
            if p.is_file() and not safefs.is_temporary(p.name)
            and ".codevo" not in p.parts and ".unsaved-" not in p.name
        )  # fmt: skip

    def everywhere(self) -> Counter[str]:
        """All tokens in all files, set aside or not."""
        found: Counter[str] = Counter()
        for p in self.workspace.rglob("*"):
            if p.is_file() and not safefs.is_temporary(p.name):
                found.update(tokens(p.read_bytes().decode()))
        return found

    def excuse(self, path: str | None = None) -> None:
        """The file is deleted, moved or lost: pages may hear of it."""
        for page in self.pages:
            if path is None or page.path == path:
                page.excused = True

    # -- the worker

    async def fault(self, operation: str, key: str, phase: str) -> None:
        chance = self.chance.random
        await self.chance.pause(0.1)
        if self.trouble == "slow":
            await asyncio.sleep(chance.random() * 5)
        elif self.trouble == "away":
            raise StoreError("away")
        elif self.trouble == "flaky" and chance.random() < 0.2:
            raise StoreError(f"flaky {phase}")

    async def start(self, *, elsewhere: bool = False, same_generation: bool = False) -> None:
        """A worker process; ``elsewhere``: on a machine that has nothing yet."""
        if elsewhere or not self._machine:
            self._machine += 1
            place = self.folder / f"machine{self._machine}"
            place.mkdir()
            self._site = Site(place)
        if not same_generation or elsewhere:
            self._generation += 1
        self._site.config = _config(self._site.config, self._generation)
        life = self.life = Life()

        async def fault(operation: str, key: str, phase: str) -> None:
            life.check()
            await self.fault(operation, key, phase)
            life.check()

        store = self.bucket.view("p/", fault=fault)

        async def begin() -> Worker:
            worker = Worker(
                self._site.config,
                lambda config, root, documents, notice: Persister(
                    config, root, documents, store, notice=notice
                ),
            )
            sock = socket.socket(socket.AF_UNIX)
            self.address.unlink(missing_ok=True)
            sock.bind(str(self.address))
            sock.listen()
            sock.setblocking(False)
            self.url = "http://worker"
            worker.serve(sock)
            await worker.settled.wait()
            return worker

        trouble, self.trouble = self.trouble, "none" if self.trouble in ("away", "flaky") else self.trouble
        self.worker = await asyncio.get_running_loop().create_task(begin(), context=life.context)
        self.trouble = trouble
        assert self.worker.state == "ready", self.worker.message
        self.worker.documents._idle_close = 30
        worker = self.worker
        worker.persistence.subscribe(lambda status: None if status.pending else self._is_durable(worker))

    def _is_durable(self, worker: Worker) -> None:
        """The status bar says so: what the documents show now can be lost no more."""
        for document in worker.documents._open.values():
            if not document.closed:
                self.durable.update(tokens(document.text))

    async def stop(self) -> None:
        """As SIGTERM. Whatever the store did, nothing on this machine is lost."""
        assert self.worker is not None and self.life is not None
        self.url = ""
        worker, life = self.worker, self.life
        self.worker = None
        await asyncio.get_running_loop().create_task(worker.close(), context=life.context)
        self.fates()

    async def kill(self) -> None:
        assert self.worker is not None and self.life is not None
        self.url = ""
        worker, life, self.worker = self.worker, self.life, None
        await life.kill()
        if worker._server is not None:
            worker._server.stop()
            for connection in list(worker._server._connections):
                connection.stream.close()  # type: ignore[attr-defined]
        for page in self.pages:
            page.drop()
        crash(worker.persistence)  # type: ignore[arg-type]
        for document in worker.documents._open.values():
            document.history.close()
        worker.root.close()
        self.fates()

    def fates(self, *, disk: bool = True) -> None:
        """What nobody has any more, and nobody was promised, may be missing."""
        held = set(self.durable)
        if disk:
            held |= set(self.everywhere())
        for page in self.pages:
            held |= set(tokens(str(page.text)))
        self.doubt(self.known - held)

    async def lose_state(self) -> None:
        """The worker's own folder is gone, the files are not."""
        shutil.rmtree(self._site.config.state)
        self.excuse()

    async def lose_machine(self) -> None:
        self.excuse()
        self.fates(disk=False)

    async def call(self, method: str, path: str, **more: Any) -> int:
        if not self.url:
            return 0
        try:
            url = URL(f"{self.url}/api/contents/{self.quote(path)}", encoded=True)
            async with self.http.request(method, url, headers=self.headers(), **more) as answer:
                await answer.read()
                return answer.status
        except (aiohttp.ClientError, ConnectionError):
            return 0

    # -- what must be true when all is quiet

    async def settle(self) -> None:
        """Everybody comes back and nothing fails any more: then all are equal."""
        self.log("settle")
        self.trouble = "none"
        if not self.files():
            (self.workspace / NAMES[0]).write_text(self.new_token())
        for page in self.pages:
            page.wanted = True
        quiet = 0
        for _ in range(SECONDS):
            await asyncio.sleep(1)
            quiet = quiet + 1 if self._differences() is None else 0
            if quiet == 2:
                break
        wrong = self._differences()
        assert wrong is None, wrong
        for page in self.pages:
            page.excused = False
        present = self.everywhere()
        missing = self.known - set(present) - self.doubtful
        assert not missing, f"lost: {missing}"
        for name in self.files():
            text = (self.workspace / name).read_bytes().decode()
            twice = [t for t, n in Counter(tokens(text)).items() if n > 1 and t not in self.clashed]
            assert not twice, f"doubled in {name}: {twice}"
            assert BETWEEN.fullmatch(TOKEN.sub("", text)), f"torn in {name}: {text!r}"
        await self._replays()
        # what everybody has seen go is gone for good
        self.known &= set(present)
        self.doubtful &= self.known
        self.durable &= self.known

    def check(self) -> None:
        """Raise what has failed in a page."""
        for page in self.pages:
            page.check()

    def _differences(self) -> str | None:
        assert self.worker is not None
        self.check()
        files = self.files()
        texts: dict[str, str] = {}
        for page in self.pages:
            if not page.synced or page.path not in files:
                return f"{page.name} is not in step with {page.path}"
            # line ends are the file's, in the document they may be any
            disk = (self.workspace / page.path).read_bytes().decode()
            mine = str(page.text)
            if mine.replace("\r\n", "\n") != disk.replace("\r\n", "\n"):
                return f"{page.name} has {mine!r}, the disk {disk!r} ({page.path})"
            if texts.setdefault(page.path, mine) != mine:
                return f"{page.name} has {mine!r}, others {texts[page.path]!r} ({page.path})"
        if self.worker.persistence.status().pending:
            return f"still pending: {self.worker.persistence.status()}"
        return None

    async def _replays(self) -> None:
        store = self.bucket.view("p/")
        found = _Tree()
        async for _ in reader.replay(store, await reader.plan(store, await reader.load(store)), found):
            pass
        on_disk = {
            str(p.relative_to(self.workspace)): (stat.S_IMODE(p.stat().st_mode), p.read_bytes())
            for p in self.workspace.rglob("*")
            if p.is_file() and not safefs.is_temporary(p.name)
        }
        assert found.files == on_disk, f"the log has {found.files}, the disk {on_disk}"
        for path, (history, digest) in found.docs.items():
            doc: Doc[Any] = Doc()
            doc.apply_update(history)
            text = str(doc.get("source", type=Text))
            if path in on_disk:
                assert digest in (
                    sha256(text.encode()), sha256(TextFile(text, True).encode())
                ), f"{path}: the history's text has another hash than it says"  # fmt: skip


def _config(config: Any, generation: int) -> Any:
    import dataclasses

    return dataclasses.replace(config, generation=generation, max_documents=8)


class _Tree:
    """A sink that keeps everything."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, bytes]] = {}
        self.docs: dict[str, tuple[bytes, str]] = {}
        self._member: Member | None = None
        self._data = bytearray()

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        self._member, self._data = member, bytearray()
        return member.kind is Kind.FILE

    def data(self, chunk: bytes) -> None:
        self._data += chunk

    def end(self) -> None:
        member = self._member
        assert member is not None
        if member.area is Area.DOCS:
            assert member.doc is not None
            self.docs[member.path] = (bytes(self._data), member.doc.text_sha256)
        else:
            self.files[member.path] = (member.mode, bytes(self._data))
