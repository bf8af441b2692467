"""The whole worker as it runs: a process, its persistence, and a real S3 server."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import aiohttp

from codevo.embedded.s3 import S3Settings
from pod_runtime.protocol.config import StoreConfig
from pod_runtime.protocol.roles import Role
from tests.harness import within
from tests.pod_runtime.worker.harness import PROJECT
from tests.pod_runtime.worker.test_crash import ProcessSite


class WholeSite(ProcessSite):
    def use(self, store: StoreConfig, place: Path, generation: int) -> None:
        self.path = place / "workspace"
        self.path.mkdir(parents=True, exist_ok=True)
        self.config = dataclasses.replace(
            self.config,
            store=store,
            generation=generation,
            workspace=str(self.path),
            state=str(place / "state"),
        )

    async def start(self, **options: Any) -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        config = self.path.parent / "config.json"
        config.write_text(self.config.to_json())
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pod_runtime.worker", "--project", PROJECT),
            *("--config", str(config), "--listen", f"fd:{sock.fileno()}"),
            pass_fds=(sock.fileno(),),
        )
        sock.close()
        self.session = aiohttp.ClientSession()
        await self.ready()

    async def ready(self) -> None:
        _, health = await self.call("GET", "/_codevo/health?wait=30", role=Role.HUB)
        assert health["state"] == "ready", health


async def test_documents_and_files_come_back(s3: S3Settings, tmp_path: Path) -> None:
    store = StoreConfig(
        s3.endpoint_url,
        s3.bucket,
        f"projects/{secrets.token_hex(6)}/",
        s3.access_key_id,
        s3.secret_access_key,
        region=s3.region,
    )
    site = WholeSite(tmp_path)
    site.use(store, tmp_path / "one", 1)
    await site.start()
    try:
        pages = int(Path(f"/proc/{site.process.pid}/statm").read_text().split()[1])
        resident = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
        assert resident < 85, f"{resident:.0f} MiB"
        body = {"type": "file", "format": "text", "content": "hello\n"}
        assert (await site.call("PUT", "/api/contents/f.py", json=body))[0] == 201
        ann = await site.client("f.py")
        ann.text += "wörld 😀\n"
        (site.path / "made in a shell").write_bytes(b"\0\1")
        bob = await site.client("f.py", subject="bob")
        await bob.has("hello\nwörld 😀\n")
        async with asyncio.timeout(20):
            while (await site.call("GET", "/api/durability"))[1]["pending"]:
                await asyncio.sleep(0.05)
        # killed, with another machine to come: only the bucket is left
        await site.kill(signal.SIGKILL)
        doc = bob.doc
        await site.stop()
        site.use(store, tmp_path / "two", 2)
        await site.start()
        await site.on_disk("f.py", "hello\nwörld 😀\n")
        await site.on_disk("made in a shell", b"\0\1")
        doc["source"].insert(0, "offline\n")
        again = await site.client("f.py", doc=doc)
        await again.has("offline\nhello\nwörld 😀\n")
        await site.on_disk("f.py", "offline\nhello\nwörld 😀\n")
        assert (await site.call("PATCH", "/api/contents/f.py", json={"path": "d.py"}))[0] == 200
        status, durable = await site.call("POST", "/_codevo/flush", role=Role.HUB)
        assert (status, durable["pending"]) == (200, False)
        again.text += "last words\n"
        late = await site.client("d.py", subject="late")
        await late.has("offline\nhello\nwörld 😀\nlast words\n")
        assert await site.kill(signal.SIGTERM) == 0
        doc = again.doc
        await site.stop()
        site.use(store, tmp_path / "three", 3)
        await site.start()
        await site.on_disk("d.py", "offline\nhello\nwörld 😀\nlast words\n")
        assert not (site.path / "f.py").exists()
        again = await site.client("d.py", doc=doc)
        assert str(again.text) == "offline\nhello\nwörld 😀\nlast words\n"
    finally:
        await site.stop()


async def test_a_bad_configuration_ends_with_words(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"project": 1, "nonsense": 2}'):
        (tmp_path / "config.json").write_text(text)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "pod_runtime.worker", "--project", "p", "--listen", "tcp:127.0.0.1:0"),
            *("--config", str(tmp_path / "config.json")),
            stderr=asyncio.subprocess.PIPE,
        )
        _, err = await within(process.communicate(), 30)
        assert process.returncode == 1
        assert err.startswith(b"codevo worker: WorkerConfig")
