"""Which records changed which file, kept in /state (SQLite): the index behind a file's timeline.

A cache of what the log says; when it is lost or damaged, it is filled again from the records' first frames.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pod_runtime.journal.versions import Change

VERSION = 1
#: Changes of files that are remembered; beyond, the oldest records are forgotten.
MAX_CHANGES = 200_000
#: Files of snapshots that are remembered; beyond, the oldest snapshots are forgotten.
MAX_MEMBERS = 200_000
#: Records that are remembered at all.
MAX_RECORDS = 100_000
#: Changes of one file that one question looks at, the newest.
MAX_ASKED = 20_000

#: A file's size and mtime_ns where they are known; None: it is not there.
_State = tuple[int | None, int | None] | None


@dataclass(frozen=True, slots=True)
class Known:
    """One record: what it did to which files. Not ``whole``: it may have changed others, too."""

    seq: int
    time: str
    files: dict[str, Change]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Shot:
    """One snapshot: its files with (size, mtime_ns). Not ``here``: they are too many to be remembered."""

    seq: int
    time: str
    files: dict[str, tuple[int, int]]
    here: bool = True


class Index:
    """Blocking but short, from any thread."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        try:
            self._db = self._load()
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    file.with_name(file.name + suffix).unlink()
            self._db = self._load()
        self._changes = self._count("changes")

    def _load(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._file, check_same_thread=False, isolation_level=None, cached_statements=16)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute("PRAGMA cache_size=-512")
            if db.execute("PRAGMA user_version").fetchone()[0] not in (0, VERSION):
                raise sqlite3.DatabaseError("an index of another version")
            db.execute(f"PRAGMA user_version={VERSION}")
            db.execute("CREATE TABLE IF NOT EXISTS records (seq INTEGER PRIMARY KEY, time TEXT, whole INT)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS changes (path BLOB, seq INT, people TEXT, gone INT, size INT,"
                " PRIMARY KEY (path, seq)) WITHOUT ROWID"
            )
            db.execute("CREATE INDEX IF NOT EXISTS changes_seq ON changes (seq)")
            db.execute("CREATE TABLE IF NOT EXISTS shots (seq INTEGER PRIMARY KEY, time TEXT, here INT)")
            db.execute(
                "CREATE TABLE IF NOT EXISTS members (path BLOB, seq INT, size INT, mtime_ns INT,"
                " PRIMARY KEY (path, seq)) WITHOUT ROWID"
            )
        except BaseException:
            db.close()
            raise
        return db

    def _count(self, table: str) -> int:
        found: int = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608
        return found

    def close(self) -> None:
        with self._lock:
            self._db.close()

    @contextlib.contextmanager
    def _write(self) -> Iterator[None]:
        with self._lock:
            self._db.execute("BEGIN")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    # -- filling

    def add(self, records: Iterable[Known]) -> None:
        """Remember what these records did; again is no error."""
        with self._write():
            for record in records:
                row = (record.seq, record.time, record.whole)
                self._db.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?)", row)
                self._db.executemany(
                    "INSERT OR REPLACE INTO changes VALUES (?, ?, ?, ?, ?)",
                    (
                        (os.fsencode(path), c.seq, json.dumps(c.people), c.gone, c.size)
                        for path, c in record.files.items()
                    ),
                )
                self._changes += len(record.files)
            if self._changes > MAX_CHANGES:
                self._forget()
            self._db.execute(
                "DELETE FROM records WHERE seq <= (SELECT max(seq) FROM records) - ?", (MAX_RECORDS,)
            )

    def _forget(self) -> None:
        """Forget the changes of the oldest records, but not that they were read."""
        at = self._db.execute(
            "SELECT seq FROM changes ORDER BY seq DESC LIMIT 1 OFFSET ?", (MAX_CHANGES * 9 // 10,)
        ).fetchone()
        if at is not None:
            self._db.execute("DELETE FROM changes WHERE seq <= ?", at)
            self._db.execute("UPDATE records SET whole = 0 WHERE seq <= ?", at)
        self._changes = self._count("changes")

    def add_shot(self, shot: Shot) -> None:
        """Remember what a snapshot holds."""
        with self._write():
            self._db.execute(
                "INSERT OR REPLACE INTO shots VALUES (?, ?, ?)", (shot.seq, shot.time, shot.here)
            )
            self._db.executemany(
                "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?)",
                ((os.fsencode(p), shot.seq, size, mtime) for p, (size, mtime) in shot.files.items()),
            )
            while self._count("members") > MAX_MEMBERS:
                oldest = self._db.execute("SELECT min(seq) FROM shots WHERE here").fetchone()
                self._db.execute("DELETE FROM members WHERE seq = ?", oldest)
                # its row stays, so that it is not read again
                self._db.execute("UPDATE shots SET here = 0 WHERE seq = ?", oldest)

    # -- asking

    def unknown(self, seqs: Iterable[int]) -> list[int]:
        """Those of these records that it does not know; nor are the very old ones asked for again."""
        wanted = list(seqs)
        with self._lock:
            found = self._db.execute("SELECT seq FROM records WHERE seq >= ?", (min(wanted, default=0),))
            known = {seq for (seq,) in found}
        floor = max(known, default=0) - MAX_RECORDS
        return [seq for seq in wanted if seq not in known and seq > floor]

    def shots(self) -> set[int]:
        """Snapshots that it knows, or knew and had no room for."""
        with self._lock:
            return {seq for (seq,) in self._db.execute("SELECT seq FROM shots")}

    def complete(self, first: int, last: int) -> bool:
        """Whether it knows all that the records above ``first``, up to ``last``, did."""
        with self._lock:
            return self._complete(first, last)

    def _complete(self, first: int, last: int) -> bool:
        count: int = self._db.execute(
            "SELECT count(*) FROM records WHERE whole AND seq > ? AND seq <= ?", (first, last)
        ).fetchone()[0]
        return count == last - first

    def holders(self, path: str, first: int, last: int) -> list[tuple[int, bool | None]]:
        """Records in ``[first, last]`` that touched ``path``, newest first: (number, whether they deleted).

        None: the record may have touched it.
        """
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, gone FROM changes WHERE path = ? AND seq BETWEEN ? AND ?",
                (os.fsencode(path), first, last),
            ).fetchall()
            vague = self._db.execute(
                "SELECT seq FROM records WHERE NOT whole AND seq BETWEEN ? AND ?", (first, last)
            ).fetchall()
        found: dict[int, bool | None] = {seq: bool(gone) for seq, gone in rows}
        for (seq,) in vague:
            found.setdefault(seq, None)
        return sorted(found.items(), key=lambda item: -item[0])

    def in_shot(self, path: str, seq: int) -> bool | None:
        """Whether that snapshot holds the file; None: not known."""
        with self._lock:
            if self._db.execute("SELECT 1 FROM shots WHERE here AND seq = ?", (seq,)).fetchone() is None:
                return None
            key = (os.fsencode(path), seq)
            row = self._db.execute("SELECT 1 FROM members WHERE path = ? AND seq = ?", key).fetchone()
            return row is not None

    def changes(self, path: str) -> list[Change]:
        """What happened to ``path``, ascending, as far as it is known (at most `MAX_ASKED`).

        Where records are missing before a snapshot, the snapshot tells: what it holds is a change when it was
        not there before, or was another.
        """
        key = os.fsencode(path)
        with self._lock:
            rows = self._db.execute(
                "SELECT seq, time, people, gone, size FROM changes c JOIN records r USING (seq)"
                " WHERE c.path = ? ORDER BY c.seq DESC LIMIT ?",
                (key, MAX_ASKED),
            ).fetchall()
            shots = self._db.execute(
                "SELECT s.seq, s.time, m.size, m.mtime_ns FROM shots s LEFT JOIN members m"
                " ON m.seq = s.seq AND m.path = ? WHERE s.here ORDER BY s.seq",
                (key,),
            ).fetchall()
            found = [
                Change(seq, time, tuple(json.loads(people)), bool(gone), size)
                for seq, time, people, gone, size in reversed(rows)
            ]
            return merged(found, shots, self._complete)


def merged(
    changes: Sequence[Change],
    shots: Iterable[tuple[int, str, int | None, int | None]],
    complete: Callable[[int, int], bool],
) -> list[Change]:
    """Records' changes and what snapshots add to them, ascending. Pure.

    ``shots``: number, time, and the file's size and mtime, None where it is not in there. ``complete(a, b)``:
    whether every record above a, up to b, was looked at.
    """
    out: list[Change] = []
    state: _State = None
    seen, at = -1, 0  # up to here the file's state is known
    for seq, time, size, mtime in shots:
        while at < len(changes) and changes[at].seq <= seq:
            change = changes[at]
            out.append(change)
            state, seen, at = None if change.gone else (change.size, None), change.seq, at + 1
        there = None if size is None else (size, mtime)
        if not (seen >= 0 and complete(seen, seq)) and not _same(state, there):
            out.append(Change(seq, time, (), there is None, size, found=True))
        state, seen = there, seq
    return [*out, *changes[at:]]


def _same(a: _State, b: _State) -> bool:
    if a is None or b is None:
        return a is b
    return a[0] == b[0] and (a[1] is None or b[1] is None or a[1] == b[1])
