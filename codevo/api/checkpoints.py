"""Checkpoints of a project: listed, made, brought back, forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs
from codevo.api.problems import Problem, unavailable
from codevo.api.workspaces import owner_of, translated
from codevo.objects.checkpoints import (
    MAX_NAME,
    BadName,
    Busy,
    NameTaken,
    NotDone,
    NotKept,
    UnknownCheckpoint,
    checkpoint_json,
)
from pod_runtime.journal.checkpoints import TooManyCheckpoints

#: Seconds for the object store to say what it has.
PATIENCE = 20.0


@contextlib.contextmanager
def _answered() -> Iterator[None]:
    try:
        with translated():
            yield
    except BadName as e:
        raise Problem(400, str(e), field="name", code="invalid") from e
    except NameTaken as e:
        raise Problem(409, str(e), field="name", remedy="Choose another name.", code="taken") from e
    except TooManyCheckpoints as e:
        raise Problem(409, str(e), remedy="Delete one first.", code="quota") from e
    except Busy as e:
        raise Problem(409, "Another restore is under way.", remedy="Wait for it to end.", code="busy") from e
    except UnknownCheckpoint as e:
        raise Problem(404, "There is no such checkpoint.", code="checkpoint") from e
    except NotKept as e:
        raise Problem(410, "The state of this checkpoint is no longer kept.", code="not-kept") from e
    except NotDone as e:
        raise unavailable(str(e), seconds=5) from e


class CheckpointsHandler(ApiHandler):
    """``/api/projects/{id}/checkpoints``"""

    @needs(role="viewer")
    async def get(self, project_id: str) -> None:
        """``[{name, seq, time, by, auto}]``, the newest first. ``by`` is null when nobody asked for it."""
        try:
            with _answered():
                async with asyncio.timeout(PATIENCE):
                    found = await self.hub.projects.checkpoints.list(project_id)
        except TimeoutError as e:
            raise unavailable("The object store does not answer in time.", seconds=5) from e
        self.write_json([checkpoint_json(mark) for mark in found])

    @needs(role="editor")
    @body(
        {
            "type": "object",
            "additionalProperties": False,
            "required": ["name"],
            "properties": {
                "name": {
                    "type": "string",
                    "maxLength": 4 * MAX_NAME,
                    "description": f"1 to {MAX_NAME} printable characters, one state's only",
                }
            },
        }
    )
    async def post(self, project_id: str) -> None:
        """Name the state that the project has now. What is unsaved is saved first. A state has one name:
        naming it again renames it."""
        name = self.json_body()["name"]
        with _answered():
            mark = await self.hub.projects.checkpoints.add(project_id, name, self.user.name)
        self.write_json(checkpoint_json(mark), 201)


class CheckpointHandler(ApiHandler):
    """``/api/projects/{id}/checkpoints/{seq}``"""

    @needs(role="owner")
    async def delete(self, project_id: str, seq: str) -> None:
        """Forget it. The present files stay as they are."""
        with _answered():
            await self.hub.projects.checkpoints.remove(project_id, int(seq))
        self.set_status(204)
        self.finish()


class RestoreHandler(ApiHandler):
    """``/api/projects/{id}/checkpoints/{seq}/restore``"""

    @needs(role="editor")
    @body({"type": "object", "additionalProperties": False, "properties": {}})
    async def post(self, project_id: str, seq: str) -> None:
        """Bring all files back to that state: ``{restored, deleted, skipped, checkpoint}``, where
        ``checkpoint`` is the state before. A stopped project is started first. Open editors get it as an
        ordinary edit."""
        self.json_body()
        owner = await owner_of(self.hub, project_id)
        with _answered():
            found = await self.hub.projects.checkpoints.restore(project_id, owner, int(seq), self.user.name)
        self.write_json(found)


def routes() -> list[Route]:
    base = r"/api/projects/(?P<project_id>[a-z2-7]{16})/checkpoints"
    one = base + r"/(?P<seq>[0-9]{1,15})"
    return [(base, CheckpointsHandler), (one, CheckpointHandler), (one + "/restore", RestoreHandler)]
