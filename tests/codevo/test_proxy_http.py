"""Requests through the hub to real pods, over real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from yarl import URL

from codevo.proxy.relay import Visits
from codevo.spawner.base import ServerState
from codevo.store import Visibility
from pod_runtime.protocol.roles import Role
from tests.codevo.proxy_stand import WAIT, Stand, stand
from tests.harness import within


@pytest.fixture
async def hub(mongo_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(mongo_url, tmp_path) as made:
        yield made


def bearer(token: str, **more: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}", **more}


async def ready(hub: Stand, role: Role = Role.OWNER) -> tuple[str, dict[str, str], str]:
    """A running project: its base URL, a member's headers, its id."""
    user, token = await hub.user("ann")
    project = await hub.project((user, role))
    hub.pod(project)
    return f"{hub.origin}/p/{project}", bearer(token), project


async def raw(hub: Stand, message: bytes) -> bytes:
    """What the hub says to bytes that no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    writer.write(message)
    try:
        async with asyncio.timeout(WAIT):
            return await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.close()


async def test_a_request_reaches_the_container_with_who_and_without_secrets(hub: Stand) -> None:
    base, headers, project = await ready(hub, Role.EDITOR)
    url = URL(f"{base}/api/contents/a%20b/%C3%A4%2Fx.py?content=0&x=%2F", encoded=True)
    sent = {**headers, "Cookie": "codevo-session=secret", "Codevo-Token": "forged", "Codevo-Port": "1"}
    async with hub.http.put(url, data=b"hello", headers=sent) as answer:
        assert answer.status == 200
        got = json.loads(await answer.read())
        assert "Set-Cookie" not in answer.headers
    assert got["uri"] == "/api/contents/a%20b/%C3%A4%2Fx.py?content=0&x=%2F"
    assert (got["body"], got["role"], got["name"]) == ("hello", "editor", "ann")
    assert not {"cookie", "authorization", "codevo-port"} & set(got["headers"])
    assert got["headers"]["codevo-token"] != "forged"
    seen = hub.servers.pods[project].seen[-1]
    assert seen.name == "worker"


async def test_who_may_not_look_learns_nothing(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    _, stranger = await hub.user("bob")
    async with hub.http.get(f"{base}/api/status", headers=bearer(stranger)) as answer:
        assert answer.status == 404
    async with hub.http.get(f"{base}/api/status") as answer:
        assert answer.status == 401
    async with hub.http.get(f"{base}/_codevo/health", headers=headers) as answer:
        assert answer.status == 404
    assert not hub.open_pods[0].seen


async def test_a_guest_of_a_public_project_is_a_viewer(hub: Stand) -> None:
    project = await hub.project(visibility=Visibility.PUBLIC)
    hub.pod(project)
    async with hub.http.get(f"{hub.origin}/p/{project}/api/me") as answer:
        got = json.loads(await answer.read())
    assert (got["role"], got["name"]) == ("viewer", "Guest")
    assert got["sub"].startswith("anon:")


async def test_what_a_public_project_once_held_is_its_members(hub: Stand) -> None:
    user, token = await hub.user("ann")
    _, stranger = await hub.user("bob")
    project = await hub.project((user, Role.VIEWER), visibility=Visibility.PUBLIC)
    pod = hub.pod(project)
    for path in ("/api/history/a.txt", "/api/history/a.txt?seq=1", "//api/history", "/api/history/"):
        for headers in ({}, bearer(stranger)):
            async with hub.http.get(f"{hub.origin}/p/{project}{path}", headers=headers) as answer:
                assert answer.status == 403
    assert not pod.seen
    async with hub.http.get(f"{hub.origin}/p/{project}/api/history/a.txt", headers=bearer(token)) as answer:
        await answer.read()
    assert len(pod.seen) == 1


async def test_a_write_with_a_cookie_needs_the_header_and_our_origin(hub: Stand) -> None:
    user, _ = await hub.user("ann")
    project = await hub.project((user, Role.OWNER))
    hub.pod(project)
    cookie, xsrf = await hub.session(user)
    url = f"{hub.origin}/p/{project}/api/kernels"
    async with hub.http.post(url, headers={"Cookie": cookie}) as answer:
        assert answer.status == 403
    good = {"Cookie": cookie, "X-XSRFToken": xsrf}
    async with hub.http.post(url, headers={**good, "Origin": "http://evil.test"}) as answer:
        assert answer.status == 403
    assert not hub.open_pods[0].seen
    async with hub.http.post(url, headers={**good, "Origin": hub.origin}) as answer:
        assert answer.status == 201
        assert answer.headers["Location"] == f"/p/{project}/api/kernels/x"


async def test_a_hostile_answer_is_harmless_on_our_origin(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    async with hub.http.get(
        f"{base}/api/contents/evil.html", headers=headers, allow_redirects=False
    ) as answer:
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert answer.headers["Content-Disposition"] == "attachment"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "private, no-cache"
        for name in (
            "Set-Cookie",
            "Location",
            "Service-Worker-Allowed",
            "Clear-Site-Data",
            "Access-Control-Allow-Origin",
            "Refresh",
            "Link",
        ):
            assert name not in answer.headers


async def test_range_head_and_etag(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    url = f"{base}/files/etag"
    async with hub.http.get(url, headers={**headers, "Range": "bytes=1-2"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"el")
        assert answer.headers["Content-Range"] == "bytes 1-2/5"
    async with hub.http.get(url, headers=headers) as answer:
        etag = answer.headers["Etag"]
    async with hub.http.get(url, headers={**headers, "If-None-Match": etag}) as answer:
        assert answer.status == 304
    async with hub.http.head(url, headers=headers) as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "5")
    async with hub.http.get(url, headers=headers) as answer:  # the connection is still good
        assert await answer.read() == b"hello"


async def test_a_stopped_project_is_answered_from_memory(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.OWNER))
    for state in (ServerState.STOPPED, ServerState.STARTING, ServerState.STOPPING, ServerState.FAILED):
        hub.servers.states[project] = state
        url = f"{hub.origin}/p/{project}/api/status"
        async with hub.http.get(url, headers=bearer(token)) as answer:
            body = json.loads(await answer.read())
            assert (answer.status, body["state"]) == (503, state)
            assert int(answer.headers["Retry-After"]) > 0 and body["message"] and body["reason"]


async def test_a_restarting_worker_is_503_while_the_runner_answers(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    (hub.servers.pods[project].folder / "worker.sock").unlink()
    async with hub.http.get(f"{base}/api/contents", headers=headers) as answer:
        assert answer.status == 503 and answer.headers["Retry-After"] == "1"
        assert "worker is restarting" in json.loads(await answer.read())["detail"]
    async with hub.http.get(f"{base}/api/status", headers=headers) as answer:
        assert answer.status == 200


async def test_a_pod_that_breaks_off_breaks_the_answer_too(hub: Stand) -> None:
    base, headers, project = await ready(hub)

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await writer.drain()

    await hub.servers.pods[project].listen_raw("worker", half)
    with pytest.raises(aiohttp.ClientError):
        async with hub.http.get(f"{base}/files/x", headers=headers) as answer:
            await answer.read()


@pytest.mark.parametrize(
    "answer_bytes",
    [
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\x00c\r\n\r\n",
    ],
)
async def test_what_is_not_http_is_502(hub: Stand, answer_bytes: bytes) -> None:
    base, headers, project = await ready(hub)

    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer_bytes)
        await writer.drain()

    await hub.servers.pods[project].listen_raw("worker", bad)
    async with hub.http.get(f"{base}/files/x", headers=headers) as answer:
        assert answer.status == 502


async def test_a_pod_that_never_answers_is_504(hub: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codevo.proxy.http.ANSWER_TIMEOUT", 0.2)
    base, headers, project = await ready(hub)

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    await hub.servers.pods[project].listen_raw("worker", silent)
    async with hub.http.get(f"{base}/files/x", headers=headers) as answer:
        assert answer.status == 504


async def test_bytes_stream_as_they_come_and_the_clients_end_reaches_the_pod(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    async with hub.http.get(f"{base}/files/drip", headers=headers) as answer:
        async with asyncio.timeout(WAIT):
            assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
        answer.close()
    async with asyncio.timeout(WAIT):
        await hub.servers.pods[project].gone.wait()


async def test_a_slow_reader_holds_the_pod_back(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    pod = hub.servers.pods[project]
    async with hub.http.get(f"{base}/files/big?mib=256", headers=headers) as answer:
        await answer.content.readexactly(1000)
        last = -1
        while last != pod.uploaded:  # until it stands still
            last = pod.uploaded
            await asyncio.sleep(0.5)
        assert pod.uploaded < 64 * 2**20
        answer.close()
    async with asyncio.timeout(WAIT):
        await pod.gone.wait()


async def test_a_large_upload_streams_and_a_pod_that_does_not_read_holds_it_back(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    pod = hub.servers.pods[project]
    sent = 0

    async def body(mib: int) -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(mib * 16):
            yield b"u" * 65536
            sent += 65536

    async with hub.http.put(f"{base}/files/upload", data=body(64), headers=headers) as answer:
        assert json.loads(await answer.read())["bytes"] == 64 * 2**20
    sent = pod.uploaded = 0
    stuck = asyncio.create_task(_put(hub, f"{base}/files/never", body(256), headers))
    last = -1
    while last != sent or not pod.uploaded:
        last = sent
        await asyncio.sleep(0.5)
    assert sent < 64 * 2**20
    pod.stop.set()
    assert await within(stuck, 60) == 200


async def _put(hub: Stand, url: str, body: object, headers: dict[str, str]) -> int:
    async with hub.http.put(url, data=body, headers=headers) as answer:
        await answer.read()
        return answer.status


async def test_a_body_above_the_limit_is_413(mongo_url: str, tmp_path: Path) -> None:
    async with stand(mongo_url, tmp_path, max_upload=100_000) as hub:
        base, headers, _ = await ready(hub)
        url = f"{base}/files/upload"
        head = f"PUT {URL(url).path} HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n" + "".join(
            f"{n}: {v}\r\n" for n, v in headers.items()
        )
        declared = await raw(hub, f"{head}Content-Length: 99999999999\r\n\r\n".encode())
        assert b" 413 " in declared

        async def chunks() -> AsyncIterator[bytes]:
            for _ in range(4):
                yield b"x" * 50_000

        assert await _put(hub, url, chunks(), headers) == 413
        assert await _put(hub, url, b"x" * 100_000, headers) == 200


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Content-Length: 5, 5",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: xchunked",
    ],
)
async def test_a_request_whose_length_is_unclear_goes_nowhere(hub: Stand, framing: str) -> None:
    _, headers, project = await ready(hub)
    lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
    head = f"POST /p/{project}/api/kernels HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n{lines}{framing}\r\n\r\n"
    smuggled = b"0\r\n\r\nGET /p/x/api/status HTTP/1.1\r\nHost: x\r\n\r\n"
    assert b" 400 " in await raw(hub, head.encode() + smuggled)
    assert not hub.servers.pods[project].seen


async def test_another_host_name_is_refused(hub: Stand) -> None:
    _, _, project = await ready(hub)
    answer = await raw(hub, f"GET /p/{project}/api/status HTTP/1.1\r\nHost: evil.test\r\n\r\n".encode())
    assert b" 421 " in answer


async def test_many_requests_share_few_connections(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    for _ in range(20):
        async with hub.http.get(f"{base}/api/status", headers=headers) as answer:
            await answer.read()
    seen = hub.servers.pods[project].seen
    assert len(seen) == 20
    assert len({id(one.request.server_connection) for one in seen}) == 1


async def test_a_client_that_goes_in_the_middle_of_its_upload_ends_it(hub: Stand) -> None:
    _, headers, project = await ready(hub)
    ended = asyncio.Event()

    async def reads(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"half of it")
        await reader.read()
        ended.set()

    await hub.servers.pods[project].listen_raw("worker", reads)
    lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
    _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    head = f"PUT /p/{project}/files/x HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n{lines}"
    writer.write(f"{head}Content-Length: 1000000\r\n\r\nhalf of it".encode())
    await writer.drain()
    await asyncio.sleep(0.2)
    writer.close()
    await within(ended.wait(), WAIT)


async def test_an_upload_to_a_pod_that_is_not_there_is_answered(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    (hub.servers.pods[project].folder / "worker.sock").unlink()

    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 65536

    assert await _put(hub, f"{base}/files/x", body(), headers) == 503


async def test_a_pod_that_answers_before_it_has_read_everything_is_heard(hub: Stand) -> None:
    base, headers, project = await ready(hub)

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await reader.read()

    await hub.servers.pods[project].listen_raw("worker", hasty)

    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 65536

    assert await _put(hub, f"{base}/files/x", body(), headers) == 403


async def test_refusals_keep_the_connection_and_say_when_they_do_not(hub: Stand) -> None:
    _, headers, project = await ready(hub)
    lines = "".join(f"{n}: {v}\r\n" for n, v in headers.items())
    head = f"/p/{project}/nothing HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\n{lines}"
    assert b"close" not in (await raw(hub, f"GET {head}\r\n".encode())).lower()
    refused = await raw(hub, f"POST {head}Content-Length: 5\r\n\r\nhello".encode())
    assert b" 404 " in refused and b"connection: close" in refused.lower()


async def test_a_viewers_write_is_refused_before_its_body(hub: Stand) -> None:
    """Else a stranger who never sends the body holds one of the pod's connections, and 256 hold them all."""
    project = await hub.project(visibility=Visibility.PUBLIC)
    hub.pod(project)
    head = f"/p/{project}/api/contents HTTP/1.1\r\nHost: 127.0.0.1:{hub.port}\r\nContent-Length: 1000\r\n\r\n"
    for method in ("POST", "GET"):
        assert b" 403 " in await raw(hub, f"{method} {head}{{".encode())
    assert not hub.open_pods[0].seen


async def test_strangers_who_do_not_read_leave_room_for_members(hub: Stand) -> None:
    hub.hub.pods.visits = Visits(2)
    base, headers, project = await ready(hub, Role.VIEWER)
    await hub.store.projects.update(project, visibility=Visibility.PUBLIC)
    first, second = await hub.http.get(f"{base}/files/drip"), await hub.http.get(f"{base}/files/drip")
    assert (first.status, second.status) == (200, 200)
    async with hub.http.get(f"{base}/files/drip") as third:
        assert third.status == 429 and third.headers["Retry-After"]
    async with hub.http.get(f"{base}/api/status", headers=headers) as member:
        assert member.status == 200
    first.close()
    second.close()
    async with asyncio.timeout(WAIT):
        while True:
            async with hub.http.get(f"{base}/api/status") as again:
                if again.status == 200:
                    break
