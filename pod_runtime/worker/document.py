"""One open document: its Y document, history, room, and the file that shows its text.

The order of durability: updates are fsynced into the history, then the text goes to /workspace, atomically.
Changes of the file from outside are merged in against the text last seen on disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pycrdt import Doc, Map, Text, TransactionEvent

from pod_runtime.worker import merge
from pod_runtime.worker.diskfile import NO_FILE, Changed, DiskFile, FileKey, read_file, write_file
from pod_runtime.worker.histories import (
    History,
    HistoryStore,
    LogContent,
    SavedMark,
    finish,
    newest_match,
    possible,
)
from pod_runtime.worker.lineage import client_for, edited, new_history
from pod_runtime.worker.ports import DocumentCapture
from pod_runtime.worker.room import Refused, Room, too_large
from pod_runtime.worker.safefs import NotRegular, Root, TooLarge
from pod_runtime.worker.textfile import NotText, TextFile, sha256

log = logging.getLogger(__name__)

#: Seconds without an edit after which the text is saved, and the longest that an edit waits.
SAVE_QUIET = 0.25
SAVE_MAX = 1.0
#: Seconds until a failed save is tried again.
SAVE_RETRY = 2.0
#: A history is compacted when it is above this size and `_OUTGROWN` times its compact form, bytes.
COMPACT_ABOVE = 256 * 1024
_OUTGROWN = 4
#: Merges of larger texts are computed in a thread, characters.
_MERGE_INLINE = 64 * 1024
#: Seconds that a vanished file has to come back (git and some editors delete, then write).
GRACE = 0.5
#: Seconds that a file which has become shorter must stay as it is before it is taken in, and the longest
#: that this is waited for. Its writer may be at it still: many truncate first.
SETTLE = 0.25
SETTLE_MAX = 2.0
#: States among which the one is sought that an unknown file came from.
_MAX_GUESSES = 4


class Gone(Exception):
    """The file was deleted and nothing unsaved is held."""


class Unfit(Exception):
    """The file became something that cannot be a document. ``unsaved`` tells whether edits were set aside."""


class Document:
    """See the module. Made by `load`; ``touched`` is called at each change, from the loop."""

    def __init__(
        self,
        path: str,
        root: Root,
        limit: int,
        doc: Doc[Any],
        history: History,
        base: str,
        disk: DiskFile,
        touched: Callable[[Document], None],
    ) -> None:
        self.path = path
        self.version = 0
        self.saved_version = 0
        self.closed = self._ended = False
        self.clients = 0
        self.idle_since = time.monotonic()
        self.lock = asyncio.Lock()
        self._root, self._limit, self._touched = root, limit, touched
        self._doc = doc
        self._source: Text = doc.get("source", type=Text)
        self.history = history
        self._base = base
        self._disk, self._crlf, self._key = disk.digest, disk.file.crlf, disk.key
        self._compact_size = history.size
        self._recorded = False
        self._dirty = asyncio.Event()
        self._subscription = doc.observe(self._on_change)
        self.room = Room(doc, history.epoch, self._admit)

    @classmethod
    def load(
        cls,
        path: str,
        root: Root,
        store: HistoryStore,
        limit: int,
        disk: DiskFile,
        content: LogContent | None,
        touched: Callable[[Document], None],
    ) -> Document:
        """The document of a file that was read, with its history or a new one. Blocks on /state shortly."""
        if content is not None:
            with contextlib.suppress(ValueError):
                return cls._resume(path, root, store, limit, disk, content, touched)
            log.warning("a history could not be read; a new one begins")
            store.discard(path)
        epoch, update = new_history(disk.file.text)
        store.create(path, epoch, update, SavedMark(disk.digest, 1, True))
        fresh = store.read(path)
        assert fresh is not None
        return cls._resume(path, root, store, limit, disk, fresh, touched)

    @classmethod
    def _resume(
        cls,
        path: str,
        root: Root,
        store: HistoryStore,
        limit: int,
        disk: DiskFile,
        content: LogContent,
        touched: Callable[[Document], None],
    ) -> Document:
        # a client id of its own for each life: one that lost its tail in a crash must not be used again
        doc: Doc[Any] = Doc(client_id=secrets.randbelow(2**32 - 1) + 1)
        doc.get("codevo", type=Map)
        source: Text = doc.get("source", type=Text)
        # a state older than the last save is not ours to go on from: somebody has put it back
        marks = possible(content.marks)
        texts = {mark.updates: "" for mark in marks}
        for number, update in enumerate(content.updates, 1):
            doc.apply_update(update)
            if number in texts:
                texts[number] = str(source)
        guesses = {mark: texts[mark.updates] if mark.text is None else mark.text for mark in marks}
        mark = newest_match(marks, disk.digest)
        known = mark is not None
        if mark is None:
            # killed after a save that the log does not know to be done, and changed since: it came from one
            # of these, and to compare it with another would double what stands in both
            mark = min(
                reversed(marks[-_MAX_GUESSES:]),
                key=lambda m: merge.distance(guesses[m], disk.file.text),
                default=None,
            )
        base = guesses[mark] if mark is not None else str(source)
        document = cls(path, root, limit, doc, store.open(path, content), base, disk, touched)
        windows = sha256(TextFile(base, True).encode())
        document._crlf = windows == mark.sha256 if mark is not None else disk.file.crlf
        if not known:
            # nobody has it yet, and `history.sync` comes before anybody gets it
            merged, changes = document._plan(disk)
            if changes:
                state = doc.get_update()
                doc.apply_update(edited(state, client_for(state, merged), changes))
            document._known(disk, merged)
        if document.text != document._base:
            document._changed()
        return document

    # -- reading

    @property
    def text(self) -> str:
        return str(self._source)

    @property
    def unsaved(self) -> bool:
        return self.version != self.saved_version

    def render(self) -> bytes:
        """The bytes that the file is to have."""
        return TextFile(self.text, self._crlf).encode()

    def capture(self, version: int) -> DocumentCapture:
        """Text and history of one instant; ``version`` as `Documents` counts it."""
        return DocumentCapture(self.path, self.render(), self._doc.get_update(), self.history.epoch, version)

    # -- changes

    def _on_change(self, event: TransactionEvent) -> None:
        update = event.update
        if update != b"\x00\x00":
            if not self._recorded:
                self.history.append(update)
            self._changed()

    def _changed(self) -> None:
        self.version += 1
        self._dirty.set()
        self._touched(self)

    def _admit(self, update: bytes) -> None:
        # an update holds the text that it adds, so it cannot add more than its own length
        if len(self._source) + len(update) <= self._limit:
            return
        trial: Doc[Any] = Doc()
        trial.apply_update(self._doc.get_update())
        trial.apply_update(update)
        size = len(trial.get("source", type=Text))
        if size > self._limit and size > len(self._source):
            raise too_large(self._limit)
        if len(update) > 4 * self._limit:
            raise too_large(self._limit)

    def _plan(self, disk: DiskFile, merged: str | None = None) -> tuple[str, list[merge.Edit]]:
        """The text with an outside state of the file merged in, and the smallest edits that lead there."""
        ours = self.text
        if merged is None:
            merged = merge.merge(*self._sides(disk))
        if len(merged.encode()) > self._limit:
            raise too_large(self._limit)
        return merged, merge.to_utf8(ours, merge.edits(ours, merged))

    def _known(self, disk: DiskFile, merged: str) -> None:
        """An outside state of the file is in the history: it is the base from here on."""
        self._base = disk.file.text
        self._disk, self._crlf, self._key = disk.digest, disk.file.crlf, disk.key
        text = None if merged == disk.file.text else disk.file.text
        self.history.mark(SavedMark(disk.digest, self.history.count, True, text))

    async def _take(self, disk: DiskFile) -> None:
        """Make an outside state of the file part of the document, as one minimal transaction. Lock held.

        It is in the history for good before anybody sees it: taken in once more after a crash, it would
        stand there twice as soon as a client came back with the first.
        """
        while True:
            sides, version = self._sides(disk), self.version
            merged = None
            if max(map(len, sides)) > _MERGE_INLINE:
                merged = await asyncio.to_thread(merge.merge, *sides)
            if version == self.version:
                break
        merged, changes = self._plan(disk, merged)
        if not changes:
            self._known(disk, merged)
            return
        work = (self._doc.get_update(), self._doc.client_id, changes)
        large = len(work[0]) > _MERGE_INLINE
        update = await asyncio.to_thread(edited, *work) if large else edited(*work)
        self.history.append(update)
        self._known(disk, merged)
        try:
            await self.history.sync()
        finally:
            # whatever happened, the document is what the history says
            self._recorded = True
            try:
                with self._doc.transaction(origin="disk"):
                    self._doc.apply_update(update)
            finally:
                self._recorded = False

    def _sides(self, disk: DiskFile) -> tuple[str, str, str]:
        """What is to be merged: base, ours, theirs, with line ends that can be compared."""
        base, ours, theirs = self._base, self.text, disk.file.text
        if self._crlf and not disk.file.crlf and "\r\n" in theirs:
            # of mixed ends from here on, so they are part of the text
            base, ours = (text.replace("\n", "\r\n") for text in (base, ours))
        elif disk.file.crlf and not self._crlf:
            base, ours = (text.replace("\r\n", "\n") for text in (base, ours))
        return base, ours, theirs

    async def touched_outside(self) -> bool:
        """Whether the file may be another than this document wrote or read last."""
        try:
            key = FileKey.of(await asyncio.to_thread(self._root.lstat, self.path))
            if key.stat != self._key.stat:
                return True
            if self._key.sure:
                return False
            disk = await asyncio.to_thread(read_file, self._root, self.path, self._limit)
        except (OSError, NotText):
            return True
        if disk.digest != self._disk:
            return True
        self._key = disk.key
        return False

    async def _look(self) -> bool:
        """Take in what changed on disk; whether the file is there. Lock held."""
        try:
            st = await asyncio.to_thread(self._root.lstat, self.path)
            if self._key.sure and FileKey.of(st).stat == self._key.stat:
                return True
            disk = await self._settled()
        except (FileNotFoundError, NotADirectoryError):
            return False
        except (NotText, TooLarge, NotRegular, IsADirectoryError) as e:
            await self.set_aside()
            raise Unfit(str(e)) from e
        if disk.digest == self._disk:
            self._key = disk.key
            return True
        try:
            await self._take(disk)
        except Refused as e:
            await self.set_aside()
            raise Unfit(str(e)) from e
        return True

    async def _settled(self) -> DiskFile:
        """The file once it is not being written any more, as far as one can tell. Raises as `read_file`.

        To take in a truncated file would delete all that people's cursors and undo refer to; to save what
        they type meanwhile would put another file in place of the one that its writer goes on to write.
        """
        end = time.monotonic() + SETTLE_MAX
        disk = await asyncio.to_thread(read_file, self._root, self.path, self._limit)
        while len(disk.file.text) < len(self._base) and time.monotonic() < end:
            await asyncio.sleep(SETTLE)
            before = disk.digest
            disk = await asyncio.to_thread(read_file, self._root, self.path, self._limit)
            if disk.digest == before:
                break
        return disk

    async def set_aside(self) -> None:
        """Keep unsaved text beside a file that can no longer hold it."""
        if self.unsaved:
            aside = f"{self.path}.unsaved-{secrets.token_hex(3)}"
            await asyncio.to_thread(self._root.write_atomic, aside, self.render())
            self.saved_version = self.version

    # -- saving

    async def save(self) -> bool:
        """Bring disk and document together; whether the file was written.

        Raises `Gone`, `Unfit`, and ``OSError`` (`safefs.DiskFull` among them) when it could not be written;
        then it stays unsaved.
        """
        async with self.lock:
            return await self._save()

    async def _save(self) -> bool:
        patient = True
        for _ in range(100):
            if self.closed:
                return False
            there = await self._look()
            if not there:
                if patient:
                    patient = False
                    await asyncio.sleep(GRACE)
                    continue
                if not self.unsaved:
                    raise Gone(self.path)
                # written anew, it is as executable as before
                self._key = replace(NO_FILE, mode=self._key.mode)
            version, text = self.version, self.text
            data = TextFile(text, self._crlf).encode()
            digest = sha256(data)
            if there and digest == self._disk:
                if not self.history.finished:
                    self.history.mark(SavedMark(digest, self.history.count, True))
                await self.history.sync()
                self.saved_version = version
                return False
            count = self.history.count
            self.history.mark(SavedMark(digest, count, False))
            await self.history.sync()
            try:
                self._key = await finish(
                    asyncio.to_thread(
                        write_file, self._root, self.path, self._limit, data, self._key, self._disk
                    )
                )
            except Changed:
                continue
            self._disk, self._base, self.saved_version = digest, text, version
            mark = SavedMark(digest, count, True)
            self.history.mark(mark)
            await self._compact(mark)
            return True
        raise OSError(f"{self.path!r} is being changed without pause")

    async def _compact(self, mark: SavedMark) -> None:
        if self.history.size < max(COMPACT_ABOVE, _OUTGROWN * self._compact_size):
            return
        if self.version != self.saved_version:
            return
        state = self._doc.get_update()
        await self.history.replace(state, SavedMark(mark.sha256, 1, True))
        self._compact_size = max(len(state), 1)

    @property
    def compact_size(self) -> int:
        """Bytes of the history at its last compaction."""
        return self._compact_size

    async def keep_saving(self, failed: Callable[[Document, Exception], None]) -> None:
        """Save soon after each change, until cancelled. ``failed`` is told of what `save` raises."""
        while True:
            await self._dirty.wait()
            deadline = time.monotonic() + SAVE_MAX
            while True:
                seen = self.version
                await asyncio.sleep(min(SAVE_QUIET, max(0.0, deadline - time.monotonic())))
                if seen == self.version or time.monotonic() >= deadline:
                    break
            self._dirty.clear()
            try:
                if await self.save():
                    self._touched(self)
            except (Gone, Unfit) as e:
                failed(self, e)
                return
            except OSError as e:
                failed(self, e)
                self._dirty.set()
                await asyncio.sleep(SAVE_RETRY)

    def moved(self, path: str, store: HistoryStore) -> None:
        """The file is at ``path`` now. Lock held, nothing unsynced."""
        self.history.close()
        store.rename(self.path, path, self.history.epoch)
        content = store.read(path)
        assert content is not None
        self.history = store.open(path, content)
        self.path = path
        with contextlib.suppress(OSError):
            # rename(2) changes ctime only
            self._key = FileKey.of(self._root.lstat(path))

    async def close(self, code: int, words: str) -> None:
        """Close clients and room, once; `save` before when the text matters."""
        self.closed = True
        if self._ended:
            return
        self._ended = True
        await self.room.end(code, words)
        self._doc.unobserve(self._subscription)
        with contextlib.suppress(OSError):
            await self.history.sync()
        self.history.close()
