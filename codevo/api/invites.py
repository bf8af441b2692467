"""Links by which people join a project."""

from __future__ import annotations

from codevo.api.base import ApiHandler
from codevo.api.members import check_room
from codevo.api.needs import Route, body, needs, public
from codevo.api.problems import Problem
from codevo.api.workspaces import end_right, one_project
from codevo.store import Invite, Project, Role, digest, rfc3339

MAX_INVITES = 50
WEEK = 7 * 24 * 3600


class InvitesHandler(ApiHandler):
    """``/api/projects/{id}/invites``"""

    @needs(role="owner")
    async def get(self, project_id: str) -> None:
        """The links that work, by id: a code is shown only once, when it is made."""
        found = await self.hub.store.invites.of_project(project_id)
        users = await self.hub.store.users.get_many({i.inviter for i in found.values()})
        self.write_json(
            [
                {
                    "id": ident,
                    "role": str(i.role),
                    "inviter": users[i.inviter].name if i.inviter in users else "",
                    "email": i.email or None,
                    "created": rfc3339(i.created),
                    "expires": rfc3339(i.expires),
                    "uses": i.uses,
                }
                for ident, i in found.items()
            ]
        )

    @needs(role="owner")
    @body(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["role"],
            "properties": {
                "role": {"type": "string", "enum": ["viewer", "editor"]},
                "expires_in": {
                    "type": "integer",
                    "minimum": 60,
                    "maximum": 90 * 24 * 3600,
                    "description": "seconds, a week by default",
                },
                "email": {
                    "type": "string",
                    "maxLength": 254,
                    "description": "only the account with this address may use the link",
                },
            },
        }
    )
    async def post(self, project_id: str) -> None:
        """A new link. Owners are made by name, not by a link that may wander."""
        wanted = self.json_body()
        if await self.hub.store.invites.count_of(project_id) >= MAX_INVITES:
            raise Problem(
                409,
                f"The project has {MAX_INVITES} links that work.",
                remedy="Delete one, or wait until one expires.",
                code="quota",
            )
        invite = await self.hub.store.invites.create(
            project_id,
            Role(wanted["role"]),
            self.user.id,
            seconds=wanted.get("expires_in", WEEK),
            email=wanted.get("email", "").strip(),
        )
        self.write_json(
            {
                "id": digest(invite.code),
                "code": invite.code,
                "url": f"{self.hub.origin}/invite/{invite.code}",
                "role": str(invite.role),
                "expires": rfc3339(invite.expires),
            },
            201,
        )


class ProjectInviteHandler(ApiHandler):
    """``/api/projects/{id}/invites/{id or code}``"""

    @needs(role="owner")
    async def delete(self, project_id: str, ident: str) -> None:
        """End a link."""
        invites = self.hub.store.invites
        if not await invites.delete(project_id, ident) and not await invites.delete(
            project_id, digest(ident)
        ):
            raise Problem(404, "There is no such link.", code="invite")
        self.set_status(204)
        self.finish()


class InviteHandler(ApiHandler):
    """``/api/invites/{code}``"""

    async def _find(self, code: str) -> tuple[Invite, Project]:
        """404 for an unknown code, 410 for one whose time is over."""
        store = self.hub.store
        invite = await store.invites.find(code)
        if invite is None:
            if await store.invites.known(code):
                raise Problem(410, "This invitation has expired.", remedy="Ask for a new one.", code="invite")
            raise Problem(404, "There is no such invitation.", code="invite")
        project = await store.projects.get(invite.project)
        if project is None:
            raise Problem(410, "The project of this invitation has been deleted.", code="invite")
        return invite, project

    @public
    async def get(self, code: str) -> None:
        """What the link leads to. Who has the code may know."""
        invite, project = await self._find(code)
        inviter = await self.hub.store.users.get(invite.inviter)
        self.write_json(
            {
                "project": {"id": project.id, "title": project.title},
                "role": str(invite.role),
                "inviter": inviter.name if inviter else "",
                "expires": rfc3339(invite.expires),
            }
        )

    @needs(user=True)
    async def post(self, code: str) -> None:
        """Join; never takes away a role that one has already. Answers the project.

        Once for each person: who was removed or given a lesser role needs a new link.
        """
        invite, project = await self._find(code)
        if invite.email and invite.email.casefold() != self.user.email.casefold():
            raise Problem(403, "This invitation is for another account's e-mail address.", code="email")
        members = self.hub.store.members
        role = await members.role(project.id, self.user.id)
        if role is None or not role.allows(invite.role):
            if role is None:
                count = len(await members.of_project(project.id))
                check_room(count, self.hub.limits.members_per_project)
            if await self.hub.store.invites.use(code, self.user.id) is None:
                raise Problem(
                    410,
                    "This invitation has expired, or you have used it already.",
                    remedy="Ask for a new one.",
                    code="invite",
                )
            role = await members.raise_to(project.id, self.user.id, invite.role)
            await end_right(self.hub, project.id, self.user.id)
        self.write_json(await one_project(self.hub, project, role, self.user))


def routes() -> list[Route]:
    one = r"/api/projects/(?P<project_id>[a-z2-7]{16})/invites"
    return [
        (one, InvitesHandler),
        (one + r"/(?P<ident>[A-Za-z0-9_-]{1,100})", ProjectInviteHandler),
        (r"/api/invites/(?P<code>[A-Za-z0-9_-]{1,100})", InviteHandler),
    ]
