"""Handlers of ``api/contents`` and ``files``: thin around `contents` and `documents`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
from collections.abc import AsyncIterator
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, stream_request_body

from pod_runtime.worker import contents
from pod_runtime.worker.contents import ContentsError
from pod_runtime.worker.handlers import WorkerHandler
from pod_runtime.worker.safefs import AtomicFile, InvalidPath, Kind, Root, kind_of

_CHUNK = 256 * 1024
#: Largest JSON body of the contents API, bytes (base64 of `contents.MAX_CONTENT` and more).
MAX_BODY = 100 * 2**20
#: Files above this many bytes are answered in JSON `LARGE_ANSWERS` at a time: an answer takes a few times the
#: file's size in memory, and whoever may look at a project can ask for it on many connections.
LARGE = 2**20
LARGE_ANSWERS = 3
#: Seconds that a large answer waits for its turn, and in which its client has to take it.
LARGE_WAIT = 10.0
LARGE_SECONDS = 60.0


class FilesHandler(WorkerHandler):
    """Base of what answers about files: `ContentsError` becomes its status, with the words as they are."""

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, ContentsError):
            # a reason phrase goes into the status line, so it must not hold what a file name may
            problem = HTTPError(error.status, reason=str(error).encode("ascii", "replace").decode())
            vars(problem)["problem"] = {"detail": str(error), "message": str(error)}
            self.set_status(error.status)
            super().write_error(error.status, exc_info=(HTTPError, problem, None))
        else:
            super().write_error(status_code, **kwargs)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if not isinstance(value, ContentsError):
            super().log_exception(typ, value, tb)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(error.status if isinstance(error, ContentsError) else status_code, **kwargs)

    def changed(self, kind: str, path: str, **more: str) -> None:
        """Tell pages and persistence at once; the watcher comes later."""
        self.worker.events.active()
        self.worker.events.files([{"path": path, "kind": kind, **more}])
        self.worker.documents.authors.note(self.claims.name, path, *more.values())
        self.worker.documents.on_touched(path, *more.values())

    async def blocking(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        return await asyncio.to_thread(call, *args, **kwargs)

    def location(self, path: str) -> str:
        return "/api/contents/" + quote(os.fsencode(path))


class ContentsHandler(FilesHandler):
    def _flag(self, name: str, default: str) -> bool:
        value = self.get_query_argument(name, default)
        if value not in ("0", "1"):
            raise HTTPError(400, reason=f"{name}: expected 0 or 1")
        return value == "1"

    async def get(self, raw: str) -> None:
        path = contents.clean(raw)
        kind = self.get_query_argument("type", None)
        if kind not in (None, "file", "directory", "notebook"):
            raise HTTPError(400, reason="type: expected file, directory or notebook")
        format = self.get_query_argument("format", None)
        if format not in (None, "text", "base64", "json"):
            raise HTTPError(400, reason="format: expected text or base64")
        content, hash = self._flag("content", "1"), self._flag("hash", "0")
        if path:
            await self.worker.documents.saved(path)
        look = functools.partial(contents.get, self.worker.root, path, type=kind, format=format, hash=hash)
        self.set_header("Cache-Control", "no-cache")
        if not (content or hash) or await self.blocking(_size, self.worker.root, path) <= LARGE:
            self.write_json(await self.blocking(look, content=content))
            return
        async with self._large_place():
            await self._send_large(await self.blocking(lambda: json.dumps(look(content=content)).encode()))

    @contextlib.asynccontextmanager
    async def _large_place(self) -> AsyncIterator[None]:
        places = self.worker.large_answers
        try:
            async with asyncio.timeout(LARGE_WAIT):
                await places.acquire()
        except TimeoutError as e:
            raise HTTPError(503, reason="Too many large files are being read; read this one at files/") from e
        try:
            yield
        finally:
            places.release()

    async def _send_large(self, data: bytes) -> None:
        """All of ``data`` is in memory until the client has taken it, so it must not take for ever."""
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Content-Length", str(len(data)))
        try:
            async with asyncio.timeout(LARGE_SECONDS):
                for start in range(0, len(data), _CHUNK):
                    self.write(data[start : start + _CHUNK])
                    await self.flush()
                await self.finish()
        except StreamClosedError:
            return
        except TimeoutError:
            self.detach().close()

    async def put(self, raw: str) -> None:
        path = contents.clean(raw)
        if not path:
            raise HTTPError(400, reason="The root folder itself cannot be written")
        body = self.json_body()
        if "content" not in body and body.get("type") != "directory":
            if "copy_from" in body:
                raise HTTPError(400, reason="Cannot copy with PUT, only POST")
            body = {"type": "file", "format": "text", "content": "", **body}
        await self.worker.documents.saved(path)
        model, created = await self.blocking(contents.save, self.worker.root, path, body)
        self.changed("created" if created else "modified", path)
        await self.worker.documents.outside([path])
        self.set_header("Location", self.location(path))
        self.write_json(model, 201 if created else 200)

    async def post(self, raw: str) -> None:
        folder = contents.clean(raw)
        body = self.json_body()
        source = body.get("copy_from")
        if isinstance(source, str):
            await self.worker.documents.saved(contents.clean(source))
        model = await self.blocking(contents.create, self.worker.root, folder, body)
        self.changed("created", model["path"])
        self.set_header("Location", self.location(model["path"]))
        self.write_json(model, 201)

    async def patch(self, raw: str) -> None:
        old = contents.clean(raw)
        wanted = self.json_body().get("path")
        if not isinstance(wanted, str):
            raise HTTPError(400, reason="path: expected the new path")
        new = contents.clean(wanted)
        async with self.worker.documents.moving(old, new):
            model = await self.blocking(contents.rename, self.worker.root, old, new)
        if old != new:
            self.worker.documents.authors.moved(old, new)
            self.changed("moved", old, to=new)
        self.set_header("Location", self.location(new))
        self.write_json(model)

    async def delete(self, raw: str) -> None:
        path = contents.clean(raw)
        async with self.worker.documents.removing(path):
            await self.blocking(contents.delete, self.worker.root, path)
        self.changed("deleted", path)
        self.set_status(204)
        self.finish()


class CheckpointsHandler(FilesHandler):
    async def get(self, raw: str) -> None:
        self.write_json(await self.blocking(self.worker.checkpoints.list, contents.clean(raw)))

    async def post(self, raw: str) -> None:
        path = contents.clean(raw)
        await self.worker.documents.saved(path)
        model = await self.blocking(self.worker.checkpoints.create, self.worker.root, path)
        self.set_header("Location", f"{self.location(path)}/checkpoints/{contents.CHECKPOINT_ID}")
        self.write_json(model, 201)


class CheckpointHandler(FilesHandler):
    async def post(self, raw: str) -> None:
        path = contents.clean(raw)
        await self.blocking(self.worker.checkpoints.restore, self.worker.root, path)
        self.changed("modified", path)
        await self.worker.documents.outside([path])
        self.set_status(204)
        self.finish()

    async def delete(self, raw: str) -> None:
        await self.blocking(self.worker.checkpoints.delete, contents.clean(raw))
        self.set_status(204)
        self.finish()


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The one range of a ``Range`` header as [start, end), or None for the whole (RFC 9110, 14.2).

    Several ranges and other units are ignored, as the RFC allows. Raises ``ValueError`` when the range lies
    outside of the file.
    """
    if header is None or not header.startswith("bytes=") or "," in header:
        return None
    first, dash, last = header[6:].strip().partition("-")
    digits = first + last
    if not dash or not digits.isascii() or not digits.isdigit():
        return None
    if not first:
        start, end = max(size - int(last), 0), size
    else:
        start, end = int(first), min(int(last) + 1 if last else size, size)
        if last and int(last) < start:
            return None
    if start >= end:
        raise ValueError("the range lies outside of the file")
    return start, end


