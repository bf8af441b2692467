"""All live documents: opened on demand, saved, told of outside changes, moved, deleted, captured."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path

from pod_runtime.protocol.config import WorkerConfig
from pod_runtime.worker.authors import Authors
from pod_runtime.worker.channel import (
    CLOSE_GONE,
    CLOSE_NOT_TEXT,
    CLOSE_OTHER_HISTORY,
    CLOSE_TOO_LARGE,
    CLOSE_TRY_AGAIN,
    SocketChannel,
)
from pod_runtime.worker.diskfile import read_file
from pod_runtime.worker.document import GRACE, Document, Gone, Unfit
from pod_runtime.worker.events import Events
from pod_runtime.worker.histories import HistoryStore, SavedMark, newest_match
from pod_runtime.worker.ports import DocumentCapture
from pod_runtime.worker.room import Refused
from pod_runtime.worker.safefs import InvalidPath, NotRegular, Root, TooLarge, check_path, is_temporary
from pod_runtime.worker.textfile import NotText, TextFile, sha256

log = logging.getLogger(__name__)

#: Seconds without clients after which a document is closed.
IDLE_CLOSE = 30.0
#: Seconds in one commit for closed documents whose files others changed; what is left is committed as it is.
REFRESH_MAX = 5.0
#: A history whose compact form is larger than this many times the largest document begins anew.
_RENEW_FACTOR = 8


class LiveDocuments:
    """Implements `ports.Documents`. ``on_touched`` is persistence's `touched`, set once it exists."""

    def __init__(
        self, config: WorkerConfig, root: Root, events: Events, *, idle_close: float = IDLE_CLOSE
    ) -> None:
        self._root, self._events, self._idle_close = root, events, idle_close
        self._limit, self._max_open = config.max_document, config.max_documents
        self._state = Path(config.state)
        self._store = HistoryStore(self._state)
        self._open: dict[str, Document] = {}
        self._savers: dict[Document, asyncio.Task[None]] = {}
        self._gate = asyncio.Lock()
        self._versions: dict[str, int] = {}
        self._imported: set[str] = set()
        self._closing: set[asyncio.Task[None]] = set()
        self._janitor: asyncio.Task[None] | None = None
        self.on_touched: Callable[..., None] = lambda *paths: None
        self.authors = Authors()

    # -- ports.Documents

    async def save_all(self) -> None:
        """Write every open document's text to disk. Those that fail stay unsaved and are told in a notice."""
        for document in list(self._open.values()):
            await self._save_now(document)

    def capture(self, since: dict[str, int]) -> Iterator[DocumentCapture]:
        """See `ports.Documents.capture`. Closed documents are read from their histories as one iterates."""
        found, closed = [], []
        for path in self._store.paths():
            version = self._versions.get(path, 0)
            if version <= since.get(path, -1) or (version == 0 and path in self._imported):
                continue
            document = self._open.get(path)
            if document is not None:
                found.append(document.capture(version))
            else:
                closed.append((path, version))
        return itertools.chain(found, _rendered(self._store, closed))

    async def sync(self) -> OSError | None:
        """See `ports.Documents.sync`."""
        error = None
        for document in list(self._open.values()):
            try:
                await document.history.sync()
            except OSError as e:
                error = e
        return error

    def histories(self) -> set[str]:
        """Paths that have a history, open or not."""
        return self._store.paths()

    def import_history(self, path: str, history: bytes, epoch: int, text_sha256: str) -> None:
        """Take a history from the log into /state, before serving starts. Replaces one that is there."""
        check_path(path)
        self._store.create(path, epoch, history, SavedMark(text_sha256, 1, True))
        self._imported.add(path)

    # -- serving

    async def serve(self, path: str, channel: SocketChannel) -> None:
        """Serve a client of the document at ``path`` until it is gone."""
        try:
            document = await self._get(path)
        except Refused as e:
            channel.close(e.code, str(e))
            return
        document.idle_since = float("inf")
        document.clients += 1
        try:
            if document.closed:
                channel.close(CLOSE_TRY_AGAIN, "the document was just closed")
                return
            await document.room.serve_client(channel)
        finally:
            document.clients -= 1
            if not document.clients:
                document.idle_since = time.monotonic()
                # the last one leaves: nothing waits for a quiet moment any more
                await self._save_now(document)
                self.on_touched(document.path)

    def start(self) -> None:
        """Begin: forget histories whose files are gone, and from now on close idle documents."""
        for path in self._store.paths():
            if not self._root.exists(path):
                self._forget(path)
        self._janitor = asyncio.create_task(self._close_idle(), name="documents janitor")

    async def recover(self) -> None:
        """Save what a crash left in a history alone, one document at a time, before anything is committed.

        A file that changed meanwhile is merged, as when a client opens it. One that cannot be written stays
        open, so its text is committed from the history.
        """
        for path in await asyncio.to_thread(self._store.unfinished):
            await self._bring_together(path)

    async def refresh(self, paths: Iterable[str]) -> None:
        """See `ports.Documents.refresh`."""
        end = time.monotonic() + REFRESH_MAX
        for path in paths:
            if path not in self._open and path in self._store and time.monotonic() < end:
                await self._bring_together(path)

    async def _bring_together(self, path: str) -> None:
        """Open a closed document, which merges what differs on disk, and close it again."""
        try:
            document = await self._get(path)
        except Refused as e:
            log.warning("a document that differs from its file could not be opened: %s", e)
            return
        async with self._gate:
            await self._close_saved(document)

    async def close(self) -> None:
        """Save and close everything."""
        if self._janitor is not None:
            self._janitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._janitor
        for document in list(self._open.values()):
            await self._save_now(document)
            await self._close(document, CLOSE_TRY_AGAIN, "the workspace stops")
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    def open_paths(self) -> set[str]:
        """Paths of the open documents."""
        return set(self._open)

    def unsaved_texts(self, limit: int) -> dict[str, str]:
        """Texts that are not on disk yet, by path; at most ``limit`` characters in all."""
        found: dict[str, str] = {}
        for path, document in self._open.items():
            if document.unsaved and not document.closed and len(text := document.text) <= limit:
                found[path] = text
                limit -= len(text)
        return found

    # -- files

    async def saved(self, path: str) -> None:
        """Write the open documents at and beneath ``path``, before somebody reads the file."""
        for document in self._beneath(path):
            await self._save_now(document)

    async def outside(self, paths: Iterable[str]) -> None:
        """These files changed on disk, or vanished; or folders, with all that they hold."""
        wanted = set(paths)
        for path in [p for p in self._store.paths() if p not in self._open and _concerned(p, wanted)]:
            if not self._root.exists(path):
                self._grace(path)
        await asyncio.gather(*(self._look(d) for p, d in list(self._open.items()) if _concerned(p, wanted)))

    @contextlib.asynccontextmanager
    async def removing(self, path: str) -> AsyncIterator[None]:
        """While somebody deletes ``path``: nothing is saved there; afterwards what is gone is closed."""
        async with self._gate, contextlib.AsyncExitStack() as stack:
            affected = self._beneath(path)
            for document in affected:
                await stack.enter_async_context(document.lock)
            yield
            for document in affected:
                if not self._root.exists(document.path):
                    document.closed = True
                    self._later(self._close(document, CLOSE_GONE, "the file was deleted", discard=True))
            for known in self._store.paths() - set(self._open):
                if (known == path or known.startswith(path + "/")) and not self._root.exists(known):
                    self._forget(known)

    @contextlib.asynccontextmanager
    async def moving(self, old: str, new: str) -> AsyncIterator[None]:
        """While somebody renames ``old`` to ``new``: documents and histories go along."""
        await self.saved(old)
        async with self._gate, contextlib.AsyncExitStack() as stack:
            for document in self._beneath(old):
                await stack.enter_async_context(document.lock)
                await document.history.sync()
            # a rename replaces no file, so theirs have vanished just now
            replaced = self._beneath(new)
            for document in replaced:
                await stack.enter_async_context(document.lock)
            yield
            for document in replaced:
                with contextlib.suppress(OSError):
                    await document.set_aside()
                document.closed = True
                del self._open[document.path]
                self._later(self._close(document, CLOSE_GONE, "the file was deleted"))
            for path in self._store.paths():
                if path != old and not path.startswith(old + "/"):
                    continue
                target = new + path[len(old) :]
                live = self._open.pop(path, None)
                if live is not None:
                    live.moved(target, self._store)
                    self._open[target] = live
                else:
                    content = self._store.read(path)
                    if content is not None:
                        self._store.rename(path, target, content.epoch)
                self._versions[target] = max(self._versions.pop(path, 0), self._versions.get(target, 0)) + 1
                self._imported.discard(path)
                self.on_touched(path, target)

    # -- inside

    def _beneath(self, path: str) -> list[Document]:
        return [d for p, d in self._open.items() if not path or p == path or p.startswith(path + "/")]

    async def _get(self, path: str) -> Document:
        try:
            if not check_path(path) or is_temporary(path):
                raise InvalidPath("not a file")
        except InvalidPath as e:
            raise Refused(CLOSE_GONE, str(e)) from e
        async with self._gate:
            found = self._open.get(path)
            if found is not None and not found.closed:
                found.idle_since = time.monotonic()
                return found
            if found is not None:
                raise Refused(CLOSE_TRY_AGAIN, "the document is being closed")
            if len(self._open) >= self._max_open:
                await self._make_room()
            document = await self._load(path)
            self._open[path] = document
            self._savers[document] = asyncio.create_task(
                document.keep_saving(self._failed), name=f"saver {path!r}"
            )
            return document

    async def _load(self, path: str) -> Document:
        try:
            disk = await asyncio.to_thread(read_file, self._root, path, self._limit)
        except TooLarge as e:
            raise Refused(CLOSE_TOO_LARGE, f"the file is larger than {self._limit} bytes") from e
        except (FileNotFoundError, NotADirectoryError) as e:
            raise Refused(CLOSE_GONE, "there is no such file") from e
        except (NotText, NotRegular, IsADirectoryError) as e:
            raise Refused(CLOSE_NOT_TEXT, str(e)) from e
        except OSError as e:
            raise Refused(CLOSE_TRY_AGAIN, f"the file cannot be read: {e.strerror}") from e
        try:
            content = await asyncio.to_thread(self._store.read, path)
            document = Document.load(
                path, self._root, self._store, self._limit, disk, content, self._document_touched
            )
            await document.history.sync()
        except OSError as e:
            raise Refused(CLOSE_TRY_AGAIN, f"the history cannot be written: {e.strerror}") from e
        document.room.on_edit = lambda name: self.authors.note(name, document.path)
        # a client must not be given what a crash could take back, hence the sync before
        await document.room.run()
        if path not in self._versions:
            self._versions[path] = 0
        self.on_touched(path)
        return document

    async def _make_room(self) -> None:
        idle = [d for d in self._open.values() if not d.clients and not d.closed]
        if not idle:
            raise Refused(CLOSE_TRY_AGAIN, f"more than {self._max_open} documents are open")
        await self._close_saved(min(idle, key=lambda d: d.idle_since))

    def _document_touched(self, document: Document) -> None:
        path = document.path
        self._versions[path] = self._versions.get(path, 0) + 1
        self.on_touched(path)

    async def _look(self, document: Document) -> None:
        # its own save may be what was seen; to save again would be seen again, and so on
        if await document.touched_outside():
            await self._save_now(document)

    async def _save_now(self, document: Document) -> None:
        try:
            await document.save()
        except (Gone, Unfit, OSError) as e:
            self._failed(document, e)
            return
        if document.compact_size > _RENEW_FACTOR * self._limit and not document.unsaved:
            self._store.discard(document.path)
            self._later(self._close(document, CLOSE_OTHER_HISTORY, "this document's history begins anew"))

    def _failed(self, document: Document, error: Exception) -> None:
        if document.closed:
            return
        if isinstance(error, Gone):
            document.closed = True
            self._events.notice("warning", f"{document.path} was deleted")
            self._later(self._close(document, CLOSE_GONE, "the file was deleted", discard=True))
        elif isinstance(error, Unfit):
            document.closed = True
            self._events.notice("warning", f"{document.path} can no longer be edited together: {error}")
            self._later(self._close(document, CLOSE_NOT_TEXT, str(error), discard=True))
        else:
            words = error.strerror if isinstance(error, OSError) else None
            log.warning("a document could not be saved: %s", words or error)
            self._events.notice("error", f"{document.path} could not be saved: {words or error}")

    def _later(self, closing: object) -> None:
        task = asyncio.ensure_future(closing)  # type: ignore[call-overload]
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _grace(self, path: str) -> None:
        async def check() -> None:
            await asyncio.sleep(GRACE)
            if path not in self._open and not self._root.exists(path):
                self._forget(path)

        self._later(check())

    def _forget(self, path: str) -> None:
        self._store.discard(path)
        self._versions.pop(path, None)
        self._imported.discard(path)
        self.on_touched(path)

    async def _close(self, document: Document, code: int, words: str, *, discard: bool = False) -> None:
        saver = self._savers.pop(document, None)
        if saver is not None:
            saver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await saver
        async with document.lock:
            await document.close(code, words)
        if self._open.get(document.path) is document:
            del self._open[document.path]
            if discard:
                self._forget(document.path)

    async def _close_saved(self, document: Document) -> None:
        """Close one without clients, once all is on disk."""
        await self._save_now(document)
        if document.clients or document.unsaved or document.closed:
            return
        await self._close(document, CLOSE_TRY_AGAIN, "closed")

    async def _close_idle(self) -> None:
        while True:
            await asyncio.sleep(max(0.05, self._idle_close / 6))
            # for what the watcher cannot see: in folders left out, through mmap, between two looks of polling
            await asyncio.gather(*(self._look(d) for d in list(self._open.values())))
            before = time.monotonic() - self._idle_close
            for document in [d for d in self._open.values() if not d.clients and d.idle_since < before]:
                async with self._gate:
                    await self._close_saved(document)


def _concerned(path: str, changed: set[str]) -> bool:
    """Whether ``path`` or a folder above it is among the ``changed``: to move a folder is one change."""
    return path in changed or any(path[:at] in changed for at, c in enumerate(path) if c == "/")


def _rendered(store: HistoryStore, closed: Iterable[tuple[str, int]]) -> Iterator[DocumentCapture]:
    """Closed documents, each with its version. In whatever thread iterates: it takes a while for many."""
    from pycrdt import Doc, Text

    for path, version in closed:
        content = store.peek(path)
        if content is None:
            continue
        doc: Doc[Text] = Doc()
        try:
            for update in content.updates:
                doc.apply_update(update)
        except ValueError:
            # whoever opens it begins a new one
            continue
        text = str(doc.get("source", type=Text))
        windows = TextFile(text, True).encode()
        # the last save tells by its hash which line ends the file has
        crlf = newest_match(content.marks, sha256(windows)) is not None
        data = windows if crlf else text.encode()
        yield DocumentCapture(path, data, doc.get_update(), content.epoch, version)
