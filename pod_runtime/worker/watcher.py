"""Tells what changes in /workspace: by inotify through watchfiles, or by polling where inotify gives out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import Literal

from pod_runtime.worker.events import Events
from pod_runtime.worker.safefs import TEMP_PREFIX, Kind, Root, is_temporary, kind_of

log = logging.getLogger(__name__)

Change = tuple[Literal["created", "modified", "deleted"], str]
#: Milliseconds in which events are gathered: one batch after ``_STEP`` of quiet, at most ``_DEBOUNCE``.
_DEBOUNCE, _STEP = 400, 50
_POLL = 2_000
_KINDS: dict[int, Literal["created", "modified", "deleted"]] = {1: "created", 2: "modified", 3: "deleted"}


class Watcher:
    """``changed(changes)`` is awaited for each batch, paths relative to the root."""

    def __init__(
        self, root: Root, events: Events, changed: Callable[[list[Change]], Awaitable[None]]
    ) -> None:
        self._root, self._events, self._changed = root, events, changed
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.ready = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="watcher")

    async def close(self) -> None:
        self._stop.set()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        polling = False
        while not self._stop.is_set():
            try:
                await self._watch(polling)
            except OSError as e:
                # watchfiles raises when inotify has no watches or instances left (ENOSPC, EMFILE)
                log.warning("watching files failed: %s", e)
                if not polling:
                    self._events.notice(
                        "warning", "This machine is out of file watches: changes show with a delay"
                    )
                polling = True
                await asyncio.sleep(1)

    async def _watch(self, polling: bool) -> None:
        from watchfiles import awatch

        base = os.path.realpath(self._root.path)
        prefix = base + "/"
        changes = awatch(
            base,
            watch_filter=lambda _, path: TEMP_PREFIX not in path,
            debounce=_DEBOUNCE,
            step=_STEP,
            stop_event=self._stop,
            force_polling=polling,
            poll_delay_ms=_POLL,
            ignore_permission_denied=True,
            yield_on_timeout=True,
            rust_timeout=5_000,
        )
        self.ready.set()
        async for batch in changes:
            found: dict[str, Literal["created", "modified", "deleted"]] = {}
            for kind, path in sorted(batch, key=lambda c: c[0]):
                if path.startswith(prefix) and not is_temporary(path):
                    found[path[len(prefix) :]] = _KINDS[int(kind)]
            if found:
                try:
                    await self._changed([(kind, path) for path, kind in self._settled(found)])
                except Exception:
                    log.exception("handling of changed files failed")

    def _settled(
        self, found: dict[str, Literal["created", "modified", "deleted"]]
    ) -> list[tuple[str, Literal["created", "modified", "deleted"]]]:
        """What a batch came to: a rename over a file shows as deleted, and folders' times are no change."""
        settled: list[tuple[str, Literal["created", "modified", "deleted"]]] = []
        for path, kind in found.items():
            try:
                st = self._root.lstat(path)
            except (OSError, ValueError):
                settled.append((path, "deleted"))
                continue
            if kind == "modified" and kind_of(st) is Kind.DIRECTORY:
                continue
            settled.append((path, "modified" if kind == "deleted" else kind))
        return settled
