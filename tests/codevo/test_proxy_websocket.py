"""WebSockets through the hub: handshakes, frames, close codes, slow readers, the ends of rights."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codevo.proxy import relay as relay_module
from codevo.proxy.frames import CLOSE, encode
from codevo.proxy.relay import Relay, Relays
from codevo.store import Visibility
from pod_runtime.protocol.roles import Role
from tests.codevo.proxy_stand import WAIT, Stand, stand, until
from tests.codevo.test_proxy_http import bearer, ready
from tests.harness import within


@pytest.fixture
async def hub(mongo_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(mongo_url, tmp_path) as made:
        yield made


class Wire:
    """A WebSocket client that sends what it is told, byte by byte."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: bytes) -> None:
        self.reader, self.writer, self.head = reader, writer, head

    async def frame(self) -> tuple[int, bytes]:
        """First byte and payload of the next frame."""
        async with asyncio.timeout(WAIT):
            first, length = await self.reader.readexactly(2)
            assert not length & 0x80, "a server's frame is masked"
            if length == 126:
                length = struct.unpack("!H", await self.reader.readexactly(2))[0]
            elif length == 127:
                length = struct.unpack("!Q", await self.reader.readexactly(8))[0]
            return first, await self.reader.readexactly(length)

    async def ended(self) -> None:
        async with asyncio.timeout(WAIT):
            assert await self.reader.read() == b""

    def send(self, first: int, payload: bytes) -> None:
        mask = os.urandom(4)
        size = len(payload)
        head = bytes([first, 0x80 | size]) if size < 126 else bytes([first, 0xFE]) + struct.pack("!H", size)
        self.writer.write(head + mask + bytes(b ^ mask[i % 4] for i, b in enumerate(payload)))


async def dial(hub: Stand, path: str, headers: dict[str, str], host: str = "") -> Wire:
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = {
        "Host": host or f"127.0.0.1:{hub.port}",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": key,
        **headers,
    }
    text = "".join(f"{n}: {v}\r\n" for n, v in lines.items())
    writer.write(f"GET {path} HTTP/1.1\r\n{text}\r\n".encode())
    async with asyncio.timeout(WAIT):
        head = await reader.readuntil(b"\r\n\r\n")
    return Wire(reader, writer, head)


def path_of(base: str) -> str:
    return "/p/" + base.rsplit("/", 1)[1]


