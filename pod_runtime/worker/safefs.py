"""Files beneath /workspace, which hostile code writes while we read.

Every path is resolved from a descriptor of the root without following any symbolic link (openat2(2) with
``RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS``, or component by component where the kernel
or a sandbox has no openat2). Only regular files are opened, never with a blocking open: FIFOs, devices and
sockets are refused. Hard links are allowed: they cannot lead outside of their own mount, and user code can
only link to what it can reach itself.

Paths are relative POSIX paths as ``str``; bytes that are not UTF-8 are lone surrogates (PEP 383). ``""`` is
the root. All calls block on the disk: call them in a thread.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from pod_runtime.worker.atomic import AtomicFile
from pod_runtime.worker.paths import (
    MAX_NAME,
    MAX_PATH,
    TEMP_PREFIX,
    DiskFull,
    Entry,
    InvalidPath,
    Kind,
    NotRegular,
    TooLarge,
    check_path,
    clear_errors,
    is_temporary,
    join,
    kind_of,
)
from pod_runtime.worker.syscalls import DIRECTORY, openat2, openat2_works, rename_noreplace

__all__ = [
    "MAX_NAME",
    "MAX_PATH",
    "TEMP_PREFIX",
    "AtomicFile",
    "DiskFull",
    "Entry",
    "InvalidPath",
    "Kind",
    "NotRegular",
    "Root",
    "TooLarge",
    "check_path",
    "is_temporary",
    "join",
    "kind_of",
    "openat2_works",
]

_CHUNK = 1 << 20
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC


class Root:
    """A directory beneath which all paths are resolved. Safe to use from several threads.

    Every method raises `InvalidPath` for a bad path, `NotRegular` where a link or special file is in the
    way, `DiskFull`, and plain `OSError` subclasses (`FileNotFoundError` and friends) otherwise.
    """

    def __init__(self, path: str | Path, *, openat2: bool | None = None) -> None:
        """``openat2`` forces the system call on or off; by default it is used where it works."""
        self.path = str(path)
        self._fd = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._openat2 = openat2_works() if openat2 is None else openat2

    def close(self) -> None:
        """Let go of the root's descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # -- resolving

    def _open(self, parts: list[str], flags: int) -> int:
        if not parts:
            return os.open(".", flags & ~os.O_NOFOLLOW, dir_fd=self._fd)
        if self._openat2:
            return openat2(self._fd, os.fsencode("/".join(parts)), flags)
        folder = os.dup(self._fd)
        try:
            for part in parts[:-1]:
                inner = os.open(part, DIRECTORY, dir_fd=folder)
                os.close(folder)
                folder = inner
            return os.open(parts[-1], flags, dir_fd=folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _folder(self, parts: list[str]) -> Iterator[int]:
        fd = self._open(parts, DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """An ``O_PATH`` descriptor of a folder, closed at the end of the context."""
        with clear_errors(path), self._folder(check_path(path)) as fd:
            yield fd

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parts = check_path(path)
        if not parts:
            raise InvalidPath("The root folder itself cannot be changed")
        with clear_errors(path), self._folder(parts[:-1]) as fd:
            yield fd, parts[-1]

    # -- looking

    def lstat(self, path: str) -> os.stat_result:
        """What stands at ``path``, a link itself and not its target."""
        parts = check_path(path)
        if not parts:
            return os.fstat(self._fd)
        with self._parent(path) as (fd, name):
            return os.stat(name, dir_fd=fd, follow_symlinks=False)

    def exists(self, path: str) -> bool:
        """Whether anything stands at ``path``, even a dangling link."""
        try:
            self.lstat(path)
        except (FileNotFoundError, NotADirectoryError, NotRegular):
            return False
        return True

    def listdir(self, path: str, *, limit: int = 100_000) -> tuple[list[Entry], bool]:
        """Up to ``limit`` entries in no order, and whether there were more. Our temporaries are left out."""
        parts = check_path(path)
        found: list[Entry] = []
        with clear_errors(path):
            fd = self._open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                with os.scandir(fd) as entries:
                    for entry in entries:
                        if entry.name.startswith(TEMP_PREFIX):
                            continue
                        if len(found) >= limit:
                            return found, True
                        # it may have gone since
                        with contextlib.suppress(FileNotFoundError):
                            found.append(Entry(join(path, entry.name), entry.stat(follow_symlinks=False)))
            finally:
                os.close(fd)
        return found, False

    def walk(
        self,
        path: str = "",
        *,
        skip: Callable[[Entry], bool] | None = None,
        unreadable: Callable[[str, OSError | InvalidPath], None] | None = None,
    ) -> Iterator[Entry]:
        """Every entry beneath ``path``, folders before what they hold, siblings sorted by name.

        ``skip`` leaves an entry (and all beneath) out. Folders that vanish are passed over; those that cannot
        be read, and what lies deeper than `MAX_PATH`, are told to ``unreadable``.
        """
        todo = [path]
        while todo:
            folder = todo.pop()
            try:
                entries, _ = self.listdir(folder, limit=2**62)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, InvalidPath) as e:
                if unreadable is not None:
                    unreadable(folder, e)
                continue
            deeper: list[str] = []
            for entry in sorted(entries, key=lambda e: e.path):
                if skip is not None and skip(entry):
                    continue
                if len(os.fsencode(entry.path)) > MAX_PATH:
                    # a name that nothing could ask for, and that no record may hold
                    if unreadable is not None:
                        unreadable(entry.path, InvalidPath(f"The path is longer than {MAX_PATH} bytes"))
                    continue
                yield entry
                if entry.kind is Kind.DIRECTORY:
                    deeper.append(entry.path)
            todo.extend(reversed(deeper))

    # -- reading

    def open_read(self, path: str) -> int:
        """A descriptor of a regular file, for the caller to close. Never blocks."""
        parts = check_path(path)
        if not parts:
            raise IsADirectoryError(errno.EISDIR, "This is a folder", path)
        # looked at first, since only opening some devices already does something
        self._must_be_file(self.lstat(path), path)
        with clear_errors(path):
            fd = self._open(parts, _READ)
            try:
                self._must_be_file(os.fstat(fd), path)
            except BaseException:
                os.close(fd)
                raise
        return fd

    @staticmethod
    def _must_be_file(st: os.stat_result, path: str) -> None:
        kind = kind_of(st)
        if kind is Kind.DIRECTORY:
            raise IsADirectoryError(errno.EISDIR, "This is a folder", path)
        if kind is not Kind.FILE:
            raise NotRegular(errno.EINVAL, "This is not a regular file", path)

    def read_bytes(self, path: str, limit: int) -> bytes:
        """The whole file. Raises `TooLarge` above ``limit`` bytes, before reading where the size tells."""
        return self.read_with_stat(path, limit)[0]

    def read_with_stat(self, path: str, limit: int) -> tuple[bytes, os.stat_result]:
        """The whole file and the stat of the very file that was read. Raises `TooLarge`."""
        fd = self.open_read(path)
        try:
            with clear_errors(path):
                st = os.fstat(fd)
                too_large = TooLarge(errno.EFBIG, f"The file is larger than {limit} bytes", path)
                if st.st_size > limit:
                    raise too_large
                data = bytearray()
                while chunk := os.read(fd, min(_CHUNK, limit + 1 - len(data))):
                    data += chunk
                    if len(data) > limit:
                        raise too_large
                return bytes(data), st
        finally:
            os.close(fd)

    def readlink(self, path: str) -> str:
        """The target text of the symbolic link at ``path``."""
        with self._parent(path) as (fd, name):
            return os.readlink(name, dir_fd=fd)

    # -- changing

    def create_atomic(self, path: str, *, mode: int | None = None) -> AtomicFile:
        """A context manager to write a file in pieces and then put it in place of what is there.

        ``mode`` are permission bits; by default the old file's, else 0666 less the umask. A folder, link or
        special file at ``path`` is refused.
        """
        with self._parent(path) as (fd, name):
            try:
                old = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                pass
            else:
                self._must_be_file(old, path)
                if mode is None:
                    mode = stat.S_IMODE(old.st_mode)
            return AtomicFile(os.dup(fd), name, path, None if mode is None else mode & 0o777)

    def write_atomic(
        self, path: str, data: bytes, *, mode: int | None = None, sync: bool = True
    ) -> os.stat_result:
        """Replace the file's content in one step; see `create_atomic`. Gives the new file's stat."""
        with self.create_atomic(path, mode=mode) as f:
            f.write(data)
            return f.commit(sync=sync)

    def mkdir(self, path: str, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Make a folder. ``exist_ok`` accepts an existing folder only."""
        parts = check_path(path)
        for i in range(1 if parents else len(parts), len(parts) + 1):
            step = "/".join(parts[:i])
            with self._parent(step) as (fd, name):
                try:
                    os.mkdir(name, dir_fd=fd)
                except FileExistsError:
                    last = i == len(parts)
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if not stat.S_ISDIR(st.st_mode) or (last and not exist_ok):
                        raise

    def symlink(self, target: str, path: str) -> None:
        """Make a link; its target is text that nothing here follows."""
        with self._parent(path) as (fd, name):
            os.symlink(target, name, dir_fd=fd)

    def unlink(self, path: str) -> None:
        """Remove a file, link or special file; not a folder."""
        with self._parent(path) as (fd, name):
            os.unlink(name, dir_fd=fd)

    def rmdir(self, path: str) -> None:
        """Remove an empty folder."""
        with self._parent(path) as (fd, name):
            os.rmdir(name, dir_fd=fd)

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        """Move a file or folder. Without ``replace``, `FileExistsError` when something stands at ``new``."""
        with self._parent(old) as (old_fd, old_name), self._parent(new) as (new_fd, new_name):
            if replace:
                os.rename(old_name, new_name, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            else:
                rename_noreplace(old_fd, old_name, new_fd, new_name)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits (no setuid, setgid, sticky) of a file or folder; a link is refused."""
        parts = check_path(path)
        if kind_of(self.lstat(path)) not in (Kind.FILE, Kind.DIRECTORY):
            raise NotRegular(errno.EINVAL, "This is not a regular file or folder", path)
        with clear_errors(path):
            fd = self._open(parts, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if kind_of(os.fstat(fd)) not in (Kind.FILE, Kind.DIRECTORY):
                    raise NotRegular(errno.EINVAL, "This is not a regular file or folder", path)
                # fchmod(2) refuses O_PATH; the magic link names exactly this descriptor
                os.chmod(f"/proc/self/fd/{fd}", mode & 0o777)  # noqa: PTH101
            finally:
                os.close(fd)

    def utime(self, path: str, mtime_ns: int) -> None:
        """Set the modification time of whatever stands there, not following a link."""
        with self._parent(path) as (fd, name):
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=fd, follow_symlinks=False)

    def rmtree(self, path: str) -> None:
        """Remove a folder with all it holds, however deep, or a single file. Links are not followed."""
        parts = check_path(path)
        if not parts:
            raise InvalidPath("The root folder itself cannot be removed")
        if kind_of(self.lstat(path)) is not Kind.DIRECTORY:
            self.unlink(path)
            return
        with clear_errors(path):
            top = self._open(parts, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                _empty(top)
            finally:
                os.close(top)
        self.rmdir(path)

    def clean_temporaries(self, before: float = math.inf) -> int:
        """Remove unfinished files that were last touched ``before`` (time); give their number.

        Those of an earlier process, if that is when this one began.
        """
        count = 0
        for folder in ["", *(e.path for e in self.walk() if e.kind is Kind.DIRECTORY)]:
            with contextlib.suppress(OSError, InvalidPath), self._folder(check_path(folder)) as fd:
                inner = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                try:
                    for name in os.listdir(inner):  # noqa: PTH208
                        if not name.startswith(TEMP_PREFIX):
                            continue
                        if os.stat(name, dir_fd=inner, follow_symlinks=False).st_ctime < before:
                            os.unlink(name, dir_fd=inner)
                            count += 1
                finally:
                    os.close(inner)
        return count


def _empty(top: int) -> None:
    """Remove all beneath ``top``. Folders are first moved up, so neither depth nor descriptors grow."""
    todo: deque[str] = deque(os.listdir(top))
    while todo:
        name = todo.popleft()
        try:
            os.unlink(name, dir_fd=top)
            continue
        except FileNotFoundError:
            continue
        except (IsADirectoryError, PermissionError) as e:
            # unlink(2) of a folder is EISDIR on Linux, EPERM in POSIX
            if not stat.S_ISDIR(os.stat(name, dir_fd=top, follow_symlinks=False).st_mode):
                raise e
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
        try:
            for inner in os.listdir(fd):  # noqa: PTH208
                if stat.S_ISDIR(os.stat(inner, dir_fd=fd, follow_symlinks=False).st_mode):
                    lifted = TEMP_PREFIX + secrets.token_hex(8)
                    os.rename(inner, lifted, src_dir_fd=fd, dst_dir_fd=top)
                    todo.append(lifted)
                else:
                    os.unlink(inner, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=top)
