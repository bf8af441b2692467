"""The preview gateway: HTTP/1.1 and what it upgrades to, from the hub to the program's port on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from pod_runtime.protocol.tokens import InvalidToken
from pod_runtime.protocol.web import Gatekeeper
from pod_runtime.runner import heads
from pod_runtime.runner.heads import BadHead, Framing, RequestHead, ResponseHead

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512
#: Seconds that a kept-alive connection may idle, that a head may take, that a connect may take.
KEEP_ALIVE = 90.0
CONNECT_TIMEOUT = 5.0
#: After one side of an upgraded connection has ended, how long the other may go on.
HALF_CLOSED = 10.0
_PIECE = 64 * 1024
_LOOPBACK = ("127.0.0.1", "::1")

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


class Refused(Exception):
    """Answer this instead of forwarding."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Broken(Exception):
    """One side ended inside a message; the other's connection cannot be used further."""


class Gateway:
    """Serves one listening socket.

    ``main`` gives the port that ``main`` means now, ``refresh`` looks at the ports again, ``page(port)`` is
    the page for a port on which nothing listens, ``own`` are ports never forwarded to.
    """

    def __init__(
        self,
        sock: socket.socket,
        gatekeeper: Gatekeeper,
        *,
        main: Callable[[], int],
        refresh: Callable[[], Awaitable[None]],
        page: Callable[[int], bytes],
        own: frozenset[int],
    ) -> None:
        self._socket = sock
        self._gatekeeper = gatekeeper
        self._main = main
        self._refresh = refresh
        self._page = page
        self._own = own
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, sock=self._socket, limit=heads.MAX_HEAD)

    async def close(self) -> None:
        """Stop and cut what is open."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: Reader, writer: Writer) -> None:
        if len(self._tasks) >= MAX_CONNECTIONS:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: Reader, writer: Writer) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError, Broken):
            # the client went, or must be told by a cut that the message is not whole
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()
        except Exception:
            log.exception("a preview request failed inside the gateway")
            writer.transport.abort()
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError, TimeoutError):
                async with asyncio.timeout(HALF_CLOSED):
                    await writer.wait_closed()

    async def _one(self, reader: Reader, writer: Writer) -> bool:
        """One request; whether the connection can take another."""
        method = b"GET"
        try:
            request = await self._head(reader)
            if request is None:
                return False
            method = request.method
            subject, port = self._check(request)
            return await self._forward(request, port, subject, reader, writer)
        except BadHead as e:
            await _answer(writer, method, e.status, "text/plain", str(e).encode())
        except Refused as e:
            await _answer(writer, method, e.status, "text/plain", str(e).encode())
        return False

    async def _head(self, reader: Reader) -> RequestHead | None:
        try:
            async with asyncio.timeout(KEEP_ALIVE):
                head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError as e:
            raise BadHead("the head is too long", 431) from e
        except asyncio.IncompleteReadError:
            return None
        return heads.parse_request(head)

    def _check(self, request: RequestHead) -> tuple[str, int | None]:
        """Who asks, and for which port (``None`` = the main one)."""
        token = request.get(b"codevo-token")
        try:
            claims = self._gatekeeper.claims(token.decode("latin-1") if token else None)
        except InvalidToken as e:
            raise Refused(401, str(e)) from e
        wanted = request.get(b"codevo-port") or b"main"
        if wanted == b"main":
            return claims.subject, None
        if not wanted.isdigit() or len(wanted) > 5 or not 0 < int(wanted) < 65536:
            raise Refused(400, "Codevo-Port: expected main or a port number")
        return claims.subject, int(wanted)

    async def _connect(self, port: int) -> tuple[Reader, Writer] | None:
        if port in self._own:
            return None
        for host in _LOOPBACK:
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    return await asyncio.open_connection(host, port, limit=heads.MAX_HEAD)
        return None

    async def _forward(
        self, request: RequestHead, wanted: int | None, subject: str, reader: Reader, writer: Writer
    ) -> bool:
        port = self._main() if wanted is None else wanted
        program = await self._connect(port)
        if program is None and wanted is None:
            await self._refresh()
            if (now := self._main()) != port:
                port = now
                program = await self._connect(port)
        if program is None:
            await _answer(writer, request.method, 502, "text/html; charset=utf-8", self._page(port))
            return False
        up_writer = program[1]
        task = asyncio.current_task()
        assert task
        self._gatekeeper.add_socket(subject, task.cancel)  # type: ignore[arg-type]
        try:
            up_writer.write(heads.forwarded_request(request, port))
            body = asyncio.get_running_loop().create_task(_copy_body(request.framing, reader, up_writer))
            watch = asyncio.get_running_loop().create_task(_watch_client(body, reader, writer, up_writer))
            try:
                return await self._respond(request, port, body, watch, (reader, writer), program)
            finally:
                body.cancel()
                watch.cancel()
                await asyncio.gather(body, watch, return_exceptions=True)
        finally:
            self._gatekeeper.remove_socket(subject, task.cancel)  # type: ignore[arg-type]
            up_writer.transport.abort()

    async def _respond(
        self,
        request: RequestHead,
        port: int,
        body: asyncio.Task[None],
        watch: asyncio.Task[None],
        client: tuple[Reader, Writer],
        program: tuple[Reader, Writer],
    ) -> bool:
        writer = client[1]
        try:
            response = await _response_head(program[0], request.method, port, writer)
        except (BadHead, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as e:
            raise Refused(502, "The program closed the connection or did not answer in HTTP") from e
        if response.status == 101:
            if request.upgrade is None:
                raise Refused(502, "The program changed the protocol unasked")
            writer.write(heads.forwarded_response(response, port, close=False))
            await body
            watch.cancel()
            await _relay(client, program)
            return False
        to_the_end = response.framing.length is None and not response.framing.chunked
        keep = request.keep_alive and not to_the_end and body.done() and not body.exception()
        writer.write(heads.forwarded_response(response, port, close=not keep))
        try:
            await _copy_body(response.framing, program[0], writer)
        except (BadHead, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as e:
            raise Broken from e
        return keep


async def _watch_client(body: asyncio.Task[None], reader: Reader, writer: Writer, program: Writer) -> None:
    """End the program's connection when the client's body is bad or the client goes while it waits."""
    await asyncio.wait({body})
    if not body.cancelled() and isinstance(body.exception(), BadHead | asyncio.IncompleteReadError):
        program.transport.abort()
    while not reader.at_eof():  # noqa: ASYNC110 - asyncio tells the end of a stream to its reader only
        await asyncio.sleep(1)
    program.transport.abort()
    writer.transport.abort()


async def _response_head(reader: Reader, method: bytes, port: int, writer: Writer) -> ResponseHead:
    """The final head; interim ones (100 Continue, 103) are passed on."""
    while True:
        response = heads.parse_response(await reader.readuntil(b"\r\n\r\n"), method)
        if response.status >= 200 or response.status == 101:
            return response
        writer.write(heads.forwarded_response(response, port, close=False))
        await writer.drain()


async def _copy(reader: Reader, writer: Writer, length: int) -> None:
    while length:
        piece = await reader.read(min(length, _PIECE))
        if not piece:
            raise asyncio.IncompleteReadError(b"", length)
        writer.write(piece)
        length -= len(piece)
        await writer.drain()


async def _pump(reader: Reader, writer: Writer) -> None:
    while piece := await reader.read(_PIECE):
        writer.write(piece)
        await writer.drain()


async def _copy_body(framing: Framing, reader: Reader, writer: Writer) -> None:
    """Copy one body in constant memory; chunks are written anew, without extensions and trailers."""
    if framing.chunked:
        while size := heads.parse_chunk_size(await reader.readuntil(b"\r\n")):
            writer.write(b"%x\r\n" % size)
            await _copy(reader, writer, size)
            if await reader.readexactly(2) != b"\r\n":
                raise BadHead("a chunk does not end where it says")
            writer.write(b"\r\n")
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        writer.write(b"0\r\n\r\n")
    elif framing.length is not None:
        await _copy(reader, writer, framing.length)
    else:
        await _pump(reader, writer)
    await writer.drain()


async def _relay(one: tuple[Reader, Writer], other: tuple[Reader, Writer]) -> None:
    """Bytes both ways until both sides have ended, or one has and the other takes too long."""

    async def half(reader: Reader, writer: Writer) -> None:
        await _pump(reader, writer)
        with contextlib.suppress(OSError):
            writer.write_eof()

    loop = asyncio.get_running_loop()
    halves = {loop.create_task(half(one[0], other[1])), loop.create_task(half(other[0], one[1]))}
    try:
        _, rest = await asyncio.wait(halves, return_when=asyncio.FIRST_COMPLETED)
        if rest:
            await asyncio.wait(rest, timeout=HALF_CLOSED)
    finally:
        for task in halves:
            task.cancel()
        await asyncio.gather(*halves, return_exceptions=True)


async def _answer(writer: Writer, method: bytes, status: int, kind: str, body: bytes) -> None:
    """The gateway's own words; the connection ends with them."""
    reason = {400: "Bad Request", 401: "Unauthorized", 502: "Bad Gateway"}.get(status, "Error")
    idle = "Codevo-Gateway: idle\r\n" if kind.startswith("text/html") else "Codevo-Gateway: error\r\n"
    head = (
        f"HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Cache-Control: no-store\r\n{idle}Connection: close\r\n\r\n"
    )
    writer.write(head.encode() + (b"" if method == b"HEAD" else body))
    await writer.drain()
