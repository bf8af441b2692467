"""A whole hub for tests: real database, object store and HTTP, but no workspaces."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from motor.motor_asyncio import AsyncIOMotorClient
from tornado.netutil import bind_sockets

from codevo.app import Codevo
from codevo.embedded.s3 import S3Settings
from codevo.hub import Hub
from codevo.lifecycle import open_hub, serve_hub
from codevo.spawner.base import PodAddress, Progress, ServerState, Spawner, WorkspaceSpec, WorkspaceStatus
from codevo.store import Project, Role, User, Visibility, new_id

PASSWORD = "correct horse battery"


class QuietSpawner(Spawner):
    """Runs nothing; `running` says what it would."""

    age = 0.0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.running: dict[str, WorkspaceStatus] = {}

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        address = PodAddress("unix:/nowhere/r", "unix:/nowhere/g", "unix:/nowhere/w")
        self.running[spec.project] = WorkspaceStatus(
            spec.project, spec.worker.generation, ServerState.READY, address, datetime.now(UTC)
        )
        return address

    async def stop(self, project: str, *, grace: float = 30.0) -> None:
        self.running.pop(project, None)

    async def remove(self, project: str) -> None:
        self.running.pop(project, None)

    async def poll(self, project: str) -> WorkspaceStatus | None:
        return self.running.get(project)

    async def list(self) -> dict[str, WorkspaceStatus]:
        return dict(self.running)

    async def events(self) -> AsyncIterator[WorkspaceStatus]:
        return
        yield

    def last_sync_age(self) -> float:
        return self.age


@dataclass
class Answer:
    """An answer, read to its end."""

    status: int
    headers: Any
    text: str
    json: Any


@dataclass
class Browser:
    """Keeps cookies and sends Origin and the XSRF header as our page does."""

    base: str
    session: aiohttp.ClientSession
    headers: dict[str, str] = field(default_factory=dict)

    def cookie(self, name: str) -> str | None:
        found = [c.value for c in self.session.cookie_jar if c.key == name]
        return found[-1] if found else None

    async def __call__(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        headers: dict[str, str | None] | None = None,
        **kw: Any,
    ) -> Answer:
        """``headers`` with the value None are left out."""
        sent: dict[str, str | None] = dict(self.headers)
        if method not in ("GET", "HEAD"):
            sent["Origin"] = self.base
            sent["X-XSRFToken"] = self.cookie("_xsrf")
        sent |= headers or {}
        real = {k: v for k, v in sent.items() if v is not None}
        async with self.session.request(
            method, self.base + path, json=json, headers=real, allow_redirects=False, **kw
        ) as r:
            text = await r.text(errors="replace")
            kind = r.headers.get("Content-Type", "")
            return Answer(
                r.status, r.headers, text, await r.json(content_type=None) if "json" in kind else None
            )


@dataclass
class Site:
    """A running hub."""

    hub: Hub
    base: str
    stack: contextlib.AsyncExitStack

    async def browser(self, **headers: str) -> Browser:
        jar = aiohttp.CookieJar(unsafe=True)
        session = await self.stack.enter_async_context(aiohttp.ClientSession(cookie_jar=jar))
        return Browser(self.base, session, headers)

    async def person(self, name: str, *, admin: bool = False) -> tuple[User, Browser]:
        """Somebody with an account, logged in with a browser of their own."""
        user = await self.hub.accounts.create(name, PASSWORD, admin=admin)
        browser = await self.browser()
        answer = await browser("POST", "/api/login", {"name": name, "password": PASSWORD})
        assert answer.status == 200, answer.text
        return user, browser

    async def program(self, user: User, *scopes: str) -> Browser:
        """A program that acts for somebody with a token."""
        _, text = await self.hub.store.tokens.create(user.id, note="", scopes=scopes or ("all",))
        return await self.browser(Authorization=f"Bearer {text}")

    async def project(self, owner: User, *, public: bool = False) -> Project:
        """The record of a project, without files."""
        visibility = Visibility.PUBLIC if public else Visibility.PRIVATE
        project = Project(new_id(), "A project", "python", visibility)
        await self.hub.store.projects.create(project)
        await self.hub.store.members.set(project.id, owner.id, Role.OWNER)
        return project


@contextlib.asynccontextmanager
async def running_site(
    tmp_path: Path, mongo_url: str, s3: S3Settings, **settings: Any
) -> AsyncIterator[Site]:
    """A hub on a free port, with a database that is dropped afterwards."""
    app = Codevo(
        data_dir=str(tmp_path / "data"),
        mongo_url=mongo_url,
        db_name=f"test-{secrets.token_hex(6)}",
        bcrypt_rounds=4,
        static_dir=str(tmp_path / "page"),
        log_level="WARN",
    )
    app.spawner_class = QuietSpawner
    for name, value in settings.items():
        setattr(app, name, value)
    where = app.config.ObjectStore
    where.endpoint_url, where.bucket, where.region = s3.endpoint_url, s3.bucket, s3.region
    where.access_key_id, where.secret_access_key = s3.access_key_id, s3.secret_access_key
    sockets = bind_sockets(0, "127.0.0.1")
    port = sockets[0].getsockname()[1]
    async with contextlib.AsyncExitStack() as clients:
        try:
            async with open_hub(app, port) as hub, serve_hub(hub, sockets), clients:
                yield Site(hub, f"http://127.0.0.1:{port}", clients)
        finally:
            client: Any = AsyncIOMotorClient(mongo_url)
            await client.drop_database(app.db_name)
            client.close()
