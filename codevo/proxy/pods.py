"""The hub's way to the pods: tokens, pooled HTTP sessions, raw connections."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from json import dumps, loads
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from yarl import URL

from codevo.proxy.relay import Relays, Visits
from codevo.spawner.base import PodAddress
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import HUB_SUBJECT, MAX_TTL, TOKEN_HEADER, Audience, mint

log = logging.getLogger(__name__)

#: A token is minted anew when it has less than this left, seconds.
RENEW_BEFORE = 20
#: Tokens remembered; the least recently used go first.
MAX_TOKENS = 20_000
#: Simultaneous HTTP connections to one address; more wait for a free one until `CONNECT_TIMEOUT`.
MAX_CONNECTIONS = 256
#: Seconds for getting a connection.
CONNECT_TIMEOUT = 10.0
#: Largest answer that `PodClient.call` takes, bytes.
MAX_ANSWER = 4 * 1024 * 1024
#: Largest header that a pod may answer with, bytes.
MAX_HEADER = 64 * 1024

_MAX_SOCKET_PATH = 107  # sizeof(sockaddr_un.sun_path) - 1, see unix(7)


class PodUnavailable(Exception):
    """The container does not answer just now: not running, restarting, or its socket is gone."""


class PodRefused(Exception):
    """A container answered a call of the hub with an error. ``body`` is its decoded JSON, or None."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(f"the container answered {status}")
        self.status = status
        self.body = body


class SocketPath:
    """A Unix socket's path that fits ``connect``: long ones go by a descriptor of their folder.

    Hold it as long as the path is used and `close` it then.
    """

    def __init__(self, path: str) -> None:
        self._folder: int | None = None
        self.path = path
        if len(os.fsencode(path)) > _MAX_SOCKET_PATH:
            place = Path(path)
            self._folder = os.open(place.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self.path = f"/proc/self/fd/{self._folder}/{place.name}"

    @property
    def folder_deleted(self) -> bool:
        return self._folder is not None and os.fstat(self._folder).st_nlink == 0

    def close(self) -> None:
        """Idempotent."""
        if self._folder is not None:
            os.close(self._folder)
            self._folder = None


class _Session:
    """A pooled client for one address."""

    def __init__(self, address: str, tls: ssl.SSLContext | None) -> None:
        self._socket: SocketPath | None = None
        connector: aiohttp.BaseConnector
        if address.startswith("unix:"):
            try:
                self._socket = SocketPath(address.removeprefix("unix:"))
            except OSError as e:
                raise PodUnavailable("the workspace's folder is gone") from e
            connector = aiohttp.UnixConnector(self._socket.path, limit=MAX_CONNECTIONS)
            self.base = "http://pod"
        else:
            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS, ssl=tls if tls is not None else True)
            self.base = address.rstrip("/")
        self.client = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
            trust_env=False,
        )

    @property
    def stale(self) -> bool:
        """Whether the socket's folder was deleted, so that a new one of its name must be opened."""
        return self._socket is not None and self._socket.folder_deleted

    async def close(self) -> None:
        await self.client.close()
        if self._socket is not None:
            self._socket.close()


