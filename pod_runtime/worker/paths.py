"""Names beneath the workspace: what a path may be, what can stand there, what can be wrong. No I/O."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

#: Our own unfinished files: the watcher, the log and listings leave them out.
TEMP_PREFIX = ".codevo-tmp-"
#: Longest path, bytes (PATH_MAX). What lies deeper cannot be addressed.
MAX_PATH = 4095
#: Longest name, bytes (NAME_MAX).
MAX_NAME = 255

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


@contextlib.contextmanager
def clear_errors(path: str) -> Iterator[None]:
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
