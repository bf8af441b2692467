"""The supervisor's log file: what runner and worker write, bounded in size, and its last lines as reasons."""

from __future__ import annotations

import os
import time

_CONTROL = {c: "?" for c in (*range(32), 127, *range(128, 160)) if c != 9}
LINE_MAX = 2000


class Log:
    """Appends lines to ``path``; at ``limit`` bytes the file becomes ``path.1``, replacing the one before."""

    def __init__(self, path: str, limit: int = 1_000_000) -> None:
        self._path = path
        self._limit = limit
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, who: str, text: str) -> None:
        """One line; control characters, which user code may have put in, are replaced."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = f"{stamp} {who}: {text[:LINE_MAX].translate(_CONTROL)}\n".encode("utf-8", "replace")
        try:
            if self._size + len(data) > self._limit:
                os.close(self._fd)
                os.replace(self._path, self._path + ".1")
                self._open()
            self._size += os.write(self._fd, data)
        except OSError:
            pass  # a full disk must not end the workspace


class Lines:
    """Splits what a process writes into lines; keeps the last few."""

    def __init__(self, log: Log, who: str, keep: int = 8) -> None:
        self._log = log
        self._who = who
        self._keep = keep
        self._rest = b""
        self.tail: list[str] = []

    def feed(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_MAX:
            lines.append(self._rest)
            self._rest = b""
        for raw in lines:
            line = raw[:LINE_MAX].decode("utf-8", "replace").rstrip()
            if line:
                self._log.write(self._who, line)
                self.tail = [*self.tail[-self._keep + 1 :], line[:400].translate(_CONTROL)]

    def finish(self) -> None:
        if self._rest:
            self.feed(b"\n")
