"""API tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel

from codevo.store.records import ApiToken, digest, new_id, new_secret, now

#: ``last_used`` is written at most this often, so that reading does not cost a write each time.
_USED_EVERY = timedelta(minutes=1)


def _token(doc: dict[str, Any]) -> ApiToken:
    return ApiToken(
        id=doc["_id"],
        user=doc["user"],
        hash=doc["hash"],
        note=doc["note"],
        scopes=tuple(doc["scopes"]),
        created=doc["created"],
        expires=doc.get("expires"),
        last_used=doc.get("last_used"),
    )


class Tokens:
    """A token's text is never stored, only its SHA-256."""

    def __init__(self, db: Any) -> None:
        self._tokens = db["tokens"]

    async def create_indexes(self) -> None:
        await self._tokens.create_indexes(
            [
                IndexModel([("hash", ASCENDING)], unique=True, name="hash"),
                IndexModel([("expires", ASCENDING)], expireAfterSeconds=0, name="ttl"),
                IndexModel([("user", ASCENDING), ("created", DESCENDING)], name="user"),
            ]
        )

    async def create(
        self, user: str, *, note: str, scopes: tuple[str, ...], seconds: float | None = None
    ) -> tuple[ApiToken, str]:
        """The record and the text, which nobody can learn later. ``seconds`` None: it never expires."""
        text = new_secret()
        made = now()
        expires = made + timedelta(seconds=seconds) if seconds is not None else None
        token = ApiToken(new_id(), user, digest(text), note, scopes, made, expires)
        doc: dict[str, Any] = {
            "_id": token.id,
            "user": user,
            "hash": token.hash,
            "note": note,
            "scopes": list(scopes),
            "created": made,
        }
        if expires is not None:  # a TTL index leaves documents without the field alone
            doc["expires"] = expires
        await self._tokens.insert_one(doc)
        return token, text

    async def find(self, text: str) -> ApiToken | None:
        """By text; None when unknown or expired. Notes the use."""
        doc = await self._tokens.find_one({"hash": digest(text)})
        if doc is None:
            return None
        token = _token(doc)
        at = now()
        if token.expired(at):
            return None
        if token.last_used is None or at - token.last_used > _USED_EVERY:
            await self._tokens.update_one({"_id": token.id}, {"$max": {"last_used": at}})
        return token

    async def of_user(self, user: str) -> list[ApiToken]:
        """Newest first, expired ones left out."""
        found = self._tokens.find({"user": user}).sort([("created", DESCENDING), ("_id", ASCENDING)])
        return [t async for t in _tokens(found) if not t.expired()]

    async def count_of(self, user: str) -> int:
        found: int = await self._tokens.count_documents({"user": user})
        return found

    async def delete(self, user: str, token: str) -> bool:
        """Whether the user had that token."""
        done = await self._tokens.delete_one({"_id": token, "user": user})
        return bool(done.deleted_count)

    async def delete_of(self, user: str) -> None:
        await self._tokens.delete_many({"user": user})


async def _tokens(found: Any) -> Any:
    async for doc in found:
        yield _token(doc)
