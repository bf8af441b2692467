"""What the tests of faults share: y-clients through the hub, signals to processes, waiting for conditions."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import re
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from pycrdt import Doc
from yarl import URL

from tests.harness import Client, HubProcess, processes
from tests.pod_runtime.worker.ycl import YClient


async def until(condition: Callable[[], Any], what: str, timeout: float = 30.0) -> Any:
    """Wait until ``condition`` (maybe a coroutine function) gives something true; gives it."""
    deadline = time.monotonic() + timeout
    found: Any = None
    while time.monotonic() < deadline:
        found = condition()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited {timeout} s for: {what}; last {found!r}")


def collab_url(base: str, project: str, path: str) -> URL:
    name = "/".join(quote(part, safe="") for part in path.split("/"))
    return URL(f"{base}/p/{project}/collab/{name}".replace("http", "ws", 1), encoded=True)


async def connect(person: Client, project: str, path: str, doc: Doc[Any] | None = None) -> YClient:
    """An unmodified y-websocket client on the document, in sync. It retries as y-websocket does."""
    client = YClient(doc)
    url = collab_url(person.url, project, path)
    deadline = time.monotonic() + 40
    while True:
        try:
            await client.connect(person.http, url, {"Origin": person.url})
            async with asyncio.timeout(10):
                # a socket that closes before it is in sync is tried again, too
                while not client.synced.is_set():
                    if client.ws is None or client.ws.closed:
                        raise ConnectionError(f"closed with {client.ws and client.ws.close_code}")
                    await asyncio.sleep(0.01)
            return client
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            await client.close()
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def editing(person: Client, project: str, path: str) -> AsyncIterator[YClient]:
    client = await connect(person, project, path)
    try:
        yield client
    finally:
        await client.close()


def disk(hub: HubProcess, project: str) -> Path:
    """The workspace's folder on this machine."""
    return hub.data_dir / "workspaces" / project / "workspace"


def children(hub: HubProcess, word: str) -> list[int]:
    """Pids of the hub's own services whose program is ``word`` (``mongod`` or ``weed``)."""
    found = []
    for pid in processes(str(hub.data_dir)):
        with contextlib.suppress(OSError):
            if word in Path(f"/proc/{pid}/comm").read_text():
                found.append(pid)
    return found


@contextlib.contextmanager
def frozen(hub: HubProcess, word: str) -> Iterator[None]:
    """The service hangs: it takes connections and answers none of them."""
    pids = children(hub, word)
    assert pids, f"no {word} runs"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kill(*pids: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def kill_worker(project: str) -> None:
    found = processes("pod_runtime.worker", project)
    assert found
    kill(*found)


def resident(pid: int) -> int:
    """Bytes of memory of a process that are in RAM."""
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


async def put(person: Client, project: str, path: str, content: str) -> None:
    body = {"type": "file", "format": "text", "content": content}
    await person.call("PUT", f"/p/{project}/api/contents/{quote(path)}", body)


async def reading(person: Client, project: str, path: str) -> str | None:
    """The file's text; None while the workspace does not answer."""
    from tests.harness import Refused

    try:
        return await person.read(project, path)
    except Refused as e:
        assert e.status in (404, 503), e
        return None
