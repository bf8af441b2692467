"""inotify(7) over a tree whose owner is hostile: no link is followed, and names may be any bytes.

watchfiles does not serve here: its walk follows symbolic links out of the workspace (so one link to ``/``
watches the machine), and a name that is not UTF-8 ends it.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from typing import Literal

from pod_runtime.worker.safefs import InvalidPath, Kind, Root, is_temporary, join

ChangeKind = Literal["created", "modified", "deleted"]

#: Folders that are not looked into: large, and made by tools. (Open documents in them see changes on save.)
UNWATCHED = ("node_modules", ".git/objects")
#: Most folders that are watched; beyond it the tree is polled.
MAX_WATCHES = 20_000

_MODIFY, _ATTRIB, _CLOSE_WRITE = 0x2, 0x4, 0x8
_MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x40, 0x80, 0x100, 0x200
_Q_OVERFLOW, _IGNORED, _ISDIR = 0x4000, 0x8000, 0x40000000
_ONLYDIR, _EXCL_UNLINK = 0x01000000, 0x04000000
_MASK = (
    _MODIFY | _ATTRIB | _CLOSE_WRITE | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE | _ONLYDIR | _EXCL_UNLINK
)
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class Overflow(Exception):
    """Events were lost; anything may have changed. Watching goes on."""


def unwatched(path: str) -> bool:
    """Whether ``path`` is a folder that is not looked into."""
    return any(path == name or path.endswith("/" + name) for name in UNWATCHED)


class Inotify:
    """Watches every folder beneath a root. Not thread-safe: one call at a time."""

    def __init__(self, root: Root) -> None:
        """Raises ``OSError`` when the machine has no instances left."""
        self._root = root
        self.fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._paths: dict[int, str] = {}
        self._numbers: dict[str, int] = {}

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def add_tree(self, folder: str = "") -> list[str]:
        """Watch ``folder`` and all beneath; give the entries found. ``OSError`` (ENOSPC): out of watches."""
        if unwatched(folder):
            return []
        self._add(folder)
        found = []
        for entry in self._root.walk(folder, skip=lambda e: e.kind is Kind.DIRECTORY and unwatched(e.path)):
            found.append(entry.path)
            if entry.kind is Kind.DIRECTORY:
                self._add(entry.path)
        return found

    def _add(self, folder: str) -> None:
        if len(self._paths) >= MAX_WATCHES:
            raise OSError(errno.ENOSPC, "too many folders to watch")
        try:
            with self._root.folder(folder) as fd:
                number = _libc.inotify_add_watch(self.fd, b"/proc/self/fd/%d" % fd, _MASK)
                code = ctypes.get_errno()
        except (OSError, InvalidPath):
            return  # gone or unreadable by now
        if number < 0:
            if code in (errno.ENOENT, errno.ENOTDIR, errno.EACCES):
                return
            raise OSError(code, "inotify_add_watch")
        self._paths[number] = folder
        self._numbers[folder] = number

    def _remove_tree(self, folder: str) -> None:
        for path in [p for p in self._numbers if p == folder or p.startswith(folder + "/")]:
            number = self._numbers.pop(path)
            if self._paths.get(number) == path:
                del self._paths[number]
                _libc.inotify_rm_watch(self.fd, number)

    def read(self) -> dict[str, ChangeKind]:
        """What changed since the last call, never blocking. Raises `Overflow`."""
        found: dict[str, ChangeKind] = {}
        while True:
            try:
                data = os.read(self.fd, 64 * 1024)
            except BlockingIOError:
                return found
            at = 0
            while at < len(data):
                number, mask, _, length = _EVENT.unpack_from(data, at)
                at += _EVENT.size
                name = data[at : at + length].rstrip(b"\0")
                at += length
                if mask & _Q_OVERFLOW:
                    self._resync()
                    raise Overflow
                self._event(found, number, mask, os.fsdecode(name))

    def _event(self, found: dict[str, ChangeKind], number: int, mask: int, name: str) -> None:
        folder = self._paths.get(number)
        if mask & _IGNORED:
            if folder is not None:
                del self._paths[number]
                if self._numbers.get(folder) == number:
                    del self._numbers[folder]
            return
        if folder is None or not name or is_temporary(name):
            return
        path = join(folder, name)
        if mask & (_DELETE | _MOVED_FROM):
            found[path] = "deleted"
            if mask & _ISDIR:
                self._remove_tree(path)
        elif mask & (_CREATE | _MOVED_TO):
            # a rename over a file that was there changes it for those who knew it
            found[path] = "modified" if found.get(path) == "deleted" else "created"
            if mask & _ISDIR:
                for inner in self.add_tree(path):
                    found.setdefault(inner, "created")
        elif not mask & _ISDIR:
            found.setdefault(path, "modified")

    def _resync(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.fd, 64 * 1024):
                pass
        self.add_tree()
