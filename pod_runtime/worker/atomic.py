"""Writing a file so that readers see the old one or the new one, never a part."""

from __future__ import annotations

import contextlib
import os
import secrets
from types import TracebackType
from typing import Self

from pod_runtime.worker.paths import TEMP_PREFIX, clear_errors


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
            with clear_errors(self._path):
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
        with clear_errors(self._path):
            view = memoryview(data)
            while view:
                view = view[os.write(self._fd, view) :]

    def set_mtime(self, mtime_ns: int) -> None:
        """Give the file this time of modification, nanoseconds since the epoch."""
        os.utime(self._fd, ns=(mtime_ns, mtime_ns))

    def sync(self) -> None:
        """Bring what was written to stable storage; `commit` needs not do it again then."""
        with clear_errors(self._path):
            os.fsync(self._fd)

    def commit(self, *, sync: bool = True) -> os.stat_result:
        """Put the file in its place (fsynced unless told otherwise); give its stat."""
        with clear_errors(self._path):
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
