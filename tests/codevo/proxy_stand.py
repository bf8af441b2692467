"""A hub with only its proxy, a real MongoDB, and pods that are real servers on Unix sockets."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerConnectionDelegate
from tornado.netutil import bind_sockets, bind_unix_socket
from tornado.web import Application, RequestHandler, stream_request_body
from tornado.websocket import WebSocketHandler

from codevo.api import previews as preview_codes
from codevo.hub import Hub, Limits
from codevo.proxy import workspace
from codevo.proxy.pods import PodClient
from codevo.proxy.preview_site import is_preview_host, preview_application
from codevo.servers.progress import ServerStatus
from codevo.spawner.base import PodAddress, ServerState
from codevo.store import Project, ProjectSettings, Store, User, Visibility, new_id
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience, Claims, verify

WAIT = 20.0
PREVIEW_DOMAIN = "preview.test"


@dataclass
class Pod:
    """The servers of one project; `seen` is what they were asked."""

    project: str
    key: Ed25519PrivateKey
    folder: Path
    seen: list[Any] = field(default_factory=list)
    servers: list[HTTPServer] = field(default_factory=list)
    raw: list[asyncio.Server] = field(default_factory=list)
    closes: asyncio.Queue[tuple[int | None, str | None]] = field(default_factory=asyncio.Queue)
    uploaded: int = 0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def address(self) -> PodAddress:
        return PodAddress(*(f"unix:{self.folder}/{name}.sock" for name in ("runner", "gateway", "worker")))

    def claims(self, request: Any, audience: Audience) -> Claims:
        return verify(
            self.key.public_key(), request.headers[TOKEN_HEADER], project=self.project, audience=audience
        )

    def listen(self, name: str, routes: list[Any]) -> None:
        server = HTTPServer(
            Application([(p, h, {"pod": self, "name": name}) for p, h in routes]), max_body_size=2**30
        )
        server.add_socket(bind_unix_socket(str(self.folder / f"{name}.sock")))
        self.servers.append(server)

    async def listen_raw(
        self, name: str, serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
    ) -> None:
        path = self.folder / f"{name}.sock"
        path.unlink(missing_ok=True)

        async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                    await serve(reader, writer)
            finally:
                writer.close()

        self.raw.append(await asyncio.start_unix_server(one, str(path)))

    async def close(self) -> None:
        for server in self.servers:
            server.stop()
            await server.close_all_connections()
        for raw in self.raw:
            raw.close()


class Base(RequestHandler):
    def initialize(self, pod: Pod, name: str) -> None:
        self.pod, self.name = pod, name

    def prepare(self) -> None:
        audience = Audience.WORKER if self.name == "worker" else Audience.RUNNER
        self.claims = self.pod.claims(self.request, audience)
        self.pod.seen.append(SimpleNamespace(name=self.name, request=self.request, claims=self.claims))


class Echo(Base):
    """Answers with what arrived."""

    def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.set_header("Set-Cookie", "evil=1")
        self.write(
            {
                "uri": self.request.uri,
                "method": self.request.method,
                "headers": {k.lower(): v for k, v in self.request.headers.get_all()},
                "body": self.request.body.decode("latin-1"),
                "sub": self.claims.subject,
                "role": str(self.claims.role),
                "name": self.claims.name,
            }
        )

    post = put = patch = delete = get


class Evil(Base):
    """A workspace that attacks the hub's origin."""

    def get(self) -> None:
        for name, value in (
            ("Content-Type", "text/html"),
            ("Set-Cookie", "codevo-session=stolen; Path=/"),
            ("Content-Security-Policy", "default-src *"),
            ("Service-Worker-Allowed", "/"),
            ("Clear-Site-Data", "*"),
            ("Access-Control-Allow-Origin", "*"),
            ("Refresh", "0; url=//evil"),
            ("Link", "</x>; rel=preload"),
            ("Location", "https://evil.test/"),
            ("Cache-Control", "public, max-age=999"),
        ):
            self.set_header(name, value)
        self.write("<script>alert(1)</script>")


class Created(Base):
    def post(self) -> None:
        self.set_status(201)
        self.set_header("Location", "/api/kernels/x")
        self.write({})


