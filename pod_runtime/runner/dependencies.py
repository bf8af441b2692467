"""Prepared dependencies: a lock file that the installation knows gets its ``node_modules`` by a copy."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from pod_runtime.runner.processes import ExitWatch
from pod_runtime.runner.project import ProjectError

log = logging.getLogger(__name__)
_MAX_LOCK = 32 * 2**20
_UNFINISHED = re.compile(r"node_modules\.tmp-[0-9a-f]+")


def _lock_hash(root: Path) -> str | None:
    try:
        fd = os.open(root / "package-lock.json", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as f:
        data = f.read(_MAX_LOCK + 1)
    return hashlib.sha256(data).hexdigest() if len(data) <= _MAX_LOCK else None


class Dependencies:
    """Copies in the background; a Run waits for it."""

    def __init__(self, root: Path, prepared: Path | None) -> None:
        self._root = root
        self._prepared = prepared
        self._task: asyncio.Task[None] | None = None

    @property
    def working(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Look, and begin to copy when there is something to copy."""
        if self._prepared is not None and not self.working:
            self._task = asyncio.get_running_loop().create_task(self._fill(self._prepared))

    async def wait(self) -> None:
        """Wait for the copy to end, well or not."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def _look(self, prepared: Path) -> Path | None:
        if (self._root / "node_modules").exists() or not (self._root / "package.json").is_file():
            return None
        for leftover in self._root.glob("node_modules.tmp-*"):
            if _UNFINISHED.fullmatch(leftover.name):
                shutil.rmtree(leftover, ignore_errors=True)
        digest = _lock_hash(self._root)
        source = prepared / digest / "node_modules" if digest else None
        return source if source is not None and source.is_dir() else None

    async def _fill(self, prepared: Path) -> None:
        source = await asyncio.to_thread(self._look, prepared)
        if source is None:
            return
        target = self._root / f"node_modules.tmp-{os.getpid():x}"
        try:
            code = await _copy(source, target)
            if code != 0:
                raise ProjectError(f"cp ended with {code}")
            target.rename(self._root / "node_modules")
        except (OSError, ProjectError) as e:
            log.warning("the prepared node_modules could not be copied: %s", e)
        finally:
            if target.exists():
                await asyncio.shield(asyncio.to_thread(shutil.rmtree, target, ignore_errors=True))


async def _copy(source: Path, target: Path) -> int:
    command = ["cp", "-a", "--no-preserve=ownership", "--reflink=auto", "--", str(source), str(target)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: ASYNC220 - returns at exec
    watch = ExitWatch(process.pid)
    try:
        process.returncode = await asyncio.shield(watch.done)
    except asyncio.CancelledError:
        watch.send(signal.SIGKILL)
        process.returncode = await watch.done
        raise
    return process.returncode
