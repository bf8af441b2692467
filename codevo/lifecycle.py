"""How a hub comes up and goes down: what is opened in which order, and closed in the reverse one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from tornado.httpserver import HTTPServer

from codevo import datadir
from codevo.auth.accounts import Accounts, LoginLimits
from codevo.auth.origins import loopback_hosts
from codevo.auth.passwords import Passwords
from codevo.auth.ratelimit import is_loopback
from codevo.embedded import EmbeddedServices, ServiceError
from codevo.embedded.mongo import mongo_url
from codevo.embedded.s3 import S3Settings
from codevo.hub import Hub, Limits
from codevo.metrics import Metrics
from codevo.objects.config import Bucket, ObjectStore
from codevo.objects.projects import ProjectManager
from codevo.proxy.pods import PodClient
from codevo.servers import ServerManager
from codevo.spawner.base import Spawner, SpawnError
from codevo.store import Store, StoreUnavailable
from codevo.store.servers import StoreServerRecords
from codevo.web import HostRouter
from pod_runtime.journal.store import StoreError
from pod_runtime.protocol.tokens import public_key_text

if TYPE_CHECKING:
    from codevo.app import Codevo

log = logging.getLogger(__name__)

#: Seconds that open requests have to end after the sockets have been closed.
_DRAIN = 2.0
#: Seconds for a request's body to arrive, which is kept in memory until then. Streamed ones have longer.
_BODY_SECONDS = 60.0


class StartError(Exception):
    """The hub cannot start; the text is for people and says what to do."""


@contextlib.asynccontextmanager
async def open_stores(
    app: Codevo, data_dir: Path, *, s3: bool = True
) -> AsyncIterator[tuple[Store, ObjectStore, Bucket | None]]:
    """Database and object store, the embedded ones where no URL is configured; without ``s3`` the database
    alone. The caller holds the data directory's lock. Raises `StartError`."""
    objects = ObjectStore(parent=app)
    own_s3 = s3 and not objects.endpoint_url
    async with contextlib.AsyncExitStack() as stack:
        url = app.mongo_url
        if not url or own_s3:
            services = EmbeddedServices(data_dir, mongo=not url, s3=own_s3, log=log)
            try:
                await stack.enter_async_context(services)
            except ServiceError as e:
                raise StartError(str(e)) from e
            url = url or services.mongo_url
            if own_s3:
                use_embedded(objects, services.s3)
        yield await stack.enter_async_context(_connected(app, url, objects, s3=s3))


@contextlib.asynccontextmanager
async def open_running(
    app: Codevo, data_dir: Path, *, s3: bool = True
) -> AsyncIterator[tuple[Store, ObjectStore, Bucket | None]]:
    """The stores of a hub that runs with this data directory: its embedded services are there already."""
    objects = ObjectStore(parent=app)
    if s3 and not objects.endpoint_url:
        use_embedded(objects, _kept_settings(data_dir / "s3" / "settings.json"))
    async with _connected(app, app.mongo_url or mongo_url(data_dir / "mongo"), objects, s3=s3) as opened:
        yield opened


@contextlib.asynccontextmanager
async def _connected(
    app: Codevo, url: str, objects: ObjectStore, *, s3: bool
) -> AsyncIterator[tuple[Store, ObjectStore, Bucket | None]]:
    async with contextlib.AsyncExitStack() as stack:
        try:
            store = Store(url, app.db_name)
            stack.push_async_callback(store.close)
            await store.open()
            bucket = await stack.enter_async_context(Bucket(objects)) if s3 else None
        except StoreUnavailable as e:
            raise StartError("MongoDB does not answer. Check c.Codevo.mongo_url and that it runs.") from e
        except StoreError as e:
            raise StartError(f"{e} Check c.ObjectStore and that it runs.") from e
        yield store, objects, bucket


def _kept_settings(path: Path) -> S3Settings:
    """What the embedded S3 server wrote down at its first start."""
    try:
        return S3Settings(**json.loads(path.read_bytes())["settings"])
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise StartError(f"{path} cannot be read. Does the hub that runs use another object store?") from e


def use_embedded(objects: ObjectStore, s3: S3Settings) -> None:
    """Point ``objects`` at the embedded server."""
    objects.endpoint_url = s3.endpoint_url
    objects.bucket = s3.bucket
    objects.region = s3.region
    objects.access_key_id = s3.access_key_id
    objects.secret_access_key = s3.secret_access_key


