"""A real runner process with tokens minted here, and clients that speak to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pod_runtime.protocol.config import RunnerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience, mint, public_key_text
from tests.harness import within

PROJECT = "abcdefghijklmnop"
WAIT = 15.0


@dataclass
class Live:
    """The process under test."""

    process: asyncio.subprocess.Process
    key: Ed25519PrivateKey
    port: int
    gateway: int
    workspace: Path
    http: aiohttp.ClientSession
    log: list[str] = field(default_factory=list)

    def headers(self, role: Role = Role.EDITOR, subject: str = "ann", **more: str) -> dict[str, str]:
        token = mint(
            self.key, project=PROJECT, audience=Audience.RUNNER, subject=subject, name="Ann Lee", role=role
        )
        return {TOKEN_HEADER: token, **more}

    async def call(
        self, method: str, path: str, body: Any = None, role: Role = Role.EDITOR, subject: str = "ann"
    ) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{self.port}{path}"
        data = None if body is None else json.dumps(body)
        async with self.http.request(method, url, data=data, headers=self.headers(role, subject)) as r:
            text = await r.text()
            return r.status, json.loads(text) if text else None

    @contextlib.asynccontextmanager
    async def socket(
        self, path: str, role: Role = Role.EDITOR, subject: str = "ann", protocols: tuple[str, ...] = ()
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        url = f"http://127.0.0.1:{self.port}{path}"
        async with self.http.ws_connect(
            url, headers=self.headers(role, subject), max_msg_size=0, protocols=protocols
        ) as ws:
            yield ws

    def rss(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        assert found
        return int(found[1])


async def start(
    workspace: Path, environment: dict[str, str] | None = None, dependencies: Path | None = None
) -> Live:
    key = Ed25519PrivateKey.generate()
    home = workspace.parent / "home"
    home.mkdir(exist_ok=True)
    config = RunnerConfig(
        project=PROJECT,
        public_key=public_key_text(key),
        workspace=str(workspace),
        environment={
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            **(environment or {}),
        },
        dependencies=str(dependencies) if dependencies else None,
    )
    read, write = os.pipe()
    os.write(write, config.to_json().encode())
    os.close(write)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "pod_runtime.runner",
        *("--config", f"fd:{read}", "--listen", "tcp:127.0.0.1:0"),
        *("--gateway", "tcp:127.0.0.1:0", "--project", PROJECT),
        pass_fds=(read,),
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "SECRET_OF_THE_SERVER": "do-not-leak"},
    )
    os.close(read)
    assert process.stderr
    line = (await within(process.stderr.readline(), WAIT)).decode()
    ports = [int(p) for p in re.findall(r"'127\.0\.0\.1', (\d+)\)", line)]
    assert len(ports) == 2, line + (await process.stderr.read()).decode()
    return Live(process, key, ports[0], ports[1], workspace, aiohttp.ClientSession(), [line])


async def _follow(live: Live) -> None:
    assert live.process.stderr
    async for line in live.process.stderr:
        live.log.append(line.decode())
        sys.stderr.write(line.decode())


@contextlib.asynccontextmanager
async def running(tmp_path: Path, **options: Any) -> AsyncIterator[Live]:
    workspace = tmp_path / "workspace"
    workspace.mkdir(exist_ok=True)
    live = await start(workspace, **options)
    follow = asyncio.create_task(_follow(live))
    try:
        yield live
    finally:
        await live.http.close()
        if live.process.returncode is None:
            live.process.terminate()
        code = await within(live.process.wait(), WAIT)
        await follow
        assert code == 0, live.log
        assert not [x for x in live.log if "Traceback" in x], "".join(live.log)


async def until(condition: Callable[[], Any], timeout: float = WAIT) -> Any:
    """Wait until ``condition()`` is true; give its value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "the condition did not come true"
        await asyncio.sleep(0.02)


