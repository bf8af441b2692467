"""People who type in one room, and one person's real typing as fast as it goes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from codevo.prepare import cache_dir
from tests.bench.collab.servers import HERE, Peers, Server, cores, pin


class Load:
    """The clients' process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def heard(self, timeout: float) -> Any:
        """The next value that it tells."""
        assert self._process.stdout is not None
        async with asyncio.timeout(timeout):
            line = await self._process.stdout.readline()
        if not line:
            raise RuntimeError("the clients ended early; see above")
        return json.loads(line)

    async def go_on(self) -> None:
        """What it waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def _load(peers: Peers, mode: str, options: dict[str, Any]) -> AsyncIterator[Load]:
    process = await asyncio.create_subprocess_exec(
        *(peers.node, str(HERE / "load.cjs"), mode, json.dumps(options)),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=peers.environment(), limit=2**20,
    )  # fmt: skip
    pin([process.pid], cores()[1])
    try:
        yield Load(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def _options(server: Server, document: str) -> dict[str, Any]:
    return {
        "url": server.url.format(document),
        "headers": server.headers,
        "protocol": server.protocol,
        "name": document,
    }


async def typing(
    peers: Peers,
    server: Server,
    document: str,
    clients: int,
    seconds: float,
    rate: float = 5.0,
    mark: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """``clients`` type ``rate`` keys a second each. Latencies in ms, processor time in ms per 1,000 edits
    that arrived at somebody, memory in MiB. ``mark`` is called where the measured time begins and ends."""
    options = _options(server, document) | {
        "clients": clients, "rate": rate, "seconds": seconds, "warmup": 3,
    }  # fmt: skip
    async with _load(peers, "typing", options) as load:
        await load.heard(60)
        before = server.cpu()
        mark()
        await load.go_on()
        await load.heard(seconds + 60)
        mark()
        used, memory = server.cpu() - before, server.memory()
        await load.go_on()
        found: dict[str, Any] = await load.heard(60)
    found["cpu_ms_per_1000"] = used * 1e6 / max(1, found["delivered"])
    found["cpu_share"] = used / found["seconds"]
    found["rss_mib"] = memory
    return found


async def prepared(peers: Peers, trace: Path) -> Path:
    """The trace as the updates of one yjs client; made once."""
    digest = hashlib.sha256(trace.read_bytes()).hexdigest()[:16]
    file = cache_dir() / "peers" / "traces" / f"{digest}.updates"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        async with _load(peers, "prepare", {"trace": str(trace), "file": str(file)}) as load:
            await load.heard(600)
    return file


async def replay(peers: Peers, server: Server, document: str, updates: Path) -> dict[str, Any]:
    """One client's stream as fast as the server takes it, then a second client that loads what came of it.
    Seconds, MiB (the most that was resident)."""
    options = _options(server, document) | {"file": str(updates)}
    async with _load(peers, "trace", options) as load:
        await load.heard(120)
        before = server.cpu()
        await load.go_on()
        await load.heard(900)
        used, taking = server.cpu() - before, server.memory("VmHWM")
        await load.go_on()
        found: dict[str, Any] = await load.heard(300)
    if not found["same"]:
        raise RuntimeError(f"{server.name} has another text than the trace")
    return found | {"cpu": used, "peak_mib": taking, "peak_after_load_mib": server.memory("VmHWM")}
