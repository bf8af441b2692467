"""Single-use codes by which a page opens a private preview."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, IndexModel

from codevo.store.records import PreviewCode, digest, in_seconds, new_secret, now

#: How long a code works, seconds.
LIFETIME = 30


class PreviewCodes:
    """The code is stored as its SHA-256."""

    def __init__(self, db: Any) -> None:
        self._codes = db["preview_codes"]

    async def create_indexes(self) -> None:
        await self._codes.create_indexes(
            [
                IndexModel([("expires", ASCENDING)], expireAfterSeconds=0, name="ttl"),
                IndexModel([("project", ASCENDING)], name="project"),
            ]
        )

    async def create(
        self, project: str, user: str, port: str = "main", *, seconds: float = LIFETIME
    ) -> tuple[PreviewCode, str]:
        """The record and the code."""
        code = new_secret()
        record = PreviewCode(digest(code), project, user, port, in_seconds(seconds))
        await self._codes.insert_one(
            {"_id": record.hash, "project": project, "user": user, "port": port, "expires": record.expires}
        )
        return record, code

    async def take(self, code: str, project: str) -> PreviewCode | None:
        """Use a code up; None when unknown, used, expired, or of another project."""
        doc = await self._codes.find_one_and_delete(
            {"_id": digest(code), "project": project, "expires": {"$gt": now()}}
        )
        if doc is None:
            return None
        return PreviewCode(doc["_id"], doc["project"], doc["user"], doc["port"], doc["expires"])

    async def delete_of(self, project: str) -> None:
        await self._codes.delete_many({"project": project})
