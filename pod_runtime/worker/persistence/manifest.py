"""What of the workspace is in the log, kept in /state (SQLite), so that a restart need not download.

A cache: when it is lost or damaged, the log is read instead. It may lag behind the log by the last commits (a
crash between a put and the note of it), which `open` finds out by the writer's id.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from pod_runtime.journal.format import Kind

VERSION = "1"
T = TypeVar("T")


class Entry(NamedTuple):
    """One committed path. ``digest``: SHA-256 of a file, the target of a link. ``mtime_ns`` 0: look again.

    An empty ``digest`` of a file stands for "the log has something here, but not known what". A negative
    ``mtime_ns`` says that it could not be restored here (`HELD`, or `HELD_FULL` for want of space).
    """

    kind: Kind
    mode: int = 0
    size: int = 0
    mtime_ns: int = 0
    inode: int = 0
    digest: str = ""

    @property
    def held(self) -> bool:
        """Whether only the log has it: that it is not on disk does not mean that somebody deleted it."""
        return self.mtime_ns < 0


class Doc(NamedTuple):
    """One committed history: its epoch and the SHA-256 of the history and of its text."""

    epoch: int
    history: str
    text: str


UNKNOWN = Entry(Kind.FILE)
HELD, HELD_FULL = -1, -2


@dataclass(slots=True)
class Delta:
    """What one commit changes in the manifest; None = gone."""

    entries: dict[str, Entry | None] = field(default_factory=dict)
    docs: dict[str, Doc | None] = field(default_factory=dict)


class Manifest:
    """Blocking but short. ``info`` holds, as texts:

    ``state`` (``ok`` or ``restoring``), ``seq``, ``generation`` (of that record; empty when not known),
    ``snapshot`` (HEAD's when it was last read), ``writer``, ``version``, ``unsaved`` (while restoring: JSON
    of the paths that the log must not overwrite).
    """

    def __init__(self, file: Path) -> None:
        self.entries: dict[str, Entry] = {}
        self.docs: dict[str, Doc] = {}
        self.info: dict[str, str] = {}
        self._file = file
        # a cancelled commit leaves its thread behind; SQLite does not survive a close under a running call
        self._lock = threading.Lock()
        try:
            self._db = self._load()
        except (sqlite3.DatabaseError, ValueError):
            self._discard()
            self._db = self._load()

    def _load(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._file, check_same_thread=False, isolation_level=None, cached_statements=16)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-256")
            db.execute("CREATE TABLE IF NOT EXISTS info (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID")
            db.execute(
                "CREATE TABLE IF NOT EXISTS entries (path BLOB PRIMARY KEY, kind TEXT, mode INT, size INT,"
                " mtime_ns INT, inode INT, digest BLOB) WITHOUT ROWID"
            )
            db.execute(
                "CREATE TABLE IF NOT EXISTS docs (path BLOB PRIMARY KEY, epoch TEXT, history TEXT, text TEXT)"
                " WITHOUT ROWID"
            )
            info = dict(db.execute("SELECT key, value FROM info"))
            if info.setdefault("format", VERSION) != VERSION:
                raise ValueError("a manifest of another version")
            self.entries = {
                os.fsdecode(path): Entry(Kind(kind), mode, size, mtime, inode, os.fsdecode(digest))
                for path, kind, mode, size, mtime, inode, digest in db.execute("SELECT * FROM entries")
            }
            self.docs = {
                os.fsdecode(path): Doc(int(epoch), history, text)
                for path, epoch, history, text in db.execute("SELECT * FROM docs")
            }
            self.info = info
        except BaseException:
            db.close()
            raise
        return db

    def _discard(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                self._file.with_name(self._file.name + suffix).unlink()

    @property
    def usable(self) -> bool:
        """Whether it describes a whole state of the log."""
        return self.info.get("state") == "ok"

    @property
    def seq(self) -> int:
        return int(self.info.get("seq", "0"))

    @property
    def size(self) -> int:
        """Bytes of all committed files together."""
        return sum(e.size for e in self.entries.values())

    def apply(self, delta: Delta, info: Mapping[str, str | int]) -> None:
        """One transaction. What is in memory changes even when the disk is full (`sqlite3.Error`)."""
        texts = {key: str(value) for key, value in info.items()}
        texts["format"] = VERSION
        _update(self.entries, delta.entries.items())
        _update(self.docs, delta.docs.items())
        self.info.update(texts)
        with self._lock:
            self._write(delta, texts)

    def _write(self, delta: Delta, texts: Mapping[str, str]) -> None:
        self._db.execute("BEGIN")
        try:
            self._db.executemany("INSERT OR REPLACE INTO info VALUES (?, ?)", texts.items())
            self._entries(delta.entries)
            for doc_path, doc in delta.docs.items():
                key = os.fsencode(doc_path)
                if doc is None:
                    self._db.execute("DELETE FROM docs WHERE path = ?", (key,))
                else:
                    row = (key, str(doc.epoch), doc.history, doc.text)
                    self._db.execute("INSERT OR REPLACE INTO docs VALUES (?, ?, ?, ?)", row)
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite ends it by itself on a full disk
                self._db.execute("ROLLBACK")
            raise

    def _entries(self, entries: Mapping[str, Entry | None]) -> None:
        gone = [(os.fsencode(path),) for path, e in entries.items() if e is None]
        self._db.executemany("DELETE FROM entries WHERE path = ?", gone)
        self._db.executemany(
            "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                (
                    os.fsencode(path),
                    str(e.kind),
                    e.mode,
                    e.size,
                    e.mtime_ns,
                    e.inode & (2**63 - 1),
                    os.fsencode(e.digest),
                )
                for path, e in entries.items()
                if e is not None
            ),
        )

    def reset(self, info: Mapping[str, str | int]) -> None:
        """Forget everything, in one transaction."""
        delta = Delta(dict.fromkeys(self.entries), dict.fromkeys(self.docs))
        self.apply(delta, info)

    def close(self) -> None:
        with self._lock:
            self._db.close()


def _update(into: dict[str, T], items: Iterable[tuple[str, T | None]]) -> None:
    for key, value in items:
        if value is None:
            into.pop(key, None)
        else:
            into[key] = value
