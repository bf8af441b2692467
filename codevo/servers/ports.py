"""What the manager of servers asks of its neighbours, so that it can be tested without them."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Protocol

from pod_runtime.protocol.config import StoreConfig


class ServerRecords(Protocol):
    """The little that the database knows about servers."""

    async def next_generation(self, project: str) -> int:
        """A number above every one given before. Raises ``LookupError`` when there is no such project."""

    async def owners(self, projects: Iterable[str]) -> dict[str, str]:
        """The owner's user id of each project that exists."""

    async def record_activity(self, project: str, when: datetime) -> None:
        """Somebody did something in the project at ``when``; an older time never replaces a newer."""


class PodCalls(Protocol):
    """Calls of the hub itself to a pod (implemented by ``codevo.proxy.pods.PodClient``)."""

    async def call(
        self,
        project: str,
        container: str,
        method: str,
        path: str,
        *,
        json: Any = None,
        timeout: float = 10.0,
    ) -> Any:
        """The decoded JSON of the answer. Raises when there is none or it is an error."""

    async def forget(self, project: str) -> None:
        """The workspace goes: close its sockets (1012) and connections."""


class StoreConfigs(Protocol):
    """Where a project's worker finds its objects."""

    def store_config(self, project: str) -> StoreConfig: ...