class Big(Base):
    """Many megabytes, as fast as they are taken; ``written`` of the pod counts."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        try:
            for _ in range(int(self.get_argument("mib", "64")) * 16):
                self.write(b"x" * 65536)
                await self.flush()
                self.pod.uploaded += 65536
        except Exception:
            self.pod.gone.set()
            raise


class Drip(Base):
    """An event stream that says one thing and waits."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/event-stream")
        self.write("data: one\n\n")
        await self.flush()
        waiting = asyncio.create_task(self.pod.stop.wait())
        await asyncio.wait({waiting}, timeout=WAIT)

    def on_connection_close(self) -> None:
        self.pod.gone.set()
        self.pod.stop.set()


class Etag(Base):
    def get(self) -> None:
        self.set_header("Content-Type", "text/plain")
        self.set_header("Accept-Ranges", "bytes")
        if self.request.headers.get("Range") == "bytes=1-2":
            self.set_status(206)
            self.set_header("Content-Range", "bytes 1-2/5")
            self.write("el")
        else:
            self.write("hello")

    head = get


@stream_request_body
class Upload(Base):
    def data_received(self, chunk: bytes) -> None:
        self.pod.uploaded += len(chunk)

    def put(self) -> None:
        self.write({"bytes": self.pod.uploaded})


@stream_request_body
class NeverReads(Base):
    async def data_received(self, chunk: bytes) -> None:
        self.pod.uploaded += len(chunk)
        await self.pod.stop.wait()

    def put(self) -> None:
        self.write({})


class Socket(Base, WebSocketHandler):
    """Echoes; ``close:CODE:REASON`` closes; chooses the last subprotocol."""

    def check_origin(self, origin: str) -> bool:
        return True

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return subprotocols[-1] if subprotocols else None

    def get_compression_options(self) -> dict[str, Any] | None:
        return {} if "deflate" in self.request.uri else None  # type: ignore[operator]

    async def get(self, *args: Any) -> None:
        if "refuse" in (self.request.uri or ""):
            self.set_status(int(self.get_argument("refuse")))
            self.finish("no")
            return
        await WebSocketHandler.get(self, *args)

    async def on_message(self, message: str | bytes) -> None:
        if isinstance(message, str) and message.startswith("close:"):
            _, code, reason = message.split(":")
            self.close(int(code), reason)
        elif message == "flood":
            with contextlib.suppress(Exception):
                for _ in range(512):
                    await self.write_message(b"z" * 2**17, binary=True)
                    self.pod.uploaded += 2**17
        else:
            await self.write_message(message, binary=isinstance(message, bytes))

    def on_close(self) -> None:
        self.pod.closes.put_nowait((self.close_code, self.close_reason))


class Cookies(Base):
    def get(self) -> None:
        self.add_header("Set-Cookie", "mine=1; Domain=preview.test; Path=/; HttpOnly")
        self.add_header("Set-Cookie", "__Host-codevo-preview=forged; Path=/; Secure")
        self.add_header("Set-Cookie", "codevo-session=x; Domain=test")
        self.set_header("Content-Security-Policy", "default-src 'self'")
        self.set_header("Access-Control-Allow-Origin", "https://other.test")
        self.write("<h1>mine</h1>")


ROUTES = [
    (r"/api/evil|/api/contents/evil\.html", Evil),
    (r"/api/kernels", Created),
    (r"/files/big|/big", Big),
    (r"/files/drip|/drip", Drip),
    (r"/files/etag|/etag", Etag),
    (r"/files/never", NeverReads),
    (r"/files/upload|/upload", Upload),
    (r"/collab/.*|/ws.*|/api/events", Socket),
    (r"/cookies", Cookies),
    (r"/.*", Echo),
]


