"""What the hub measures about itself, for Prometheus."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter as Tally
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_LAG_EVERY = 0.5


class Metrics:
    """One registry for each hub, so that several can live in one process (tests)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "codevo_requests_total",
            "Answered requests",
            ["handler", "method", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "codevo_request_seconds",
            "Time to answer, by handler",
            ["handler"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10),
            registry=self.registry,
        )
        self.loop_lag = Gauge(
            "codevo_loop_lag_seconds",
            "By how much the event loop was late at the last look",
            registry=self.registry,
        )
        self.servers = Gauge("codevo_servers", "Servers, by state", ["state"], registry=self.registry)
        self.sockets = Gauge("codevo_sockets", "Open WebSockets", registry=self.registry)
        self._lag_task: asyncio.Task[None] | None = None

    def observe(self, handler: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.requests.labels(handler, method, str(status)).inc()
        self.seconds.labels(handler).observe(seconds)

    def render(self, states: list[str], sockets: int) -> bytes:
        """The text that Prometheus reads."""
        self.servers.clear()
        for state, count in Tally(states).items():
            self.servers.labels(state).set(count)
        self.sockets.set(sockets)
        return generate_latest(self.registry)

    def open(self) -> None:
        """Watch the loop until `close`."""
        self._lag_task = asyncio.create_task(_watch(self.loop_lag.set))

    async def close(self) -> None:
        if self._lag_task is not None:
            self._lag_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._lag_task


async def _watch(tell: Callable[[float], None]) -> None:
    loop = asyncio.get_running_loop()
    while True:
        before = loop.time()
        await asyncio.sleep(_LAG_EVERY)
        tell(max(0.0, loop.time() - before - _LAG_EVERY))
