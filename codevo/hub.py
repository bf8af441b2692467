"""What every handler of the hub can reach: one object, kept in the application's settings as ``hub``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from codevo.auth.accounts import Accounts
    from codevo.metrics import Metrics
    from codevo.objects.config import ObjectStore
    from codevo.objects.projects import ProjectManager
    from codevo.servers import ServerManager
    from codevo.spawner.base import Spawner
    from codevo.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds that an operator sets. Counts, bytes and seconds."""

    max_body: int = 256 * 2**10
    max_upload: int = 512 * 2**20
    members_per_project: int = 100
    tokens_per_user: int = 100
    session_seconds: int = 30 * 24 * 3600


@dataclass
class Sockets:
    """The open WebSockets of the hub, so that an orderly stop can close them with 1001."""

    _closers: set[Callable[[int, str], None]] = field(default_factory=set)
    _none_left: asyncio.Event = field(default_factory=asyncio.Event)

    def __len__(self) -> int:
        return len(self._closers)

    def add(self, close: Callable[[int, str], None]) -> None:
        """Register ``close(code, reason)``; it must not block and not raise."""
        self._closers.add(close)
        self._none_left.clear()

    def discard(self, close: Callable[[int, str], None]) -> None:
        self._closers.discard(close)
        if not self._closers:
            self._none_left.set()

    def close_all(self, code: int = 1001, reason: str = "The hub is stopping") -> int:
        """Ask every socket to close; give how many there were. Each leaves by `discard` when it has."""
        closers = list(self._closers)
        for close in closers:
            try:
                close(code, reason)
            except Exception:
                log.exception("closing a socket")
        return len(closers)

    async def gone(self) -> None:
        """Wait until no socket is open."""
        if self._closers:
            await self._none_left.wait()


@dataclass
class Hub:
    """The parts of one running hub.

    ``origin`` is the canonical origin (``http://127.0.0.1:8000``, no trailing slash); ``preview_domain`` is
    ``host`` or ``host:port`` under which every project has its own name. ``bucket`` is the object store as
    `codevo.objects` opened it, ``pods`` the client by which the hub calls runners and workers.
    """

    config: Any
    store: Store
    accounts: Accounts
    signing_key: Ed25519PrivateKey
    origin: str
    preview_domain: str
    data_dir: Path
    static_dir: Path
    metrics: Metrics
    #: Host names (``name`` or ``name:port``, lower case) that requests may be for, beside the origin's own.
    hosts: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    sockets: Sockets = field(default_factory=Sockets)
    #: Sentences that every page shows, such as a sandbox that is switched off.
    warnings: list[str] = field(default_factory=list)
    #: Asked of the first person who signs up from elsewhere than this machine.
    setup_code: str = ""
    signup: bool = True
    # The following are set one after the other while the hub starts, before the first request.
    spawner: Spawner = field(init=False)
    servers: ServerManager = field(init=False)
    objects: ObjectStore = field(init=False)
    projects: ProjectManager = field(init=False)
    bucket: Any = None
    pods: Any = None

    @property
    def scheme(self) -> str:
        """``http`` or ``https``, as people's browsers see it."""
        return self.origin.partition("://")[0]
