"""Links by which people join a project."""

from __future__ import annotations

import secrets
from typing import Any

from pymongo import ASCENDING, IndexModel

from codevo.store.records import Invite, Role, digest, in_seconds, now


class Invites:
    """The code is stored as its SHA-256: who reads the database cannot join. ``Invite.code`` is therefore
    the code itself only in the answer of `create`, and the caller's own elsewhere."""

    def __init__(self, db: Any) -> None:
        self._invites = db["invites"]

    async def create_indexes(self) -> None:
        await self._invites.create_indexes(
            [
                # kept for a week after its end, so that who comes late is told so
                IndexModel([("expires", ASCENDING)], expireAfterSeconds=7 * 24 * 3600, name="ttl"),
                IndexModel([("project", ASCENDING)], name="project"),
            ]
        )

    async def create(
        self, project: str, role: Role, inviter: str, *, seconds: float, email: str = "", max_uses: int = 0
    ) -> Invite:
        """A new link that works for ``seconds``."""
        invite = Invite(
            code=secrets.token_urlsafe(20),
            project=project,
            role=role,
            inviter=inviter,
            created=now(),
            expires=in_seconds(seconds),
            email=email,
            max_uses=max_uses,
        )
        await self._invites.insert_one(
            {
                "_id": digest(invite.code),
                "project": project,
                "role": str(role),
                "inviter": inviter,
                "created": invite.created,
                "expires": invite.expires,
                "email": email,
                "uses": 0,
                "max_uses": max_uses,
            }
        )
        return invite

    async def find(self, code: str) -> Invite | None:
        """None when unknown, expired or used up."""
        doc = await self._invites.find_one(_usable(code))
        return _invite(code, doc) if doc else None

    async def use(self, code: str, user: str) -> Invite | None:
        """Count one use, atomically; None when unknown, expired or used up.

        A person can use a link once: somebody who was removed does not come back by it.
        """
        doc = await self._invites.find_one_and_update(
            {**_usable(code), "users": {"$ne": user}},
            {"$inc": {"uses": 1}, "$addToSet": {"users": user}},
            return_document=True,
        )
        return _invite(code, doc) if doc else None

    async def known(self, code: str) -> bool:
        """Whether there is such an invite, or was until lately: expired and used up ones count."""
        return await self._invites.find_one({"_id": digest(code)}, {"_id": 1}) is not None

    async def of_project(self, project: str) -> dict[str, Invite]:
        """The usable links of a project by their ids (`digest` of the code); the codes are not known here."""
        found = self._invites.find({"project": project, "expires": {"$gt": now()}}).sort("created", ASCENDING)
        return {doc["_id"]: _invite("", doc) async for doc in found}

    async def delete(self, project: str, ident: str) -> bool:
        """End one link; whether there was one."""
        done = await self._invites.delete_one({"_id": ident, "project": project})
        return bool(done.deleted_count)

    async def delete_by(self, project: str, inviter: str) -> None:
        """End the links that this person made for the project."""
        await self._invites.delete_many({"project": project, "inviter": inviter})

    async def count_of(self, project: str) -> int:
        found: int = await self._invites.count_documents({"project": project, "expires": {"$gt": now()}})
        return found

    async def delete_of(self, project: str) -> None:
        await self._invites.delete_many({"project": project})


def _usable(code: str) -> dict[str, Any]:
    return {
        "_id": digest(code),
        "expires": {"$gt": now()},
        "$or": [{"max_uses": 0}, {"$expr": {"$lt": ["$uses", "$max_uses"]}}],
    }


def _invite(code: str, doc: dict[str, Any]) -> Invite:
    return Invite(
        code=code,
        project=doc["project"],
        role=Role(doc["role"]),
        inviter=doc["inviter"],
        created=doc["created"],
        expires=doc["expires"],
        email=doc["email"],
        uses=doc["uses"],
        max_uses=doc["max_uses"],
    )
