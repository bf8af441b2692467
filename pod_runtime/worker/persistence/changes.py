"""From a changed workspace to one commit: look, read, compare by hash, pack. Blocking: runs in a thread."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_IMODE
from typing import IO

from pod_runtime.journal.format import (
    MAX_CHANGED,
    Area,
    BodyWriter,
    DocMeta,
    Kind,
    Member,
    check_path,
)
from pod_runtime.journal.ignore import Ignore
from pod_runtime.journal.writer import Commit
from pod_runtime.worker import safefs
from pod_runtime.worker.authors import Taken
from pod_runtime.worker.persistence.manifest import Delta, Doc, Entry, Manifest
from pod_runtime.worker.ports import DocumentCapture

#: A larger file is not made durable, bytes.
MAX_FILE = 512 * 2**20
#: Commits and files up to this size are held in memory, larger ones in /state.
IN_MEMORY = 8 * 2**20
#: Paths that one look names in notices: many of them must not push all else out of the pages' queues.
MAX_NAMED = 20
#: Deletions in one commit, bytes: the meta data that names them is bounded. The rest goes into the next one.
MAX_DELETED = 8 * 2**20
#: A file changed this shortly before it was read may change again without its times telling, nanoseconds.
RACY = 50_000_000

Notice = Callable[[str, str], None]


class Stopped(Exception):
    """The work was called off."""


@dataclass(slots=True)
class Prepared:
    """A commit, and what the manifest says once it is in the log."""

    commit: Commit
    delta: Delta
    empty: bool
    versions: dict[str, int] = field(default_factory=dict)
    files: int = 0
    people: Taken = field(default_factory=lambda: Taken({}))
    #: the paths in ``workspace/`` that the body holds
    written: set[str] = field(default_factory=set)
    #: whether there is more to commit than this holds
    more: bool = False

    @property
    def large(self) -> bool:
        """Whether the body is a file in /state."""
        return isinstance(self.commit.body, Path)

    def discard(self) -> None:
        """Remove that file."""
        if isinstance(self.commit.body, Path):
            self.commit.body.unlink(missing_ok=True)


class _Spool:
    """Bytes in memory, or in a file when they become many."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._memory = bytearray()
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        if self._file is None and len(self._memory) + len(data) > IN_MEMORY:
            self._file = tempfile.NamedTemporaryFile(dir=self._folder, prefix="commit-", delete=False)  # noqa: SIM115
            self._file.write(self._memory)
            self._memory.clear()
        if self._file is not None:
            self._file.write(data)
        else:
            self._memory += data

    def result(self) -> bytes | Path:
        if self._file is None:
            return bytes(self._memory)
        self._file.close()
        return Path(self._file.name)

    def discard(self) -> None:
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)


