"""Who belongs to a project."""

from __future__ import annotations

import asyncio
from weakref import WeakValueDictionary

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs
from codevo.api.problems import Problem
from codevo.api.workspaces import end_right, members_json
from codevo.store import Member, Role, User

ROLES = ["viewer", "editor", "owner"]


class MembersHandler(ApiHandler):
    """``/api/projects/{id}/members``"""

    @needs(role="viewer")
    async def get(self, project_id: str) -> None:
        """``[{name, role}]`` in the order of joining."""
        members = await self.hub.store.members.of_project(project_id)
        users = await self.hub.store.users.get_many(m.user for m in members)
        self.write_json(members_json(members, users))


class MemberHandler(ApiHandler):
    """``/api/projects/{id}/members/{name}``"""

    def initialize(self, locks: WeakValueDictionary[str, asyncio.Lock]) -> None:
        self.locks = locks

    def _lock(self, project: str) -> asyncio.Lock:
        """So that two owners who leave at once do not leave nobody behind."""
        return self.locks.setdefault(project, asyncio.Lock())

    async def _person(self, name: str) -> User:
        user = await self.hub.store.users.by_name(name)
        if user is None:
            raise Problem(404, "There is nobody of that name.", field="name", code="user")
        return user

    async def _members(self, project: str) -> dict[str, Member]:
        return {m.user: m for m in await self.hub.store.members.of_project(project)}

    @needs(role="viewer")
    async def get(self, project_id: str, name: str) -> None:
        user = await self._person(name)
        role = await self.hub.store.members.role(project_id, user.id)
        if role is None:
            raise Problem(404, "This person is not a member.", code="member")
        self.write_json({"name": user.name, "role": str(role)})

    @needs(role="owner")
    @body(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["role"],
            "properties": {"role": {"type": "string", "enum": ROLES}},
        }
    )
    async def put(self, project_id: str, name: str) -> None:
        """Add a person, or change their role: 201 or 200."""
        role = Role(self.json_body()["role"])
        user = await self._person(name)
        async with self._lock(project_id):
            members = await self._members(project_id)
            present = members.get(user.id)
            if present is None:
                if user.disabled:
                    raise Problem(404, "There is nobody of that name.", field="name", code="user")
                check_room(len(members), self.hub.limits.members_per_project)
            elif present.role is Role.OWNER and role is not Role.OWNER:
                _check_last_owner(members, user.id)
            if present is None or present.role is not role:
                await self.hub.store.members.set(project_id, user.id, role)
                if role is not Role.OWNER:
                    await self.hub.store.invites.delete_by(project_id, user.id)
                await end_right(self.hub, project_id, user.id)
        self.write_json({"name": user.name, "role": str(role)}, 201 if present is None else 200)

    @needs(role="viewer")
    async def delete(self, project_id: str, name: str) -> None:
        """Remove a member. Owners may remove anybody, everybody may leave."""
        if name.casefold() != self.user.name.casefold() and not self.role.allows(Role.OWNER):
            raise Problem(403, "Only an owner may remove somebody else.", code="role")
        user = await self._person(name)
        async with self._lock(project_id):
            members = await self._members(project_id)
            if user.id not in members:
                raise Problem(404, "This person is not a member.", code="member")
            if members[user.id].role is Role.OWNER:
                _check_last_owner(members, user.id)
            await self.hub.store.members.remove(project_id, user.id)
            # else a former owner comes back by a link of their own
            await self.hub.store.invites.delete_by(project_id, user.id)
            await end_right(self.hub, project_id, user.id)
        self.set_status(204)
        self.finish()


def check_room(count: int, bound: int) -> None:
    """409 when a project has as many members as it may."""
    if count >= bound:
        raise Problem(409, f"The project has {bound} members, which is as many as it may.", code="quota")


def _check_last_owner(members: dict[str, Member], user: str) -> None:
    if not any(m.role is Role.OWNER and m.user != user for m in members.values()):
        raise Problem(
            409,
            "The project would have no owner left.",
            remedy="Make somebody else an owner first, or delete the project.",
            code="last-owner",
        )


def routes() -> list[Route]:
    one = r"/api/projects/(?P<project_id>[a-z2-7]{16})/members"
    locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
    return [(one, MembersHandler), (one + r"/(?P<name>[^/]{1,200})", MemberHandler, {"locks": locks})]
