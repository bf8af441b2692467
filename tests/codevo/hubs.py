"""A hub's REST API over real MongoDB and S3, with workspaces in memory; and people who call it."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tornado.httpclient import AsyncHTTPClient, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application

from codevo.api import checkpoints, invites, members, projects, servers, templates
from codevo.api.needs import check_routes
from codevo.auth.accounts import Accounts
from codevo.auth.passwords import Passwords
from codevo.embedded.s3 import S3Settings
from codevo.hub import Hub
from codevo.metrics import Metrics
from codevo.objects.config import Bucket, ObjectStore
from codevo.objects.projects import ProjectManager
from codevo.servers import ServerManager
from codevo.store import Store, User, new_id
from codevo.store.servers import StoreServerRecords
from tests.codevo.fakes import FakePods, FakeSpawner


@dataclass
class Answer:
    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Person:
    """Calls the hub with a token of their own; without one: a guest."""

    base: str
    name: str = ""
    id: str = ""
    token: str = ""

    async def __call__(
        self, method: str, path: str, body: Any = None, *, expect: int | None = None, **headers: str
    ) -> Answer:
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else None
        answer: HTTPResponse = await AsyncHTTPClient(force_instance=True).fetch(
            HTTPRequest(
                self.base + path,
                method,
                headers={k.replace("_", "-"): v for k, v in headers.items()},
                body=data,
                allow_nonstandard_methods=True,
                request_timeout=30,
            ),
            raise_error=False,
        )
        found = Answer(answer.code, answer.headers, answer.body or b"")
        if expect is not None:
            assert found.status == expect, (found.status, found.body)
        return found


@dataclass
class TestHub:
    __test__ = False
    hub: Hub
    base: str
    spawner: FakeSpawner
    pods: FakePods
    people: dict[str, Person] = field(default_factory=dict)

    @property
    def guest(self) -> Person:
        return Person(self.base)

    async def person(self, name: str, *scopes: str, email: str = "") -> Person:
        user = User(new_id(), name, email, "")
        await self.hub.store.users.create(user)
        _, token = await self.hub.store.tokens.create(user.id, note="", scopes=scopes or ("all",))
        return Person(self.base, name, user.id, token)

    async def project(self, owner: Person, title: str = "One", **changes: Any) -> str:
        made = await owner("POST", "/api/projects", {"title": title, "template": "tiny"}, expect=201)
        ident: str = made.json["id"]
        if changes:
            await owner("PATCH", f"/api/projects/{ident}", changes, expect=200)
        return ident


def template(folder: Path, name: str, requires: list[str], files: dict[str, str]) -> None:
    root = folder / name
    (root / "files").mkdir(parents=True)
    (root / "template.toml").write_text(
        f'title = "{name.title()}"\nlanguage = "Text"\ndescription = "For tests."\norder = 1\n'
        f"requires = {json.dumps(requires)}\n"
    )
    for path, text in files.items():
        (root / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "files" / path).write_text(text)


@asynccontextmanager
async def open_hub(
    mongo_url: str, s3: S3Settings, tmp_path: Path, spawner: FakeSpawner | None = None, **traits: Any
) -> AsyncIterator[TestHub]:
    store = Store(mongo_url, f"test_{secrets.token_hex(6)}")
    await store.open()
    spawner, pods = spawner or FakeSpawner(), FakePods()
    key = Ed25519PrivateKey.generate()
    sockets = bind_sockets(0, "127.0.0.1")
    base = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    folder = tmp_path / "templates"
    template(folder, "tiny", ["sh"], {"main.txt": "hello\n", "sub/ünï 😀.txt": "deep\n"})
    template(folder, "moon", ["no-such-command"], {"a": "a"})
    objects = ObjectStore(
        endpoint_url=s3.endpoint_url,
        bucket=s3.bucket,
        region=s3.region,
        access_key_id=s3.access_key_id,
        secret_access_key=s3.secret_access_key,
    )
    passwords = Passwords(rounds=4)
    async with Bucket(objects) as bucket:
        hub = Hub(
            config=None,
            store=store,
            accounts=Accounts(store, passwords, xsrf_key=b"x" * 32),
            signing_key=key,
            origin=base,
            preview_domain="localhost:1",
            data_dir=tmp_path,
            static_dir=tmp_path,
            metrics=Metrics(),
        )
        hub.spawner, hub.objects, hub.bucket, hub.pods = spawner, objects, bucket, pods
        server_traits = {k: v for k, v in traits.items() if k in ServerManager.class_trait_names()}
        hub.servers = ServerManager(
            spawner=spawner,
            records=StoreServerRecords(store),
            pods=pods,
            stores=bucket,
            public_key="k",
            **server_traits,
        )
        await hub.servers.open()
        hub.projects = ProjectManager(
            store=store,
            bucket=bucket,
            servers=hub.servers,
            pods=pods,
            template_folder=folder,
            **{k: v for k, v in traits.items() if k not in server_traits},
        )
        await hub.projects.open()
        routes = [
            r for m in (projects, checkpoints, servers, members, invites, templates) for r in m.routes()
        ]
        check_routes(routes)
        server = HTTPServer(Application(routes, hub=hub))
        server.add_sockets(sockets)
        try:
            yield TestHub(hub, base, spawner, pods)
        finally:
            spawner.gate.set()
            spawner.stop_gate.set()
            await hub.servers.close()
            server.stop()
            await server.close_all_connections()
            await store._client.drop_database(store._db.name)
            await store.close()
