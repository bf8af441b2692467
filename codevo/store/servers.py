"""The store as the manager of servers sees it (`codevo.servers.ports.ServerRecords`)."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from codevo.store.client import Store
from codevo.store.records import Role


class StoreServerRecords:
    """Generations, owners and activity of projects."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def next_generation(self, project: str) -> int:
        found = await self._store.projects.next_generation(project)
        if found is None:
            raise LookupError(project)
        return found

    async def owners(self, projects: Iterable[str]) -> dict[str, str]:
        members = await self._store.members.of_projects(projects)
        return {
            project: next((m.user for m in found if m.role is Role.OWNER), "")
            for project, found in members.items()
            if found
        }

    async def record_activity(self, project: str, when: datetime) -> None:
        await self._store.projects.touch(project, when)
