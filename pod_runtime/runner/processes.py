"""Starting, watching and ending processes without threads and without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

_READ = 64 * 1024


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/{pid}/stat after the name (``[0]`` state, ``[2]`` group, ``[3]`` session)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def pids() -> Iterator[int]:
    """All processes that this one can see."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - a Path per process would cost more than the reading
        if name.isdigit():
            yield int(name)


def session_members(sessions: set[int]) -> list[int]:
    """The living processes of these sessions."""
    found = []
    for pid in pids():
        fields = _stat(pid)
        if fields and fields[0] not in "ZX" and int(fields[3]) in sessions:
            found.append(pid)
    return found


def marked(marker: str) -> list[int]:
    """The living processes whose first environment holds ``marker`` (``NAME=value``)."""
    wanted = marker.encode()
    found = []
    for pid in pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as f:  # noqa: PTH123
            if wanted in f.read().split(b"\0"):
                found.append(pid)
    return found


def signal_all(targets: list[int], sig: signal.Signals) -> None:
    """Signal each process; those that are gone are passed over."""
    for pid in targets:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, sig)


class ExitWatch:
    """Waits for one child by pidfd (Linux 5.3) and reaps it. ``done`` resolves to the wait status' exit code
    (negative for a signal, as in `subprocess`)."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self._loop.create_future()
        self._fd = os.pidfd_open(pid)
        self._loop.add_reader(self._fd, self._exited)

    @property
    def alive(self) -> bool:
        return not self.done.done()

    def _exited(self) -> None:
        self._loop.remove_reader(self._fd)
        os.close(self._fd)
        try:
            _, status = os.waitpid(self.pid, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status)
        except ChildProcessError:
            code = 255
        if not self.done.done():
            self.done.set_result(code)

    def send(self, sig: signal.Signals) -> None:
        """Signal the child itself, if it has not been reaped."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, sig)

    def signal_group(self, sig: signal.Signals) -> None:
        """Signal the group that the child leads; nothing once it is reaped, since ids are reused."""
        if self.alive:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, sig)


class Writer:
    """Writes to one non-blocking descriptor in order, holding at most ``limit`` bytes for a slow reader."""

    def __init__(self, fd: int, limit: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._limit = limit
        self._buffer = bytearray()
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._closed = False
        self._room = asyncio.Event()
        self._room.set()

    @property
    def pending(self) -> int:
        return len(self._buffer)

    async def write(self, data: bytes) -> None:
        """Queue ``data``; waits only while ``limit`` bytes are waiting already. Silent after `close`."""
        await self._room.wait()
        if self._closed:
            return
        self._buffer += data
        self._flush()

    def clear(self) -> None:
        """Forget what the reader has not taken."""
        self._buffer.clear()
        self._update()

    def _flush(self) -> None:
        try:
            while self._buffer:
                sent = os.write(self._fd, memoryview(self._buffer)[:_READ])
                del self._buffer[:sent]
        except BlockingIOError:
            pass
        except OSError:
            # nobody will read this again
            self._buffer.clear()
        self._update()

    def _update(self) -> None:
        if self._buffer and not self._writing:
            self._loop.add_writer(self._fd, self._flush)
        elif not self._buffer and self._writing:
            self._loop.remove_writer(self._fd)
        self._writing = bool(self._buffer)
        if len(self._buffer) < self._limit:
            self._room.set()
        else:
            self._room.clear()

    def close(self) -> None:
        """Stop; the descriptor is the caller's to close."""
        self._closed = True
        self._buffer.clear()
        self._update()
        self._room.set()


class Reader:
    """Reads one non-blocking descriptor while not paused, giving pieces to ``got``, the end to ``end``."""

    def __init__(self, fd: int, got: Callable[[bytes], None], end: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._got = got
        self._end = end
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._closed = False
        self.resume()

    @property
    def paused(self) -> bool:
        return not self._reading

    def pause(self) -> None:
        if self._reading:
            self._loop.remove_reader(self._fd)
            self._reading = False

    def resume(self) -> None:
        if not self._reading and not self._closed:
            self._loop.add_reader(self._fd, self._ready)
            self._reading = True

    def _ready(self) -> None:
        data, ended = drain(self._fd, _READ)
        if data:
            self._got(data)
        if ended and not self._closed:
            self.close()
            self._end()

    def close(self) -> None:
        """Stop; the descriptor is the caller's to close."""
        self.pause()
        self._closed = True


def drain(fd: int, limit: int) -> tuple[bytes, bool]:
    """Read what is there, about ``limit`` bytes at most, and whether the end was reached (a PTY's is EIO)."""
    pieces: list[bytes] = []
    size = 0
    while size < limit:
        try:
            piece = os.read(fd, _READ)
        except BlockingIOError:
            return b"".join(pieces), False
        except OSError:
            return b"".join(pieces), True
        if not piece:
            return b"".join(pieces), True
        pieces.append(piece)
        size += len(piece)
    return b"".join(pieces), False
