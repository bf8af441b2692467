"""What administrators see and do: people and servers."""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from typing import Any

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs
from codevo.api.problems import Problem
from codevo.api.users import user_json
from codevo.api.workspaces import owner_of, translated
from codevo.servers import ServerEntry
from codevo.spawner.base import ServerState, SpawnError
from codevo.store import Project, User, rfc3339
from pod_runtime.protocol.roles import Role

log = logging.getLogger(__name__)

PATCH_USER = {
    "type": "object",
    "properties": {"admin": {"type": "boolean"}, "disabled": {"type": "boolean"}},
    "additionalProperties": False,
}
#: Two administrators who demote each other at the same moment must not both succeed.
_admin_lock = asyncio.Lock()


def admin_user_json(user: User) -> dict[str, Any]:
    """A person as administrators see them."""
    return {**user_json(user), "disabled": user.disabled, "last_seen": rfc3339(user.last_seen)}


class People(ApiHandler):
    """Everybody."""

    @needs(admin=True)
    async def get(self) -> None:
        """People: ``?limit=&cursor=&search=&sort=`` (name, created, last_seen; ``-`` first: descending)."""
        try:
            page = await self.hub.store.users.page(
                limit=self.query_int("limit", 50, low=1, high=200),
                cursor=self.get_query_argument("cursor", None),
                search=self.get_query_argument("search", "")[:254],
                sort=self.get_query_argument("sort", "name"),
            )
        except ValueError as e:
            raise Problem(400, str(e)) from None
        self.write_json({"items": [admin_user_json(u) for u in page.items], "cursor": page.cursor})


class Person(ApiHandler):
    """One person, by id or name."""

    @needs(admin=True)
    @body(PATCH_USER)
    async def patch(self, who: str) -> None:
        """Make somebody an administrator or no longer one; disable or enable an account. Disabling ends the
        sessions; tokens are refused while it lasts. The last administrator stays."""
        given = self.json_body()
        users = self.hub.store.users
        async with _admin_lock:
            user = await users.get(who) or await users.by_name(who)
            if user is None:
                raise Problem(404, "There is no such person.")
            loses = given.get("admin") is False or given.get("disabled") is True
            if loses and user.admin and not user.disabled and await users.count_active_admins() <= 1:
                raise Problem(
                    409,
                    "This is the last administrator.",
                    remedy="Make somebody else an administrator first.",
                    code="last-admin",
                )
            changed = await users.update(user.id, admin=given.get("admin"), disabled=given.get("disabled"))
        if given.get("disabled"):
            await self.hub.store.sessions.end_of(user.id)
            # projects of others that are public, too
            projects = {
                *await self.hub.store.members.of_user(user.id),
                *self.hub.pods.relays.projects(user.id),
            }
            await asyncio.gather(*(self.hub.pods.end_right(p, user.id) for p in projects))
        self.write_json(admin_user_json(changed or user))


def server_json(entry: ServerEntry, project: Project | None, owner: User | None) -> dict[str, Any]:
    """A server as administrators see it; projects that were deleted meanwhile have no title."""
    status = entry.status
    return {
        "project": {"id": entry.project, "title": project.title if project else ""},
        "owner": {"name": owner.name if owner else ""},
        "state": str(status.state),
        "reason": status.reason,
        "message": status.message,
        "percent": status.percent,
        "since": rfc3339(status.since),
        "last_activity": rfc3339(project.last_activity) if project else None,
    }


