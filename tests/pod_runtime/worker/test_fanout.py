"""Rooms on real sockets: order, what is merged, who is told, bounds, and that one client harms no other."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from pycrdt import (
    Doc,
    Text,
    create_awareness_message,
    create_sync_message,
    create_update_message,
    read_message,
)

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import channel as channels
from pod_runtime.worker import frames, presence
from pod_runtime.worker.frames import BINARY, PING
from tests.pod_runtime.worker.harness import Site
from tests.pod_runtime.worker.test_frames import masked
from tests.pod_runtime.worker.ycl import YClient


def updates_of(doc: Doc[Any]) -> list[bytes]:
    """Filled with what is done to ``doc`` from now on."""
    found: list[bytes] = []
    doc.observe(lambda event: found.append(event.update))
    return found


class Raw:
    """A client that writes its bytes itself and reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def frame(self) -> tuple[int, bytes]:
        async with asyncio.timeout(15):
            head, size = await self.reader.readexactly(2)
            if size == 126:
                size = int.from_bytes(await self.reader.readexactly(2), "big")
            elif size == 127:
                size = int.from_bytes(await self.reader.readexactly(8), "big")
            return head & 15, await self.reader.readexactly(size)

    async def closed_with(self) -> int:
        while True:
            opcode, payload = await self.frame()
            if opcode == frames.CLOSE:
                return int.from_bytes(payload[:2], "big")

    async def update(self) -> bytes:
        """The next change that comes."""
        while True:
            opcode, payload = await self.frame()
            if opcode == BINARY and payload[:2] == b"\0\2":
                return read_message(payload[2:])


@contextlib.asynccontextmanager
async def raw(
    site: Site, path: str = "f", *, early: bytes = b"", headers: str = "", buffer: int = 0, **who: Any
) -> AsyncIterator[Raw]:
    host, _, port = site.url.removeprefix("http://").partition(":")
    sock = socket.socket()
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    sock.setblocking(False)
    await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=sock)
    token = next(iter(site.headers(**who).items()))
    head = headers or (
        "Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        f"Sec-WebSocket-Key: {base64.b64encode(bytes(16)).decode()}\r\n"
    )
    request = f"GET /collab/{path} HTTP/1.1\r\nHost: x\r\n{token[0]}: {token[1]}\r\n{head}\r\n"
    writer.write(request.encode() + early)
    answer = await reader.readuntil(b"\r\n\r\n")
    client = Raw(reader, writer)
    try:
        client.answer = answer  # type: ignore[attr-defined]
        yield client
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def in_sync(client: Raw) -> None:
    client.writer.write(masked(BINARY, create_sync_message(Doc())))
    while (await client.frame())[1][:2] != b"\0\1":
        pass


async def room_of(site: Site, people: int) -> Any:
    assert site.worker is not None
    async with asyncio.timeout(15):
        while "f" not in site.worker.documents._open:
            await asyncio.sleep(0.01)
        room = site.worker.documents._open["f"].room
        while len(room.people.channels) != people:
            await asyncio.sleep(0.01)
    return room


async def test_changes_of_one_turn_come_as_one_and_not_back_to_their_only_sender(site: Site) -> None:
    (site.path / "f").write_text("")
    async with raw(site) as ann, raw(site, subject="bob") as bob:
        await in_sync(ann)
        await in_sync(bob)
        doc: Doc[Any] = Doc()
        made = updates_of(doc)
        text = doc.get("source", type=Text)
        for letter in "abc":
            text += letter
        # one write: the worker reads them together
        ann.writer.write(b"".join(masked(BINARY, create_update_message(u)) for u in made))
        seen: Doc[Any] = Doc()
        seen.apply_update(await bob.update())
        assert str(seen.get("source", type=Text)) == "abc"
        # alone in its turn, it goes to others only
        text += "d"
        ann.writer.write(masked(BINARY, create_update_message(made[-1])))
        assert await bob.update() == made[-1]
        text += "e"
        ann.writer.write(masked(BINARY, create_update_message(made[-1])) + masked(PING, b"me"))
        while (found := await ann.frame())[0] != frames.PONG:
            assert made[-2] not in found[1] and made[-1] not in found[1]
        await site.on_disk("f", "abcde")