def _size(root: Root, path: str) -> int:
    """The size of what stands there; 0 when it is no file, or nothing (which is for others to say)."""
    try:
        st = root.lstat(path)
    except (OSError, InvalidPath):
        return 0
    return st.st_size if kind_of(st) is Kind.FILE else 0


@stream_request_body
class FileHandler(FilesHandler):
    """``files/{path}``: GET and HEAD stream with Range; PUT takes a raw body of any allowed size.

    The answer is always an attachment of a type that no browser runs: what it is, user code decided.
    """

    _upload: AtomicFile | None = None
    _path = ""
    _received = 0
    _failure: ContentsError | None = None
    _existed = False

    def prepare(self) -> None:
        super().prepare()
        if self.request.method != "PUT":
            return
        self._path = contents.clean(self.path_args[0])
        limit = self.worker.config.max_workspace
        length = self.request.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > limit:
            raise self._too_large()
        self.request.connection.set_max_body_size(limit)  # type: ignore[union-attr]
        with contents.errors(self._path):
            self._existed = self.worker.root.exists(self._path)
            folder = self._path.rpartition("/")[0]
            if folder:
                self.worker.root.mkdir(folder, parents=True, exist_ok=True)
            self._upload = self.worker.root.create_atomic(self._path).__enter__()

    async def data_received(self, chunk: bytes) -> None:
        # an error here would cut the connection without an answer: `put` answers, the rest is dropped
        if self._upload is None:
            return
        self._received += len(chunk)
        try:
            if self._received > self.worker.config.max_workspace:
                raise self._too_large()
            with contents.errors(self._path):
                await self.blocking(self._upload.write, chunk)
        except ContentsError as e:
            self._failure = e
            self._abort()

    def _too_large(self) -> ContentsError:
        return ContentsError(413, f"{self._path}: larger than the workspace may be")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self.request.method == "PUT":
            # the body may be unread, so the connection cannot be used again
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)

    def on_connection_close(self) -> None:
        self._abort()

    def on_finish(self) -> None:
        self._abort()
        if self.request.method == "PUT":
            # the next request of this connection is not a stream
            self.request.connection.set_max_body_size(MAX_BODY)  # type: ignore[union-attr]

    def _abort(self) -> None:
        if self._upload is not None:
            self._upload.__exit__(None, None, None)
            self._upload = None

    async def put(self, raw: str) -> None:
        upload = self._upload
        if self._failure is not None:
            raise self._failure
        if upload is None:
            raise HTTPError(400, reason="The upload was interrupted")
        with contents.errors(self._path):
            await self.blocking(upload.commit)
        self._abort()
        self.changed("modified" if self._existed else "created", self._path)
        await self.worker.documents.outside([self._path])
        model = await self.blocking(contents.get, self.worker.root, self._path, content=False)
        self.write_json(model, 200 if self._existed else 201)

    async def head(self, raw: str) -> None:
        await self.get(raw)

    async def get(self, raw: str) -> None:
        path = contents.clean(raw)
        await self.worker.documents.saved(path)
        with contents.errors(path):
            fd = await self.blocking(self.worker.root.open_read, path)
        try:
            st = os.fstat(fd)
            etag = f'"{st.st_ino:x}-{st.st_size:x}-{st.st_mtime_ns:x}"'
            self.set_header("Content-Type", "application/octet-stream")
            name = quote(os.fsencode(path.rpartition("/")[2]), safe="")
            self.set_header("Content-Disposition", f"attachment; filename*=UTF-8''{name}")
            self.set_header("Content-Security-Policy", "sandbox")
            self.set_header("Accept-Ranges", "bytes")
            self.set_header("Cache-Control", "no-cache")
            self.set_header("ETag", etag)
            self.set_header("Last-Modified", formatdate(st.st_mtime, usegmt=True))
            if etag in self.request.headers.get("If-None-Match", ""):
                self.set_status(304)
                self.finish()
                return
            asked = self.request.headers.get("Range")
            if_range = self.request.headers.get("If-Range")
            if if_range is not None and if_range != etag:
                asked = None
            try:
                span = parse_range(asked, st.st_size)
            except ValueError as e:
                self.set_header("Content-Range", f"bytes */{st.st_size}")
                raise HTTPError(416, reason=str(e)) from e
            start, end = span or (0, st.st_size)
            if span is not None:
                self.set_status(206)
                self.set_header("Content-Range", f"bytes {start}-{end - 1}/{st.st_size}")
            self.set_header("Content-Length", str(end - start))
            if self.request.method != "HEAD":
                with contextlib.suppress(StreamClosedError):
                    await self._send(fd, start, end)
            self.finish()
        finally:
            os.close(fd)

    async def _send(self, fd: int, start: int, end: int) -> None:
        while start < end:
            chunk = await self.blocking(os.pread, fd, min(_CHUNK, end - start), start)
            if not chunk:
                # cut while we read: the length was promised, so the connection must end
                stream = self.detach()
                stream.close()
                raise StreamClosedError
            start += len(chunk)
            self.write(chunk)
            await self.flush()
