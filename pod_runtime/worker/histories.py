"""The documents' histories in /state: one append-only log of Y updates per document.

A record is ``length:u32 crc32:u32 kind:u8 payload`` (little endian; length and checksum cover kind and
payload). A torn or damaged tail is cut off when the log is opened. Kinds: `META` (JSON: path, epoch),
`UPDATE` (a Y update, v1), `SAVING` and `SAVED` (JSON: sha256 of the file's bytes, the number of updates that
its text was rendered from), the first before the text goes to /workspace, the second after. So after a
crash the log tells which of its states the disk shows. A `SAVED` with a ``text`` is what others wrote, while
edits were not saved: no state of the document, but the base that the next merge needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import struct
import zlib
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

#: Bytes that hold the first record, whose path has at most 4095 bytes (six each when escaped in JSON).
_META_AT_HEAD = 32 * 1024
_HEAD = struct.Struct("<IIB")
#: Deleted documents' histories that are kept.
TRASH_LIMIT = 100

T = TypeVar("T")


async def finish(work: Awaitable[T]) -> T:
    """Await what writes in a thread to its end even when cancelled: nobody else may come into its way."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


class Record(IntEnum):
    META = 1
    UPDATE = 2
    SAVING = 3
    SAVED = 4


@dataclass(frozen=True, slots=True)
class SavedMark:
    """A state of the document that was (or was about to be) on disk; or, with ``text``, what others wrote
    there and the first ``updates`` have taken in."""

    sha256: str
    updates: int
    done: bool
    text: str | None = None

    @property
    def clean(self) -> bool:
        """Whether the file then held all of the document."""
        return self.done and self.text is None


@dataclass
class LogContent:
    """What a log holds. ``size`` is the length of its sound part, bytes."""

    path: str = ""
    epoch: int = 0
    updates: list[bytes] = field(default_factory=list)
    marks: list[SavedMark] = field(default_factory=list)
    size: int = 0

    @property
    def finished(self) -> bool:
        """Whether all of it is known to have reached /workspace."""
        last = self.marks[-1] if self.marks else None
        return last is not None and last.clean and last.updates == len(self.updates)


def encode_record(kind: Record, payload: bytes) -> bytes:
    """One record as bytes."""
    body = bytes([kind]) + payload
    return _HEAD.pack(len(body), zlib.crc32(body), kind) + payload


def decode_log(data: bytes) -> LogContent:
    """Read records up to the first that is torn or damaged."""
    found = LogContent()
    at = 0
    while at + _HEAD.size <= len(data):
        length, crc, _ = _HEAD.unpack_from(data, at)
        body = data[at + 8 : at + 8 + length]
        if length < 1 or len(body) < length or zlib.crc32(body) != crc:
            break
        at += 8 + length
        kind, payload = body[0], body[1:]
        if kind == Record.UPDATE:
            found.updates.append(payload)
        elif kind == Record.META:
            raw = json.loads(payload)
            found.path, found.epoch = raw["path"], raw["epoch"]
        elif kind in (Record.SAVING, Record.SAVED):
            raw = json.loads(payload)
            done = kind == Record.SAVED
            found.marks.append(SavedMark(raw["sha256"], raw["updates"], done, raw.get("text")))
        found.size = at
    return found


def meta_record(path: str, epoch: int) -> bytes:
    """The record that names the document; the last one counts."""
    return encode_record(Record.META, json.dumps({"path": path, "epoch": epoch}).encode())


def mark_record(mark: SavedMark) -> bytes:
    """The record of a save."""
    kind = Record.SAVED if mark.done else Record.SAVING
    body: dict[str, str | int] = {"sha256": mark.sha256, "updates": mark.updates}
    if mark.text is not None:
        body["text"] = mark.text
    return encode_record(kind, json.dumps(body).encode())


