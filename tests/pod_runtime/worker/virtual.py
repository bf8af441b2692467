"""A loop whose clock jumps to the next timer when nothing is left to do, and workers that can be cut off in
it.

Real sockets and files, no waiting: what takes the worker an hour takes the test the work in it. What the
worker gives to threads runs on the loop, after a while and whole; so a seed decides (nearly) everything.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import secrets
import selectors
import time
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

MODULES = ("document", "documents", "watcher")


class _Jumping(selectors.DefaultSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if timeout != 0:
            assert ready or timeout is not None, "nothing is left that could happen"
            # what is ready takes its time, too: something that is never read must not stop the clock
            self.loop.now += min(timeout or 0.0, 0.0002) if ready else timeout or 0.0
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.now = 1000.0
        selector = _Jumping()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now


class Dead(BaseException):
    """Raised in what is left of a worker that was killed."""


class Life:
    """One process of the worker: all tasks that it began, which `kill` ends where they stand."""

    def __init__(self) -> None:
        self.dead = False
        self.tasks: set[asyncio.Task[Any]] = set()
        self.context = contextvars.copy_context()
        self.context.run(_LIFE.set, self)

    def check(self) -> None:
        if self.dead:
            raise Dead

    async def kill(self) -> None:
        """As kill -9: nothing of it runs any more, but for unwinding without effect."""
        self.dead = True
        for _ in range(100):
            tasks = [t for t in self.tasks if not t.done() and t is not asyncio.current_task()]
            if not tasks:
                return
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
        raise AssertionError(f"tasks that cannot be ended: {self.tasks}")


_LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)


class Chance:
    """The seed's decisions, and how long things take."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    async def pause(self, longest: float = 0.02) -> None:
        """No time, some turns of the loop, or some time."""
        kind = self.random.random()
        if kind < 0.05:
            await asyncio.sleep(self.random.random() * longest)
        else:
            for _ in range(int(kind * 4)):
                await asyncio.sleep(0)


def _task_factory(loop: asyncio.AbstractEventLoop, coro: Coroutine[Any, Any, Any], **more: Any) -> Any:
    context = more.get("context") or contextvars.copy_context()
    life = context.get(_LIFE)
    task = asyncio.Task(coro, loop=loop, **more)
    if life is not None:
        life.tasks.add(task)
        task.add_done_callback(life.tasks.discard)
    return task


def _quiet(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()


def run(seed: int, main: Callable[[Chance], Coroutine[Any, Any, None]]) -> None:
    """``main`` on a loop with a clock of its own, every random number by the seed."""
    chance = Chance(seed)
    own = random.Random(seed + 1)

    async def to_thread(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        life = _LIFE.get()

        async def work() -> Any:
            await chance.pause()
            if life is not None:
                life.check()
            try:
                result = function(*args, **kwargs)
            except StopIteration as e:
                raise RuntimeError from e
            await chance.pause()
            return result

        # a thread goes on when the one who waits for it is cancelled
        task = asyncio.get_running_loop().create_task(work())
        task.add_done_callback(_quiet)
        return await asyncio.shield(task)

    with pytest.MonkeyPatch.context() as patch, asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        loop.set_task_factory(_task_factory)
        clock = SimpleNamespace(monotonic=loop.time, time=time.time, time_ns=time.time_ns)
        token = SimpleNamespace(
            randbelow=lambda n: own.randrange(n), token_hex=lambda n: own.randbytes(n).hex()
        )
        for name in MODULES:
            patch.setattr(f"pod_runtime.worker.{name}.time", clock)
        patch.setattr("pod_runtime.worker.document.secrets", token)
        patch.setattr("pod_runtime.worker.lineage.secrets", token)
        patch.setattr("pod_runtime.worker.persistence.session.random", own)
        patch.setattr(asyncio, "to_thread", to_thread)
        assert secrets is not token
        runner.run(main(chance))
