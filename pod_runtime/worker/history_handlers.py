"""Handlers of ``api/history``, and of the hub's checkpoints and restores: thin around `persistence.past`."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from pod_runtime.journal import checkpoints
from pod_runtime.journal.checkpoints import TooManyCheckpoints
from pod_runtime.journal.files import TooLarge
from pod_runtime.journal.reader import Checkpoint, LogError
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.versions import Version
from pod_runtime.protocol.roles import Role
from pod_runtime.worker import contents, safefs
from pod_runtime.worker.handlers import WorkerHandler

if TYPE_CHECKING:
    from pod_runtime.worker.persistence.past import Past

#: Versions in one answer, at most, and unless told.
MAX_VERSIONS = 200
VERSIONS = 50
#: Old files are answered up to this size even where documents may be only smaller, bytes.
MAX_FILE = 10 * 2**20
#: Old files in memory at a time, the wait for a place, and the time that a client has to take one, seconds.
PLACES = 3
WAIT = 10.0
SECONDS = 60.0
#: Seconds for the object store to say what it has. What was read by then is remembered.
PATIENCE = 25.0
_CHUNK = 256 * 1024
_MAX_SEQ = 10**16


class _PastHandler(WorkerHandler):
    @property
    def past(self) -> Past:
        found = getattr(self.worker.persistence, "past", None)
        if found is None:
            raise HTTPError(503, reason="The workspace keeps no history")
        return cast("Past", found)

    def number(self, name: str, default: int | None, most: int) -> int | None:
        """A whole number of the query, from 0."""
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        if not text.isascii() or not text.isdecimal() or len(text) > 16 or int(text) > most:
            raise HTTPError(400, reason=f"{name}: expected a number from 0 to {most}")
        return int(text)


def words(error: Exception) -> str:
    """For the status line, which must not hold what a file name may."""
    return "".join(c if c.isprintable() else "?" for c in str(error)).encode("ascii", "replace").decode()


def store_error(error: StoreError) -> HTTPError:
    """What a client hears of it."""
    if isinstance(error, LogError):
        return HTTPError(
            500, reason="The project's log is damaged", log_message=str(error).replace("%", "%%")
        )
    return HTTPError(503, reason="The object store is away")


class HistoryHandler(_PastHandler):
    """``api/history/{path}``: the file's versions, or with ``?seq=`` its bytes at that state."""

    _places = asyncio.Semaphore(PLACES)

    async def get(self, raw: str) -> None:
        try:
            path = contents.clean(raw)
        except contents.ContentsError as e:
            raise HTTPError(e.status, reason=words(e)) from e
        if not path:
            raise HTTPError(400, reason="The root folder has no versions")
        seq = self.number("seq", None, _MAX_SEQ)
        self.set_header("Cache-Control", "no-cache")
        try:
            if seq is None:
                await self._list(path)
            else:
                await self._read(path, seq)
        except TimeoutError as e:
            raise HTTPError(503, reason="The object store does not answer in time") from e
        except NotFound as e:
            raise HTTPError(410, reason="That state is no longer kept") from e
        except StoreError as e:
            raise store_error(e) from e

    async def _list(self, path: str) -> None:
        before = self.number("before", None, _MAX_SEQ)
        limit = self.number("limit", VERSIONS, MAX_VERSIONS)
        async with asyncio.timeout(PATIENCE):
            found, more = await self.past.versions(path, before=before, limit=max(limit or 0, 1))
        self.write_json({"versions": [_version(v) for v in found], "more": more})

    async def _read(self, path: str, seq: int) -> None:
        places = self._places
        try:
            async with asyncio.timeout(WAIT):
                await places.acquire()
        except TimeoutError as e:
            raise HTTPError(503, reason="Too many old files are being read") from e
        try:
            limit = max(self.worker.config.max_document, MAX_FILE)
            try:
                async with asyncio.timeout(PATIENCE):
                    data = await self.past.read(path, seq, limit)
            except TooLarge as e:
                raise HTTPError(413, reason=f"The file was larger than {limit} bytes") from e
            if data is None:
                raise HTTPError(404, reason="There was no such file at that state")
            await self._send(path, data)
        finally:
            places.release()

    async def _send(self, path: str, data: bytes) -> None:
        self.set_header("Content-Type", "application/octet-stream")
        name = quote(os.fsencode(path.rpartition("/")[2]), safe="")
        self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}")
        self.set_header("Content-Security-Policy", "sandbox")
        self.set_header("Content-Length", str(len(data)))
        try:
            async with asyncio.timeout(SECONDS):
                for start in range(0, len(data), _CHUNK):
                    self.write(data[start : start + _CHUNK])
                    await self.flush()
                await self.finish()
        except StreamClosedError:
            return
        except TimeoutError:
            self.detach().close()


