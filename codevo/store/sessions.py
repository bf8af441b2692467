"""Browsers that have logged in."""

from __future__ import annotations

from typing import Any

from pymongo import ASCENDING, IndexModel

from codevo.store.records import Session, digest, in_seconds, new_secret, now


class Sessions:
    """A session's cookie value is never stored, only its SHA-256."""

    def __init__(self, db: Any) -> None:
        self._sessions = db["sessions"]

    async def create_indexes(self) -> None:
        # the hash is the _id, so it is unique by itself
        await self._sessions.create_indexes(
            [
                IndexModel([("expires", ASCENDING)], expireAfterSeconds=0, name="ttl"),
                IndexModel([("user", ASCENDING)], name="user"),
            ]
        )

    async def create(self, user: str, seconds: float) -> tuple[Session, str]:
        """The new session and the cookie's value."""
        secret = new_secret()
        session = Session(digest(secret), user, now(), in_seconds(seconds))
        await self._sessions.insert_one(
            {
                "_id": session.id,
                "user": session.user,
                "created": session.created,
                "expires": session.expires,
            }
        )
        return session, secret

    async def find(self, secret: str) -> Session | None:
        """The session of a cookie's value; None when unknown or over (TTL indexes are a minute late)."""
        doc = await self._sessions.find_one({"_id": digest(secret), "expires": {"$gt": now()}})
        return Session(doc["_id"], doc["user"], doc["created"], doc["expires"]) if doc else None

    async def end(self, session: str) -> None:
        await self._sessions.delete_one({"_id": session})

    async def end_of(self, user: str, *, but: str | None = None) -> int:
        """End all of a user's sessions, except ``but``; give how many there were."""
        done = await self._sessions.delete_many({"user": user, "_id": {"$ne": but}})
        return int(done.deleted_count)
