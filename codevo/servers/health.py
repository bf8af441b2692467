"""Looking at pods: whether a start gets on, and what people do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

from codevo.servers.ports import PodCalls, ServerRecords

log = logging.getLogger(__name__)

#: Seconds that one look at a restoring worker may wait: how often progress is seen.
_LOOK = 1
_CONCURRENT_LOOKS = 16


class StartFailed(Exception):
    """The workspace came up but cannot be used; the text is for people."""


class Watchdog:
    """``async with``: raises ``TimeoutError`` when it was not fed for ``limit`` seconds."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._timeout = asyncio.timeout(limit)

    def fed(self) -> None:
        """There was progress: the time begins anew."""
        if not self._timeout.expired():
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._limit)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._timeout.__aexit__(kind, error, trace)


async def wait_until_ready(
    pods: PodCalls,
    project: str,
    progressed: Callable[[int, str], None],
    watchdog: Watchdog,
    limit: asyncio.Semaphore,
) -> None:
    """Wait for the worker's restore and the runner. Feeds the watchdog with each change that it sees.

    Raises `StartFailed` when one of them says that it failed. A container that does not answer is asked
    again: the worker is started anew when it dies, and the watchdog bounds the whole. ``limit`` bounds the
    looks of all starts together.
    """
    ready = _container_ready

    def quiet(percent: int, message: str) -> None:
        """The runner has nothing to restore."""

    reason: str | None = None
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(ready(pods, project, "worker", progressed, watchdog, limit))
            group.create_task(ready(pods, project, "runner", quiet, watchdog, limit))
    except* StartFailed as failures:
        reason = str(failures.exceptions[0])
    # not inside `except*`: early releases of Python 3.11 wrap what is raised there into a group
    if reason is not None:
        raise StartFailed(reason)


async def _container_ready(
    pods: PodCalls,
    project: str,
    container: str,
    progressed: Callable[[int, str], None],
    watchdog: Watchdog,
    limit: asyncio.Semaphore,
) -> None:
    seen: object = None
    delay = 0.02
    while True:
        began = asyncio.get_running_loop().time()
        try:
            async with limit:
                answer = await pods.call(
                    project, container, "GET", f"/_codevo/health?wait={_LOOK}", timeout=_LOOK + 10
                )
            state, percent, message = _health(answer)
        except Exception as e:
            log.debug("health of %s of %s: %r", container, project, e)
        else:
            if state == "ready":
                return
            if state == "failed":
                raise StartFailed(message or f"The {container} could not start.")
            if (state, percent, message) != seen:
                seen = (state, percent, message)
                delay = 0.02
                watchdog.fed()
                progressed(percent, message)
            if asyncio.get_running_loop().time() - began >= _LOOK / 2:
                continue  # the look itself has waited
        await asyncio.sleep(delay)
        delay = min(delay * 1.5, 0.5)


def _health(answer: Any) -> tuple[str, int, str]:
    """Read an answer that user code may have made. Raises ``ValueError`` on anything unexpected."""
    if not isinstance(answer, dict) or answer.get("state") not in ("restoring", "ready", "failed"):
        raise ValueError("not a health answer")
    percent = answer.get("percent")
    percent = percent if isinstance(percent, int | float) and 0 <= percent <= 100 else 0
    message = answer.get("message")
    return answer["state"], int(percent), message if isinstance(message, str) else ""


class ActivityPoll:
    """Asks every running pod, now and then, when somebody last did something in it."""

    def __init__(
        self,
        pods: PodCalls,
        records: ServerRecords,
        projects: Callable[[], Sequence[str]],
        interval: float,
    ) -> None:
        self._pods = pods
        self._records = records
        self._projects = projects
        self._interval = interval
        self._recorded: dict[str, datetime] = {}
        self._limit = asyncio.Semaphore(_CONCURRENT_LOOKS)

    async def run(self) -> None:
        """For ever; one round in each interval, never two at once."""
        while True:
            await asyncio.sleep(self._interval)
            projects = self._projects()
            self._recorded = {p: t for p, t in self._recorded.items() if p in set(projects)}
            await asyncio.gather(*(self._one(p) for p in projects))

    async def _one(self, project: str) -> None:
        async with self._limit:
            times = await asyncio.gather(self._ask(project, "runner"), self._ask(project, "worker"))
            latest = max((t for t in times if t), default=None)
            if latest is None or latest <= self._recorded.get(project, _NEVER):
                return
            try:
                await self._records.record_activity(project, latest)
            except Exception as e:  # the database is away: the next round tries again
                log.warning("activity of %s not recorded: %r", project, e)
                return
            self._recorded[project] = latest

    async def _ask(self, project: str, container: str) -> datetime | None:
        try:
            answer = await self._pods.call(project, container, "GET", "/_codevo/activity", timeout=5.0)
        except Exception as e:
            log.debug("activity of %s of %s: %r", container, project, e)
            return None
        now = datetime.now(UTC)
        if not isinstance(answer, dict):
            return None
        if answer.get("busy") is True:
            return now
        with contextlib.suppress(TypeError, ValueError):
            found = datetime.fromisoformat(answer["last_activity"])
            if found.tzinfo is not None:
                return min(found, now)
        return None


_NEVER = datetime.fromtimestamp(0, UTC)
