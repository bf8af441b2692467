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
import ctypes
import errno
import math
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

#: Our own unfinished files: the watcher, the log and listings leave them out.
TEMP_PREFIX = ".codevo-tmp-"
#: Longest path, bytes (PATH_MAX). What lies deeper cannot be addressed.
MAX_PATH = 4095
#: Longest name, bytes (NAME_MAX).
MAX_NAME = 255

_CHUNK = 1 << 20
_DIR = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class InvalidPath(ValueError):
    """The path is absolute, climbs, is too long, or holds an empty component or NUL."""


class NotRegular(OSError):
    """Something of another kind stands there: a link, a FIFO, a device, a socket."""


class TooLarge(OSError):
    """The file is larger than the caller's limit."""


class DiskFull(OSError):
    """No space, quota or allowed file size left; what was there before is untouched."""


class Kind(StrEnum):
    """What a directory entry is. ``OTHER`` is never opened."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry: its path beneath the root and what lstat(2) says. Symlinks are not followed."""

    path: str
    stat: os.stat_result

    @property
    def kind(self) -> Kind:
        return kind_of(self.stat)

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def kind_of(st: os.stat_result) -> Kind:
    """The kind that ``st_mode`` tells."""
    if stat.S_ISREG(st.st_mode):
        return Kind.FILE
    if stat.S_ISDIR(st.st_mode):
        return Kind.DIRECTORY
    return Kind.SYMLINK if stat.S_ISLNK(st.st_mode) else Kind.OTHER


def check_path(path: str) -> list[str]:
    """The components of ``path`` (none for the root). Raises `InvalidPath` with a text for people."""
    if path == "":
        return []
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as e:
        raise InvalidPath("The path is not valid text") from e
    if b"\0" in raw:
        raise InvalidPath("The path contains a NUL byte")
    if len(raw) > MAX_PATH:
        raise InvalidPath(f"The path is longer than {MAX_PATH} bytes")
    parts = path.split("/")
    for part, name in zip(parts, raw.split(b"/"), strict=True):
        if part == "":
            raise InvalidPath("The path is absolute or has an empty component")
        if part in (".", ".."):
            raise InvalidPath("The path must not contain . or ..")
        if len(name) > MAX_NAME:
            raise InvalidPath(f"A name in the path is longer than {MAX_NAME} bytes")
    return parts


def is_temporary(path: str) -> bool:
    """Whether the last component is one of our unfinished files."""
    return path.rpartition("/")[2].startswith(TEMP_PREFIX)


def join(folder: str, name: str) -> str:
    """``folder/name``, where ``folder`` may be the root."""
    return f"{folder}/{name}" if folder else name


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE = 0x08 | 0x04 | 0x02  # BENEATH | NO_SYMLINKS | NO_MAGICLINKS
_libc = ctypes.CDLL(None, use_errno=True)


def _openat2(root: int, path: bytes, flags: int) -> int:
    how = _OpenHow(flags, 0, _RESOLVE)
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), path, ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))


def openat2_works() -> bool:
    """Whether the kernel (and its seccomp filter) has openat2."""
    try:
        root = os.open("/", _DIR)
    except OSError:
        return False
    try:
        os.close(_openat2(root, b".", _DIR))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


@contextlib.contextmanager
def _clear_errors(path: str) -> Iterator[None]:
    """Say ``path`` in errors, and turn the errors of a full disk into `DiskFull`."""
    try:
        yield
    except (NotRegular, TooLarge, DiskFull):
        raise
    except OSError as e:
        if e.errno in _FULL:
            raise DiskFull(e.errno, "The disk is full, or the file is larger than allowed", path) from e
        if e.errno == errno.ELOOP:
            raise NotRegular(e.errno, "A symbolic link is in the way", path) from e
        raise OSError(e.errno, e.strerror, path) from e


class AtomicFile:
    """A file being written beside its target; `commit` puts it there, leaving the context aborts it.

    Made by `Root.create_atomic`. Until `commit` returns, readers see what was there before.
    """

    def __init__(self, folder: int, name: str, path: str, mode: int | None) -> None:
        self._folder, self._name, self._path, self._mode = folder, name, path, mode
        self._temp = TEMP_PREFIX + secrets.token_hex(8)
        self._fd = -1

    def __enter__(self) -> Self:
        try:
            with _clear_errors(self._path):
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                self._fd = os.open(self._temp, flags, 0o666, dir_fd=self._folder)
                if self._mode is not None:
                    os.fchmod(self._fd, self._mode)
        except BaseException:
            self._abort()
            raise
        return self

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises `DiskFull`."""
        with _clear_errors(self._path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def set_mtime(self, mtime_ns: int) -> None:
        """Give the file this time of modification, nanoseconds since the epoch."""
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))

    def commit(self, *, sync: bool = True) -> os.stat_result:
        """Put the file in its place (fsynced unless told otherwise); give its stat."""
        with _clear_errors(self._path):
            if sync:
                os.fsync(self._fd)
            os.rename(self._temp, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temp = ""
            return os.fstat(self._fd)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort()

    def _abort(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            if self._temp:
                with contextlib.suppress(OSError):
                    os.unlink(self._temp, dir_fd=self._folder)
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


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
            return _openat2(self._fd, os.fsencode("/".join(parts)), flags)
        folder = os.dup(self._fd)
        try:
            for part in parts[:-1]:
                inner = os.open(part, _DIR, dir_fd=folder)
                os.close(folder)
                folder = inner
            return os.open(parts[-1], flags, dir_fd=folder)
        finally:
            os.close(folder)

    @contextlib.contextmanager
    def _folder(self, parts: list[str]) -> Iterator[int]:
        fd = self._open(parts, _DIR)
        try:
            yield fd
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def folder(self, path: str) -> Iterator[int]:
        """An ``O_PATH`` descriptor of a folder, closed at the end of the context."""
        with _clear_errors(path), self._folder(check_path(path)) as fd:
            yield fd

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parts = check_path(path)
        if not parts:
            raise InvalidPath("The root folder itself cannot be changed")
        with _clear_errors(path), self._folder(parts[:-1]) as fd:
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
        with _clear_errors(path):
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
        be read, or lie deeper than `MAX_PATH`, are told to ``unreadable``.
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
        with _clear_errors(path):
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
            with _clear_errors(path):
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
                _rename_noreplace(old_fd, old_name, new_fd, new_name)

    def chmod(self, path: str, mode: int) -> None:
        """Set the permission bits (no setuid, setgid, sticky) of a file or folder; a link is refused."""
        parts = check_path(path)
        if kind_of(self.lstat(path)) not in (Kind.FILE, Kind.DIRECTORY):
            raise NotRegular(errno.EINVAL, "This is not a regular file or folder", path)
        with _clear_errors(path):
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
        with _clear_errors(path):
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


_SYS_RENAME_NOREPLACE = 1


def _rename_noreplace(old_fd: int, old: str, new_fd: int, new: str) -> None:
    renameat2 = getattr(_libc, "renameat2", None)
    code = errno.ENOSYS
    if renameat2 is not None:
        if renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), _SYS_RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), new)
    # a file system without the flag: look first; the race that is left loses no more than mv(1) would
    try:
        os.stat(new, dir_fd=new_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)


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