def make_hub(
    app: Codevo, data_dir: Path, port: int, store: Store, objects: ObjectStore, bucket: Bucket
) -> Hub:
    """The hub's parts, wired but not yet opened."""
    wildcard = app.ip in ("", "0.0.0.0", "::")  # noqa: S104
    address = f"[{app.ip}]" if ":" in app.ip else app.ip
    origin = app.public_url or f"http://{'localhost' if wildcard else address}:{port}"
    hosts = loopback_hosts(port) | {h.lower() for h in app.allowed_hosts}
    if not wildcard:
        hosts |= {f"{address}:{port}"}
    key = datadir.signing_key(data_dir)
    limits = Limits(
        max_upload=app.max_upload,
        members_per_project=app.members_per_project,
        tokens_per_user=app.tokens_per_user,
        session_seconds=app.session_days * 86400,
    )
    accounts = Accounts(
        store,
        Passwords(rounds=app.bcrypt_rounds),
        xsrf_key=datadir.derived_key(key, "xsrf"),
        session_seconds=limits.session_seconds,
        limits=LoginLimits(per_account=app.login_attempts, per_address=6 * app.login_attempts),
    )
    hub = Hub(
        config=app,
        store=store,
        accounts=accounts,
        signing_key=key,
        origin=origin,
        preview_domain=app.preview_domain or f"localhost:{port}",
        data_dir=data_dir,
        static_dir=Path(app.static_dir).expanduser(),
        metrics=Metrics(),
        hosts=frozenset(hosts),
        limits=limits,
        setup_code=app.setup_code or secrets.token_urlsafe(9),
        signup=app.signup,
    )
    hub.objects, hub.bucket = objects, bucket
    _give_data_dir(app, data_dir)
    hub.spawner = app.spawner_class(parent=app)
    # the two need each other; the pods' addresses are asked for when there is something to call
    pods = PodClient(key, lambda project: hub.servers.address(project))
    hub.servers = ServerManager(
        parent=app,
        spawner=hub.spawner,
        records=StoreServerRecords(store),
        pods=pods,
        stores=bucket,
        public_key=public_key_text(key),
    )
    hub.pods = pods
    hub.projects = ProjectManager(parent=app, store=store, bucket=bucket, servers=hub.servers, pods=pods)
    return hub


def _give_data_dir(app: Codevo, data_dir: Path) -> None:
    """Tell a spawner that keeps things on this machine where, unless the operator has."""
    spawner: type[Spawner] = app.spawner_class
    if "data_dir" in spawner.class_trait_names() and "data_dir" not in app.config[spawner.__name__]:
        app.config[spawner.__name__].data_dir = str(data_dir)


@contextlib.asynccontextmanager
async def open_hub(app: Codevo, port: int) -> AsyncIterator[Hub]:
    """A hub that is ready for its first request. Raises `StartError`.

    At the end the workspaces are saved and stopped, or left running, as the application says.
    """
    async with contextlib.AsyncExitStack() as stack:
        try:
            data_dir = datadir.prepare(Path(app.data_dir))
            stack.enter_context(datadir.lock(data_dir))
            store, objects, bucket = await stack.enter_async_context(open_stores(app, data_dir))
            assert bucket is not None
            hub = make_hub(app, data_dir, port, store, objects, bucket)
        except datadir.DataDirError as e:
            raise StartError(str(e)) from e
        stack.callback(hub.accounts.close)
        hub.metrics.open()
        stack.push_async_callback(hub.metrics.close)
        await hub.projects.open()
        try:
            await hub.spawner.open()
        except SpawnError as e:
            raise StartError(str(e)) from e
        stack.push_async_callback(hub.spawner.close)
        if hub.spawner.warning:
            hub.warnings.append(hub.spawner.warning)
        stack.push_async_callback(hub.pods.close)
        await hub.servers.open()
        stack.push_async_callback(_close_servers, app, hub)
        await _tell_setup_code(app, hub)
        yield hub


async def _close_servers(app: Codevo, hub: Hub) -> None:
    if app.stop_workspaces_on_exit:
        await hub.servers.stop_all()
    await hub.servers.close()


async def _tell_setup_code(app: Codevo, hub: Hub) -> None:
    """Print the code where only the operator reads it, when somebody from elsewhere could need it."""
    proxied = app.public_url or app.allowed_hosts or app.trusted_proxies
    elsewhere = proxied or not (app.ip == "localhost" or is_loopback(app.ip))
    if hub.signup and elsewhere and not await hub.store.users.any():
        print(f"Setup code for the first account: {hub.setup_code}", file=sys.stderr, flush=True)


@contextlib.asynccontextmanager
async def serve_hub(hub: Hub, sockets: list[socket.socket]) -> AsyncIterator[HTTPServer]:
    """Answer requests on these sockets. At the end: accept no more, close WebSockets with 1001, let open
    requests end for a moment, then cut them."""
    server = HTTPServer(
        HostRouter(hub),
        max_body_size=hub.limits.max_body,
        max_header_size=64 * 1024,
        idle_connection_timeout=75.0,
        body_timeout=_BODY_SECONDS,
    )
    server.add_sockets(sockets)
    try:
        yield server
    finally:
        server.stop()
        hub.sockets.close_all()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await hub.sockets.gone()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN):
                await server.close_all_connections()
