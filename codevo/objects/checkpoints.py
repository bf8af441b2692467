"""A project's named states: read from its log, made and brought back by its worker while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from codevo.objects.config import Bucket, project_prefix
from codevo.proxy.pods import PodRefused, PodUnavailable
from codevo.spawner.base import ServerState
from pod_runtime.journal import checkpoints as marks
from pod_runtime.journal import projects as journal
from pod_runtime.journal.checkpoints import MAX_NAMED, TooManyCheckpoints
from pod_runtime.journal.reader import Checkpoint

if TYPE_CHECKING:
    from codevo.servers import ServerManager
    from codevo.servers.ports import PodCalls

MAX_NAME = 100
#: Seconds that a running project has to commit what it holds.
CHECKPOINT_TIMEOUT = 60.0
#: Seconds for a start before a restore, and for the restore itself.
START_TIMEOUT = 180.0
RESTORE_TIMEOUT = 300.0


class BadName(ValueError):
    """Not a checkpoint's name; the text says what is expected."""


class NameTaken(Exception):
    """Another state has this name already; the text is for people."""


class UnknownCheckpoint(LookupError):
    """There is no checkpoint of that number."""


class NotKept(LookupError):
    """The checkpoint's state is no longer kept."""


class Busy(Exception):
    """Another restore is under way."""


class NotDone(Exception):
    """The workspace could not do it now; the text is for people."""


class Checkpoints:
    """What the hub does with the checkpoints of projects. `StoreError` everywhere when the store is away."""

    def __init__(self, bucket: Bucket, servers: ServerManager, pods: PodCalls) -> None:
        self._bucket = bucket
        self._servers = servers
        self._pods = pods

    async def list(self, project: str) -> list[Checkpoint]:
        """The newest first."""
        return await journal.checkpoints_of(self._bucket.store, project_prefix(project))

    async def add(self, project: str, name: str, by: str) -> Checkpoint:
        """Name the project's state as it is now, for the person called ``by``.

        A name stands for one state only, but may be given again while the state is the same. Naming a state
        that has a name gives it the new one. Raises `BadName`, `NameTaken`, `TooManyCheckpoints`, `NotDone`.
        """
        name = _clean(name)
        named = [c for c in await self.list(project) if not c.auto]
        if any(c.name == name for c in named):
            raise NameTaken("There is a checkpoint of that name already.")
        if len(named) >= MAX_NAMED:
            raise TooManyCheckpoints(f"A project keeps at most {MAX_NAMED} named checkpoints.")
        state = self._servers.status(project).state
        if state is ServerState.STOPPING:
            state = (await self._servers.wait(project, CHECKPOINT_TIMEOUT)).state
        if state is not ServerState.READY:
            # nothing of this run is newer than the log while it starts
            return await journal.add_checkpoint(self._bucket.store, project_prefix(project), name, by=by)
        told = {"name": name, "by": by}
        found = await self._call(project, "/_codevo/checkpoint", told, CHECKPOINT_TIMEOUT)
        return _checkpoint(found)

    async def restore(self, project: str, owner: str, seq: int, by: str) -> dict[str, Any]:
        """Bring the files back to the state of a checkpoint; ``{restored, deleted, skipped, checkpoint}``.

        ``skipped`` are files that could not be written; ``checkpoint`` is the state before. A stopped
        project, which counts for ``owner``, is started first. Raises `UnknownCheckpoint`, `NotKept`, `Busy`,
        `NotDone`, `ServersBusy`, `TooManyRunning`.
        """
        if not any(c.seq == seq for c in await self.list(project)):
            raise UnknownCheckpoint(seq)
        self._servers.start(project, owner)
        status = await self._servers.wait(project, START_TIMEOUT)
        if status.state is not ServerState.READY:
            raise NotDone(status.reason or "The project did not start in time. Try again when it runs.")
        told = {"seq": seq, "by": by}
        found = await self._call(project, "/_codevo/restore", told, RESTORE_TIMEOUT)
        before = found.get("checkpoint")
        counts = {name: found.get(name, 0) for name in ("restored", "deleted", "skipped")}
        return counts | {
            "checkpoint": checkpoint_json(_checkpoint(before)) if before else None,
        }

    async def remove(self, project: str, seq: int) -> None:
        """Forget a checkpoint, an automatic one too; its state goes with the next compaction. Raises
        `UnknownCheckpoint`."""
        if not await journal.remove_checkpoint(self._bucket.store, project_prefix(project), seq):
            raise UnknownCheckpoint(seq)

    async def _call(self, project: str, path: str, told: dict[str, Any], timeout: float) -> dict[str, Any]:
        try:
            found = await self._pods.call(project, "worker", "POST", path, json=told, timeout=timeout)
        except PodUnavailable as e:
            raise NotDone("The workspace does not answer just now. Try again.") from e
        except PodRefused as e:
            raise _translated(e, path) from e
        if not isinstance(found, dict):
            raise NotDone("The workspace gave no valid answer.")
        return found


def _clean(name: str) -> str:
    try:
        name = marks.clean_name(name)
    except ValueError as e:
        raise BadName(f"name: expected 1 to {MAX_NAME} printable characters.") from e
    if len(name) > MAX_NAME:
        raise BadName(f"name: expected 1 to {MAX_NAME} printable characters.")
    return name


def _translated(error: PodRefused, path: str) -> Exception:
    said = error.body if isinstance(error.body, dict) else {}
    text = str(said.get("detail") or said.get("message") or "The workspace could not do it.")[:500]
    if error.status == 404:
        return UnknownCheckpoint(text)
    if error.status == 410:
        return NotKept(text)
    if error.status == 409 and path == "/_codevo/restore":
        return Busy(text)
    if error.status == 409:
        return TooManyCheckpoints(text)
    if error.status == 400:
        return BadName(text)
    return NotDone(text)


def _checkpoint(found: dict[str, Any]) -> Checkpoint:
    try:
        return Checkpoint.from_json(found)
    except (KeyError, TypeError, ValueError) as e:
        raise NotDone("The workspace gave no valid answer.") from e


def checkpoint_json(mark: Checkpoint) -> dict[str, Any]:
    """A checkpoint as every answer has it; ``by`` is null for nobody."""
    return {"name": mark.name, "seq": mark.seq, "time": mark.time, "by": mark.by or None, "auto": mark.auto}
