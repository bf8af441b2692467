"""`ServerRecords` on the hub's database."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from codevo.servers.ports import ServerRecords
from pod_runtime.protocol.roles import Role

if TYPE_CHECKING:
    from codevo.store import Store


class StoreRecords(ServerRecords):
    """What `ServerManager` asks of `codevo.store.Store`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def next_generation(self, project: str) -> int:
        found = await self._store.projects.next_generation(project)
        if found is None:
            raise LookupError(project)
        return found

    async def owners(self, projects: Iterable[str]) -> dict[str, str]:
        members = await self._store.members.of_projects(projects)
        first = {p: next((m.user for m in ms if m.role is Role.OWNER), None) for p, ms in members.items()}
        return {p: user for p, user in first.items() if user is not None}

    async def record_activity(self, project: str, when: datetime) -> None:
        await self._store.projects.touch(project, when)
