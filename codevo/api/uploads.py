"""Archives as request bodies: taken in while they come, beside the small JSON bodies of the same route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import IO

from codevo.api.base import ApiHandler
from codevo.api.problems import Problem, too_many
from codevo.api.workspaces import clean_title, translated
from codevo.objects.archive_readers import TAR_ZST, ZIP
from codevo.objects.imports import NoRoom, Upload
from codevo.proxy.http import UPLOAD_TIME, framing_is_sound

#: Archives that one person, and all together, may send and have unpacked at a time.
MAX_IMPORTS_PER_PERSON = 2
MAX_IMPORTS = 16
#: Media types of archives, and what they hold.
ARCHIVES = {"application/zip": ZIP, "application/x-zip-compressed": ZIP, "application/zstd": TAR_ZST}
#: What people send who mean an archive.
_NEARLY = frozenset(
    {"application/octet-stream", "application/gzip", "application/x-gzip", "application/x-tar"}
)
# More than the limit by this much is read and dropped, so that the client gets to read its 413.
_SLACK = 1024 * 1024
_NO_ARCHIVE = "application/zip or application/zstd (a tar.zst), with the archive itself as the body"


class UploadHandler(ApiHandler):
    """Base of a handler with `tornado.web.stream_request_body` whose POST takes JSON or an archive.

    Refusals that are known before the body came are answered after it (which is dropped, and has the usual
    short time to come), because clients report an answer in the middle of their sending as a broken
    connection. Only a body that is far too long ends it at once.
    """

    _refusal: Exception | None = None
    _archive: Upload | None = None
    _kind: str = ""
    _title: str = ""
    _body: bytearray
    _leave: Callable[[], None] | None = None
    _cut = False

    def initialize(self, importing: Counter[str]) -> None:
        self._importing = importing
        self._body = bytearray()

    async def prepare(self) -> None:
        headers = self.request.headers
        media = headers.get("Content-Type", "").partition(";")[0].strip().lower()
        posted = self.request.method == "POST"
        raw = posted and (media in ARCHIVES or media in _NEARLY or media.startswith("multipart/"))
        if not framing_is_sound(headers):
            self._cut = True
            raise Problem(400, "The length of the request's body is not clear.", code="framing")
        length = int(headers.get("Content-Length", "0"))
        if raw:
            most = self.hub.projects.max_import + _SLACK
            self.request.connection.set_max_body_size(most)  # type: ignore[union-attr]
            if length > most:
                self._cut = True
                raise self._too_large()
        try:
            await super().prepare()
            if raw:
                await self._expect(media, length)
        except Exception as e:
            if not posted:
                raise
            self._refusal = e  # `received` raises it

    async def _expect(self, media: str, length: int) -> None:
        if media not in ARCHIVES:
            raise Problem(415, f"Expected {_NO_ARCHIVE}.", field="archive", code="media-type")
        if length > self.hub.projects.max_import:
            raise self._too_large()
        title = self.get_query_argument("title", None)
        if title is None:
            raise Problem(
                400, "title is missing.", field="title", remedy="Send it in the query.", code="invalid"
            )
        self._title = clean_title(title)
        self._kind = ARCHIVES[media]
        with translated():
            await self.hub.projects.check_quota(self.user.id)
        running, user = self._importing, self.user.id
        if running[user] >= MAX_IMPORTS_PER_PERSON or running.total() >= MAX_IMPORTS:
            raise too_many(15, "Other archives are being imported just now.")
        running[user] += 1

        def leave() -> None:
            running[user] -= 1
            if not running[user]:
                del running[user]

        self._leave = leave
        self._archive = Upload(self.hub.data_dir)
        self.request.connection.set_body_timeout(UPLOAD_TIME)  # type: ignore[union-attr]

    async def data_received(self, chunk: bytes) -> None:
        if self._refusal is not None:
            return
        if self._archive is None:
            self._body += chunk  # at most the server's `max_body_size`
            return
        try:
            if self._archive.size + len(chunk) > self.hub.projects.max_import:
                raise self._too_large()
            await self._archive.write(chunk)
        except NoRoom as e:
            self._refuse(Problem(507, str(e), field="archive", code="no-room"))
        except Problem as e:
            self._refuse(e)

    def _refuse(self, problem: Problem) -> None:
        self._refusal = problem
        self._let_go()

    async def received(self) -> IO[bytes] | None:
        """The archive, or None when the body is JSON, which `json_body` then reads. Raises what is wrong."""
        if self._refusal is not None:
            raise self._refusal
        if self._archive is None:
            self.request.body = bytes(self._body)
            return None
        try:
            return await self._archive.file()
        except NoRoom as e:
            raise Problem(507, str(e), field="archive", code="no-room") from e

    def _too_large(self) -> Problem:
        limit = self.hub.projects.max_import
        return Problem(
            413,
            f"The archive is larger than {limit // 2**20 or limit} {'MiB' if limit >= 2**20 else 'bytes'}.",
            field="archive",
            remedy="Leave out what can be made again, such as node_modules.",
            code="too-large",
        )

    def _let_go(self) -> None:
        if self._archive is not None:
            self._archive.close()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def on_finish(self) -> None:
        self._let_go()

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._let_go()

    def write_error(self, status_code: int, **kwargs: object) -> None:
        if self._cut:
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)
