"""Requests and answers streamed between a client and a pod, both ways in constant memory."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from http.client import responses

import aiohttp
from multidict import CIMultiDict
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import RequestHandler

from codevo.proxy.headers import Headers
from codevo.proxy.pods import PodClient, PodUnavailable

log = logging.getLogger(__name__)

#: Chunks of a request (64 KiB each) that wait for the pod; then the client is not read.
MAX_WAITING_CHUNKS = 8
#: Seconds for the first byte of an answer after the whole request was sent.
ANSWER_TIMEOUT = 120.0
#: Seconds for the whole body of a request.
UPLOAD_TIME = 4 * 3600.0
#: Seconds in which a pod must take a waiting chunk of the request.
UPLOAD_STALL = 60.0


class BodyTooLarge(Exception):
    """The request's body is larger than allowed."""


class Upload:
    """A request's body on its way: written by the server, read by the client of the pod, bounded between."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._ended = False
        self._abandoned = False
        self.received = 0
        self.too_large = False
        self.stalled = False

    async def put(self, chunk: bytes) -> None:
        """Add a chunk, waiting for room. What comes after `abandon` or above the limit is dropped.

        When the pod has taken nothing for `UPLOAD_STALL` seconds, the body is given up (``stalled``).
        """
        self.received += len(chunk)
        if self.received > self._limit:
            self.too_large = True
            self._wake()
        try:
            async with asyncio.timeout(UPLOAD_STALL):
                while len(self._chunks) >= MAX_WAITING_CHUNKS and not (self._abandoned or self.too_large):
                    await self._wait()
        except TimeoutError:
            self.stalled = True
            self.abandon()
        if not (self._abandoned or self.too_large):
            self._chunks.append(chunk)
            self._wake()

    def end(self) -> None:
        """The body is complete."""
        self._ended = True
        self._wake()

    def abandon(self) -> None:
        """Nobody reads any more."""
        self._abandoned = True
        self._chunks.clear()
        self._wake()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body for the pod. Raises `BodyTooLarge` as soon as it is known."""
        while True:
            if self.too_large:
                raise BodyTooLarge
            if self._chunks:
                chunk = self._chunks.popleft()
                self._wake()
                yield chunk
            elif self._ended:
                return
            else:
                await self._wait()

    async def _wait(self) -> None:
        await self._changed.wait()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Exchange:
    """One request on its way to a pod and its answer on the way back.

    `begin` starts sending while the body still comes in; `answer` waits for the pod and streams back.
    """

    def __init__(self, pods: PodClient, project: str, address: str) -> None:
        self._pods = pods
        self._project = project
        self._address = address
        self._sent: asyncio.Task[aiohttp.ClientResponse] | None = None
        self._work: asyncio.Task[None] | None = None
        self.upload: Upload | None = None

    def begin(self, method: str, target: str, headers: Headers, *, body: bool, limit: int) -> None:
        """Send the head now and the body, if there is one, as it comes."""
        self.upload = Upload(limit) if body else None
        self._sent = asyncio.create_task(
            self._pods.request(
                self._project,
                self._address,
                method,
                target,
                headers=CIMultiDict(headers),
                data=self.upload.chunks() if self.upload else None,
            )
        )
        if self.upload:
            upload = self.upload
            self._sent.add_done_callback(lambda _: upload.abandon())

    async def answer(
        self, handler: RequestHandler, make_headers: Callable[[aiohttp.ClientResponse], Headers]
    ) -> None:
        """Write the pod's answer to ``handler``, or raise before anything was written.

        Raises `PodUnavailable`, ``TimeoutError``, `BodyTooLarge`, `BadAnswer`. When the pod breaks off in
        the middle, the client's connection is cut, so that it cannot take a part for the whole.
        """
        self._work = asyncio.create_task(self._answer(handler, make_headers))
        try:
            await self._work
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                self._work.cancel()
                raise
            raise StreamClosedError from None  # `cancel` was called: the client has gone

    def cancel(self) -> None:
        """The client has gone away. Idempotent."""
        for task in (self._work, self._sent):
            if task is not None:
                task.cancel()
        if self.upload is not None:
            self.upload.abandon()

    async def _answer(
        self, handler: RequestHandler, make_headers: Callable[[aiohttp.ClientResponse], Headers]
    ) -> None:
        assert self._sent is not None
        if self.upload:
            if self.upload.stalled:
                self._sent.cancel()
                raise TimeoutError
            self.upload.end()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                response = await self._sent
        except (aiohttp.ClientError, ValueError, PodUnavailable) as e:
            if self.upload and self.upload.too_large:
                raise BodyTooLarge from e
            if isinstance(e, PodUnavailable):
                raise
            raise BadAnswer(f"{type(e).__name__}") from e
        if not 200 <= response.status <= 599:
            response.close()
            raise BadAnswer(f"status {response.status}")
        try:
            await self._copy(response, handler, make_headers(response))
        finally:
            response.release() if response.content.at_eof() else response.close()

    async def _copy(
        self, response: aiohttp.ClientResponse, handler: RequestHandler, headers: Headers
    ) -> None:
        handler._headers = HTTPHeaders()  # the server's and the hub's defaults are not the pod's
        handler.set_status(response.status, responses.get(response.status, "Unknown"))
        for name, value in headers:
            handler.add_header(name, value)
        try:
            await handler.flush()
            async for chunk in response.content.iter_any():
                handler.write(chunk)
                await handler.flush()
        except StreamClosedError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError) as e:
            log.info("answer of %s broke off: %s", self._project, type(e).__name__)
            cut(handler)
            raise StreamClosedError from e
        await handler.finish()


class BadAnswer(Exception):
    """What the pod said is not HTTP."""


def cut(handler: RequestHandler) -> None:
    """Close the client's connection without the end of the message."""
    stream = getattr(handler.request.connection, "stream", None)
    if stream is not None:
        stream.close()


def pairs(headers: HTTPHeaders) -> Iterable[tuple[str, str]]:
    """A request's headers with repeated ones apart."""
    return headers.get_all()


def framing_is_sound(headers: HTTPHeaders) -> bool:
    """Whether the length of a request's body is said once and clearly (RFC 9112, section 6.3)."""
    lengths = headers.get_list("Content-Length")
    codings = headers.get_list("Transfer-Encoding")
    if (lengths and codings) or len(lengths) > 1 or len(codings) > 1:
        return False
    if codings and codings[0].strip().lower() != "chunked":
        return False
    return not lengths or (lengths[0].isascii() and lengths[0].isdigit() and len(lengths[0]) < 19)


def has_body(headers: HTTPHeaders) -> bool:
    """Whether a request with sound framing carries a body."""
    return "Transfer-Encoding" in headers or headers.get("Content-Length", "0").strip("0") != ""