class PodClient:
    """Speaks to pods for the hub and for people.

    ``key`` signs. ``address`` gives a project's address from memory, or None while it does not run.
    ``tls`` is used for ``https`` addresses (default: the system's certificate authorities).
    """

    def __init__(
        self,
        key: Ed25519PrivateKey,
        address: Callable[[str], PodAddress | None],
        *,
        tls: ssl.SSLContext | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._key = key
        self._address = address
        self._tls = tls
        self._clock = clock
        self._tokens: OrderedDict[tuple[str, Audience, str, str, Role], tuple[str, int]] = OrderedDict()
        self._sessions: dict[str, _Session] = {}
        self._used_by: dict[str, set[str]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        #: Every open WebSocket, so that the end of a right reaches them.
        self.relays = Relays()
        #: The requests of strangers that are being answered.
        self.visits = Visits()
        #: Called with project and subject when a right ends or changes.
        self.on_right_ended: list[Callable[[str, str], None]] = []
        #: Called with the project when its settings or its visibility change.
        self.on_project_changed: list[Callable[[str], None]] = []

    # tokens

    def token(self, project: str, audience: Audience, subject: str, name: str, role: Role) -> str:
        """A token with at least `RENEW_BEFORE` seconds to live."""
        key = (project, audience, subject, name, role)
        now = self._clock()
        known = self._tokens.get(key)
        if known is not None and known[1] - now >= RENEW_BEFORE:
            self._tokens.move_to_end(key)
            return known[0]
        text = mint(
            self._key, project=project, audience=audience, subject=subject, name=name, role=role, now=now
        )
        self._tokens[key] = (text, int(now) + MAX_TTL)
        self._tokens.move_to_end(key)
        if len(self._tokens) > MAX_TOKENS:
            self._tokens.popitem(last=False)
        return text

    def drop_tokens(self, project: str, subject: str | None = None) -> None:
        """Forget the tokens of one person, or of everybody, on a project."""
        for key in [k for k in self._tokens if k[0] == project and subject in (None, k[2])]:
            del self._tokens[key]

    # connections

    def where(self, project: str, audience: Audience, *, gateway: bool = False) -> str:
        """A container's address; ``gateway``: the runner's preview gateway. Raises `PodUnavailable`."""
        found = self._address(project)
        if found is None:
            raise PodUnavailable("the project does not run")
        if gateway:
            return found.gateway
        return found.runner if audience is Audience.RUNNER else found.worker

    async def request(
        self, project: str, address: str, method: str, target: str, **kwargs: Any
    ) -> aiohttp.ClientResponse:
        """Send a request to one of the project's addresses; the caller closes the response.

        ``target`` (path and query) is sent as it is. Redirects are not followed. Raises `PodUnavailable`,
        ``TimeoutError`` or another ``aiohttp.ClientError``.
        """
        session = self._session(project, address)
        try:
            return await session.client.request(
                method, URL(session.base + target, encoded=True), allow_redirects=False, **kwargs
            )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as e:
            if session.stale:
                await self._close(address)
            raise PodUnavailable("nothing answers at the workspace's address") from e
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as e:
            raise PodUnavailable("the workspace closed the connection") from e

    async def connect(self, address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A raw connection. Raises `PodUnavailable`."""
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                if address.startswith("unix:"):
                    socket = SocketPath(address.removeprefix("unix:"))
                    try:
                        return await asyncio.open_unix_connection(socket.path, limit=MAX_HEADER)
                    finally:
                        socket.close()
                parts = urlsplit(address)
                secure = parts.scheme == "https"
                return await asyncio.open_connection(
                    parts.hostname,
                    parts.port or (443 if secure else 80),
                    limit=MAX_HEADER,
                    ssl=(self._tls or True) if secure else None,
                )
        except (OSError, TimeoutError) as e:
            raise PodUnavailable("nothing answers at the workspace's address") from e

    async def call(
        self,
        project: str,
        container: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        timeout: float = 30.0,
    ) -> Any:
        """Call a container (``runner`` or ``worker``) as the hub itself; the decoded JSON of the answer.

        Raises `PodRefused` for a status from 400 on, `PodUnavailable` when there is no answer within
        ``timeout`` seconds, or one that is not JSON or larger than `MAX_ANSWER`. An empty answer is None.
        """
        audience = Audience(container)
        where = self.where(project, audience)
        headers = {TOKEN_HEADER: self.token(project, audience, HUB_SUBJECT, HUB_SUBJECT, Role.HUB)}
        body = None
        if json is not None:
            body = dumps(json).encode()
            headers["Content-Type"] = "application/json"
        data = bytearray()
        try:
            async with asyncio.timeout(timeout):
                response = await self.request(project, where, method, path, headers=headers, data=body)
                async with response:
                    async for chunk in response.content.iter_any():
                        data += chunk
                        if len(data) > MAX_ANSWER:
                            response.close()
                            raise PodUnavailable(f"the answer is larger than {MAX_ANSWER} bytes")
        except TimeoutError as e:
            raise PodUnavailable(f"no answer within {timeout:g} s") from e
        except aiohttp.ClientError as e:
            raise PodUnavailable(f"the answer broke off: {e}") from e
        try:
            decoded = loads(data) if data else None
        except ValueError as e:
            if response.status >= 400:
                raise PodRefused(response.status, None) from e
            raise PodUnavailable("the answer is not JSON") from e
        if response.status >= 400:
            raise PodRefused(response.status, decoded)
        return decoded

    async def revoke(self, project: str, subject: str, *, timeout: float = 5.0) -> bool:
        """Ask both containers to end a person's right; True when both did (or the project does not run)."""
        self.drop_tokens(project, subject)
        if self._address(project) is None:
            return True
        # by the clock that stamps the tokens: those minted from now on are of a right that is given again
        told = {"sub": subject, "at": time.time()}
        answers = await asyncio.gather(
            *(self.call(project, c, "POST", "/_codevo/revoke", json=told, timeout=timeout) for c in Audience),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException) and not isinstance(answer, PodUnavailable | PodRefused):
                raise answer
        return not any(isinstance(answer, BaseException) for answer in answers)

    async def end_right(self, project: str, subject: str) -> None:
        """A person may no longer do on a project what they could: end what is open, at once.

        The pods are asked to close the person's sockets; what is left after that, the hub closes itself.
        """
        for told in self.on_right_ended:
            told(project, subject)
        try:
            await self.revoke(project, subject)
        finally:
            self.relays.drop_subject(project, subject)

    async def forget(self, project: str) -> None:
        """The workspace has gone: close its sockets and connections, drop its tokens."""
        self.relays.drop_project(project)
        self.drop_tokens(project)
        for address in self._used_by.pop(project, set()):
            await self._close(address)

    async def close(self) -> None:
        """Close every socket and connection."""
        await self.relays.close()
        self._tokens.clear()
        self._used_by.clear()
        for address in list(self._sessions):
            await self._close(address)
        await asyncio.gather(*self._closing)

    def _session(self, project: str, address: str) -> _Session:
        found = self._sessions.get(address)
        if found is None:
            self._sweep()
            found = self._sessions[address] = _Session(address, self._tls)
            self._used_by.setdefault(project, set()).add(address)
        return found

    def _sweep(self) -> None:
        """Let go of the connections to workspaces that have stopped since."""
        for project in [p for p in self._used_by if self._address(p) is None]:
            task = asyncio.create_task(self.forget(project))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)

    async def _close(self, address: str) -> None:
        session = self._sessions.pop(address, None)
        if session is not None:
            await session.close()