async def test_what_completes_the_change_of_another_comes_back(site: Site) -> None:
    """A change that waited for its predecessor comes out with it: its sender has not seen it."""
    (site.path / "f").write_text("")
    first: Doc[Any] = Doc()
    made = updates_of(first)
    first.get("source", type=Text).insert(0, "one ")
    second: Doc[Any] = Doc()
    second.apply_update(made[0])
    later = updates_of(second)
    second.get("source", type=Text).insert(4, "two")
    async with raw(site) as ann, raw(site, subject="bob") as bob:
        await in_sync(ann)
        await in_sync(bob)
        bob.writer.write(masked(BINARY, create_update_message(later[0])) + masked(PING, b""))
        while (await bob.frame())[0] != frames.PONG:
            pass
        ann.writer.write(masked(BINARY, create_update_message(made[0])))
        for client in (ann, bob):
            seen: Doc[Any] = Doc()
            seen.apply_update(await client.update())
            assert str(seen.get("source", type=Text)) == "one two"


async def test_a_client_alone_is_sent_something_now_and_then(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """y-websocket closes a connection from which nothing comes for 30 s."""
    monkeypatch.setattr("pod_runtime.worker.fanout.ECHO_EVERY", 0.0)
    (site.path / "f").write_text("")
    async with raw(site) as ann:
        await in_sync(ann)
        doc: Doc[Any] = Doc()
        made = updates_of(doc)
        doc.get("source", type=Text).insert(0, "x")
        ann.writer.write(masked(BINARY, create_update_message(made[0])))
        assert await ann.update() == made[0]


async def test_order_is_kept_for_everybody(site: Site) -> None:
    (site.path / "f").write_text("")
    ann, bob = await site.client("f"), await site.client("f", subject="bob")
    for n in range(300):
        ann.text += f"a{n} "
        bob.text.insert(0, f"b{n} ")
        if n % 7 == 0:
            await asyncio.sleep(0)
    wanted = "".join(f"b{n} " for n in reversed(range(300))) + "".join(f"a{n} " for n in range(300))
    await ann.until(lambda: len(ann.text) == len(wanted))
    await bob.until(lambda: len(bob.text) == len(wanted))
    assert str(ann.text) == str(bob.text)
    assert [w for w in str(ann.text).split() if w[0] == "a"] == [f"a{n}" for n in range(300)]
    await site.on_disk("f", str(ann.text))


async def test_a_flood_of_one_client_does_not_keep_the_others_waiting(site: Site) -> None:
    """Thousands of messages in a row are handled a few at a time."""
    (site.path / "f").write_text("")
    async with raw(site) as eve:
        await in_sync(eve)
        bob = await site.client("f", subject="bob")
        doc: Doc[Any] = Doc()
        made = updates_of(doc)
        text = doc.get("source", type=Text)
        for _ in range(5000):
            text += "x"
        eve.writer.write(b"".join(masked(BINARY, create_update_message(u)) for u in made))
        ann = await site.client("f")
        ann.text.insert(0, "first ")
        await bob.until(lambda: "first " in str(bob.text))
        await ann.until(lambda: str(ann.text).count("x") == 5000)
        await site.on_disk("f", str(ann.text))


async def test_messages_before_a_close_count(site: Site) -> None:
    (site.path / "f").write_text("")
    async with raw(site) as ann:
        await in_sync(ann)
        doc: Doc[Any] = Doc()
        made = updates_of(doc)
        doc.get("source", type=Text).insert(0, "last words")
        ann.writer.write(
            masked(BINARY, create_update_message(made[0])) + masked(frames.CLOSE, b"\x03\xe9bye")
        )
        assert await ann.closed_with() == 1001
        assert await ann.reader.read() == b""
    await site.on_disk("f", "last words")


async def test_what_was_sent_with_the_handshake_counts(site: Site) -> None:
    (site.path / "f").write_text("here")
    hello = masked(BINARY, create_sync_message(Doc()))
    async with raw(site, early=hello) as ann:
        kinds = {(await ann.frame())[1][:2] for _ in range(2)}
        assert kinds == {b"\0\0", b"\0\1"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Accept: */*\r\n", b"400"),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n", b"400"),
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: short\r\n",
            b"400",
        ),
        (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
            b"426",
        ),
    ],
)
async def test_what_is_no_handshake(site: Site, headers: str, status: bytes) -> None:
    async with raw(site, headers=headers) as client:
        assert client.answer.split()[1] == status  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(frames.TEXT, b"text"), 4400),
        (b"\x82\x05naked", 1002),
        (masked(BINARY, b"", last=False) + masked(BINARY, b""), 1002),
        (b"\x82\xff" + b"\x7f" + b"\xff" * 7, 1009),
    ],
)
async def test_broken_frames_end_their_sender_only(site: Site, data: bytes, code: int) -> None:
    (site.path / "f").write_text("x")
    ann = await site.client("f")
    async with raw(site, subject="eve") as eve:
        await in_sync(eve)
        eve.writer.write(data)
        assert await eve.closed_with() == code
        await room_of(site, 1)
    ann.text += "fine"
    await site.on_disk("f", "xfine")


async def test_a_connection_that_breaks_harms_nobody(site: Site) -> None:
    (site.path / "f").write_text("x")
    ann = await site.client("f")
    async with raw(site, subject="eve") as eve:
        await in_sync(eve)
        await room_of(site, 2)
        sock = eve.writer.get_extra_info("socket")
        # linger 0: a reset, not an orderly end
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        eve.writer.transport.abort()
        await room_of(site, 1)
    ann.text += "fine"
    await site.on_disk("f", "xfine")


async def test_a_failure_inside_ends_its_client_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    (site.path / "f").write_text("x")
    ann, eve = await site.client("f"), await site.client("f", subject="eve")
    room = await room_of(site, 2)
    allowed = room._admit_update

    class Panic(BaseException):
        """As the native code's."""

    def admit(update: bytes) -> None:
        if b"panic" in update:
            raise Panic
        allowed(update)

    monkeypatch.setattr(room, "_admit_update", admit)
    eve.text += "panic"
    assert await eve.closed() == 1011
    ann.text += "fine"
    await site.on_disk("f", "xfine")


async def test_who_does_not_take_anything_is_closed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the bound of bytes, by time; a slow one that does take something stays."""
    monkeypatch.setattr(channels, "SEND_TIMEOUT", 1.0)
    monkeypatch.setattr(channels, "CLOSE_GRACE", 0.2)
    (site.path / "f").write_text("")
    ann = await site.client("f")
    async with raw(site, subject="slow", buffer=4096) as slow, raw(site, subject="eve", buffer=4096) as deaf:
        await in_sync(slow)
        await in_sync(deaf)
        await room_of(site, 3)

        async def sip() -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while await slow.reader.read(60_000):
                    await asyncio.sleep(0.05)

        sipping = asyncio.create_task(sip())
        deaf.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for n in range(60):
            with ann.doc.transaction():
                ann.text.clear()
                ann.text += f"{n} " + "x" * 90_000
            await asyncio.sleep(0.05)
        room = await room_of(site, 2)
        assert {c.claims.subject for c in room.people.channels} == {"ann", "slow"}
        sipping.cancel()
        await asyncio.gather(sipping, return_exceptions=True)


async def test_who_does_not_answer_pings_is_gone(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "PING_INTERVAL", 0.3)
    monkeypatch.setattr(channels, "PING_TIMEOUT", 0.2)
    (site.path / "f").write_text("")
    bob = await site.client("f", subject="bob")  # answers by itself
    async with raw(site) as ann:
        await in_sync(ann)
        assert (await ann.frame())[0] == PING
        await room_of(site, 1)
        assert bob.ws is not None and not bob.ws.closed


async def test_states_of_one_turn_are_told_once(site: Site) -> None:
    (site.path / "f").write_text("")
    async with raw(site) as ann, raw(site, subject="bob") as bob:
        await in_sync(ann)
        await in_sync(bob)
        said = [
            create_awareness_message(presence.encode([presence.State(7, n, f'{{"n": {n}}}')]))
            for n in range(9)
        ]
        ann.writer.write(b"".join(masked(BINARY, message) for message in said))
        heard = [(await c.frame())[1] for c in (ann, bob)]
        assert heard == [said[-1], said[-1]]


async def test_a_viewer_is_told_and_slowed_down(site: Site) -> None:
    (site.path / "f").write_text("x")
    ann = await site.client("f")
    async with raw(site, subject="vic", role=Role.VIEWER) as vic:
        await in_sync(vic)
        question = masked(BINARY, create_sync_message(Doc()))
        vic.writer.write(question * 40)
        # what is told to it does not wait for its turn
        ann.text += "now"
        assert b"now" in await vic.update()
    await room_of(site, 1)


async def test_the_socket_of_a_stopped_worker_is_closed(site: Site) -> None:
    (site.path / "f").write_text("x")
    async with raw(site) as ann:
        await in_sync(ann)
        stopping = asyncio.create_task(site.stop())
        assert await ann.closed_with() == 1013
        ann.writer.write(masked(frames.CLOSE, b"\x03\xf5"))
        await stopping


async def test_thirty_people(site: Site) -> None:
    (site.path / "f").write_text("")
    clients: list[YClient] = [await site.client("f", subject=f"p{n}") for n in range(30)]
    for n, client in enumerate(clients):
        client.text += f"<{n}>"
    wanted = {f"<{n}>" for n in range(30)}
    for client in clients:
        await client.until(lambda c=client: all(w in str(c.text) for w in wanted))  # type: ignore[misc]
    assert len({str(c.text) for c in clients}) == 1
    assert isinstance(clients[0].ws, aiohttp.ClientWebSocketResponse)
