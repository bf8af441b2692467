"""The hub's client of pods: tokens, calls, connections by long socket paths."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from codevo.proxy import pods as module
from codevo.proxy.pods import PodClient, PodRefused, PodUnavailable
from codevo.spawner.base import PodAddress
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import HUB_SUBJECT, Audience, verify
from tests.codevo.proxy_stand import ROUTES, WAIT, Pod

PROJECT = "abcdefghijklmnop"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def pod(tmp_path: Path) -> AsyncIterator[Pod]:
    made = Pod(PROJECT, Ed25519PrivateKey.generate(), tmp_path)
    yield made
    await made.close()


@pytest.fixture
async def client(pod: Pod) -> AsyncIterator[PodClient]:
    found = PodClient(pod.key, lambda project: pod.address if project == PROJECT else None)
    yield found
    await found.close()


async def test_tokens_are_kept_until_shortly_before_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    key, clock = Ed25519PrivateKey.generate(), Clock()
    client = PodClient(key, lambda project: None, clock=clock)

    def token(role: Role = Role.EDITOR, audience: Audience = Audience.WORKER) -> str:
        return client.token(PROJECT, audience, "ann", "Ann", role)

    first = token()
    claims = verify(key.public_key(), first, project=PROJECT, audience=Audience.WORKER, now=clock.now)
    assert (claims.subject, claims.name, claims.role) == ("ann", "Ann", Role.EDITOR)
    clock.now += 39
    assert token() == first
    assert token(Role.VIEWER) != first and token(audience=Audience.RUNNER) != first
    clock.now += 2
    second = token()
    assert second != first
    client.drop_tokens(PROJECT, "bob")
    assert token() == second
    client.drop_tokens(PROJECT, "ann")
    clock.now += 1
    assert token() != second
    monkeypatch.setattr(module, "MAX_TOKENS", 3)
    for i in range(10):
        client.token(PROJECT, Audience.RUNNER, f"u{i}", "", Role.VIEWER)
    assert len(client._tokens) <= 4
    await client.close()


async def test_the_hub_calls_as_itself(pod: Pod, client: PodClient) -> None:
    pod.listen("worker", ROUTES)
    got = await client.call(PROJECT, "worker", "POST", "/_codevo/revoke", json={"sub": "x"})
    assert (got["sub"], got["role"], got["body"]) == (HUB_SUBJECT, "hub", '{"sub": "x"}')


async def test_what_cannot_be_called_says_so(pod: Pod, client: PodClient) -> None:
    with pytest.raises(PodUnavailable):
        await client.call("q" * 16, "worker", "GET", "/x")
    with pytest.raises(PodUnavailable):
        await client.call(PROJECT, "worker", "GET", "/x")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
        if path == b"/silent":
            await reader.read()
        elif path == b"/error":
            writer.write(b'HTTP/1.1 503 No\r\nContent-Length: 9\r\n\r\n{"why":1}')
        elif path == b"/huge":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n" + b"[" * 5_000_000)
        elif path == b"/html":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n<p>")
        elif path == b"/empty":
            writer.write(b"HTTP/1.1 204 OK\r\n\r\n")
        await writer.drain()

    await pod.listen_raw("worker", answer)
    for path in ("/huge", "/html", "/vanish"):
        with pytest.raises(PodUnavailable):
            await client.call(PROJECT, "worker", "GET", path, timeout=WAIT)
    with pytest.raises(PodUnavailable, match=r"0\.2 s"):
        await client.call(PROJECT, "worker", "GET", "/silent", timeout=0.2)
    with pytest.raises(PodRefused) as refused:
        await client.call(PROJECT, "worker", "GET", "/error")
    assert (refused.value.status, refused.value.body) == (503, {"why": 1})
    assert await client.call(PROJECT, "worker", "GET", "/empty") is None


async def test_long_socket_paths_work_and_folders_may_be_made_anew(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    deep = tmp_path / ("d" * 120)
    address = PodAddress(*(f"unix:{deep}/{name}.sock" for name in ("runner", "gateway", "worker")))
    client = PodClient(key, lambda project: address)
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PodUnavailable):
        await client.call(PROJECT, "worker", "GET", "/x")
    for _ in range(2):
        deep.mkdir()
        folder = os.open(deep, os.O_PATH)
        pod = Pod(PROJECT, key, Path(f"/proc/self/fd/{folder}"))
        pod.listen("worker", ROUTES)
        try:
            got = None
            for _ in range(2):  # the first may meet the folder that is gone
                try:
                    got = await client.call(PROJECT, "worker", "GET", "/x")
                except PodUnavailable:
                    continue
            assert got and got["uri"] == "/x"
            _, writer = await client.connect(address.worker)
            writer.close()
            await writer.wait_closed()
        finally:
            await pod.close()
            os.close(folder)
            for leftover in deep.iterdir():
                leftover.unlink()
            deep.rmdir()
    await client.close()
    await asyncio.sleep(0)
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 1


async def test_connections_go_with_the_workspace(pod: Pod, client: PodClient) -> None:
    pod.listen("worker", ROUTES)
    await client.call(PROJECT, "worker", "GET", "/x")
    assert client._sessions
    await client.forget(PROJECT)
    assert not client._sessions and not client._tokens


async def test_http_addresses_work_too(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = PodClient(key, lambda project: PodAddress(url, url, url))
    assert await client.call(PROJECT, "runner", "GET", "/a%2Fb?c=%20") == {}
    assert asked[0].startswith(b"GET /a%2Fb?c=%20 HTTP/1.1\r\n")
    _, writer = await client.connect(url)
    writer.close()
    await client.close()
    server.close()


async def test_revoking_tells_both_and_says_when_one_did_not_hear(pod: Pod, client: PodClient) -> None:
    pod.listen("runner", ROUTES)
    assert await client.revoke(PROJECT, "ann") is False
    pod.listen("worker", ROUTES)
    assert await client.revoke(PROJECT, "ann") is True
    assert await client.revoke("q" * 16, "ann") is True
