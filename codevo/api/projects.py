"""Projects: listed, made, changed, forked, exported, deleted."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs, upload
from codevo.api.problems import Problem, too_many
from codevo.api.uploads import UploadHandler
from codevo.api.workspaces import (
    clean_origin,
    clean_title,
    end_strangers,
    one_project,
    project_json,
    translated,
)
from codevo.store import Project, ProjectSettings, Role, Visibility

#: Downloads of one project at a time for its members, and as many for strangers: each reads all of its log.
MAX_EXPORTS = 4
_TITLE = {"type": "string", "maxLength": 400, "description": "1 to 100 characters"}
_SETTINGS = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "public_ports": {
            "type": "array",
            "maxItems": 20,
            "items": {"type": "integer", "minimum": 1, "maximum": 65535},
            "description": "ports whose preview needs no login",
        },
        "embed_origins": {
            "type": "array",
            "maxItems": 20,
            "items": {"type": "string", "maxLength": 300},
            "description": "sites whose pages may frame the project",
        },
        "wake": {"type": "boolean", "description": "whether a visit to the preview starts the project"},
    },
}


@stream_request_body
class ProjectsHandler(UploadHandler):
    """``/api/projects``"""

    _work: asyncio.Task[Project] | None = None
    _gone = False

    @needs(user=True)
    async def get(self) -> None:
        """The caller's projects, the one with the latest activity first."""
        store = self.hub.store
        roles = await store.members.of_user(self.user.id)
        projects = await store.projects.get_many(roles)
        members = await store.members.of_projects(projects)
        owners = {m.user for ms in members.values() for m in ms if m.role is Role.OWNER}
        users = await store.users.get_many(owners)
        ordered = sorted(projects.values(), key=lambda p: (p.last_activity or p.created, p.id), reverse=True)
        self.write_json([project_json(self.hub, p, roles[p.id], members[p.id], users) for p in ordered])

    @needs(user=True)
    @body(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["title"],
            "properties": {
                "title": _TITLE,
                "template": {"type": "string", "maxLength": 64},
                "git_url": {"type": "string", "description": "not supported yet"},
            },
        }
    )
    @upload(
        {
            "application/zip": "a zip archive",
            "application/zstd": "a tar archive compressed with zstd, such as an export",
        },
        title=_TITLE | {"description": "1 to 100 characters; only with an archive as the body"},
    )
    async def post(self) -> None:
        """A new project of the caller's: from a template, or with ``title`` in the query from an archive."""
        archive = await self.received()
        if archive is not None:
            self._work = asyncio.create_task(
                self.hub.projects.import_archive(self.user.id, self._title, archive, self._kind)
            )
            with translated():
                try:
                    project = await self._work
                except asyncio.CancelledError:
                    if self._gone:
                        return
                    raise
        else:
            project = await self._create()
        self.set_header("Location", f"/api/projects/{project.id}")
        self.write_json(await one_project(self.hub, project, Role.OWNER, self.user), 201)

    async def _create(self) -> Project:
        wanted = self.json_body()
        if "git_url" in wanted:
            raise Problem(501, "Projects cannot be made from a Git repository yet.", field="git_url")
        title = clean_title(wanted["title"])
        if "template" not in wanted:
            raise Problem(400, "template is missing.", field="template", code="invalid")
        with translated():
            return await self.hub.projects.create(self.user.id, title, wanted["template"])

    def on_connection_close(self) -> None:
        """Whoever goes away in the middle of an import wants no project of it."""
        super().on_connection_close()
        self._gone = True
        if self._work is not None:
            self._work.cancel()