class History:
    """One document's open log. Appends are kept in memory until `sync`, which all waiters share."""

    def __init__(self, file: Path, content: LogContent) -> None:
        self.file = file
        self.path, self.epoch = content.path, content.epoch
        self.count = len(content.updates)
        self.size = content.size
        self._finished = self.count if content.finished else 0
        self._fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, self.size)
        self._waiting: list[bytes] = []
        self._lock = asyncio.Lock()

    def append(self, update: bytes) -> None:
        """Queue a Y update."""
        self._waiting.append(encode_record(Record.UPDATE, update))
        self.count += 1

    def mark(self, mark: SavedMark) -> None:
        """Queue the record of a save."""
        self._waiting.append(mark_record(mark))
        self._finished = mark.updates if mark.clean else 0

    @property
    def finished(self) -> bool:
        """Whether the last mark says that all appended so far is on disk."""
        return self._finished == self.count

    async def sync(self) -> None:
        """Return when all that was appended before is on stable storage. ``OSError``: may be retried."""
        async with self._lock:
            if self._waiting:
                batch = self._waiting[:]
                self.size = await finish(asyncio.to_thread(self._write, b"".join(batch)))
                del self._waiting[: len(batch)]

    def _write(self, data: bytes) -> int:
        try:
            view, at = memoryview(data), self.size
            while view:
                written = os.pwrite(self._fd, view, at)
                view, at = view[written:], at + written
            os.fdatasync(self._fd)
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.size)
            raise
        return at

    async def replace(self, state: bytes, mark: SavedMark) -> None:
        """Compact: the log becomes one update (``state``) and the mark of the text on disk.

        ``state`` must contain all that was appended; nothing may be appended until this returns, so the
        caller checks `count` before and holds the document's lock.
        """
        async with self._lock:
            data = _log_bytes(self.path, self.epoch, [state], mark)
            count = self.count
            fresh = await asyncio.to_thread(_write_new, self.file, data)
            if self.count != count:
                # edited meanwhile: the old log is still the whole truth
                os.close(fresh)
                _temporary(self.file).unlink()
                return
            _temporary(self.file).replace(self.file)
            os.close(self._fd)
            self._fd, self.size, self.count = fresh, len(data), 1
            self._finished = 1
            self._waiting.clear()

    def close(self) -> None:
        """Let go of the file; call `sync` before."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _temporary(file: Path) -> Path:
    return file.with_suffix(".new")


def _write_new(file: Path, data: bytes) -> int:
    fd = os.open(_temporary(file), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _log_bytes(path: str, epoch: int, updates: Iterable[bytes], mark: SavedMark | None) -> bytes:
    parts = [meta_record(path, epoch), *(encode_record(Record.UPDATE, u) for u in updates)]
    if mark is not None:
        parts.append(mark_record(mark))
    return b"".join(parts)


class HistoryStore:
    """All histories beneath ``state/docs``. Its calls are short file operations of our own folder."""

    def __init__(self, state: str | Path) -> None:
        self._folder = Path(state) / "docs"
        self._trash = self._folder / "trash"
        self._trash.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._index: dict[str, Path] = {}
        for file in self._folder.glob("*.log"):
            path = self._path_of(file)
            if path is None:
                file.replace(self._trash / file.name)
            else:
                self._index[path] = file
        for left_over in self._folder.glob("*.new"):
            left_over.unlink()

    def _path_of(self, file: Path) -> str | None:
        with contextlib.suppress(OSError, ValueError, KeyError), file.open("rb") as f:
            head = f.read(_META_AT_HEAD)
            path = decode_log(head).path
            if not path or self._file(path) != file:
                # renamed once: its present name stands further on
                path = decode_log(head + f.read()).path
            return path or None
        return None

    def _file(self, path: str) -> Path:
        return self._folder / (hashlib.sha256(os.fsencode(path)).hexdigest()[:40] + ".log")

    def paths(self) -> set[str]:
        """Paths that have a history."""
        return set(self._index)

    def __contains__(self, path: object) -> bool:
        return path in self._index

    def read(self, path: str) -> LogContent | None:
        """What the log of ``path`` holds; None when there is none. A damaged one counts as none."""
        content = self.peek(path)
        if content is None:
            self.discard(path)
        return content

    def peek(self, path: str) -> LogContent | None:
        """As `read`, but a damaged one stays where it is. From any thread."""
        file = self._index.get(path)
        if file is not None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                content = decode_log(file.read_bytes())
                if content.updates and content.path == path:
                    return content
        return None

    def unfinished(self) -> list[str]:
        """Paths whose history may be ahead of the file, as a crash leaves them. Reads each; blocks."""
        found = []
        for path, file in sorted(self._index.items()):
            with contextlib.suppress(OSError, ValueError, KeyError):
                if not decode_log(file.read_bytes()).finished:
                    found.append(path)
        return found

    def open(self, path: str, content: LogContent) -> History:
        """Go on appending to the log that `read` gave."""
        return History(self._index[path], content)

    def create(self, path: str, epoch: int, update: bytes, mark: SavedMark | None) -> None:
        """Begin a log (fsynced), in place of any that is there."""
        file = self._file(path)
        os.close(_write_new(file, _log_bytes(path, epoch, [update], mark)))
        _temporary(file).replace(file)
        self._sync_folder()
        self._index[path] = file

    def rename(self, old: str, new: str, epoch: int) -> Path:
        """Give a history (closed or open) another path; one that stood there goes to the trash."""
        self.discard(new)
        file, target = self._index.pop(old), self._file(new)
        file.replace(target)
        with target.open("ab") as f:
            f.write(meta_record(new, epoch))
            f.flush()
            os.fsync(f.fileno())
        self._sync_folder()
        self._index[new] = target
        return target

    def discard(self, path: str) -> None:
        """Put a history into the trash, which keeps the newest `TRASH_LIMIT`."""
        file = self._index.pop(path, None)
        if file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            file.replace(self._trash / f"{file.stem}-{file.stat().st_mtime_ns}.log")
        kept = sorted(self._trash.iterdir(), key=lambda f: f.stat().st_mtime_ns)
        for old in kept[:-TRASH_LIMIT]:
            old.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def possible(marks: Sequence[SavedMark]) -> Sequence[SavedMark]:
    """The marks of what we may have left on disk: the newest that surely reached it, and those after it."""
    last = max((n for n, mark in enumerate(marks) if mark.done), default=0)
    return marks[last:]


def newest_match(marks: Iterable[SavedMark], digest: str) -> SavedMark | None:
    """The newest mark of exactly this content, or None."""
    return next((m for m in reversed(list(marks)) if m.sha256 == digest), None)
