"""A child process that the hub supervises: it dies with the hub and is restarted when it dies before it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path


class ServiceError(Exception):
    """An embedded service cannot run here; the text says why and what to do."""


#: Restarts are spaced by these pauses (seconds); the last one repeats.
_PAUSES = (0.1, 0.5, 1.0, 2.0, 5.0)
#: A child that lived this long (seconds) starts again with the first pause.
_SETTLED = 30.0
_LOG_LIMIT = 4 * 2**20

_DIE_WITH_PARENT = (
    # The signal that the kernel sends on the parent's death is set between fork and exec, and the parent may
    # be gone by then, so the parent's pid is compared. A preexec_fn would run Python after fork in a process
    # that has threads; this small interpreter does not.
    "import ctypes,os,signal,sys\n"
    "ctypes.CDLL(None).prctl(1,signal.SIGKILL)\n"
    "os.getppid()==int(sys.argv[1]) or sys.exit(1)\n"
    "os.execv(sys.argv[2],sys.argv[2:])"
)


class Child:
    """One supervised process. ``ready`` is awaited after each start and must raise `ServiceError` on timeout.

    Standard output and error go to ``log_file``, which is cut to its newer half above 4 MiB at each start.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        log_file: Path,
        ready: Callable[[], Awaitable[None]],
        log: logging.Logger,
        stop_signal: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.name = name
        self.restarts = 0
        self._argv = list(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._log_file = log_file
        self._ready = ready
        self._log = log
        self._stop_signal = stop_signal
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start and wait until ready. Raises `ServiceError` with the log's last lines."""
        await self._spawn()
        try:
            await self._until_ready()
        except BaseException:
            await self._end()
            raise
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self.name}")

    async def stop(self, grace: float = 10.0) -> None:
        """Ask it to end, then end it. Idempotent."""
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        await self._end(grace)

    def last_lines(self, count: int = 5) -> str:
        """The end of its log, for error texts."""
        with contextlib.suppress(OSError):
            return "\n".join(self._log_file.read_text(errors="replace").splitlines()[-count:])
        return ""

    async def _spawn(self) -> None:
        program = shutil.which(self._argv[0])
        if program is None:
            raise ServiceError(f"{self._argv[0]} is not installed")
        _trim(self._log_file)
        with self._log_file.open("ab") as out:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), program,
                *self._argv[1:],
                cwd=self._cwd, env=self._env, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
                # a Ctrl-C at the terminal is for the hub, which ends its services in order
                start_new_session=True,
            )  # fmt: skip

    async def _until_ready(self) -> None:
        assert self._process
        exited = asyncio.create_task(self._process.wait())
        ready = asyncio.ensure_future(self._ready())
        try:
            await asyncio.wait({exited, ready}, return_when=asyncio.FIRST_COMPLETED)
            if not ready.done():
                raise ServiceError(
                    f"{self.name} ended with status {exited.result()} while starting:\n{self.last_lines()}"
                )
            ready.result()
        finally:
            for task in (exited, ready):
                task.cancel()
            await asyncio.gather(exited, ready, return_exceptions=True)

    async def _keep(self) -> None:
        clock = asyncio.get_running_loop().time
        quick = 0
        while True:
            assert self._process
            born = clock()
            status = await self._process.wait()
            quick = 0 if clock() - born > _SETTLED else quick + 1
            pause = _PAUSES[min(quick, len(_PAUSES) - 1)]
            self._log.error("%s ended with status %s; starting it again in %s s", self.name, status, pause)
            await asyncio.sleep(pause)
            try:
                await self._spawn()
                self.restarts += 1
                await self._until_ready()
                self._log.warning("%s is back", self.name)
            except ServiceError as e:
                self._log.error("%s", e)
                await self._end()

    async def _end(self, grace: float = 5.0) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(self._stop_signal)
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
            except TimeoutError:
                self._log.warning("%s did not stop within %s s; killing it", self.name, grace)
                process.kill()
        await process.wait()


def _trim(log_file: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if log_file.stat().st_size > _LOG_LIMIT:
            log_file.write_bytes(log_file.read_bytes()[-_LOG_LIMIT // 2 :])


async def poll_until(check: Callable[[], Awaitable[bool]], *, what: str, timeout: float) -> None:
    """Call ``check`` every 50 ms until it gives True; `ServiceError` after ``timeout`` seconds."""
    try:
        async with asyncio.timeout(timeout):
            while not await check():  # noqa: ASYNC110 - another process cannot set an event
                await asyncio.sleep(0.05)
    except TimeoutError as e:
        raise ServiceError(f"{what} did not answer within {timeout:g} s") from e
