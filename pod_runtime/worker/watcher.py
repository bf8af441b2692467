"""Tells what changes in /workspace: by inotify, or by polling with a notice where inotify gives out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from pod_runtime.worker.events import Events
from pod_runtime.worker.inotify import ChangeKind, Inotify, Overflow, unwatched
from pod_runtime.worker.safefs import Kind, Root

log = logging.getLogger(__name__)

Change = tuple[ChangeKind, str]
#: Seconds of quiet that end a batch, and the longest that a batch gathers.
_QUIET, _LONGEST = 0.05, 0.4
#: Most paths in a batch; beyond it anything counts as changed.
MAX_BATCH = 10_000
#: Seconds between two looks when polling, and how many times the length of a look at least.
_POLL, _POLL_FACTOR = 2.0, 10

_Seen = dict[str, tuple[int, int, int]]


class Watcher:
    """``changed(changes)`` is awaited for each batch, with None when anything may have changed.

    Changes of our own making come too; those who listen compare contents.
    """

    def __init__(
        self,
        root: Root,
        events: Events,
        changed: Callable[[list[Change] | None], Awaitable[None]],
        *,
        inotify: bool = True,
    ) -> None:
        self._root, self._events, self._changed, self._use_inotify = root, events, changed, inotify
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns when changes made from now on will be seen."""
        watching = asyncio.Event()
        self._task = asyncio.create_task(self._run(watching), name="watcher")
        await watching.wait()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self, watching: asyncio.Event) -> None:
        if self._use_inotify:
            try:
                await self._watch(watching)
            except OSError as e:
                log.warning("inotify gave out: %s", e)
                self._events.notice(
                    "warning", "This machine is out of file watches: changes show with a delay"
                )
                # between the two nobody looked
                await self._tell(None)
        await self._poll(watching)

    async def _watch(self, watching: asyncio.Event) -> None:
        inotify = Inotify(self._root)
        loop = asyncio.get_running_loop()
        readable = asyncio.Event()
        try:
            await asyncio.to_thread(inotify.add_tree)
            loop.add_reader(inotify.fd, readable.set)
            watching.set()
            while True:
                await readable.wait()
                await self._tell(await self._batch(inotify, readable))
        finally:
            loop.remove_reader(inotify.fd)
            inotify.close()

    async def _batch(self, inotify: Inotify, readable: asyncio.Event) -> list[Change] | None:
        found: dict[str, ChangeKind] = {}
        lost = False
        deadline = time.monotonic() + _LONGEST
        while True:
            readable.clear()
            try:
                # shielded: the descriptor must not be closed under the thread's feet
                more = await _finish(asyncio.to_thread(inotify.read))
            except Overflow:
                lost = True
                more = {}
            for path, kind in more.items():
                if kind == "modified" and found.get(path) == "created":
                    continue
                if kind == "created" and found.get(path) == "deleted":
                    kind = "modified"
                found[path] = kind
            lost = lost or len(found) > MAX_BATCH
            if lost:
                found.clear()
            left = deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(_QUIET, left))):
                    await readable.wait()
            except TimeoutError:
                return None if lost else [(kind, path) for path, kind in found.items()]

    async def _poll(self, watching: asyncio.Event) -> None:
        seen = await asyncio.to_thread(self._look)
        watching.set()
        took = 0.0
        while True:
            await asyncio.sleep(max(_POLL, _POLL_FACTOR * took))
            started = time.monotonic()
            now = await asyncio.to_thread(self._look)
            took = time.monotonic() - started
            changes: list[Change] = [("deleted", path) for path in seen if path not in now]
            for path, key in now.items():
                if path not in seen:
                    changes.append(("created", path))
                elif seen[path] != key:
                    changes.append(("modified", path))
            seen = now
            await self._tell(None if len(changes) > MAX_BATCH else changes)

    def _look(self) -> _Seen:
        found: _Seen = {}
        for entry in self._root.walk(skip=lambda e: e.kind is Kind.DIRECTORY and unwatched(e.path)):
            st = entry.stat
            folder = entry.kind is Kind.DIRECTORY
            # the time of change also tells of a new mode, and programs cannot set it back
            found[entry.path] = (st.st_ino, 0, 0) if folder else (st.st_ino, st.st_size, st.st_ctime_ns)
        return found

    async def _tell(self, changes: list[Change] | None) -> None:
        if changes is None or changes:
            try:
                await self._changed(changes)
            except Exception:
                log.exception("handling of changed files failed")


async def _finish(work: Awaitable[dict[str, ChangeKind]]) -> dict[str, ChangeKind]:
    """Await ``work`` to its end even when cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
