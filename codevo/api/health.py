"""Whether the hub lives, whether it can work, and what it measures."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, public

log = logging.getLogger(__name__)

#: Seconds that one check may take.
_PATIENCE = 4.0
#: A view of what runs that is older than this, in seconds, is not believed.
MAX_SYNC_AGE = 60.0


class Health(ApiHandler):
    """The process answers."""

    @public(any_host=True)
    def get(self) -> None:
        """Alive: 200 as long as the event loop turns."""
        self.write_json({"status": "ok"})


class Ready(ApiHandler):
    """Everything that the hub depends on."""

    @public(any_host=True)
    async def get(self) -> None:
        """Ready: 200, or 503 with what is wrong. Each part has ``ok``, ``ms`` and, when not ok, ``error``."""
        hub = self.hub
        database, objects = await asyncio.gather(
            _check(hub.store.ping()), _check(hub.bucket.check() if hub.bucket is not None else _nothing())
        )
        age = hub.spawner.last_sync_age()
        spawner: dict[str, Any] = {"ok": age <= MAX_SYNC_AGE, "age": round(age, 1)}
        parts = {"database": database, "object_store": objects, "spawner": spawner}
        ready = all(part["ok"] for part in parts.values())
        self.write_json({"status": "ready" if ready else "not ready", **parts}, 200 if ready else 503)


async def _nothing() -> None:
    raise RuntimeError("not open")


async def _check(call: Awaitable[Any]) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        async with asyncio.timeout(_PATIENCE):
            await call
    except Exception as e:
        log.warning("readiness: %s: %s", type(e).__name__, e)
        # the text of a driver's error may hold addresses; anybody may read this answer
        return {"ok": False, "error": type(e).__name__}
    return {"ok": True, "ms": round(1000 * (time.monotonic() - begin), 1)}


class MetricsPage(ApiHandler):
    """For Prometheus."""

    @public(any_host=True)
    def get(self) -> None:
        """Measurements in Prometheus' text format."""
        states = [str(entry.status.state) for entry in self.hub.servers.list()]
        self.set_header("Content-Type", CONTENT_TYPE_LATEST)
        self.finish(self.hub.metrics.render(states, len(self.hub.sockets)))


def routes() -> list[Route]:
    return [(r"/healthz", Health), (r"/readyz", Ready), (r"/metrics", MetricsPage)]
