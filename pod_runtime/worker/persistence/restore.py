"""From the log back to the workspace. What is on disk and nowhere else is set aside, never overwritten."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from stat import S_IMODE

from pod_runtime.journal.format import Area, DocMeta, Kind, Member, Meta
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.aside import ASIDE, SetAside
from pod_runtime.worker.persistence.manifest import HELD, HELD_FULL, Delta, Doc, Entry

MAX_HISTORY = 64 * 2**20


@dataclass(frozen=True, slots=True)
class RestoredHistory:
    path: str
    data: bytes
    doc: DocMeta


@dataclass(slots=True)
class Restorer:
    """`format.Sink` that writes into the workspace. ``unsaved`` are paths that may hold work of their own.

    Blocking: fed in a thread. ``histories`` gathers what the caller hands to the documents and clears.
    ``only`` restricts it to these files. What cannot be written is ``skipped``, and held in ``delta``.
    """

    root: safefs.Root
    aside: SetAside
    unsaved: set[str]
    only: set[str] | None = None
    delta: Delta = field(default_factory=Delta)
    histories: list[RestoredHistory] = field(default_factory=list)
    files: int = 0
    skipped: list[str] = field(default_factory=list)
    _member: Member | None = None
    _file: safefs.AtomicFile | None = None
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _data: bytearray = field(default_factory=bytearray)
    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)
    _folders: dict[str, int] = field(default_factory=dict)

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        if self.only is not None and (member.area is Area.DOCS or member.path not in self.only):
            return False
        if member.area is Area.DOCS:
            if member.size > MAX_HISTORY:
                self.skipped.append(member.name)
                return False
            self._member, self._data = member, bytearray()
            return True
        try:
            return self._begin(member)
        except (OSError, safefs.InvalidPath) as e:
            self._skip(member, e)
            return False

    def _skip(self, member: Member, error: Exception) -> None:
        """Go on without ``member``: the log keeps it."""
        self.abort()
        self._member = None
        self.skipped.append(member.path)
        held = HELD_FULL if isinstance(error, safefs.DiskFull) else HELD
        self.delta.entries[member.path] = Entry(member.kind, member.mode, member.size, held)
        self._folders.pop(member.path, None)

    def _begin(self, member: Member) -> bool:
        path = member.path
        if path == ASIDE and member.kind is not Kind.DIRECTORY and self.aside.count:
            raise FileExistsError(errno.EEXIST, "What was set aside is there", path)
        if member.kind is Kind.DIRECTORY:
            self._clear_way(path, folder=True)
            self.root.mkdir(path, parents=True, exist_ok=True)
            self._folders[path] = member.mode
            # writable until the end, whatever its mode will be
            self.root.chmod(path, member.mode | 0o700)
            self.delta.entries[path] = Entry(Kind.DIRECTORY, member.mode)
            return False
        self._parent(path)
        if member.kind is Kind.SYMLINK:
            self._link(member)
            return False
        self._member, self._hash = member, hashlib.sha256()
        self._clear_way(path, folder=False)
        self._file = self._stack.enter_context(self.root.create_atomic(path, mode=member.mode))
        return True

    def _parent(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for n in range(1, len(parts) + 1):
            self._clear_way("/".join(parts[:n]), folder=True)
        if parts:
            folder = "/".join(parts)
            self.root.mkdir(folder, parents=True, exist_ok=True)
            with contextlib.suppress(OSError):
                st = self.root.lstat(folder)
                if S_IMODE(st.st_mode) & 0o300 != 0o300:
                    self.root.chmod(folder, S_IMODE(st.st_mode) | 0o700)

    def _clear_way(self, path: str, *, folder: bool) -> None:
        """Make room for a folder, or for a file, where something of another kind stands."""
        try:
            kind = safefs.kind_of(self.root.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        if (kind is safefs.Kind.DIRECTORY) == folder and kind in (safefs.Kind.DIRECTORY, safefs.Kind.FILE):
            return
        if kind is safefs.Kind.DIRECTORY:
            for entry in list(self.root.walk(path)):
                if entry.path in self.unsaved and entry.kind is not safefs.Kind.DIRECTORY:
                    self.aside.move(entry.path)
                    self.unsaved.discard(entry.path)
            self.root.rmtree(path)
        elif path in self.unsaved:
            self.aside.move(path)
            self.unsaved.discard(path)
        else:
            self.root.unlink(path)

    def _link(self, member: Member) -> None:
        path = member.path
        try:
            st = self.root.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            pass
        else:
            if safefs.kind_of(st) is safefs.Kind.SYMLINK and self.root.readlink(path) == member.target:
                self.unsaved.discard(path)
            self._clear_way(path, folder=False)
            if safefs.kind_of(st) is safefs.Kind.FILE:
                if path in self.unsaved:
                    self.aside.move(path)
                    self.unsaved.discard(path)
                else:
                    self.root.unlink(path)
        self.root.symlink(member.target, path)
        self.root.utime(path, member.mtime_ns)
        self.delta.entries[path] = Entry(Kind.SYMLINK, digest=member.target)
        self.files += 1

    def data(self, chunk: bytes) -> None:
        if self._file is not None:
            self._hash.update(chunk)
            try:
                self._file.write(chunk)
            except OSError as e:
                assert self._member is not None
                self._skip(self._member, e)
        elif self._member is not None:
            self._data += chunk

    def end(self) -> None:
        member, self._member = self._member, None
        if member is None:
            return  # skipped
        if self._file is None:
            assert member.doc is not None
            self.histories.append(RestoredHistory(member.path, bytes(self._data), member.doc))
            history = hashlib.sha256(self._data).hexdigest()
            self.delta.docs[member.path] = Doc(member.doc.epoch, history, member.doc.text_sha256)
            self._data = bytearray()
            return
        path, digest = member.path, self._hash.hexdigest()
        try:
            if path in self.unsaved:
                if self._digest(path) not in (digest, None):
                    self.aside.move(path)
                self.unsaved.discard(path)
            self._file.set_mtime(member.mtime_ns)
            st = self._file.commit(sync=False)
        except (OSError, safefs.InvalidPath) as e:
            self._skip(member, e)
            return
        self._stack.close()
        self._file = None
        mode = S_IMODE(st.st_mode) & 0o777
        inode = st.st_ino & (2**63 - 1)
        self.delta.entries[path] = Entry(Kind.FILE, mode, st.st_size, st.st_mtime_ns, inode, digest)
        self.files += 1

    def _digest(self, path: str) -> str | None:
        """SHA-256 of the file that stands there; None when there is none."""
        try:
            fd = self.root.open_read(path)
        except FileNotFoundError:
            return None
        except OSError:
            return ""
        try:
            found = hashlib.sha256()
            while chunk := os.read(fd, 2**20):
                found.update(chunk)
            return found.hexdigest()
        finally:
            os.close(fd)

    def finish(self, known: Iterable[str]) -> None:
        """Remove what the log no longer has (``known``: what it once had), set aside what it never had."""
        # an older state of what is held would be committed over the newer one that the log has
        taken = {path for path, entry in self.delta.entries.items() if entry is not None and not entry.held}
        for path in sorted(self.unsaved):
            if path in taken:
                continue
            with contextlib.suppress(OSError, safefs.InvalidPath):
                if safefs.kind_of(self.root.lstat(path)) is not safefs.Kind.DIRECTORY:
                    self.aside.move(path)
        for path in sorted(known, reverse=True):
            if path in taken or path in self.unsaved:
                continue
            with contextlib.suppress(OSError, safefs.InvalidPath):
                if safefs.kind_of(self.root.lstat(path)) is safefs.Kind.DIRECTORY:
                    self.root.rmdir(path)  # only when nothing of others is in it
                else:
                    self.root.unlink(path)
        for path, mode in sorted(self._folders.items(), reverse=True):
            with contextlib.suppress(OSError, safefs.InvalidPath):
                self.root.chmod(path, mode)

    def abort(self) -> None:
        """Let go of a half-written file."""
        self._stack.close()
        self._file = None