async def frame(ws: aiohttp.ClientWebSocketResponse, timeout: float = WAIT) -> Any:
    """The next JSON frame."""
    message = await within(ws.receive(), timeout)
    assert message.type is aiohttp.WSMsgType.TEXT, (message, ws.close_code)
    return json.loads(message.data)


async def close_code(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """Read to the end; the code with which the server closed."""
    while (await within(ws.receive(), WAIT)).type in (
        aiohttp.WSMsgType.TEXT,
        aiohttp.WSMsgType.BINARY,
    ):
        pass
    return ws.close_code


async def shown(ws: aiohttp.ClientWebSocketResponse, wanted: str, timeout: float = WAIT) -> str:
    """Read a terminal until ``wanted`` is on it; give all that came."""
    text = ""
    while wanted not in text:
        kind, *rest = await frame(ws, timeout)
        if kind == "stdout":
            text += rest[0]
    return text


@dataclass
class Kernel:
    """A client of the program kernel."""

    ws: aiohttp.ClientWebSocketResponse
    session: str

    async def send(self, msg_type: str, content: dict[str, Any] | None = None, channel: str = "shell") -> str:
        msg_id = uuid.uuid4().hex
        await self.ws.send_str(
            json.dumps(
                {
                    "channel": channel,
                    "header": {
                        "msg_id": msg_id,
                        "msg_type": msg_type,
                        "session": self.session,
                        "username": "",
                        "date": "",
                        "version": "5.3",
                    },
                    "parent_header": {},
                    "metadata": {},
                    "content": content or {},
                    "buffers": [],
                }
            )
        )
        return msg_id

    async def execute(self, code: str, **more: Any) -> str:
        return await self.send(
            "execute_request", {"code": code, "silent": False, "allow_stdin": True, **more}
        )

    async def until(self, msg_type: str, parent: str | None = None, timeout: float = WAIT) -> list[Any]:
        """All messages up to one of ``msg_type`` (an answer to ``parent``)."""
        found: list[Any] = []
        while True:
            message = await frame(self.ws, timeout)
            found.append(message)
            if message["header"]["msg_type"] == msg_type and parent in (
                None,
                message["parent_header"].get("msg_id"),
            ):
                return found

    async def until_text(self, wanted: str) -> str:
        text = ""
        while wanted not in text:
            message = await frame(self.ws)
            if message["header"]["msg_type"] == "stream":
                text += message["content"]["text"]
        return text

    async def run(self, code: str, **more: Any) -> tuple[str, Any, list[Any]]:
        """Run to the end: the output, the reply's content, all messages."""
        found = await self.until("execute_reply", await self.execute(code, **more))
        return text_of(found), found[-1]["content"], found


def text_of(found: list[Any], name: str | None = None) -> str:
    return "".join(
        m["content"]["text"]
        for m in found
        if m["header"]["msg_type"] == "stream" and name in (None, m["content"]["name"])
    )


@contextlib.asynccontextmanager
async def program(
    live: Live,
    role: Role = Role.EDITOR,
    subject: str = "ann",
    session: str | None = None,
    query: str = "",
) -> AsyncIterator[Kernel]:
    """Connect to the project's program kernel, made by an editor when there is none."""
    _, model = await live.call("POST", "/api/kernels", {"name": "program"})
    session = session or uuid.uuid4().hex
    path = f"/api/kernels/{model['id']}/channels?session_id={session}{query}"
    async with live.socket(path, role, subject) as ws:
        yield Kernel(ws, session)


def alive(pid: int) -> bool:
    """Whether the process runs; a zombie that nobody has reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


async def told_pid(ws: aiohttp.ClientWebSocketResponse) -> int:
    """Read a terminal until it says ``pid=N=``."""
    text = ""
    while (match := re.search(r"pid=(\d+)=", text)) is None:
        kind, *rest = await frame(ws)
        if kind == "stdout":
            text += rest[0]
    return int(match[1])
