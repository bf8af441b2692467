"""The hub's end of a supervisor's socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LINE_MAX = 2**20
_PATH_MAX = 107


async def connect(socket_path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a Unix socket whose path may be longer than an address holds. Raises OSError."""
    if len(os.fsencode(socket_path)) <= _PATH_MAX:
        return await asyncio.open_unix_connection(str(socket_path), limit=_LINE_MAX)
    fd = os.open(socket_path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{fd}/{socket_path.name}", limit=_LINE_MAX)
    finally:
        os.close(fd)


class SupervisorClient:
    """A lasting connection to one supervisor, which keeps ``status`` current.

    ``changed`` is called with each new status, and once with None when the connection ended, that is, when
    the supervisor did.
    """

    def __init__(
        self, status: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.status = status
        self.stopping = False
        self.ended = asyncio.Event()
        self._reader = reader
        self._writer = writer
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def open(cls, socket_path: Path, timeout: float = 5.0) -> SupervisorClient:
        """Connect and ask. Raises OSError (TimeoutError too) when nobody who makes sense answers."""
        async with asyncio.timeout(timeout):
            reader, writer = await connect(socket_path)
            try:
                writer.write(b'{"command": "events"}\n')
                status = json.loads(await reader.readline())
                if not isinstance(status, dict) or "state" not in status:
                    raise ValueError("not a status")
            except ValueError as e:
                writer.close()
                raise ConnectionError(f"{socket_path}: {e}") from e
            except BaseException:
                writer.close()
                raise
        return cls(status, reader, writer)

    def watch(self, changed: Callable[[dict[str, Any] | None], None]) -> None:
        """Start following; to be ended with `close`."""
        self._task = asyncio.create_task(self._follow(changed))

    async def _follow(self, changed: Callable[[dict[str, Any] | None], None]) -> None:
        with contextlib.suppress(OSError, ValueError):
            while line := await self._reader.readline():
                message = json.loads(line)
                if "state" in message:
                    self.status = message
                    changed(message)
        self._writer.close()
        self.ended.set()
        changed(None)

    def ask_stop(self, grace: float) -> None:
        """Ask for the end within ``grace`` seconds; `ended` is set when it has come."""
        self.stopping = True
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"command": "stop", "grace": grace}).encode() + b"\n")

    async def close(self) -> None:
        """Let go; the supervisor goes on."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()


async def fresh_status(socket_path: Path, timeout: float = 5.0) -> dict[str, Any]:
    """Ask a supervisor once. Raises OSError."""
    client = await SupervisorClient.open(socket_path, timeout)
    await client.close()
    return client.status
