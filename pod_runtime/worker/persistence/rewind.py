"""An older state of the log, brought back into a workspace in use. Blocking parts; `past` drives them.

What is on disk is replaced or removed only when the log has it: the state that was committed just before
(``entries``). Anything else is set aside. Ignored paths and ``.codevo/`` stay.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from stat import S_IMODE
from typing import IO

from pod_runtime.journal.format import Area, Kind, Member, Meta
from pod_runtime.journal.ignore import MAX_TOML, Ignore, patterns_of
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.aside import ASIDE, SetAside
from pod_runtime.worker.persistence.changes import MAX_FILE, Stopped
from pod_runtime.worker.persistence.manifest import Entry

#: A file is held in memory up to this size until it is compared, bytes; one that waits, less.
IN_MEMORY = 4 * 2**20
WAITING_IN_MEMORY = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Waiting:
    """The content that an open document's file is to get."""

    path: str
    mode: int
    content: IO[bytes]


class Rewinder:
    """`format.Sink` of the state that is to be. ``live``: open documents, whose files are left ``waiting``.

    ``changed`` are the paths written or removed since it was last emptied.
    """

    def __init__(
        self,
        root: safefs.Root,
        aside: SetAside,
        entries: Mapping[str, Entry],
        ignore: Ignore,
        spool: Path,
    ) -> None:
        self._root, self._entries, self._ignore, self._spool = root, entries, ignore, spool
        self.aside = aside
        self.live: set[str] = set()
        self.waiting: list[Waiting] = []
        self.changed: list[str] = []
        self.skipped: list[str] = []
        self.restored = self.deleted = 0
        self.stop = False
        self._names: set[str] = set()
        self._folders: dict[str, int] = {}
        self._then_ignored = Ignore()
        self._member: Member | None = None
        self._content: IO[bytes] | None = None
        self._hash = hashlib.sha256()

    # -- format.Sink

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        if self.stop:
            raise Stopped
        path = member.path
        if member.area is not Area.WORKSPACE or _ours(path):
            return False
        self._names.add(path)
        try:
            self._parents(path)
            self._clear_way(path, member.kind)
            if member.kind is Kind.DIRECTORY:
                self._folder(path, member.mode)
            elif member.kind is Kind.SYMLINK:
                self._link(path, member.target)
        except safefs.DiskFull:
            raise
        except (OSError, safefs.InvalidPath):
            self.skipped.append(path)
            return False
        if member.kind is not Kind.FILE:
            return False
        self._member, self._hash = member, hashlib.sha256()
        self._content = tempfile.SpooledTemporaryFile(max_size=IN_MEMORY, dir=str(self._spool))  # noqa: SIM115
        return True

    def data(self, chunk: bytes) -> None:
        assert self._content is not None
        self._hash.update(chunk)
        self._content.write(chunk)

    def end(self) -> None:
        member, content = self._member, self._content
        assert member is not None
        assert content is not None
        self._member = self._content = None
        path = member.path
        if path == "codevo.toml":
            self._read_ignore(content)
        if path in self.live:
            if member.size > WAITING_IN_MEMORY and isinstance(content, tempfile.SpooledTemporaryFile):
                content.rollover()
            self.waiting.append(Waiting(path, member.mode, content))
            return
        with content:
            try:
                self._file(path, member, content)
            except safefs.DiskFull:
                raise
            except (OSError, safefs.InvalidPath):
                self.skipped.append(path)

    def abort(self) -> None:
        """Let go of what is held."""
        for content in [self._content, *(w.content for w in self.waiting)]:
            if content is not None:
                content.close()
        self._content = None
        self.waiting.clear()

    # -- writing

    def _parents(self, path: str) -> None:
        parts = path.split("/")[:-1]
        for n in range(1, len(parts) + 1):
            self._clear_way("/".join(parts[:n]), Kind.DIRECTORY)
        if parts:
            folder = "/".join(parts)
            self._root.mkdir(folder, parents=True, exist_ok=True)
            self._open_folder(folder)

    def _open_folder(self, folder: str) -> None:
        """Make it writable until the end."""
        mode = S_IMODE(self._root.lstat(folder).st_mode) & 0o777
        if mode & 0o300 != 0o300:
            self._folders.setdefault(folder, mode)
            self._root.chmod(folder, mode | 0o700)

    def _clear_way(self, path: str, kind: Kind) -> None:
        """Remove what stands at ``path`` unless it is of that kind."""
        try:
            there = safefs.kind_of(self._root.lstat(path))
        except (FileNotFoundError, NotADirectoryError):
            return
        if str(there) == str(kind):
            return
        if there is safefs.Kind.DIRECTORY:
            for entry in list(self._root.walk(path, skip=self._ignored)):
                if entry.kind is not safefs.Kind.DIRECTORY and not self._known(entry.path):
                    self.aside.move(entry.path)
            self._root.rmtree(path)
        else:
            self._take_away(path)
        self.changed.append(path)

    def _ignored(self, entry: safefs.Entry) -> bool:
        return self._ignore(entry.path, folder=entry.kind is safefs.Kind.DIRECTORY)

    def _take_away(self, path: str) -> None:
        if self._known(path):
            self._root.unlink(path)
        else:
            self.aside.move(path)

    def _folder(self, path: str, mode: int) -> None:
        if not self._root.exists(path):
            self._root.mkdir(path, exist_ok=True)
            self.changed.append(path)
        self._folders[path] = mode
        # writable until the end, whatever its mode will be
        self._root.chmod(path, mode | 0o700)

    def _link(self, path: str, target: str) -> None:
        if self._root.exists(path):
            if self._root.readlink(path) == target:
                return
            self._take_away(path)
        fresh = f"{path.rpartition('/')[0]}/{safefs.TEMP_PREFIX}{secrets.token_hex(8)}".lstrip("/")
        self._root.symlink(target, fresh)
        try:
            self._root.rename(fresh, path, replace=True)
        except BaseException:
            with contextlib.suppress(OSError):
                self._root.unlink(fresh)
            raise
        self._done(path)

    def _file(self, path: str, member: Member, content: IO[bytes]) -> None:
        digest = self._hash.hexdigest()
        st = self._stat(path)
        if st is not None and st.st_size == member.size and self._digest(path, st) == digest:
            self.set_mode(path, member.mode)
            return
        if st is not None and not self._known(path):
            self.aside.move(path)
        content.seek(0)
        with self._root.create_atomic(path, mode=member.mode) as f:
            while chunk := content.read(2**20):
                f.write(chunk)
            f.commit(sync=False)
        self._done(path)

    def put(self, path: str, mode: int, data: bytes) -> None:
        """The file of an open document, which nobody else of ours writes now."""
        self._root.write_atomic(path, data, mode=mode, sync=False)
        self._done(path)

    def set_mode(self, path: str, mode: int) -> None:
        """Of a file whose content is right."""
        if S_IMODE(self._root.lstat(path).st_mode) & 0o777 != mode:
            self._root.chmod(path, mode)
            self._done(path)

    def keep(self, path: str) -> None:
        """A copy of the file as it is now, set aside."""
        self.aside.copy(path, MAX_FILE)

    def _done(self, path: str) -> None:
        self.changed.append(path)
        self.restored += 1

    # -- knowing

    def _stat(self, path: str) -> os.stat_result | None:
        try:
            return self._root.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def _digest(self, path: str, st: os.stat_result) -> str:
        entry = self._entries.get(path)
        inode = st.st_ino & (2**63 - 1)
        if entry is not None and entry[2:5] == (st.st_size, st.st_mtime_ns, inode) and entry.digest:
            return entry.digest
        fd = self._root.open_read(path)
        try:
            found = hashlib.sha256()
            while chunk := os.read(fd, 2**20):
                if self.stop:
                    raise Stopped
                found.update(chunk)
            return found.hexdigest()
        finally:
            os.close(fd)

    def known(self, path: str) -> bool:
        """Whether the log has what stands at ``path``, or nothing does."""
        return self._stat(path) is None or self._known(path)

    def _known(self, path: str) -> bool:
        st = self._root.lstat(path)
        entry, kind = self._entries.get(path), safefs.kind_of(st)
        if kind is safefs.Kind.SYMLINK:
            return (
                entry is not None and entry.kind is Kind.SYMLINK and entry.digest == self._root.readlink(path)
            )
        if kind is not safefs.Kind.FILE:
            return True  # pipes and sockets are nothing to keep
        return entry is not None and entry.kind is Kind.FILE and self._digest(path, st) == entry.digest

    def _read_ignore(self, content: IO[bytes]) -> None:
        content.seek(0)
        with contextlib.suppress(ValueError):
            self._then_ignored = Ignore(patterns_of(content.read(MAX_TOML + 1)))

    # -- the end

    def doomed(self) -> list[str]:
        """What was committed just before and is not in the older state, the deepest first."""
        return sorted(
            (
                path
                for path in self._entries.keys() - self._names
                if not _ours(path) and not self._then_ignored.beneath(path)
            ),
            reverse=True,
        )

    def delete(self, paths: Iterable[str]) -> None:
        """Remove these; folders only when nothing is left in them."""
        folder = ""
        for path in paths:
            if self.stop:
                raise Stopped
            above = path.rpartition("/")[0]
            if above != folder:
                folder = above
                with contextlib.suppress(OSError, safefs.InvalidPath):
                    self._open_folder(folder)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, safefs.InvalidPath):
                try:
                    if safefs.kind_of(self._root.lstat(path)) is safefs.Kind.DIRECTORY:
                        self._root.rmdir(path)
                    else:
                        self._take_away(path)
                        self.deleted += 1
                    self.changed.append(path)
                except (FileNotFoundError, NotADirectoryError):
                    raise
                except safefs.NotRegular:
                    continue  # a link or a file stands where its folder was
                except OSError:
                    if path not in self._entries or self._entries[path].kind is not Kind.DIRECTORY:
                        self.skipped.append(path)

    def finish(self) -> None:
        """Give the folders their modes."""
        for path, mode in sorted(self._folders.items(), reverse=True):
            with contextlib.suppress(OSError, safefs.InvalidPath):
                if S_IMODE(self._root.lstat(path).st_mode) & 0o777 != mode:
                    self._root.chmod(path, mode)


def _ours(path: str) -> bool:
    return path == ASIDE or path.startswith(ASIDE + "/") or safefs.is_temporary(path)
