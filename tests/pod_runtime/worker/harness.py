"""A real worker application on a real socket, with a persistence that only counts."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from yarl import URL

from pod_runtime.protocol.config import StoreConfig, WorkerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience, mint, public_key_text
from pod_runtime.worker.app import Worker
from pod_runtime.worker.ports import DurabilityStatus
from tests.harness import within
from tests.pod_runtime.worker.ycl import YClient

PROJECT = "abcdefghijklmnop"


@dataclass
class CountingPersistence:
    touches: list[str] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    hold: bool = False
    fail: str | None = None
    closed: bool = False
    fenced: asyncio.Event = field(default_factory=asyncio.Event)
    error: str | None = None

    async def open(self, progress: Callable[[int, str], None]) -> None:
        progress(40, "Restoring")
        if self.hold:
            await self.opened.wait()
        if self.fail:
            raise RuntimeError(self.fail)

    def start(self) -> None: ...

    def subscribe(self, callback: object) -> None: ...

    def touched(self, *paths: str) -> None:
        self.touches += paths

    async def flush(self) -> DurabilityStatus:
        return self.status()

    def status(self) -> DurabilityStatus:
        return DurabilityStatus(1, 1, self.error is not None, self.error, None)

    async def close(self) -> None:
        self.closed = True


class Site:
    """One worker and clients of it."""

    def __init__(self, tmp_path: Path) -> None:
        self.key = Ed25519PrivateKey.generate()
        self.path = tmp_path / "workspace"
        self.path.mkdir(exist_ok=True)
        self.config = WorkerConfig(
            project=PROJECT,
            public_key=public_key_text(self.key),
            generation=1,
            store=StoreConfig("http://127.0.0.1:1", "b", "projects/x/", "a", "b"),
            workspace=str(self.path),
            state=str(tmp_path / "state"),
            max_document=100_000,
            max_documents=5,
        )
        self.persistence = CountingPersistence()
        self.clients: list[YClient] = []
        self.worker: Worker | None = None

    async def start(self, **options: Any) -> None:
        self.worker = Worker(self.config, lambda *args: self.persistence)  # type: ignore[arg-type, return-value]
        self.worker.documents._idle_close = options.get("idle_close", 30.0)
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.session = aiohttp.ClientSession()
        self.worker.serve(sock)
        if not self.persistence.hold:
            await self.worker.settled.wait()

    async def stop(self) -> None:
        for client in self.clients:
            await client.close()
        await self.session.close()
        if self.worker is not None:
            await self.worker.close()
            self.worker = None

    def headers(self, role: Role = Role.EDITOR, subject: str = "ann") -> dict[str, str]:
        token = mint(
            self.key,
            project=PROJECT,
            audience=Audience.WORKER,
            subject=subject,
            name=subject.title(),
            role=role,
        )
        return {TOKEN_HEADER: token}

    async def call(
        self, method: str, path: str, *, role: Role = Role.EDITOR, headers: Any = (), **more: Any
    ) -> tuple[int, Any]:
        url = URL(self.url + path, encoded=True)
        headers = {**self.headers(role), **dict(headers)}
        async with self.session.request(method, url, headers=headers, **more) as r:
            data = await r.read()
            if "json" in r.headers.get("Content-Type", ""):
                return r.status, await r.json(content_type=None)
            return r.status, data

    async def client(
        self, path: str, *, role: Role = Role.EDITOR, subject: str = "ann", doc: Any = None, sync: bool = True
    ) -> YClient:
        client = YClient(doc)
        self.clients.append(client)
        url = f"{self.url}/collab/{quote(os.fsencode(path))}" if path else f"{self.url}/presence"
        await client.connect(self.session, URL(url, encoded=True), self.headers(role, subject))
        if sync:
            await within(client.synced.wait(), 15)
        return client

    async def on_disk(self, name: str, content: str | bytes | None) -> None:
        """Wait until the file holds exactly this."""
        wanted = content.encode() if isinstance(content, str) else content
        found: bytes | None = None
        for _ in range(750):
            try:
                found = (self.path / name).read_bytes()
            except FileNotFoundError:
                found = None
            if found == wanted:
                return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{name}: expected {wanted!r}, found {found!r}")
