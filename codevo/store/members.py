"""Who may do what with which project."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pymongo import ASCENDING, IndexModel

from codevo.store.records import Member, Role, now


def _member(doc: dict[str, Any]) -> Member:
    return Member(doc["project"], doc["user"], Role(doc["role"]), doc["since"])


class Members:
    """One role for each pair of project and user. Owners are members too."""

    def __init__(self, db: Any) -> None:
        self._members = db["members"]

    async def create_indexes(self) -> None:
        await self._members.create_indexes(
            [
                IndexModel([("project", ASCENDING), ("user", ASCENDING)], unique=True, name="project_user"),
                IndexModel([("user", ASCENDING)], name="user"),
            ]
        )

    async def role(self, project: str, user: str) -> Role | None:
        doc = await self._members.find_one({"project": project, "user": user})
        return Role(doc["role"]) if doc else None

    async def set(self, project: str, user: str, role: Role) -> None:
        """Add the member, or change the role of one who is there."""
        await self._members.update_one(
            {"project": project, "user": user},
            {"$set": {"role": str(role)}, "$setOnInsert": {"since": now()}},
            upsert=True,
        )

    async def raise_to(self, project: str, user: str, role: Role) -> Role:
        """Give at least ``role`` (an invite never takes rights away); the role that the person has then."""
        present = await self.role(project, user)
        if present is not None and present.allows(role):
            return present
        await self.set(project, user, role)
        return role

    async def remove(self, project: str, user: str) -> bool:
        """Whether the user was a member."""
        done = await self._members.delete_one({"project": project, "user": user})
        return bool(done.deleted_count)

    async def of_project(self, project: str) -> list[Member]:
        """In the order in which they joined."""
        found = self._members.find({"project": project}).sort([("since", ASCENDING), ("_id", ASCENDING)])
        return [_member(doc) async for doc in found]

    async def of_projects(self, projects: Iterable[str]) -> dict[str, list[Member]]:
        """The members of many projects in one query; each list in the order of joining."""
        wanted = list(set(projects))
        members: dict[str, list[Member]] = {p: [] for p in wanted}
        if wanted:
            found = self._members.find({"project": {"$in": wanted}}).sort("since", ASCENDING)
            async for doc in found:
                members[doc["project"]].append(_member(doc))
        return members

    async def of_user(self, user: str) -> dict[str, Role]:
        """A person's role on each of their projects, by project id."""
        return {doc["project"]: Role(doc["role"]) async for doc in self._members.find({"user": user})}

    async def count_owned(self, user: str) -> int:
        found: int = await self._members.count_documents({"user": user, "role": str(Role.OWNER)})
        return found

    async def delete_of(self, project: str) -> None:
        await self._members.delete_many({"project": project})
