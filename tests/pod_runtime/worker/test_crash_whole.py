"""``kill -9`` of the whole worker, a process on a real S3 server, again and again while somebody types; now
and then of the S3 server, too. What `api/durability` called durable is there afterwards, once, and nobody has
to do anything for it.

12 kills here, 200 with ``make test-soak`` (or ``KILLS=n``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import signal
import time
from collections import Counter
from pathlib import Path

import aiohttp
import pytest
from pycrdt import Doc

from codevo.embedded.s3 import EmbeddedS3
from pod_runtime.protocol.config import StoreConfig
from pod_runtime.protocol.roles import Role
from tests.pod_runtime.worker.test_whole import WholeSite
from tests.pod_runtime.worker.ycl import YClient

KILLS = int(os.environ.get("KILLS", "200" if "SOAK" in os.environ else "12"))


class PatientSite(WholeSite):
    async def ready(self) -> None:
        """The S3 server may be on its way back, and the machine busy."""
        health: dict[str, str] = {}
        for _ in range(4):
            _, health = await self.call("GET", "/_codevo/health?wait=30", role=Role.HUB)
            if health["state"] != "restoring":
                break
        assert health["state"] == "ready", health


class Session:
    """Somebody types, somebody watches; and what was told about it."""

    def __init__(self, site: WholeSite, seed: int) -> None:
        self.site, self.chance = site, random.Random(seed)
        self.docs: list[Doc | None] = [None, None]
        self.people: list[YClient] = []
        self.durable: set[str] = set()
        self.promises = self.typed = 0

    def type(self) -> None:
        person = self.people[0]
        lines = str(person.text).splitlines(keepends=True)
        at = self.chance.randrange(len(lines) + 1)
        self.typed += 1
        person.text.insert(len("".join(lines[:at]).encode()), f"line {self.typed} 😀\n")

    async def look(self) -> None:
        """What the watcher has seen went through the worker; what is durable now, is for good."""
        seen = set(str(self.people[1].text).splitlines())
        status, answer = await self.site.call("GET", "/api/durability")
        if status == 200 and not answer["pending"]:
            self.promises += len(seen - self.durable)
            self.durable |= seen

    async def round(self) -> None:
        """Type for a while, then kill the worker in the middle."""
        self.people = [await self.site.client("f", doc=doc) for doc in self.docs]
        self.check(str(self.people[1].text))
        end = time.monotonic() + self.chance.random() * 1.5
        pause = self.chance.choice([0.01, 0.3])
        while time.monotonic() < end or self.chance.random() < 0.5:
            self.type()
            await asyncio.sleep(self.chance.random() * pause)
            await self.look()
        for _ in range(self.chance.randrange(60)):
            await asyncio.sleep(0.02)
            await self.look()
        async with asyncio.timeout(60):
            while not self.promises:  # on a slow machine a second and a half may not be enough for any
                await asyncio.sleep(0.05)
                await self.look()
        await self.site.kill(signal.SIGKILL)
        self.docs = [p.doc if self.chance.random() < 0.5 else None for p in self.people]
        # offline, and perhaps the page is kept
        self.type()
        await self.site.stop()

    def check(self, text: str) -> None:
        lines = Counter(text.splitlines())
        assert not self.durable - lines.keys(), f"lost: {self.durable - lines.keys()}"
        assert max(lines.values(), default=1) == 1, [line for line, n in lines.items() if n > 1]


@pytest.mark.timeout(0 if "SOAK" in os.environ else 180)
async def test_what_was_durable_survives_every_kill(tmp_path: Path) -> None:
    seed = int(os.environ.get("SEED", secrets.randbelow(10**6)))
    print(f"SEED={seed}")
    server = EmbeddedS3(tmp_path / "s3", logging.getLogger(__name__))
    await server.start()
    s3 = server.settings
    store = StoreConfig(
        s3.endpoint_url,
        s3.bucket,
        f"projects/{secrets.token_hex(6)}/",
        s3.access_key_id,
        s3.secret_access_key,
        region=s3.region,
    )
    site = PatientSite(tmp_path)
    place, generation = 1, 1
    site.use(store, tmp_path / "1", generation)
    session = Session(site, seed)
    (site.path / "f").write_text("line 0\n")
    try:
        for kill in range(KILLS):
            await site.start()
            if kill % 5 == 3:
                assert server.child is not None
                assert server.child.pid is not None
                os.kill(server.child.pid, signal.SIGKILL)
            await session.round()
            if kill % 4 == 2:
                # the machine is gone: only the bucket is left
                place, generation = place + 1, generation + 1
                site.use(store, tmp_path / str(place), generation)
        for elsewhere in (False, True):
            if elsewhere:
                site.use(store, tmp_path / "last", generation + 1)
            await site.start()
            fresh = await site.client("f")
            session.check(str(fresh.text))
            status, answer = await site.call("GET", "/api/durability")
            assert status == 200
            async with asyncio.timeout(60):
                while answer["pending"]:
                    await asyncio.sleep(0.05)
                    status, answer = await site.call("GET", "/api/durability")
            session.check((site.path / "f").read_text())
            await site.kill(signal.SIGTERM)
            await site.stop()
    except aiohttp.ClientError as e:
        raise AssertionError(f"the worker was away: {e}") from e
    finally:
        if site.process.returncode is None:
            await site.stop()
        await server.stop()
