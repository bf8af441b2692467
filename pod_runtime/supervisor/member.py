"""Runner, worker and network helper as the supervisor holds them: pids, pidfds, output, restarts."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time

from pod_runtime.supervisor import network, process
from pod_runtime.supervisor.logs import Lines, Log

_CRASHES = 10
_WINDOW = 60.0
_DELAY_FIRST = 0.05
_DELAY_MAX = 2.0
_INIT_SECONDS = 5.0


class Member:
    """One process that we started. ``pid`` is our child; ``program()`` the one of interest inside it."""

    def __init__(self, name: str, log: Log) -> None:
        self.name = name
        self.lines = Lines(log, name)
        self.restarts = 0
        self.crashes: list[float] = []
        self.exit_code = 0
        self.paused = False
        self.pid = 0
        self.pidfd = -1
        self.output = -1
        self.init = 0
        self._program = 0
        self._program_fd = -1

    @property
    def running(self) -> bool:
        return self.pid != 0

    def started(self, pid: int, output: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.output = output
        self.init = 0
        os.set_blocking(output, False)

    def program(self) -> int:
        """The pid of the program itself; 0 when it is not (yet) there."""
        if self._program or not self.running:
            return self._program
        child = process.only_child(self.init) if self.init else self.pid
        if child:
            with contextlib.suppress(OSError):
                self._program_fd = os.pidfd_open(child)
                self._program = child
        return self._program

    def wait_for_program(self, seconds: float) -> None:
        """Until bubblewrap's init has started the program, a matter of milliseconds."""
        deadline = time.monotonic() + seconds
        while self.running and not self.program() and time.monotonic() < deadline:
            if select.select([self.pidfd], [], [], 0.002)[0]:
                return

    def terminate(self) -> None:
        """SIGTERM to the program; when that cannot be found, SIGKILL to all of it."""
        self.wait_for_program(1.0)
        if self._program_fd >= 0:
            _signal(self._program_fd, signal.SIGTERM)
        else:
            self.kill()

    def kill(self) -> None:
        """SIGKILL; a sandbox dies as a whole with its monitor."""
        if self.pidfd >= 0:
            _signal(self.pidfd, signal.SIGKILL)
            if self.init:
                with contextlib.suppress(OSError):
                    os.kill(self.init, signal.SIGKILL)

    def read(self) -> int:
        """Take in what it wrote; gives how many bytes, 0 at the end of its output."""
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return 1
        self.lines.feed(data)
        return len(data)

    def reap(self) -> str:
        """After its exit: collect it and say how it ended, in words; the number is in ``exit_code``."""
        _, status = os.waitpid(self.pid, 0)
        self._reap_init()
        while self.output >= 0 and self._drain():
            pass
        self.lines.finish()
        self.close_output()
        for fd in (self.pidfd, self._program_fd):
            if fd >= 0:
                os.close(fd)
        self.pid = self.init = self._program = 0
        self.pidfd = self._program_fd = -1
        code = os.waitstatus_to_exitcode(status)
        self.exit_code = code
        return f"killed by signal {-code}" if code < 0 else f"exit code {code}"

    def _reap_init(self) -> None:
        """Wait for the sandbox's init too, which is ours now: after it nothing of the sandbox is left."""
        deadline = time.monotonic() + _INIT_SECONDS
        with contextlib.suppress(ChildProcessError):
            while self.init and time.monotonic() < deadline and os.waitpid(self.init, os.WNOHANG)[0] == 0:
                time.sleep(0.002)

    def _drain(self) -> bool:
        try:
            data = os.read(self.output, 65536)
        except BlockingIOError:
            return False
        self.lines.feed(data)
        return bool(data)

    def close_output(self) -> None:
        if self.output >= 0:
            os.close(self.output)
            self.output = -1

    def crashed(self, now: float) -> float | None:
        """Count a crash; gives the delay before the next start, None after too many in a minute."""
        self.crashes = [t for t in self.crashes if now - t < _WINDOW] + [now]
        self.restarts += 1
        if len(self.crashes) >= _CRASHES:
            return None
        return float(min(_DELAY_MAX, _DELAY_FIRST * 2 ** (len(self.crashes) - 1)))


def _signal(pidfd: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


def read_child_pid(info: int, seconds: float) -> int:
    """bubblewrap's ``--info-fd``: the pid of the sandbox's init, 0 when bubblewrap ended instead."""
    text = b""
    while b"}" not in text:
        data = network.wait_readable(info, seconds)
        if not data:
            return 0
        text += data
    _, _, rest = text.partition(b'"child-pid":')
    return int(rest.strip().split(b",")[0].split(b"\n")[0].split(b"}")[0])
