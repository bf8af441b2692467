"""The life of a project beyond its server: made from a template, forked, exported, deleted."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from traitlets import Int
from traitlets.config import LoggingConfigurable

from codevo.objects import imports
from codevo.objects.archive_readers import Bounds
from codevo.objects.checkpoints import Checkpoints
from codevo.objects.config import Bucket, project_prefix
from codevo.objects.templates import (
    PACKAGED,
    Template,
    TemplateUnavailable,
    Tools,
    UnknownTemplate,
    load_templates,
)
from codevo.spawner.base import ServerState
from codevo.store.records import Project, Role, new_id
from pod_runtime.journal import projects as journal
from pod_runtime.journal.store import NotFound, StoreError

if TYPE_CHECKING:
    from codevo.servers import ServerManager
    from codevo.servers.ports import PodCalls
    from codevo.store import Store

log = logging.getLogger(__name__)

#: Seconds that a running project has to commit what it holds before it is copied.
FLUSH_TIMEOUT = 25.0
#: What stands for the template of a project that was made from an archive.
IMPORTED = "imported"


class TooManyProjects(Exception):
    """The person owns as many projects as one may; the text says so."""


class NotFlushed(Exception):
    """The project runs and what it holds could not be made durable now; the text is for people."""


class ProjectManager(LoggingConfigurable):
    """Makes, copies, exports and deletes projects: first their objects, then the record that shows them.

    A crash in between leaves objects that nobody sees and that can be collected, never a project
    without files.
    """

    max_projects = Int(100, min=1, help="How many projects one person may own.").tag(config=True)
    max_import = Int(
        512 * 2**20, min=2**10, help="Bytes of the largest archive that projects are made from."
    ).tag(config=True)
    max_import_unpacked = Int(
        2 * 2**30, min=2**10, help="Bytes that such an archive may unpack to; a workspace holds 2 GiB."
    ).tag(config=True)
    max_import_members = Int(100_000, min=1, help="How many files and folders such an archive may hold.").tag(
        config=True
    )

    def __init__(
        self,
        *,
        store: Store,
        bucket: Bucket,
        servers: ServerManager,
        pods: PodCalls,
        tools: Tools | None = None,
        template_folder: Path = PACKAGED,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._store = store
        self._bucket = bucket
        self._servers = servers
        self._pods = pods
        self.checkpoints = Checkpoints(bucket, servers, pods)
        self._tools = tools or Tools()
        self._folder = template_folder
        self._templates: dict[str, Template] = {}
        self._published: set[str] = set()
        self._publishing = asyncio.Lock()

    async def open(self) -> None:
        """Read the templates. They are published when they are first used."""
        self._templates = {t.name: t for t in await load_templates(self._folder)}

    def templates(self) -> Sequence[tuple[Template, str]]:
        """Each template, and why it cannot be used here ("" when it can)."""
        return [(t, self._tools.why_not(t)) for t in self._templates.values()]

    def template(self, name: str) -> Template:
        """Raises `UnknownTemplate`, `TemplateUnavailable`."""
        found = self._templates.get(name)
        if found is None:
            raise UnknownTemplate(f"template: {', '.join(self._templates)} are known")
        if why_not := self._tools.why_not(found):
            raise TemplateUnavailable(why_not)
        return found

    async def create(self, owner: str, title: str, template: str) -> Project:
        """A new project of ``owner``'s. Raises as `template` does, `TooManyProjects`, `StoreError`."""
        found = self.template(template)
        await self.check_quota(owner)
        project = Project(id=new_id(), title=title, template=found.name)
        await self._publish(found)
        try:
            await journal.create_from_snapshot(self._bucket.store, found.snapshot, project_prefix(project.id))
        except NotFound:  # somebody emptied the bucket since
            self._published.discard(found.snapshot)
            await self._publish(found)
            await journal.create_from_snapshot(self._bucket.store, found.snapshot, project_prefix(project.id))
        await self._record(project, owner)
        return project

    async def import_archive(self, owner: str, title: str, archive: IO[bytes], kind: str) -> Project:
        """A new project of ``owner``'s with the files of an archive; ``kind`` as in `archives.convert`.

        Raises `Refused`, `TooManyProjects`, `StoreError`; nothing is left behind then.
        """
        await self.check_quota(owner)
        project = Project(id=new_id(), title=title, template=IMPORTED)
        prefix = project_prefix(project.id)
        try:
            counts = await imports.write_snapshot(
                self._bucket.store,
                prefix,
                archive,
                kind,
                Bounds(self.max_import_unpacked, self.max_import_members),
            )
            await self.check_quota(owner)  # uploads take long: others may have come to an end meanwhile
        except BaseException:
            with contextlib.suppress(StoreError):
                await journal.delete_prefix(self._bucket.store, prefix)
            raise
        # whole or not at all, also when the person goes away now
        await asyncio.shield(self._record(project, owner))
        log.info("project %s was imported: %s", project.id, counts)
        return project

    async def fork(self, owner: str, source: Project, title: str, *, history: bool) -> Project:
        """A copy of ``source`` as it is now, private to ``owner``, with or without its earlier versions.

        Raises `TooManyProjects`, `NotFlushed`, `StoreError`.
        """
        await self.check_quota(owner)
        await self._flush(source.id)
        project = Project(id=new_id(), title=title, template=source.template)
        target = project_prefix(project.id)
        copy = journal.fork if history else journal.fork_files
        try:
            await copy(self._bucket.store, project_prefix(source.id), target)
        except BaseException:
            with contextlib.suppress(StoreError):
                await journal.delete_prefix(self._bucket.store, target)
            raise
        await self._record(project, owner)
        return project

    async def export(self, project: str) -> AsyncGenerator[bytes, None]:
        """The project's present files as one tar.zst. Raises `NotFlushed`, and `StoreError` at any step."""
        await self._flush(project)
        return self._archive(project)

    async def _archive(self, project: str) -> AsyncGenerator[bytes, None]:
        async for chunk in journal.export(self._bucket.store, project_prefix(project)):
            yield chunk

    async def delete(self, project: str) -> None:
        """Stop it, forget it, delete its objects. Raises `SpawnError` when it cannot be stopped.

        Can be repeated. What is left in the bucket when the store is away is collectable.
        """
        await self._servers.forget(project)
        await self._store.delete_project(project)
        if self._servers.status(project).state is not ServerState.STOPPED:
            await self._servers.forget(project)  # started while the record was still there
        try:
            await journal.delete_prefix(self._bucket.store, project_prefix(project))
        except StoreError as e:
            log.warning("objects of the deleted project %s are left in the bucket: %s", project, e)

    async def check_quota(self, owner: str) -> None:
        """Raises `TooManyProjects` when ``owner`` cannot have another."""
        if await self._store.members.count_owned(owner) >= self.max_projects:
            raise TooManyProjects(
                f"You have {self.max_projects} projects, which is as many as one person may own here. "
                "Delete one to make another."
            )

    async def _record(self, project: Project, owner: str) -> None:
        await self._store.projects.create(project)
        await self._store.members.set(project.id, owner, Role.OWNER)

    async def _publish(self, template: Template) -> None:
        if template.snapshot in self._published:
            return
        async with self._publishing:
            if template.snapshot not in self._published:
                await journal.publish_template(
                    self._bucket.store,
                    {
                        f.path: journal.TemplateFile(f.data, 0o755 if f.executable else 0o644)
                        for f in template.files
                    },
                    template.name,
                    template.version,
                )
                self._published.add(template.snapshot)

    async def _flush(self, project: str) -> None:
        """Make durable what a running project holds; a stopped one holds nothing."""
        state = self._servers.status(project).state
        if state is ServerState.STOPPING:
            state = (await self._servers.wait(project, FLUSH_TIMEOUT)).state
        if state is not ServerState.READY:
            return  # nothing of this run is newer than the log while it restores
        try:
            await self._pods.call(project, "worker", "POST", "/_codevo/flush", timeout=FLUSH_TIMEOUT)
        except Exception as e:
            log.warning("project %s could not be flushed: %r", project, e)
            raise NotFlushed(
                "The project runs and its last changes could not be saved to the object store. Try again."
            ) from e
