"""A real hub as a child process, and a small client of its REST API and sockets, for tests and benchmarks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

CODEVO = Path(sys.executable).with_name("codevo")
T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float) -> T:
    """The result, or ``TimeoutError``. Unlike `asyncio.wait_for` it never swallows a cancellation."""
    async with asyncio.timeout(seconds):
        return await awaitable


class HubProcess:
    """``codevo serve`` on a free port with the embedded default and a data directory of the test's own."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.data_dir = data_dir
        self.arguments = arguments
        self.log_file = data_dir.parent / f"{data_dir.name}.log"
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 60.0) -> None:
        self.data_dir.mkdir(parents=True, exist_ok=True)
        port = self.url.rpartition(":")[2] if self.url else "0"
        with self.log_file.open("ab") as log:
            start = log.tell()
            self.process = subprocess.Popen(
                [str(CODEVO), "serve", "--port", port, "--data-dir", str(self.data_dir), *self.arguments],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            found = re.search(rb"Codevo is ready at (http://\S+)", self.log_file.read_bytes()[start:])
            if found:
                self.url = found[1].decode().rstrip("/")
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"the hub did not become ready:\n{self.log()}")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def log(self, lines: int = 60) -> str:
        return "\n".join(self.log_file.read_text(errors="replace").splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9, as a crash would."""
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def terminate(self, timeout: float = 60.0) -> int:
        """SIGTERM; gives the exit status."""
        assert self.process
        self.process.terminate()
        return self.process.wait(timeout)

    def cleanup(self) -> None:
        """End the hub and every workspace, whatever state they are in."""
        if self.process and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.terminate(40)
            if self.process.poll() is None:
                self.kill()
        for pid in processes(str(self.data_dir)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def processes(*words: str) -> list[int]:
    """Pids whose command line holds every one of ``words``."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                if line and all(word in line for word in words):
                    found.append(int(folder.name))
    return found


class Refused(AssertionError):
    """An answer of status 400 or above."""

    def __init__(self, status: int, method: str, path: str, body: str) -> None:
        super().__init__(f"{method} {path}: {status} {body[:2000]}")
        self.status = status
        self.body = body


class Client:
    """One person: signs up, then calls with the session's cookie and the XSRF header, as the page does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True))
        self.name = ""

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.http.close()

    def headers(self) -> dict[str, str]:
        cookies = self.http.cookie_jar.filter_cookies(URL(self.url))
        found = cookies.get("_xsrf")
        return {"X-XSRFToken": found.value} if found else {}

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """The decoded JSON (or text) of a successful answer; `Refused` otherwise."""
        async with self.http.request(
            method, self.url + path, json=body, headers=self.headers() | options.pop("headers", {}), **options
        ) as answer:
            text = await answer.text()
            if answer.status >= 400:
                raise Refused(answer.status, method, path, text)
            return json.loads(text) if text and "json" in answer.content_type else text

    async def sign_up(self, name: str, password: str = "correct horse battery") -> dict[str, Any]:
        await self.call("GET", "/api/config")
        self.name = name
        form = {"name": name, "email": f"{name}@example.org", "password": password}
        return await self.call("POST", "/api/signup", form)

    async def log_in(self, name: str, password: str = "correct horse battery") -> dict[str, Any]:
        await self.call("GET", "/api/config")
        self.name = name
        return await self.call("POST", "/api/login", {"name": name, "password": password})

    async def new_project(self, template: str = "python", title: str = "Test") -> str:
        project = await self.call("POST", "/api/projects", {"title": title, "template": template})
        return project["id"]

    async def ready(self, project: str, timeout: float = 60.0) -> dict[str, Any]:
        """Start the project's server and wait until it is ready."""
        async with asyncio.timeout(timeout):
            await self.call("POST", f"/api/projects/{project}/server")
            while True:
                found = await self.call("GET", f"/api/projects/{project}")
                if found["server"]["state"] == "ready":
                    return found
                if found["server"]["state"] == "failed":
                    raise AssertionError(f"start failed: {found['server']}")
                await asyncio.sleep(0.02)

    async def stop(self, project: str, timeout: float = 60.0) -> None:
        async with asyncio.timeout(timeout):
            await self.call("DELETE", f"/api/projects/{project}/server")
            while (await self.call("GET", f"/api/projects/{project}"))["server"]["state"] != "stopped":
                await asyncio.sleep(0.05)

    def socket(self, project: str, path: str, **options: Any) -> Any:
        url = f"{self.url}/p/{project}/{path}".replace("http", "ws", 1)
        return self.http.ws_connect(url, headers={"Origin": self.url}, max_msg_size=0, **options)

    @contextlib.asynccontextmanager
    async def terminal(self, project: str, name: str | None = None) -> AsyncIterator[Terminal]:
        if name is None:
            name = (await self.call("POST", f"/p/{project}/api/terminals", {}))["name"]
        async with self.socket(project, f"terminals/websocket/{name}") as ws:
            yield Terminal(name, ws)

    async def read(self, project: str, path: str) -> str:
        model = await self.call("GET", f"/p/{project}/api/contents/{quote(path)}")
        return str(model["content"])

    async def durable(self, project: str, timeout: float = 30.0) -> None:
        async with asyncio.timeout(timeout):
            while (await self.call("GET", f"/p/{project}/api/durability"))["pending"]:
                await asyncio.sleep(0.05)

    async def run(self, project: str, code: str = "") -> Run:
        """Open the project's program kernel (made when missing) and execute ``code``."""
        kernels = await self.call("GET", f"/p/{project}/api/kernels")
        kernel = next((k for k in kernels if k["name"] == "program"), None)
        kernel = kernel or await self.call("POST", f"/p/{project}/api/kernels", {"name": "program"})
        ws = await self.socket(
            project, f"api/kernels/{kernel['id']}/channels?session_id={os.urandom(8).hex()}"
        )
        run = Run(kernel["id"], ws)
        await run.send("shell", "execute_request", {"code": code, "silent": False, "allow_stdin": True})
        return run


class Terminal:
    def __init__(self, name: str, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.name = name
        self.ws = ws
        self.seen = ""

    async def type(self, text: str) -> None:
        await self.ws.send_json(["stdin", text])

    async def until(self, pattern: str, timeout: float = 20.0) -> str:
        """Read until ``pattern`` (a regular expression) has been seen; gives all that was seen."""
        try:
            async with asyncio.timeout(timeout):
                while not re.search(pattern, self.seen):
                    message = await self.ws.receive()
                    if message.type is not aiohttp.WSMsgType.TEXT:
                        raise AssertionError(f"socket ended ({message}); seen: {self.seen!r}")
                    kind, *rest = json.loads(message.data)
                    if kind == "stdout":
                        self.seen += rest[0]
        except TimeoutError:
            raise AssertionError(f"no {pattern!r} in {self.seen!r}") from None
        return self.seen


class Run:
    """A socket to the program kernel, in the JSON framing of Jupyter Server."""

    def __init__(self, kernel: str, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.kernel = kernel
        self.ws = ws
        self.output = ""
        self.messages: list[dict[str, Any]] = []

    async def send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        identity = os.urandom(8).hex()
        header = {
            "msg_id": identity,
            "msg_type": kind,
            "session": "test",
            "username": "",
            "version": "5.3",
            "date": "",
        }
        message = {
            "channel": channel,
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
        }
        await self.ws.send_json(message | {"buffers": []})
        return identity

    async def until(self, what: str, timeout: float = 30.0) -> dict[str, Any]:
        """Read until a message type or a text in the output; gives the last message."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    message = json.loads(await self.ws.receive_str())
                    self.messages.append(message)
                    kind = message["header"]["msg_type"]
                    if kind == "stream":
                        self.output += message["content"]["text"]
                    if kind == what or what in self.output:
                        return message
        except TimeoutError:
            kinds = [m["header"]["msg_type"] for m in self.messages]
            raise AssertionError(f"no {what!r}; messages {kinds}; output {self.output!r}") from None

    async def line(self, text: str) -> None:
        await self.send("stdin", "input_reply", {"value": text, "status": "ok"})

    async def close(self) -> None:
        await self.ws.close()
