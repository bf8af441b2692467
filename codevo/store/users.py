"""People."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from codevo.store.errors import Taken
from codevo.store.paging import fetch_page
from codevo.store.records import Page, User

#: How `Users.page` can be sorted; a leading ``-`` turns it round.
SORTS = ("name", "created", "last_seen")


def _user(doc: dict[str, Any]) -> User:
    return User(
        id=doc["_id"],
        name=doc["name"],
        email=doc["email"],
        password=doc["password"],
        admin=doc["admin"],
        disabled=doc["disabled"],
        created=doc["created"],
        last_seen=doc.get("last_seen"),
        title=doc.get("title", ""),
    )


class Users:
    """Names and e-mail addresses are unique without regard to case; users without an e-mail have ""."""

    def __init__(self, db: Any) -> None:
        self._users = db["users"]
        self._marks = db["marks"]

    async def create_indexes(self) -> None:
        await self._users.create_indexes(
            [
                IndexModel([("name_key", ASCENDING)], unique=True, name="name"),
                IndexModel(
                    [("email_key", ASCENDING)],
                    unique=True,
                    name="email",
                    partialFilterExpression={"email_key": {"$gt": ""}},
                ),
                IndexModel([("created", DESCENDING), ("_id", ASCENDING)], name="created"),
                IndexModel([("last_seen", DESCENDING), ("_id", ASCENDING)], name="last_seen"),
                IndexModel([("admin", ASCENDING)], name="admin", partialFilterExpression={"admin": True}),
            ]
        )

    async def create(self, user: User) -> None:
        """Raises `Taken` with the field ``name`` or ``email``."""
        try:
            await self._users.insert_one(
                {
                    "_id": user.id,
                    "name": user.name,
                    "name_key": user.name.casefold(),
                    "email": user.email,
                    "email_key": user.email.casefold(),
                    "password": user.password,
                    "admin": user.admin,
                    "disabled": user.disabled,
                    "created": user.created,
                    "last_seen": user.last_seen,
                    "title": user.title,
                }
            )
        except DuplicateKeyError as e:
            raise _taken(e) from None

    async def any(self) -> bool:
        """Whether anybody has ever signed up."""
        return await self._users.find_one({}, {"_id": 1}) is not None

    async def claim_first(self) -> bool:
        """True for exactly one caller, ever: whoever becomes the first administrator."""
        try:
            await self._marks.insert_one({"_id": "first-user"})
        except DuplicateKeyError:
            return False
        return True

    async def unclaim_first(self) -> None:
        """Give the claim back, after the sign-up behind it failed."""
        await self._marks.delete_one({"_id": "first-user"})

    async def get(self, user: str) -> User | None:
        doc = await self._users.find_one({"_id": user})
        return _user(doc) if doc else None

    async def get_many(self, users: Iterable[str]) -> dict[str, User]:
        """By id; unknown ones are left out."""
        wanted = list(set(users))
        if not wanted:
            return {}
        return {doc["_id"]: _user(doc) async for doc in self._users.find({"_id": {"$in": wanted}})}

    async def by_name(self, name: str) -> User | None:
        doc = await self._users.find_one({"name_key": name.casefold()})
        return _user(doc) if doc else None

    async def by_login(self, login: str) -> User | None:
        """By name, or by e-mail when there is an ``@`` in it."""
        key = "email_key" if "@" in login else "name_key"
        doc = await self._users.find_one({key: login.casefold()})
        return _user(doc) if doc else None

    async def update(
        self,
        user: str,
        *,
        email: str | None = None,
        title: str | None = None,
        password: str | None = None,
        admin: bool | None = None,
        disabled: bool | None = None,
    ) -> User | None:
        """Change what is given; None when there is no such user. Raises `Taken` for the e-mail."""
        changes: dict[str, Any] = {
            k: v
            for k, v in {
                "email": email,
                "title": title,
                "password": password,
                "admin": admin,
                "disabled": disabled,
            }.items()
            if v is not None
        }
        if email is not None:
            changes["email_key"] = email.casefold()
        if not changes:
            return await self.get(user)
        try:
            doc = await self._users.find_one_and_update(
                {"_id": user}, {"$set": changes}, return_document=True
            )
        except DuplicateKeyError as e:
            raise _taken(e) from None
        return _user(doc) if doc else None

    async def seen(self, user: str, at: datetime) -> None:
        await self._users.update_one({"_id": user}, {"$max": {"last_seen": at}})

    async def count_active_admins(self) -> int:
        found: int = await self._users.count_documents({"admin": True, "disabled": False})
        return found

    async def page(
        self, *, limit: int = 50, cursor: str | None = None, search: str = "", sort: str = "name"
    ) -> Page[User]:
        """``search`` finds the start of a name or e-mail; ``sort`` is one of `SORTS`, ``-`` turns it round.
        Raises ``ValueError`` for a bad sort or cursor."""
        match: dict[str, Any] = {}
        if search:
            start = {"$regex": "^" + re.escape(search.casefold())}
            match = {"$or": [{"name_key": start}, {"email_key": start}]}
        if sort.removeprefix("-") not in SORTS:
            raise ValueError(f"sort: expected one of {', '.join(SORTS)}")
        key = re.sub(r"name$", "name_key", sort)
        return await fetch_page(self._users, match, sort=key, limit=limit, cursor=cursor, make=_user)


def _taken(error: DuplicateKeyError) -> Taken:
    pattern = (error.details or {}).get("keyPattern", {})
    return Taken("email" if "email_key" in pattern else "name")