class Changes:
    """Builds one commit. ``live`` are the open documents: their text comes from ``captures`` alone."""

    def __init__(
        self,
        root: safefs.Root,
        manifest: Manifest,
        ignore: Ignore,
        *,
        spool: Path,
        live: set[str],
        max_workspace: int,
        notice: Notice,
        stopped: Callable[[], bool] = lambda: False,
        people: Taken | None = None,
    ) -> None:
        self._root, self._manifest, self._ignore = root, manifest, ignore
        self._live, self._say, self._stopped = live, notice, stopped
        self._unsaved = 0
        self._deleted_bytes, self._more = 0, False
        self._people = people or Taken({})
        self._written: set[str] = set()
        self._folder = spool
        self._room = max_workspace - manifest.size
        self._spool = _Spool(spool)
        self._body = BodyWriter(self._spool.write)
        self._delta = Delta()
        self._deleted: list[str] = []
        self._docs: dict[str, DocMeta] = {}
        self._versions: dict[str, int] = {}
        self._members = 0
        self._seen: set[str] = set()
        self._unsure: list[str] = []

    def build(
        self,
        captures: Iterable[DocumentCapture],
        histories: set[str],
        paths: Iterable[str] | None,
    ) -> Prepared:
        """Look at ``paths`` (None: at everything) and pack what differs from the manifest."""
        try:
            closed = {capture.path for capture in captures if not self._document(capture)}
            for path in self._manifest.docs.keys() - histories - self._docs.keys():
                self._delta.docs[path] = None
                self._deleted.append(f"docs/{path}")
            if paths is None:
                self._everything()
            else:
                for path in sorted(closed.union(paths)):
                    self._path(path)
            if self._unsaved > MAX_NAMED:
                self._say("warning", f"More files and folders than these {MAX_NAMED} are not saved")
            self._body.close()
            body = self._spool.result()
        except BaseException:
            self._spool.discard()
            raise
        changed, count = self._changed()
        commit = Commit(body, tuple(self._deleted), self._docs, changed, count)
        empty = not self._members and not self._deleted
        prepared = Prepared(
            *(commit, self._delta, empty, self._versions, self._members, self._people, self._written),
            more=self._more,
        )
        if empty:
            prepared.discard()
        return prepared

    def _changed(self) -> tuple[dict[str, tuple[str, ...]], int]:
        """What ``changed`` of the record says; when there is too much, what people did goes first."""
        gone = (n.removeprefix("workspace/") for n in self._deleted if n.startswith("workspace/"))
        named = {path: self._people.of(path) for path in sorted(self._written.union(gone))}
        if len(named) <= MAX_CHANGED:
            return named, len(named)
        first = sorted(named, key=lambda path: not named[path])[:MAX_CHANGED]
        return {path: named[path] for path in first}, len(named)

    # -- documents

    def _document(self, capture: DocumentCapture) -> bool:
        """Take a document's history, and of an open one its text; False: the file on disk speaks for it."""
        path = capture.path
        self._versions[path] = capture.version
        if self._ignore.beneath(path):
            return True
        text = hashlib.sha256(capture.text).hexdigest()
        history = hashlib.sha256(capture.history).hexdigest()
        known = self._manifest.docs.get(path)
        if known != (capture.epoch, history, text):
            self._docs[path] = DocMeta(capture.epoch, text)
            self._add(Member(Area.DOCS, path, size=len(capture.history)), (capture.history,))
            self._delta.docs[path] = Doc(capture.epoch, history, text)
        if path not in self._live:
            # closed, so saved: what differs on disk came later, and opening merges it
            return False
        old = self._manifest.entries.get(path)
        try:
            st = self._root.lstat(path)
            mode, mtime = S_IMODE(st.st_mode) & 0o777, st.st_mtime_ns
        except (OSError, safefs.InvalidPath):
            mode, mtime = old.mode if old else 0o644, time.time_ns()
        entry = Entry(Kind.FILE, mode, len(capture.text), 0, 0, text)
        if old is None or (old.kind, old.mode, old.digest) != (entry.kind, mode, text):
            member = Member(Area.WORKSPACE, path, mode=mode, mtime_ns=mtime, size=len(capture.text))
            self._add(member, (capture.text,))
            self._delta.entries[path] = entry
        return True

    def _add(self, member: Member, chunks: Iterable[bytes]) -> None:
        if member.area is Area.WORKSPACE:
            self._written.add(member.path)
        self._body.add(member, (c for c in chunks if c))
        self._members += 1

    # -- files

    def _everything(self) -> None:
        for entry in self._walk(""):
            self._seen.add(entry.path)
            self._look(entry)
        for path in self._manifest.entries.keys() - self._seen:
            self._gone(path)

    def _walk(self, path: str) -> Iterator[safefs.Entry]:
        def skip(entry: safefs.Entry) -> bool:
            return self._ignore(entry.path, folder=entry.kind is safefs.Kind.DIRECTORY)

        return self._root.walk(path, skip=skip, unreadable=self._unreadable)

    def _not_saved(self, words: str) -> None:
        self._unsaved += 1
        if self._unsaved <= MAX_NAMED:
            self._say("warning", words)

    def _unreadable(self, path: str, error: Exception) -> None:
        self._unsure.append(path + "/" if path else "")
        if isinstance(error, safefs.InvalidPath):
            self._not_saved(f"{_show(path)} lies too deep and is not saved")
        else:
            self._not_saved(f"The folder {_show(path)} cannot be read and is not saved")

    def _path(self, path: str) -> None:
        if path == "":
            self._everything()
            return
        try:
            check_path(path)
            st = self._root.lstat(path)
        except ValueError:
            return
        except (FileNotFoundError, NotADirectoryError, safefs.NotRegular):
            self._gone_with_all(path)
            return
        except OSError:
            return  # the next full look will tell
        entry = safefs.Entry(path, st)
        if self._ignore.beneath(path) or (
            entry.kind is safefs.Kind.DIRECTORY and self._ignore(path, folder=True)
        ):
            self._gone_with_all(path)
            return
        self._parents(path)
        self._look(entry)
        prefix = path + "/"
        if entry.kind is safefs.Kind.DIRECTORY:
            found = {path}
            for inner in self._walk(path):
                found.add(inner.path)
                self._look(inner)
            known = [p for p in self._manifest.entries if p.startswith(prefix)]
            for gone in known:
                if gone not in found:
                    self._gone(gone)
        else:
            for gone in [p for p in self._manifest.entries if p.startswith(prefix)]:
                self._gone(gone)

    def _parents(self, path: str) -> None:
        parts = path.split("/")
        for n in range(1, len(parts)):
            folder = "/".join(parts[:n])
            if folder not in self._manifest.entries and folder not in self._delta.entries:
                try:
                    self._look(safefs.Entry(folder, self._root.lstat(folder)))
                except OSError:
                    return

    def _gone_with_all(self, path: str) -> None:
        self._gone(path)
        for inner in [p for p in self._manifest.entries if p.startswith(path + "/")]:
            self._gone(inner)

    def _gone(self, path: str) -> None:
        if path not in self._manifest.entries or path in self._live or path in self._delta.entries:
            return
        if any(path.startswith(prefix) for prefix in self._unsure) or self._held(path):
            return
        if self._deleted_bytes > MAX_DELETED:
            self._more = True
            return
        self._room += self._manifest.entries[path].size
        self._delta.entries[path] = None
        self._deleted.append(f"workspace/{path}")
        self._deleted_bytes += len(json.dumps(path))

    def _held(self, path: str) -> bool:
        """Whether the log keeps ``path``: it was never restored here, and its place is free."""
        if not self._manifest.entries[path].held:
            return False
        try:
            self._root.lstat(path)
        except (NotADirectoryError, safefs.NotRegular):
            return False  # something else stands where its folder was, and a restore cannot have both
        except (OSError, safefs.InvalidPath):
            return True
        return False  # ignored from now on, or of a kind that is not kept: that is somebody's decision

    def _look(self, entry: safefs.Entry) -> None:
        if self._stopped():
            raise Stopped
        path, st = entry.path, entry.stat
        if path in self._live or path in self._delta.entries:
            return
        old = self._manifest.entries.get(path)
        mode = S_IMODE(st.st_mode) & 0o777
        if entry.kind is safefs.Kind.DIRECTORY:
            new = Entry(Kind.DIRECTORY, mode)
            if old != new:
                self._add(Member(Area.WORKSPACE, path, Kind.DIRECTORY, mode, st.st_mtime_ns), ())
                self._delta.entries[path] = new
        elif entry.kind is safefs.Kind.SYMLINK:
            self._link(path, st, old)
        elif entry.kind is safefs.Kind.FILE:
            inode = st.st_ino & (2**63 - 1)
            if old is None or old[:5] != (Kind.FILE, mode, st.st_size, st.st_mtime_ns, inode):
                self._file(path, st, old)
        else:
            self._gone(path)  # FIFOs, sockets and devices are nothing to keep
            self._not_saved(f"{_show(path)} is a pipe, socket or device and is not saved")

    def _link(self, path: str, st: os.stat_result, old: Entry | None) -> None:
        try:
            target = self._root.readlink(path)
        except (OSError, safefs.InvalidPath):
            return
        new = Entry(Kind.SYMLINK, digest=target)
        if old != new and target:
            member = Member(Area.WORKSPACE, path, Kind.SYMLINK, 0o777, st.st_mtime_ns, target=target)
            self._add(member, ())
            self._delta.entries[path] = new

    def _file(self, path: str, st: os.stat_result, old: Entry | None) -> None:
        if st.st_size > MAX_FILE:
            self._not_saved(f"{_show(path)} is larger than {MAX_FILE >> 20} MiB and is not saved")
            return
        if st.st_size - (old.size if old else 0) > self._room:
            self._not_saved(f"{_show(path)} is not saved: the project is over its size limit")
            return
        try:
            fd = self._root.open_read(path)
        except FileNotFoundError:
            return  # gone again; its deletion will be seen
        except (OSError, safefs.InvalidPath) as e:
            self._not_saved(f"{_show(path)} cannot be read and is not saved ({e.__class__.__name__})")
            return
        try:
            self._read(fd, path, old)
        finally:
            os.close(fd)

    def _read(self, fd: int, path: str, old: Entry | None) -> None:
        before = os.fstat(fd)
        limit = min(MAX_FILE, max(self._room + (old.size if old else 0), 0))
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(self._folder)) as copy:
            digest = hashlib.sha256()
            size = 0
            # copied first: a tar member needs its size before its data, and the file may grow while we read
            while chunk := os.read(fd, 2**20):
                if self._stopped():
                    raise Stopped
                size += len(chunk)
                if size > limit:
                    self._not_saved(f"{_show(path)} grows over the limit and is not saved")
                    return
                digest.update(chunk)
                copy.write(chunk)
            mode = S_IMODE(before.st_mode) & 0o777
            racy = time.time_ns() - before.st_mtime_ns < RACY or size != before.st_size
            mtime = 0 if racy else before.st_mtime_ns
            inode = before.st_ino & (2**63 - 1)
            new = Entry(Kind.FILE, mode, size, mtime, inode, digest.hexdigest())
            self._delta.entries[path] = new
            if old is None or (old.kind, old.mode, old.digest) != (new.kind, new.mode, new.digest):
                copy.seek(0)
                member = Member(Area.WORKSPACE, path, mode=mode, mtime_ns=before.st_mtime_ns, size=size)
                self._add(member, iter(lambda: copy.read(2**20), b""))
                self._room -= size - (old.size if old else 0)


def _show(path: str) -> str:
    """A path for people: no newlines, no broken text."""
    return repr(path.encode("utf-8", "replace").decode()[:200])