def _version(version: Version) -> dict[str, Any]:
    return {
        "seq": version.seq,
        "time": version.time,
        "people": list(version.people),
        "kind": "deleted" if version.gone else "changed",
        "size": version.size,
        "checkpoint": version.checkpoint,
    }


def checkpoint_json(mark: Checkpoint) -> dict[str, Any]:
    """A checkpoint as the wire has it."""
    return {"name": mark.name, "seq": mark.seq, "time": mark.time, "by": mark.by, "auto": mark.auto}


class _HubHandler(_PastHandler):
    writing = Role.HUB

    def by(self, body: dict[str, Any]) -> str:
        by = body.get("by", "")
        if not isinstance(by, str) or len(by) > checkpoints.MAX_NAME:
            raise HTTPError(400, reason="by: expected a person's name")
        return by


class KeepHandler(_HubHandler):
    """``POST /_codevo/checkpoint {name, by}``: commit, and keep the state. 201."""

    async def post(self) -> None:
        from pod_runtime.worker.persistence.past import NotDurable

        body = self.json_body()
        try:
            mark = await self.past.checkpoint(checkpoints.clean_name(body.get("name")), by=self.by(body))
        except ValueError as e:
            raise HTTPError(400, reason=words(e)) from e
        except TooManyCheckpoints as e:
            raise HTTPError(409, reason=words(e)) from e
        except NotDurable as e:
            raise HTTPError(503, reason=words(e)) from e
        except StoreError as e:
            raise store_error(e) from e
        self.write_json(checkpoint_json(mark), 201)


class RestoreHandler(_HubHandler):
    """``POST /_codevo/restore {seq, by}``: bring the workspace back to a checkpoint."""

    async def post(self) -> None:
        from pod_runtime.worker.persistence.past import Busy, NotDurable, Stopped, UnknownCheckpoint

        body = self.json_body()
        seq = body.get("seq")
        if isinstance(seq, bool) or not isinstance(seq, int) or not 0 <= seq <= _MAX_SEQ:
            raise HTTPError(400, reason="seq: expected a checkpoint's number")
        by = self.by(body)
        self.worker.events.active()
        try:
            done = await self.past.restore(seq, by=by)
        except UnknownCheckpoint as e:
            raise HTTPError(404, reason="There is no such checkpoint") from e
        except NotFound as e:
            raise HTTPError(410, reason="That state is no longer kept") from e
        except Busy as e:
            raise HTTPError(409, reason="Another restore is under way") from e
        except (NotDurable, Stopped) as e:
            raise HTTPError(503, reason=words(e) or "The workspace stops") from e
        except StoreError as e:
            raise store_error(e) from e
        except safefs.DiskFull as e:
            raise HTTPError(507, reason="The disk is full; restore again when there is room") from e
        self.worker.events.everything()
        self.write_json(
            {
                "restored": done.restored,
                "deleted": done.deleted,
                "skipped": done.skipped,
                "checkpoint": checkpoint_json(done.checkpoint),
            }
        )
