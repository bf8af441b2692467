"""The server of a project: started, stopped, followed."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter

from tornado.iostream import StreamClosedError

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, needs
from codevo.api.problems import Problem, too_many
from codevo.api.workspaces import one_project, owner_of, progress_json, translated
from codevo.servers.guests import GuestStarts
from codevo.spawner.base import ServerState
from codevo.store import Role, Visibility

#: Seconds that a start's request waits for the server to be ready before it answers 202.
START_WAIT = 1.0
#: Seconds that a stop's request waits before it answers 202.
STOP_WAIT = 5.0
#: Longest life of a progress stream, seconds; the page's EventSource comes back by itself.
MAX_STREAM = 600.0
#: Progress streams of one project at a time.
MAX_STREAMS = 64
HEARTBEAT = 15.0

_DOWN = (ServerState.STOPPED, ServerState.FAILED)


class ServerHandler(ApiHandler):
    """``/api/projects/{id}/server``"""

    def initialize(self, guests: GuestStarts) -> None:
        self.guests = guests

    @needs(role="viewer", guests=True)
    async def post(self, project_id: str) -> None:
        """See to it that it runs: 201 ready, 202 on its way, 429 when too many are starting."""
        servers = self.hub.servers
        if not self.role.allows(Role.EDITOR):
            self._check_guest(servers.status(project_id).state)
        owner = await owner_of(self.hub, project_id)
        with translated():
            servers.start(project_id, owner)
        status = await servers.wait(project_id, START_WAIT)
        answer = await one_project(self.hub, self.project, self.role, self.maybe_user)
        self.write_json(answer, 201 if status.state is ServerState.READY else 202)

    def _check_guest(self, state: ServerState) -> None:
        """Viewers may wake a public project, now and then; a private one is woken by its editors."""
        if self.project.visibility is not Visibility.PUBLIC:
            raise Problem(403, "Starting this project needs the role editor.", code="role")
        if state in _DOWN:
            user = self.maybe_user
            wait = self.guests.take(user.id if user else f"ip:{self.request.remote_ip}")
            if wait:
                raise too_many(wait, "Visitors have started many projects lately.")

    @needs(role="editor")
    async def delete(self, project_id: str) -> None:
        """Stop it, saved: 204 stopped, 202 on its way."""
        task = self.hub.servers.begin_stop(project_id)
        if task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STOP_WAIT):
                    await asyncio.shield(task)
            status = self.hub.servers.status(project_id)
            if status.state is ServerState.FAILED:
                raise Problem(503, status.reason, code="stop", headers={"Retry-After": "5"})
            if not task.done():
                self.write_json(await one_project(self.hub, self.project, self.role, self.user), 202)
                return
        self.set_status(204)
        self.finish()


class ProgressHandler(ApiHandler):
    """``/api/projects/{id}/server/progress``"""

    def initialize(self, streams: Counter[str]) -> None:
        self.streams = streams

    @needs(role="viewer", guests=True)
    async def get(self, project_id: str) -> None:
        """The start's events (text/event-stream), until it is ready, failed or stopped."""
        if self.streams[project_id] >= MAX_STREAMS:
            raise too_many(10, "Too many people follow this start.")
        self.streams[project_id] += 1
        try:
            self.set_header("Content-Type", "text/event-stream; charset=UTF-8")
            self.set_header("Cache-Control", "no-store")
            self.set_header("X-Accel-Buffering", "no")
            # a closed connection is noticed with the next event or heartbeat
            with contextlib.suppress(StreamClosedError, TimeoutError):
                async with asyncio.timeout(MAX_STREAM):
                    await self._follow(project_id)
        finally:
            self.streams[project_id] -= 1
            if not self.streams[project_id]:
                del self.streams[project_id]

    async def _follow(self, project_id: str) -> None:
        log = self.hub.servers.progress(project_id)
        async for event in log.follow(self.request.headers.get("Last-Event-ID"), heartbeat=HEARTBEAT):
            if event is None:
                self.write(": still here\n\n")
            else:
                data = json.dumps(progress_json(event.status), ensure_ascii=False)
                self.write(f"id: {event.id}\ndata: {data}\n\n")
            await self.flush()


def routes() -> list[Route]:
    one = r"/api/projects/(?P<project_id>[a-z2-7]{16})/server"
    return [
        (one, ServerHandler, {"guests": GuestStarts()}),
        (one + "/progress", ProgressHandler, {"streams": Counter()}),
    ]
