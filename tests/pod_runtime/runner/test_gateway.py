"""The preview gateway of a real runner before real servers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from aiohttp import web

from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER
from tests.harness import within
from tests.pod_runtime.runner.live import Live, frame, program, until

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def served(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[int]:
    """A program's own web server; gives its port."""
    server = web.AppRunner(
        web.Application(client_max_size=2**30), handler_cancellation=True, shutdown_timeout=0.1
    )
    server.app.router.add_route("*", "/{path:.*}", handler)
    await server.setup()
    site = web.TCPSite(server, host, 0)
    await site.start()
    try:
        assert site._server
        yield site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    finally:
        await server.cleanup()


@contextlib.asynccontextmanager
async def raw(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[int]:
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def url(runner: Live, path: str = "/") -> str:
    return f"http://127.0.0.1:{runner.gateway}{path}"


def to(runner: Live, port: int | str, **more: str) -> dict[str, str]:
    return runner.headers(Role.VIEWER, **{"Codevo-Port": str(port), **more})


async def exchange(runner: Live, data: bytes) -> bytes:
    """Send bytes to the gateway and read to the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", runner.gateway)
    writer.write(data)
    try:
        return await within(reader.read(), 15)
    finally:
        writer.close()


async def test_headers_are_the_programs_own(runner: Live) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.json_response(
            {"path": request.raw_path, "headers": dict(request.headers)},
            headers={"Codevo-Gateway": "idle", "X-Own": "1"},
        )

    async with served(echo) as port:
        headers = to(
            runner,
            port,
            Origin="https://abc.example.org",
            Cookie="own=1",
            **{"X-Forwarded-Host": "abc.example.org", "X-Forwarded-Proto": "https", "Codevo-Other": "x"},
        )
        async with runner.http.get(url(runner, "/a%2Fb//c?q=%20x"), headers=headers) as r:
            seen = await r.json()
            assert seen["path"] == "/a%2Fb//c?q=%20x"
            assert seen["headers"]["Host"] == f"localhost:{port}"
            assert seen["headers"]["Origin"] == f"http://localhost:{port}"
            assert seen["headers"]["X-Forwarded-Host"] == "abc.example.org"
            assert seen["headers"]["Cookie"] == "own=1"
            assert not [h for h in seen["headers"] if h.lower().startswith("codevo")]
            assert r.headers["X-Own"] == "1"
            # a program cannot pretend to be idle
            assert "Codevo-Gateway" not in r.headers


async def test_ipv6_only_server(runner: Live) -> None:
    async def hello(request: web.Request) -> web.Response:
        return web.Response(text="six")

    async with served(hello, "::1") as port, runner.http.get(url(runner), headers=to(runner, port)) as r:
        assert await r.text() == "six"


async def test_keep_alive_takes_several_requests(runner: Live) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(text=f"{request.method} {await request.text()}")

    async with served(echo) as port:
        connector = aiohttp.TCPConnector(limit=1)
        async with aiohttp.ClientSession(connector=connector) as http:
            for n in range(5):
                async with http.post(url(runner), headers=to(runner, port), data=f"body {n}") as r:
                    assert await r.text() == f"POST body {n}"
                async with http.head(url(runner), headers=to(runner, port)) as r:
                    assert r.status == 200 and r.headers["Content-Length"]
            assert len(connector._conns) == 1


async def test_large_bodies_both_ways_in_constant_memory(runner: Live) -> None:
    size = 150 * 2**20

    async def mirror(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        async for piece in request.content.iter_chunked(65536):
            await response.write(piece)
        return response

    async def body() -> AsyncIterator[bytes]:
        for _ in range(size // 2**20):
            yield bytes(2**20)

    async with served(mirror) as port:
        before = runner.rss()
        received = 0
        async with runner.http.post(url(runner), headers=to(runner, port), data=body()) as r:
            async for piece in r.content.iter_chunked(2**20):
                received += len(piece)
        assert received == size
        assert runner.rss() - before < 20_000


async def test_stalled_client_bounds_memory(runner: Live) -> None:
    sent = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(bytes(2**20))
            sent += 2**20

    async with served(endless) as port:
        async with runner.http.get(url(runner), headers=to(runner, port)) as r:
            await r.content.read(1)
            before = runner.rss()

            async def still() -> bool:
                seen = sent
                await asyncio.sleep(0.5)
                return seen == sent

            await until(still)
            assert sent < 60 * 2**20
            assert runner.rss() - before < 20_000
            r.close()
        assert (await runner.call("GET", "/api/status"))[0] == 200


async def test_events_stream_live_and_end_with_the_client(runner: Live) -> None:
    ended = asyncio.Event()

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b"data: one\n\n")
        try:
            await asyncio.sleep(600)
        finally:
            ended.set()
        return response

    async with served(events) as port:
        async with runner.http.get(url(runner), headers=to(runner, port)) as r:
            assert await within(r.content.readline(), 15) == b"data: one\n"
            r.close()
        await within(ended.wait(), 15)


async def test_range_and_statuses(runner: Live) -> None:
    (runner.workspace / "file.bin").write_bytes(bytes(range(256)))

    async def files(request: web.Request) -> web.StreamResponse:
        if request.path == "/none":
            return web.Response(status=304, headers={"ETag": '"x"'})
        if request.path == "/moved":
            return web.Response(status=302, headers={"Location": f"http://{request.host}/there?x=1"})
        if request.path == "/evil":
            return web.Response(status=302, headers={"Location": f"http://{request.host}//evil.org"})
        return web.FileResponse(runner.workspace / "file.bin")

    async with served(files) as port:
        headers = to(runner, port, Range="bytes=10-19")
        async with runner.http.get(url(runner), headers=headers) as r:
            assert r.status == 206 and await r.read() == bytes(range(10, 20))
        async with runner.http.get(url(runner, "/none"), headers=to(runner, port)) as r:
            assert r.status == 304 and r.headers["ETag"] == '"x"'
        for path, target in (("/moved", "/there?x=1"), ("/evil", f"http://localhost:{port}//evil.org")):
            async with runner.http.get(
                url(runner, path), headers=to(runner, port), allow_redirects=False
            ) as r:
                assert r.headers["Location"] == target


async def test_expect_continue(runner: Live) -> None:
    async def echo(request: web.Request) -> web.Response:
        return web.Response(body=await request.read())

    async with (
        served(echo) as port,
        runner.http.post(url(runner), headers=to(runner, port), data=b"after 100", expect100=True) as r,
    ):
        assert await r.read() == b"after 100"


async def test_websocket_both_ways_subprotocol_and_close_code(runner: Live) -> None:
    async def ws_echo(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse(protocols=("vite-hmr",))
        await ws.prepare(request)
        await ws.send_str(request.headers["Origin"])
        async for message in ws:
            if message.data == "bye":
                await ws.close(code=4321, message=b"so long")
            elif message.type is aiohttp.WSMsgType.BINARY:
                await ws.send_bytes(message.data)
        return ws

    async with (
        served(ws_echo) as port,
        runner.http.ws_connect(
            url(runner, "/hmr"),
            headers=to(runner, port, Origin="https://x.org"),
            protocols=("vite-hmr",),
            max_msg_size=0,
        ) as ws,
    ):
        assert ws.protocol == "vite-hmr"
        assert await ws.receive_str() == f"http://localhost:{port}"
        data = os.urandom(3 * 2**20)
        await ws.send_bytes(data)
        assert await ws.receive_bytes() == data
        await ws.send_str("bye")
        message = await within(ws.receive(), 15)
        assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 4321


async def test_revoked_visitor_loses_the_socket(runner: Live) -> None:
    async def hold(request: web.Request) -> web.StreamResponse:
        ws = web.WebSocketResponse()
        await ws.prepare(request)
        async for _ in ws:
            pass
        return ws

    async with served(hold) as port, runner.http.ws_connect(url(runner), headers=to(runner, port)) as ws:
        _, answer = await runner.call("POST", "/_codevo/revoke", {"sub": "ann"}, Role.HUB, "hub")
        assert answer == {"closed": 1}
        message = await within(ws.receive(), 15)
        assert message.type in (aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.CLOSE)


async def test_token_is_needed(runner: Live) -> None:
    async with runner.http.get(url(runner)) as r:
        assert r.status == 401
    async with runner.http.get(url(runner), headers={TOKEN_HEADER: "a.b.c"}) as r:
        assert r.status == 401


@pytest.mark.parametrize("port", ["0", "65536", "-1", "3000/", "127.0.0.1:80", "080000", "²", ""])
async def test_bad_ports(runner: Live, port: str) -> None:
    headers = {**to(runner, "main"), "Codevo-Port": port.encode("utf-8").decode("latin-1")}
    async with runner.http.get(url(runner), headers=headers) as r:
        assert r.status == 400 or (port == "" and r.status == 502)


async def test_own_ports_are_not_forwarded_to(runner: Live) -> None:
    for port in (runner.port, runner.gateway):
        async with runner.http.get(url(runner, "/api/status"), headers=to(runner, port)) as r:
            assert r.status == 502 and r.headers["Codevo-Gateway"] == "idle"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


async def test_idle_page_then_crash_page(runner: Live) -> None:
    port = _free_port()
    (runner.workspace / "codevo.toml").write_text(f"[run]\nport = {port}\n")
    async with runner.http.get(url(runner), headers=to(runner, "main")) as r:
        page = await r.text()
        assert r.status == 502 and r.headers["Codevo-Gateway"] == "idle"
        assert "text/html" in r.headers["Content-Type"] and r.headers["Cache-Control"] == "no-store"
        assert "Press Run" in page
    async with program(runner) as kernel:
        await kernel.run("printf '\\033[31m<script>alert(1)</script>\\033[0m\\n'; exit 7")
    async with runner.http.get(url(runner), headers=to(runner, "main")) as r:
        page = await r.text()
        assert "exit code 7" in page and "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
        assert "\x1b" not in page
    async with runner.http.head(url(runner), headers=to(runner, "main")) as r:
        assert r.status == 502 and r.headers["Codevo-Gateway"] == "idle"


async def test_main_port_follows_the_run_and_events_tell(runner: Live) -> None:
    port = _free_port()
    (runner.workspace / "main.py").write_text(
        "import http.server, os\nprint('serving')\n"
        f"http.server.test(http.server.SimpleHTTPRequestHandler, port={port}, bind='127.0.0.1')\n"
    )
    (runner.workspace / "index.html").write_text("the page")
    async with runner.socket("/api/events", Role.VIEWER) as events, program(runner) as kernel:
        first = [await frame(events) for _ in range(3)]
        assert {e["type"] for e in first} == {"ports", "kernels", "terminals"}
        assert all(p["port"] not in (runner.port, runner.gateway) for e in first for p in e.get("ports", []))
        await kernel.execute("")
        found = None
        while found is None:
            event = await frame(events)
            if event["type"] == "ports":
                found = next((p for p in event["ports"] if p["port"] == port), None)
        assert found == {"port": port, "process": "python", "addresses": ["127.0.0.1"], "main": True} or (
            found["main"] and found["process"].startswith("python")
        )
        assert event["main"] == port
        async with runner.http.get(url(runner), headers=to(runner, "main")) as r:
            assert await r.text() == "the page"
        assert (await runner.call("GET", "/api/ports"))[1]["main"] == port
        await kernel.send("interrupt_request", channel="control")
        await kernel.until("execute_reply")
        while True:
            event = await frame(events)
            if event["type"] == "ports" and port not in [p["port"] for p in event["ports"]]:
                break


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n", 501),
        (b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: x\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\nX: y\r\n", 400),
        (b"GET / HTTP/1.1\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n", 400),
        (b"GET http://evil/ HTTP/1.1\r\nHost: a\r\n", 400),
        (b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n", 400),
        (b"GET / HTTP/1.0\r\nHost: a\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 70_000 + b"\r\n", 431),
    ],
)
async def test_bad_heads_are_refused(runner: Live, head: bytes, status: int) -> None:
    token = runner.headers(Role.VIEWER)[TOKEN_HEADER].encode()
    answer = await exchange(runner, head + b"Codevo-Token: " + token + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer[:200]


async def test_bad_chunks_do_not_reach_the_program_as_a_request(runner: Live) -> None:
    seen: list[bytes] = []

    async def program_(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read())
        writer.close()

    async with raw(program_) as port:
        token = runner.headers(Role.VIEWER)[TOKEN_HEADER]
        head = f"POST / HTTP/1.1\r\nHost: a\r\nCodevo-Port: {port}\r\nCodevo-Token: {token}\r\n"
        body = "Transfer-Encoding: chunked\r\n\r\n3 \n\r\nabc\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\n\r\n"
        answer = await exchange(runner, (head + body).encode())
        assert b"HTTP/1.1 502" in answer or answer == b""
        assert b"smuggled" not in b"".join(seen)


@pytest.mark.parametrize(
    "answer",
    [
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
        b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"",
    ],
)
async def test_programs_that_do_not_speak_http(runner: Live, answer: bytes) -> None:
    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    async with raw(bad) as port, runner.http.get(url(runner), headers=to(runner, port)) as r:
        assert r.status == 502 and r.headers["Codevo-Gateway"] == "error"


async def test_truncated_response_is_not_passed_off_as_whole(runner: Live) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort")
        await writer.drain()
        writer.close()

    async with raw(cut) as port, runner.http.get(url(runner), headers=to(runner, port)) as r:
        with pytest.raises(aiohttp.ClientPayloadError):
            await r.read()


async def test_http_1_0_response_to_the_end(runner: Live) -> None:
    async def old(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nuntil the end")
        await writer.drain()
        writer.close()

    async with raw(old) as port, runner.http.get(url(runner), headers=to(runner, port)) as r:
        assert await r.text() == "until the end"