async def raw_pod(hub: Stand, project: str, name: str, serve: object) -> None:
    """A pod that upgrades properly and then does what ``serve`` says."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        key = next(
            x.split(b": ")[1] for x in head.split(b"\r\n") if x.lower().startswith(b"sec-websocket-key")
        )
        digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
        writer.write(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
        )
        await serve(reader, writer)  # type: ignore[operator]

    await hub.servers.pods[project].listen_raw(name, one)


async def test_messages_go_both_ways_and_who_is_told(hub: Stand) -> None:
    base, headers, project = await ready(hub, Role.VIEWER)
    async with hub.http.ws_connect(f"{base}/collab/a%2Fb.py", headers=headers, max_msg_size=0) as ws:
        await ws.send_str("grüße")
        assert await ws.receive_str(timeout=WAIT) == "grüße"
        big = os.urandom(5 * 2**20)
        await ws.send_bytes(big)
        assert await ws.receive_bytes(timeout=WAIT) == big
    seen = hub.servers.pods[project].seen[-1]
    assert seen.claims.role is Role.VIEWER and seen.request.uri == "/collab/a%2Fb.py"


async def test_compression_is_agreed_end_to_end(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    async with hub.http.ws_connect(f"{base}/collab/deflate", headers=headers, compress=15) as ws:
        assert ws.compress
        await ws.send_str("a" * 100_000)
        assert await ws.receive_str(timeout=WAIT) == "a" * 100_000


async def test_the_pods_subprotocol_is_answered(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    async with hub.http.ws_connect(f"{base}/api/events", headers=headers, protocols=("one", "two")) as ws:
        assert ws.protocol == "two"


@pytest.mark.parametrize(("said", "status"), [(403, 403), (404, 404), (500, 500), (401, 403), (302, 502)])
async def test_a_refusal_is_a_status_and_no_upgrade(hub: Stand, said: int, status: int) -> None:
    base, headers, _ = await ready(hub)
    wire = await dial(hub, f"{path_of(base)}/collab/x?refuse={said}", headers)
    assert f" {status} ".encode() in wire.head.split(b"\r\n")[0]
    assert b"application/problem+json" in wire.head
    wire.writer.close()


async def test_a_stopped_project_refuses_before_the_upgrade(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.OWNER))
    wire = await dial(hub, f"/p/{project}/collab/x", bearer(token))
    assert b" 503 " in wire.head and b"Retry-After" in wire.head
    wire.writer.close()


async def test_a_cookie_needs_our_exact_origin(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.OWNER))
    hub.pod(project)
    cookie, _ = await hub.session(user)
    path = f"/p/{project}/api/events"
    for origin in ("http://evil.test", hub.origin + ".evil.test", f"http://127.0.0.1:{hub.port}1", "null"):
        wire = await dial(hub, path, {"Cookie": cookie, "Origin": origin})
        assert b" 403 " in wire.head, origin
        wire.writer.close()
    wire = await dial(hub, path, {"Cookie": cookie})
    assert b" 403 " in wire.head
    wire.writer.close()
    wire = await dial(hub, path, {"Cookie": cookie, "Origin": hub.origin})
    assert b" 101 " in wire.head
    wire.writer.close()
    wire = await dial(hub, f"{path}?session_id=a%20b&token={token}", {"Origin": "http://evil.test"})
    assert b" 101 " in wire.head
    wire.writer.close()
    assert hub.servers.pods[project].seen[-1].request.uri == "/api/events?session_id=a%20b"


async def test_bad_handshakes_are_refused(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    for bad in ({"Sec-WebSocket-Version": "8"}, {"Sec-WebSocket-Key": "short"}):
        wire = await dial(hub, f"{path_of(base)}/api/events", {**headers, **bad})
        assert b" 400 " in wire.head
        wire.writer.close()


async def test_fragments_pass_and_controls_may_stand_between(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    wire.send(0x01, b"one ")
    wire.send(0x89, b"ping")
    wire.send(0x00, b"two ")
    wire.send(0x80, b"three")
    assert await wire.frame() == (0x8A, b"ping")
    assert await wire.frame() == (0x81, b"one two three")
    wire.writer.close()


@pytest.mark.parametrize(
    ("code", "reason"), [(1000, "bye"), (4409, "another history"), (4403, ""), (1011, "oh")]
)
async def test_the_pods_close_code_arrives(hub: Stand, code: int, reason: str) -> None:
    base, headers, _ = await ready(hub)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    wire.send(0x81, f"close:{code}:{reason}".encode())
    assert await wire.frame() == (0x88, struct.pack("!H", code) + reason.encode())
    wire.send(0x88, struct.pack("!H", code))
    await wire.ended()


async def test_the_clients_close_code_arrives(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    pod = hub.servers.pods[project]
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    wire.send(0x88, struct.pack("!H", 4001) + b"done")
    assert (await wire.frame())[1][:2] == struct.pack("!H", 4001)
    assert await within(pod.closes.get(), WAIT) == (4001, "done")
    await wire.ended()
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    wire.writer.transport.abort()
    assert await within(pod.closes.get(), WAIT) == (None, None)
    await until(lambda: not len(hub.hub.pods.relays))


async def test_reserved_codes_from_a_pod_are_repaired(hub: Stand) -> None:
    base, headers, project = await ready(hub)

    async def close_1006(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x88\x02" + struct.pack("!H", 1006))
        await reader.read()

    await raw_pod(hub, project, "worker", close_1006)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    assert await wire.frame() == (0x88, struct.pack("!H", 1011))
    wire.send(0x88, struct.pack("!H", 1011))
    wire.writer.close()


async def test_a_pod_that_vanishes_is_1012(hub: Stand) -> None:
    base, headers, project = await ready(hub)

    async def vanish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x81\x02hi")
        await writer.drain()

    await raw_pod(hub, project, "worker", vanish)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    assert await wire.frame() == (0x81, b"hi")
    first, payload = await wire.frame()
    assert (first, payload[:2]) == (0x88, struct.pack("!H", 1012))
    wire.send(0x88, payload[:2])
    await wire.ended()


async def test_what_is_no_frame_ends_the_socket(hub: Stand) -> None:
    base, headers, project = await ready(hub)

    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x81\x02hi" + b"\xff\xff\xff\xff")
        await reader.read()

    await raw_pod(hub, project, "worker", nonsense)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    first, payload = await wire.frame()
    if first == 0x81:
        first, payload = await wire.frame()
    assert (first, payload[:2]) == (0x88, struct.pack("!H", 1002))
    wire.writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: wrong\r\n\r\n",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"x" * 200_000,
    ],
)
async def test_a_pod_that_does_not_speak_websocket_is_502(hub: Stand, answer: bytes) -> None:
    base, headers, project = await ready(hub)

    async def bad(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        await reader.read()

    await hub.servers.pods[project].listen_raw("worker", bad)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    assert b" 502 " in wire.head
    wire.writer.close()


async def test_a_slow_client_holds_the_pod_back_and_loses_nothing(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    pod = hub.servers.pods[project]
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    wire.send(0x81, b"flood")
    last = -1
    while last != pod.uploaded or not last:  # until it stands still
        last = pod.uploaded
        await asyncio.sleep(0.5)
    assert pod.uploaded < 32 * 2**20
    for _ in range(512):
        first, payload = await wire.frame()
        assert first == 0x82 and len(payload) == 2**17
    wire.writer.close()


async def test_a_right_that_ends_closes_at_a_boundary(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    release = asyncio.Event()

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x82\x0a12345")
        await writer.drain()
        await release.wait()
        writer.write(b"67890" + b"\x82\x01x" * 100)
        await writer.drain()
        await reader.read()

    await raw_pod(hub, project, "worker", half)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    async with asyncio.timeout(WAIT):
        assert await wire.reader.readexactly(7) == b"\x82\x0a12345"
    subject = hub.hub.pods.relays._open[next(iter(hub.hub.pods.relays._open))][1]
    assert hub.hub.pods.relays.drop_subject(project, "somebody else") == 0
    assert hub.hub.pods.relays.drop_subject(project, subject) == 1
    release.set()
    async with asyncio.timeout(WAIT):
        assert await wire.reader.readexactly(5) == b"67890"
    first, payload = await wire.frame()
    assert (first, payload[:2]) == (0x88, struct.pack("!H", 4403))
    wire.send(0x88, payload[:2])
    await wire.ended()


async def test_a_frame_that_never_ends_cannot_hold_a_socket_open(
    hub: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "CLOSE_GRACE", 0.2)
    base, headers, project = await ready(hub)

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\x82\x7f" + struct.pack("!Q", 2**60) + b"abc")
        await reader.read()

    await raw_pod(hub, project, "worker", endless)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    await until(lambda: len(hub.hub.pods.relays) == 1)
    assert hub.hub.pods.relays.drop_project(project) == 1
    await until(lambda: not len(hub.hub.pods.relays))
    async with asyncio.timeout(WAIT):
        assert (await wire.reader.read()).endswith(b"abc")


async def test_the_hubs_stop_is_told(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    await until(lambda: len(hub.hub.sockets) == 1)
    hub.hub.sockets.close_all(1012, "The hub is stopping")
    assert await wire.frame() == (0x88, struct.pack("!H", 1012) + b"The hub is stopping")
    wire.send(0x88, struct.pack("!H", 1012))
    await wire.ended()


async def test_a_client_that_is_gone_is_noticed_and_one_that_answers_stays(
    hub: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hasty(Relay):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs, ping_interval=0.1, silence=0.6)  # type: ignore[arg-type]

    monkeypatch.setattr("codevo.proxy.sockets.Relay", Hasty)
    base, headers, project = await ready(hub)
    pod = hub.servers.pods[project]
    async with hub.http.ws_connect(f"{base}/collab/x", headers=headers) as ws:
        for _ in range(20):  # pongs are sent while receiving
            with pytest.raises(asyncio.TimeoutError):
                await ws.receive(timeout=0.1)
        await ws.send_str("still here")
        assert await ws.receive_str(timeout=WAIT) == "still here"
    await within(pod.closes.get(), WAIT)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    assert await wire.frame() == (0x89, b"codevo-hub")
    await within(pod.closes.get(), WAIT)  # no pong ever came
    wire.writer.close()


async def test_too_many_sockets_are_429_and_places_come_back(hub: Stand) -> None:
    hub.hub.pods.relays = Relays(per_person=2, per_project=3)
    base, headers, project = await ready(hub)
    url = f"{path_of(base)}/collab/x"
    first, second = await dial(hub, url, headers), await dial(hub, url, headers)
    third = await dial(hub, url, headers)
    assert b" 101 " in second.head and b" 429 " in third.head
    bob, token = await hub.user("bob")
    await hub.store.members.set(project, bob.id, Role.EDITOR)
    fourth = await dial(hub, url, bearer(token))
    fifth = await dial(hub, url, bearer(token))
    assert b" 101 " in fourth.head and b" 429 " in fifth.head
    first.writer.close()
    await until(lambda: len(hub.hub.pods.relays) == 2)
    again = await dial(hub, url, headers)
    assert b" 101 " in again.head
    for wire in (second, third, fourth, fifth, again):
        wire.writer.close()


async def test_strangers_share_a_part_of_a_projects_sockets(hub: Stand) -> None:
    hub.hub.pods.relays = Relays(per_project=3, for_strangers=2)
    base, headers, project = await ready(hub)
    await hub.store.projects.update(project, visibility=Visibility.PUBLIC)
    url = f"{path_of(base)}/collab/x"
    # a guest is told apart by the User-Agent, of which one may have as many as one likes
    wires = [await dial(hub, url, {"User-Agent": str(n)}) for n in range(2)]
    _, token = await hub.user("bob")
    refused = [await dial(hub, url, {"User-Agent": "3"}), await dial(hub, url, bearer(token))]
    assert all(b" 101 " in w.head for w in wires) and all(b" 429 " in w.head for w in refused)
    member = await dial(hub, url, headers)
    assert b" 101 " in member.head
    for wire in (*wires, *refused, member):
        wire.writer.close()


async def test_the_end_of_a_right_reaches_pods_that_do_not_help(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.EDITOR))
    pod = hub.pod(project)
    wire = await dial(hub, f"/p/{project}/collab/x", bearer(token))
    assert b" 101 " in wire.head
    await hub.hub.pods.end_right(project, user.id)
    asked = [one for one in pod.seen if one.request.path == "/_codevo/revoke"]
    assert {one.name for one in asked} == {"runner", "worker"}
    assert all(one.claims.role is Role.HUB for one in asked)
    first, payload = await wire.frame()
    assert (first, payload[:2]) == (0x88, struct.pack("!H", 4403))
    wire.send(CLOSE | 0x80, payload[:2])
    await wire.ended()


def test_our_own_frames_are_well_formed() -> None:
    assert encode(CLOSE, b"\x03\xe8", masked=False) == b"\x88\x02\x03\xe8"


async def test_dialling_ends_when_the_client_goes(hub: Stand) -> None:
    base, headers, project = await ready(hub)
    gone = asyncio.Event()
    asked = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        gone.set()

    await hub.servers.pods[project].listen_raw("worker", silent)
    _, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    lines = {"Host": f"127.0.0.1:{hub.port}", "Upgrade": "websocket", "Connection": "Upgrade", **headers}
    lines |= {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": base64.b64encode(b"k" * 16).decode()}
    text = "".join(f"{n}: {v}\r\n" for n, v in lines.items())
    writer.write(f"GET {path_of(base)}/collab/x HTTP/1.1\r\n{text}\r\n".encode())
    await within(asked.wait(), WAIT)
    writer.close()
    await within(gone.wait(), WAIT)


async def test_closing_the_hub_waits_for_the_goodbyes(hub: Stand) -> None:
    base, headers, _ = await ready(hub)
    wire = await dial(hub, f"{path_of(base)}/collab/x", headers)
    await until(lambda: len(hub.hub.pods.relays) == 1)
    closing = asyncio.create_task(hub.hub.pods.close())
    first, payload = await wire.frame()
    assert (first, payload[:2]) == (0x88, struct.pack("!H", 1012))
    wire.send(0x88, payload[:2])
    await within(closing, WAIT)
    assert not len(hub.hub.pods.relays)
