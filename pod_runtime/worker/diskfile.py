"""A document's file on disk: read with what identifies its state, replaced only in the state one knows."""

from __future__ import annotations

import os
import stat
import time
from dataclasses import dataclass

from pod_runtime.worker.safefs import NotRegular, Root, TooLarge
from pod_runtime.worker.textfile import TextFile, sha256

#: A file that changed so shortly before it was looked at may change again without its times telling,
#: nanoseconds.
RACY = 50_000_000


class Changed(Exception):
    """Somebody else wrote the file just now."""


@dataclass(frozen=True, slots=True)
class DiskFile:
    """A file as read: its text, the hash of its bytes, and what identifies this very state of it."""

    file: TextFile
    digest: str
    key: FileKey


@dataclass(frozen=True, slots=True)
class FileKey:
    """Identifies a state of a file by its stat. While not ``sure`` its content may be another all the same:
    the clock of the file system stands still for some milliseconds. ``mode`` are its permission bits."""

    stat: tuple[int, int, int, int]
    sure: bool
    mode: int | None = None

    @classmethod
    def of(cls, st: os.stat_result) -> FileKey:
        # the time of change is the one that programs cannot set
        return cls(_numbers(st), abs(time.time_ns() - st.st_ctime_ns) > RACY, stat.S_IMODE(st.st_mode))


def _numbers(st: os.stat_result) -> tuple[int, int, int, int]:
    return (st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)


#: The state of a file that is not there.
NO_FILE = FileKey((0, 0, 0, 0), True)


def read_file(root: Root, path: str, limit: int) -> DiskFile:
    """Read for a document. Raises `NotText`, `TooLarge`, `NotRegular`, ``OSError``. Blocks."""
    data, st = root.read_with_stat(path, limit)
    return DiskFile(TextFile.decode(data), sha256(data), FileKey.of(st))


def write_file(root: Root, path: str, limit: int, data: bytes, expected: FileKey, digest: str) -> FileKey:
    """Replace the file that is ``expected`` with this ``digest``, atomically; what identifies the new one.

    Raises `Changed`, ``OSError``. Blocks.
    """
    folder = path.rpartition("/")[0]
    lost = expected.stat == NO_FILE.stat
    if lost and folder:
        root.mkdir(folder, parents=True, exist_ok=True)
    _compare(root, path, limit, expected, digest)
    with root.create_atomic(path, mode=expected.mode if lost else None) as f:
        f.write(data)
        f.sync()
        # once more: what somebody wrote in the meantime must not be lost
        _compare(root, path, limit, expected, digest)
        return FileKey.of(f.commit(sync=False))


def _compare(root: Root, path: str, limit: int, expected: FileKey, digest: str) -> None:
    try:
        same = FileKey.of(root.lstat(path)).stat == expected.stat
        if same and not expected.sure:
            same = sha256(root.read_bytes(path, limit)) == digest
    except (FileNotFoundError, NotADirectoryError):
        same = expected.stat == NO_FILE.stat
    except (TooLarge, NotRegular):
        same = False
    if not same:
        raise Changed
