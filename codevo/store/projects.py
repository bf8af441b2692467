"""Projects."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, DESCENDING, IndexModel

from codevo.store.paging import fetch_page
from codevo.store.records import Page, Project, ProjectSettings, Visibility, now

#: How `Projects.page` can be sorted; a leading ``-`` turns it round.
SORTS = ("title", "created", "last_activity")


def _project(doc: dict[str, Any]) -> Project:
    settings = doc["settings"]
    return Project(
        id=doc["_id"],
        title=doc["title"],
        template=doc["template"],
        visibility=Visibility(doc["visibility"]),
        created=doc["created"],
        updated=doc["updated"],
        last_activity=doc.get("last_activity"),
        generation=doc["generation"],
        settings=ProjectSettings(
            public_ports=tuple(settings.get("public_ports", ())),
            embed_origins=tuple(settings.get("embed_origins", ())),
            wake=settings.get("wake", True),
        ),
    )


def _settings(settings: ProjectSettings) -> dict[str, Any]:
    return {
        "public_ports": list(settings.public_ports),
        "embed_origins": list(settings.embed_origins),
        "wake": settings.wake,
    }


class Projects:
    """Who may do what with them is in `Members`."""

    def __init__(self, db: Any) -> None:
        self._projects = db["projects"]

    async def create_indexes(self) -> None:
        await self._projects.create_indexes(
            [
                IndexModel([("title_key", ASCENDING), ("_id", ASCENDING)], name="title"),
                IndexModel([("created", DESCENDING), ("_id", ASCENDING)], name="created"),
                IndexModel([("last_activity", DESCENDING), ("_id", ASCENDING)], name="last_activity"),
            ]
        )

    async def create(self, project: Project) -> None:
        await self._projects.insert_one(
            {
                "_id": project.id,
                "title": project.title,
                "title_key": project.title.casefold(),
                "template": project.template,
                "visibility": str(project.visibility),
                "created": project.created,
                "updated": project.updated,
                "last_activity": project.last_activity,
                "generation": project.generation,
                "settings": _settings(project.settings),
            }
        )

    async def get(self, project: str) -> Project | None:
        doc = await self._projects.find_one({"_id": project})
        return _project(doc) if doc else None

    async def get_many(self, projects: Iterable[str]) -> dict[str, Project]:
        """By id; unknown ones are left out."""
        wanted = list(set(projects))
        if not wanted:
            return {}
        return {doc["_id"]: _project(doc) async for doc in self._projects.find({"_id": {"$in": wanted}})}

    async def update(
        self,
        project: str,
        *,
        title: str | None = None,
        visibility: Visibility | None = None,
        settings: ProjectSettings | None = None,
    ) -> Project | None:
        """Change what is given and set ``updated``; None when there is no such project."""
        changes: dict[str, Any] = {"updated": now()}
        if title is not None:
            changes |= {"title": title, "title_key": title.casefold()}
        if visibility is not None:
            changes["visibility"] = str(visibility)
        if settings is not None:
            changes["settings"] = _settings(settings)
        doc = await self._projects.find_one_and_update(
            {"_id": project}, {"$set": changes}, return_document=True
        )
        return _project(doc) if doc else None

    async def next_generation(self, project: str) -> int | None:
        """Count one more start, atomically, and give its number (1 for the first); None when unknown."""
        doc = await self._projects.find_one_and_update(
            {"_id": project}, {"$inc": {"generation": 1}}, return_document=True
        )
        return int(doc["generation"]) if doc else None

    async def touch(self, project: str, at: datetime | None = None) -> None:
        """Note that people did something there; an older time never overwrites a newer one."""
        await self._projects.update_one({"_id": project}, {"$max": {"last_activity": at or now()}})

    async def delete(self, project: str) -> None:
        """The project's own record only; `Store.delete_project` takes what hangs on it along."""
        await self._projects.delete_one({"_id": project})

    async def page(
        self, *, limit: int = 50, cursor: str | None = None, search: str = "", sort: str = "-last_activity"
    ) -> Page[Project]:
        """All projects, for administrators. ``search`` finds the start of a title or the whole id; ``sort``
        is one of `SORTS`, ``-`` turns it round. Raises ``ValueError`` for a bad sort or cursor."""
        match: dict[str, Any] = {}
        if search:
            start = {"$regex": "^" + re.escape(search.casefold())}
            match = {"$or": [{"title_key": start}, {"_id": search}]}
        if sort.removeprefix("-") not in SORTS:
            raise ValueError(f"sort: expected one of {', '.join(SORTS)}")
        key = re.sub(r"title$", "title_key", sort)
        return await fetch_page(self._projects, match, sort=key, limit=limit, cursor=cursor, make=_project)
