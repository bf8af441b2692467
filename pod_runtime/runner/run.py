"""One command of a Run: its processes, its pipes, and how it is ended."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from pod_runtime.runner.output import OutputBuffer
from pod_runtime.runner.processes import ExitWatch, Reader, Writer, drain, marked, session_members, signal_all

#: The environment variable that marks a Run's processes, wherever they have daemonised to.
MARKER = "CODEVO_RUN"
FLUSH_INTERVAL = 0.03
MAX_PER_FLUSH = 256 * 1024
MAX_STDIN = 2**20
INTERRUPT_GRACE = 3.0
TERMINATE_GRACE = 2.0
KILL_TIMEOUT = 5.0
_QUIET = 0.2
_READ_CALL = {"x86_64": 0, "aarch64": 63}.get(platform.machine(), 0)
_PROMPT_ENDS = (":", "?", ">", "$", "]", ")", "=")
#: coreutils' way to have C programs write line by line into a pipe, and show a prompt before they read.
_LINE_BUFFERS = next(
    (
        p
        for p in ("/usr/libexec/coreutils/libstdbuf.so", "/usr/lib/coreutils/libstdbuf.so")
        if Path(p).exists()
    ),
    None,
)


def stream_environment() -> dict[str, str]:
    """What makes programs show their output at once although it is no terminal that they write to."""
    env = {"PYTHONUNBUFFERED": "1"}
    if _LINE_BUFFERS is not None:
        env |= {"LD_PRELOAD": _LINE_BUFFERS, "_STDBUF_O": "L", "_STDBUF_I": "L"}
        # sanitizers want to be the first library, and may as well be the second
        env["ASAN_OPTIONS"] = "verify_asan_link_order=0"
    return env


def waits_for_input(pid: int, pipe: os.stat_result) -> bool:
    """Whether the process is blocked in read(2) on ``pipe``. False also where the kernel does not tell."""
    try:
        call, *arguments = Path(f"/proc/{pid}/syscall").read_text().split()
        if not call.isdigit() or int(call) != _READ_CALL:
            return False
        found = os.stat(f"/proc/{pid}/fd/{int(arguments[0], 16)}")  # noqa: PTH116
    except (OSError, ValueError, IndexError):
        return False
    return (found.st_dev, found.st_ino) == (pipe.st_dev, pipe.st_ino)


def looks_like_prompt(line: str) -> bool:
    """Whether an unfinished last line asks for something."""
    return "\r" not in line and line.rstrip().endswith(_PROMPT_ENDS)


async def end_processes(marker: str, sessions: set[int], grace: float = TERMINATE_GRACE) -> None:
    """TERM, then KILL after ``grace`` seconds, to all processes of a Run."""

    def find() -> list[int]:
        return sorted({*marked(marker), *session_members(sessions)})

    found = await asyncio.to_thread(find)
    signal_all(found, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while found and time.monotonic() < deadline:
        await asyncio.sleep(0.03)
        found = await asyncio.to_thread(find)
    # not for ever: a process in an uninterruptible wait dies when it can
    deadline += KILL_TIMEOUT
    while found and time.monotonic() < deadline:
        signal_all(found, signal.SIGKILL)
        await asyncio.sleep(0.03)
        found = await asyncio.to_thread(find)


class Command:
    """A running shell command. ``emit(name, text)`` gets its output in batches, ``ask()`` is called when it
    seems to wait for a line of input."""

    def __init__(
        self,
        argv: list[str],
        env: dict[str, str],
        cwd: Path,
        emit: Callable[[str, str], None],
        ask: Callable[[], None] | None,
    ) -> None:
        self._emit = emit
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._popen = subprocess.Popen(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )
        assert self._popen.stdin and self._popen.stdout and self._popen.stderr
        self.pid = self._popen.pid
        self.exit = ExitWatch(self.pid)
        self._stdin: Writer | None = Writer(self._popen.stdin.fileno(), MAX_STDIN)
        self._pipe = os.fstat(self._popen.stdin.fileno())
        self._buffer = OutputBuffer(now=time.monotonic())
        self._last_line = ""
        self._last_output = time.monotonic()
        self._asked = False
        self._read = 0
        self._tick: asyncio.TimerHandle | None = None
        self._fds = {"stdout": self._popen.stdout.fileno(), "stderr": self._popen.stderr.fileno()}
        self._readers = [
            Reader(fd, lambda data, name=name: self._got(name, data), lambda: None)  # type: ignore[misc]
            for name, fd in self._fds.items()
        ]

    def _got(self, name: str, data: bytes) -> None:
        self._note(self._buffer.add(name, data))
        self._last_output = time.monotonic()
        self._read += len(data)
        if self._read > MAX_PER_FLUSH:
            # a program that floods waits for us, so that it cannot take the whole runner's time
            for reader in self._readers:
                reader.pause()
        if self._tick is None:
            self._tick = self._loop.call_later(FLUSH_INTERVAL, self._flush)

    def _note(self, text: str) -> None:
        _, newline, last = text.rpartition("\n")
        self._last_line = (last if newline else self._last_line + text)[-200:]

    def _flush(self) -> None:
        self._tick = None
        for name, text in self._buffer.take(time.monotonic()):
            self._emit(name, text)
        self._read = 0
        for reader in self._readers:
            reader.resume()
        if self._buffer.size:
            self._tick = self._loop.call_later(FLUSH_INTERVAL, self._flush)

    async def write(self, data: bytes) -> None:
        """Put input on the program's stdin."""
        self._asked = False
        self._last_line = ""
        if self._stdin is not None:
            await self._stdin.write(data)

    def end_input(self) -> None:
        """End of file on the program's stdin."""
        if self._stdin is not None:
            self._stdin.close()
            self._stdin = None
            assert self._popen.stdin
            self._popen.stdin.close()

    def interrupt(self, sig: signal.Signals) -> None:
        """Signal the command's process group."""
        self.exit.signal_group(sig)

    async def _watch_input(self) -> None:
        """Ask once each time that the program waits for input."""
        pause = _QUIET
        seen = self._last_output
        while True:
            await asyncio.sleep(pause)
            if self._asked or self._stdin is None or self._ask is None:
                pause = _QUIET
                continue
            pause = _QUIET if seen != self._last_output else min(pause * 1.5, 2.0)
            seen = self._last_output
            if time.monotonic() - self._last_output < _QUIET:
                continue
            if looks_like_prompt(self._last_line) or await asyncio.to_thread(self._waits):
                self._asked = True
                self._ask()

    def _waits(self) -> bool:
        return any(waits_for_input(pid, self._pipe) for pid in session_members({self.pid}))

    async def wait(self) -> int:
        """Wait for the end; all output has been emitted then. Gives the exit code, negative for a signal."""
        watch = self._loop.create_task(self._watch_input())
        try:
            code = await asyncio.shield(self.exit.done)
            self._popen.returncode = code
            return code
        finally:
            watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watch
            self._finish()

    def _finish(self) -> None:
        if self._tick is not None:
            self._tick.cancel()
            self._tick = None
        for reader, (name, fd) in zip(self._readers, self._fds.items(), strict=True):
            reader.close()
            # what the program wrote before its end is in the pipe, whoever else may still hold it
            data, _ = drain(fd, 2**20)
            self._buffer.add(name, data, final=True)
        for name, text in self._buffer.take(time.monotonic(), final=True):
            self._emit(name, text)
        self.end_input()
        assert self._popen.stdout and self._popen.stderr
        self._popen.stdout.close()
        self._popen.stderr.close()
