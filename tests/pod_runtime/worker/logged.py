"""A real worker application with real persistence on an object store in memory."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import aiohttp

from pod_runtime.journal import reader
from pod_runtime.journal.format import Meta
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import journal_key
from pod_runtime.journal.store import ObjectStore
from pod_runtime.protocol.roles import Role
from pod_runtime.worker.app import Worker
from pod_runtime.worker.persistence import Persister
from tests.pod_runtime.worker.harness import Site


class LoggedSite(Site):
    """`Site` whose worker commits. ``again`` stops it and starts another on the same files."""

    def __init__(self, tmp_path: Path, store: ObjectStore | None = None) -> None:
        super().__init__(tmp_path)
        self.store: ObjectStore = store or MemoryStore()
        # commits come by `flush` alone, unless a test wants otherwise
        self.config = dataclasses.replace(self.config, flush_quiet=60.0, flush_max=60.0)

    async def start(self, **options: Any) -> None:
        def make(config: Any, root: Any, documents: Any, notice: Any) -> Persister:
            return Persister(config, root, documents, self.store, notice=notice)

        self.worker = Worker(self.config, make)
        sock = socket.create_server(("127.0.0.1", 0))
        sock.setblocking(False)
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self.session = aiohttp.ClientSession()
        self.worker.serve(sock)
        await self.worker.settled.wait()
        assert self.worker.state == "ready", self.worker.message

    @property
    def persister(self) -> Persister:
        assert self.worker is not None
        assert isinstance(self.worker.persistence, Persister)
        return self.worker.persistence

    async def flush(self) -> int:
        """Commit everything; the log's last number."""
        status, answer = await self.call("POST", "/_codevo/flush", role=Role.HUB)
        assert status == 200, answer
        return (await reader.load(self.store)).last

    async def again(self) -> None:
        for client in self.clients:
            await client.close()
        self.clients.clear()
        await self.stop()
        self.config = dataclasses.replace(self.config, generation=self.config.generation + 1)
        await self.start()

    async def meta(self, seq: int) -> Meta:
        return await reader.read_meta(self.store, journal_key(seq))