class ProjectHandler(ApiHandler):
    """``/api/projects/{id}``"""

    @needs(role="viewer", guests=True)
    async def get(self, project_id: str) -> None:
        """The project, as far as the caller may see it."""
        self.write_json(await one_project(self.hub, self.project, self.role, self.maybe_user))

    @needs(role="owner")
    @body(
        {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "title": _TITLE,
                "visibility": {"type": "string", "enum": ["private", "public"]},
                "settings": _SETTINGS,
            },
        }
    )
    async def patch(self, project_id: str) -> None:
        """Change what is given."""
        wanted = self.json_body()
        title = clean_title(wanted["title"]) if "title" in wanted else None
        visibility = Visibility(wanted["visibility"]) if "visibility" in wanted else None
        settings = _changed(self.project.settings, wanted["settings"]) if "settings" in wanted else None
        closed = visibility is Visibility.PRIVATE and self.project.visibility is Visibility.PUBLIC
        if settings is not None and set(self.project.settings.public_ports) - set(settings.public_ports):
            closed = True
        project = await self.hub.store.projects.update(
            project_id, title=title, visibility=visibility, settings=settings
        )
        if project is None:
            raise Problem(404, "There is no such project.", code="project")
        for changed in self.hub.pods.on_project_changed:
            changed(project_id)
        if closed:
            await end_strangers(self.hub, project_id)
        self.write_json(await one_project(self.hub, project, self.role, self.user))

    @needs(role="owner")
    async def delete(self, project_id: str) -> None:
        """Stop it and delete everything that belongs to it."""
        with translated():
            await self.hub.projects.delete(project_id)
        self.set_status(204)
        self.finish()


def _changed(settings: ProjectSettings, wanted: dict[str, Any]) -> ProjectSettings:
    if "public_ports" in wanted:
        settings = replace(settings, public_ports=tuple(sorted(set(wanted["public_ports"]))))
    if "embed_origins" in wanted:
        origins = (clean_origin(o, "settings.embed_origins") for o in wanted["embed_origins"])
        settings = replace(settings, embed_origins=tuple(dict.fromkeys(origins)))
    if "wake" in wanted:
        settings = replace(settings, wake=wanted["wake"])
    return settings


class ForkHandler(ApiHandler):
    """``/api/projects/{id}/fork``"""

    @needs(role="viewer", guests=True)
    @body({"type": "object", "additionalProperties": False, "properties": {"title": _TITLE}})
    async def post(self, project_id: str) -> None:
        """A copy that belongs to the caller, with the history for members. Strangers may fork public ones:
        they have to log in and get the present files alone."""
        user = self.user
        wanted = self.json_body()
        given = clean_title(wanted["title"]) if "title" in wanted else ""
        with translated():
            project = await self.hub.projects.fork(
                user.id,
                self.project,
                given or f"{self.project.title[:93]} (fork)",
                history=not self.stranger,
            )
        self.set_header("Location", f"/api/projects/{project.id}")
        self.write_json(await one_project(self.hub, project, Role.OWNER, user), 201)


class ExportHandler(ApiHandler):
    """``/api/projects/{id}/export``"""

    def initialize(self, running: Counter[str]) -> None:
        self.running = running

    @needs(role="viewer", guests=True)
    async def get(self, project_id: str) -> None:
        """The project's files as one tar.zst, whether it runs or not."""
        share = f"{project_id} {'stranger' if self.stranger else 'member'}"
        if self.running[share] >= MAX_EXPORTS:
            raise too_many(10, "There are too many downloads of this project just now.")
        self.running[share] += 1
        try:
            await self._send(project_id)
        finally:
            self.running[share] -= 1
            if not self.running[share]:
                del self.running[share]

    async def _send(self, project_id: str) -> None:
        with translated():
            chunks = await self.hub.projects.export(project_id)
            # the first piece before the first header: a missing log is an error, not an empty file
            piece = await anext(chunks, b"")
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", self.project.title).strip("-.") or "project"
        full = quote(f"{self.project.title}.tar.zst", safe="")
        self.set_header("Content-Type", "application/zstd")
        self.set_header("Cache-Control", "no-store")
        self.set_header(
            "Content-Disposition", f"attachment; filename=\"{name}.tar.zst\"; filename*=UTF-8''{full}"
        )
        try:
            while piece:
                self.write(piece)
                await self.flush()
                piece = await anext(chunks, b"")
        except StreamClosedError:
            return
        finally:
            await chunks.aclose()
        await self.finish()


def routes() -> list[Route]:
    one = r"/api/projects/(?P<project_id>[a-z2-7]{16})"
    return [
        (r"/api/projects", ProjectsHandler, {"importing": Counter()}),
        (one, ProjectHandler),
        (one + "/fork", ForkHandler),
        (one + "/export", ExportHandler, {"running": Counter()}),
    ]