class ServerList(ApiHandler):
    """Everything that runs."""

    @needs(admin=True)
    async def get(self) -> None:
        """Servers, newest change first: ``?limit=&cursor=&search=&state=``."""
        limit = self.query_int("limit", 50, low=1, high=200)
        start = _offset(self.get_query_argument("cursor", ""))
        search = self.get_query_argument("search", "").casefold()[:254]
        state = self.get_query_argument("state", "")
        entries = [e for e in self.hub.servers.list() if not state or e.status.state == state]
        entries.sort(key=lambda e: (e.status.since, e.project), reverse=True)
        store = self.hub.store
        # names are looked up for one page, for all only when they are searched
        wanted = entries if search else entries[start : start + limit]
        projects, owners = await asyncio.gather(
            store.projects.get_many(e.project for e in wanted), store.users.get_many(e.owner for e in wanted)
        )
        items = [server_json(e, projects.get(e.project), owners.get(e.owner)) for e in wanted]
        if search:
            items = [
                i
                for i in items
                if search in i["project"]["title"].casefold()
                or search in i["owner"]["name"].casefold()
                or search == i["project"]["id"]
            ]
            total = len(items)
            items = items[start : start + limit]
        else:
            total = len(entries)
        cursor = _cursor(start + limit) if start + limit < total else None
        self.write_json({"items": items, "cursor": cursor, "total": total})


class OneServer(ApiHandler):
    """One project's server."""

    @needs(admin=True)
    async def post(self, project_id: str) -> None:
        """Start it: 202."""
        project = await self.hub.store.projects.get(project_id)
        if project is None:
            raise Problem(404, "There is no such project.")
        owner = await owner_of(self.hub, project_id)
        with translated():
            status = self.hub.servers.start(project_id, owner)
        self.write_json({"state": str(status.state)}, 202)

    @needs(admin=True)
    async def delete(self, project_id: str) -> None:
        """Stop it, with everything saved: 204 when it is stopped, 202 while it still stops."""
        stopping = asyncio.ensure_future(self.hub.servers.stop(project_id))
        done, _ = await asyncio.wait([stopping], timeout=10)
        if not done:
            stopping.add_done_callback(_forget)
            self.write_json({"state": str(ServerState.STOPPING)}, 202)
            return
        try:
            stopping.result()
        except SpawnError as e:
            raise Problem(502, str(e), code="spawner") from None
        self.set_status(204)


class OneProject(ApiHandler):
    """One project of anybody's. Administrators have no silent access: to open it they become a member."""

    @needs(admin=True)
    async def post(self, project_id: str) -> None:
        """Join it as an owner, visibly for its members: 200 ``{"role": "owner"}``."""
        if await self.hub.store.projects.get(project_id) is None:
            raise Problem(404, "There is no such project.", code="project")
        role = await self.hub.store.members.raise_to(project_id, self.user.id, Role.OWNER)
        log.warning("administrator %s joined project %s", self.user.name, project_id)
        self.write_json({"role": str(role)})

    @needs(admin=True)
    async def delete(self, project_id: str) -> None:
        """Stop it and delete everything that belongs to it: 204."""
        if await self.hub.store.projects.get(project_id) is None:
            raise Problem(404, "There is no such project.", code="project")
        with translated():
            await self.hub.projects.delete(project_id)
        log.warning("administrator %s deleted project %s", self.user.name, project_id)
        self.set_status(204)


def _forget(task: asyncio.Future[None]) -> None:
    """The failure of a stop that nobody waits for any more is in the server's own state."""
    if not task.cancelled():
        task.exception()


def _cursor(offset: int) -> str:
    return base64.urlsafe_b64encode(str(offset).encode()).decode().rstrip("=")


def _offset(cursor: str) -> int:
    try:
        text = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
        return max(0, int(text)) if text else 0
    except (binascii.Error, ValueError):
        raise Problem(400, "cursor: not one that this server gave", field="cursor") from None


def routes() -> list[Route]:
    return [
        (r"/api/admin/users", People),
        (r"/api/admin/users/(?P<who>[^/]+)", Person),
        (r"/api/admin/servers", ServerList),
        (r"/api/admin/servers/(?P<project_id>[a-z2-7]{16})", OneServer),
        (r"/api/admin/projects/(?P<project_id>[a-z2-7]{16})", OneProject),
    ]