class Servers:
    """What the proxy asks of the manager of servers."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        self.states: dict[str, ServerState] = {}
        self.started: list[tuple[str, str]] = []

    def address(self, project: str) -> PodAddress | None:
        pod = self.pods.get(project)
        return pod.address if pod else None

    def status(self, project: str) -> ServerStatus:
        state = ServerState.READY if project in self.pods else self.states.get(project, ServerState.STOPPED)
        return ServerStatus(state, datetime.now(UTC), reason="it broke" if state == "failed" else "")

    def start(self, project: str, owner: str) -> ServerStatus:
        self.started.append((project, owner))
        self.states[project] = ServerState.STARTING
        return self.status(project)


class ByHost(HTTPServerConnectionDelegate):
    """As `codevo.app` does it: preview hosts go to the preview application."""

    def __init__(self, hub_app: Application, preview_app: Application) -> None:
        self.hub_app, self.preview_app = hub_app, preview_app

    def start_request(self, server_conn: object, request_conn: Any) -> Any:
        router = self

        from tornado.routing import Router

        class Choose(Router):
            def find_handler(self, request: Any, **kwargs: Any) -> Any:
                chosen = is_preview_host(request.host or "", PREVIEW_DOMAIN)
                return (router.preview_app if chosen else router.hub_app).find_handler(request, **kwargs)

        return Choose().start_request(server_conn, request_conn)


@dataclass
class Stand:
    """Everything of one test."""

    hub: Hub
    servers: Servers
    store: Store
    http: aiohttp.ClientSession
    origin: str
    port: int
    folder: Path
    key: Ed25519PrivateKey
    open_pods: list[Pod] = field(default_factory=list)

    async def user(self, name: str) -> tuple[User, str]:
        """A person and an API token."""
        user = User(new_id(), name, f"{name}@example.test", "")
        await self.store.users.create(user)
        _, text = await self.store.tokens.create(user.id, note="", scopes=("all",))
        return user, text

    async def project(self, *members: tuple[User, Role], **options: Any) -> str:
        settings = ProjectSettings(
            public_ports=options.pop("public_ports", ()), wake=options.pop("wake", True)
        )
        project = Project(
            new_id(), "T", "python", options.pop("visibility", Visibility.PRIVATE), settings=settings
        )
        await self.store.projects.create(project)
        for user, role in members:
            await self.store.members.set(project.id, user.id, role)
        return project.id

    def pod(self, project: str, *, names: tuple[str, ...] = ("runner", "gateway", "worker")) -> Pod:
        folder = self.folder / project
        folder.mkdir(exist_ok=True, parents=True)
        pod = Pod(project, self.key, folder)
        for name in names:
            pod.listen(name, ROUTES)
        self.servers.pods[project] = pod
        self.open_pods.append(pod)
        return pod

    async def session(self, user: User) -> tuple[str, str]:
        """The session's cookie and the XSRF token that goes with it."""
        from codevo.auth import xsrf

        session, secret = await self.store.sessions.create(user.id, 3600)
        return f"codevo-session={secret}", xsrf.make(self.hub.accounts.xsrf_key, session.id)


@contextlib.asynccontextmanager
async def stand(mongo: str, folder: Path, *, max_upload: int = 512 * 2**20) -> AsyncIterator[Stand]:
    key = Ed25519PrivateKey.generate()
    store = Store(mongo, database=f"t{new_id()}")
    await store.open()
    sockets = bind_sockets(0, "127.0.0.1")
    port = sockets[0].getsockname()[1]
    origin = f"http://127.0.0.1:{port}"
    accounts: Any = SimpleNamespace(xsrf_key=b"k" * 32)
    none: Any = None
    hub = Hub(
        none, store, accounts, key, origin, PREVIEW_DOMAIN, folder, folder, none,
        limits=Limits(max_upload=max_upload),
    )  # fmt: skip
    servers = Servers()
    hub.servers = servers  # type: ignore[assignment]
    hub.pods = PodClient(key, servers.address)
    quiet: dict[str, Any] = {"log_function": lambda handler: None}
    app = Application([*workspace.routes(), *preview_codes.routes()], hub=hub, **quiet)  # type: ignore[arg-type]
    server = HTTPServer(ByHost(app, preview_application(hub)))
    server.add_sockets(sockets)
    http = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False)
    made = Stand(hub, servers, store, http, origin, port, folder, key)
    try:
        yield made
    finally:
        hub.sockets.close_all()
        await http.close()
        server.stop()
        await server.close_all_connections()
        await hub.pods.close()
        for pod in made.open_pods:
            await pod.close()
        await store._client.drop_database(store._db.name)
        await store.close()


async def until(condition: Callable[[], bool], what: str = "the condition") -> None:
    """Wait for something to become true."""
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true"
        await asyncio.sleep(0.01)
