"""Relays of WebSocket bytes between a client and a pod, with backpressure, and the register of all."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from tornado.iostream import IOStream

from codevo.proxy.frames import (
    CLOSE,
    PING,
    PONG,
    FrameError,
    FrameFollower,
    close_payload,
    encode,
    repaired_close,
)
from codevo.proxy.sides import Side, left
from pod_runtime.protocol.sockets import take_over

log = logging.getLogger(__name__)

#: Seconds between two pings to a client, and of silence after which it is gone.
PING_INTERVAL = 30.0
SILENCE = 90.0
#: Seconds for a close frame of the hub's own to be sent and answered.
CLOSE_GRACE = 2.0
#: Seconds for the other side to answer a close frame that was passed on.
POD_GRACE = 10.0
#: Open sockets of one person, and of everybody, on one project.
PER_PERSON = 64
PER_PROJECT = 256
#: Of a project's, so many are for people who see it only because it (or one of its ports) is public.
FOR_STRANGERS = 96

#: The workspace stops or restarts, the right has ended (docs/wire.md).
GOING_AWAY = 1012
RIGHT_ENDED = 4403

_OUR_PING = b"codevo-hub"


@dataclass(frozen=True, slots=True)
class Ending:
    """A close frame of the hub's own."""

    code: int
    reason: str


class Relay:
    """One client's socket and the pod's, joined.

    ``vanished`` is told to the client when the pod goes without a close frame; None: the client's connection
    ends just as abruptly.
    """

    def __init__(
        self,
        stream: IOStream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        vanished: Ending | None = None,
        ping_interval: float = PING_INTERVAL,
        silence: float = SILENCE,
    ) -> None:
        self._stream = stream
        self._reader = reader
        self._writer = writer
        self._vanished = vanished
        self._ping_interval = ping_interval
        self._silence = silence
        self._from_pod = FrameFollower(masked=False, on_control=self._pod_control)
        self._from_client = FrameFollower(masked=True, on_control=self._client_control)
        self._loop = asyncio.get_running_loop()
        self._client = Side(self._from_client, self._up, keep=False)
        self._client.on_taken = self._heard  # what waited has been taken
        self._pod = Side(self._from_pod, self._down, keep=True)
        self._pod.on_taken = self._heard
        self._pending = b""  # frames of the hub that wait for a boundary
        self._ending: Ending | None = None
        self._pending_last = False
        self._goodbye = False
        self._ended = asyncio.Event()
        self._alive = 0.0

    def close(self, code: int, reason: str) -> None:
        """End the relay: a close frame at the next boundary, then, within `CLOSE_GRACE`, the connection."""
        if self._ending is None:
            self._ending = Ending(code, reason)
            self._say_goodbye()
            self._ended.set()

    async def run(self) -> None:
        """Relay until both sides are through. Both connections are closed at the end."""
        self._alive = self._loop.time()
        up, down = self._client.over, self._pod.over
        watch = asyncio.create_task(self._watch())
        told = asyncio.create_task(self._ended.wait())
        try:
            await self._join()
            await asyncio.wait((up, down, watch, told), return_when=asyncio.FIRST_COMPLETED)
            if down.done() and not told.done() and not self._from_pod.closed and self._vanished is not None:
                self._ending = self._vanished
            if up.done() and not self._from_client.closed:
                return  # the client has gone without a word
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_GRACE if self._ending else POD_GRACE):
                    await self._part(up, down)
        finally:
            for task in (watch, told):
                task.cancel()
            await asyncio.gather(watch, told, return_exceptions=True)
            await asyncio.gather(self._client.hang_up(CLOSE_GRACE), self._pod.hang_up(CLOSE_GRACE))

    async def _join(self) -> None:
        """Take both connections over from those who made the handshakes."""
        pod = cast("asyncio.Transport", self._writer.transport)
        self._pod.transport = pod
        # from here on the reader gets nothing, so what it has is what came before
        pod.set_protocol(self._pod)
        pod.pause_reading()
        early, ended = await left(self._reader)
        try:
            client, first = await take_over(self._stream, self._client)
        except OSError:
            self._client.stop()
            return
        self._client.begin(client, self._pod, first)
        self._pod.begin(pod, self._client, early, ended=ended)

    async def _part(self, up: asyncio.Future[None], down: asyncio.Future[None]) -> None:
        """The closing handshake, as far as both sides play along."""
        if self._ending is not None:
            if down.done() and not self._from_pod.at_boundary:
                return  # the frame that the pod began will never end
            self._say_goodbye()
            await asyncio.wait({up})
            return
        if self._from_client.closed:
            await asyncio.wait({down})
        elif self._from_pod.closed:
            await asyncio.wait({up})

    def _say_goodbye(self) -> None:
        if self._ending is not None and not self._goodbye and self._client.transport is not None:
            self._goodbye = True
            payload = close_payload(self._ending.code, self._ending.reason)
            self._inject(encode(CLOSE, payload, masked=False), last=True)

    def _up(self, data: bytes) -> None:
        """Client to pod, until the client's close frame."""
        self._heard()
        try:
            out, _ = self._from_client.feed(data)
        except FrameError as e:
            log.info("a client broke the WebSocket protocol: %s", e)
            self.close(1002, "Not a WebSocket frame")
            self._client.stop()
            return
        if out:
            # when the pod has gone, `_down` tells its side of the story
            self._pod.write(out)
        if self._from_client.closed:
            self._client.stop()

    def _down(self, data: bytes) -> None:
        """Pod to client, until the pod's close frame."""
        try:
            out, injected = self._from_pod.feed(data, self._pending, last=self._pending_last)
        except FrameError as e:
            log.info("a pod broke the WebSocket protocol: %s", e)
            self.close(1002, "The workspace broke the WebSocket protocol")
            self._pod.stop()
            return
        if injected:
            self._pending = b""
        if out:
            self._client.write(out)
        if self._from_pod.closed:
            self._pod.stop()

    async def _watch(self) -> None:
        """Ping the client now and then; returns when it has been silent for too long."""
        while True:
            await asyncio.sleep(self._ping_interval)
            # while the pod is behind, the client is not read, and its silence says nothing
            if self._loop.time() - self._alive > self._silence and not self._pod.full:
                self._client.stop()
                return
            if not self._client.full and not self._pending:
                self._inject(encode(PING, _OUR_PING, masked=False))

    def _inject(self, frame: bytes, *, last: bool = False) -> None:
        """Send a frame of the hub's own at the next boundary."""
        if self._from_pod.closed:
            return
        if self._from_pod.at_boundary:
            self._from_pod.closed = last
            self._client.write(frame)
        else:
            self._pending += frame
            self._pending_last = last

    def _heard(self) -> None:
        self._alive = self._loop.time()

    def _client_control(self, opcode: int, payload: bytes) -> bytes | None:
        if opcode == PONG and payload == _OUR_PING:
            return b""
        return self._repaired(opcode, payload, masked=True)

    def _pod_control(self, opcode: int, payload: bytes) -> bytes | None:
        return self._repaired(opcode, payload, masked=False)

    @staticmethod
    def _repaired(opcode: int, payload: bytes, *, masked: bool) -> bytes | None:
        if opcode != CLOSE:
            return None
        other = repaired_close(payload)
        return None if other is None else encode(CLOSE, other, masked=masked)


#: What the credentials of sessions and of API tokens begin with; the id follows.
SESSION = "session:"
TOKEN = "token:"
_LOGGED_OUT = Ending(RIGHT_ENDED, "Logged out")


class TooManySockets(Exception):
    """The person, or the project, has as many open sockets as it may."""


class Visits:
    """Counts the requests of strangers to each public project: they get a part of the pod's connections, so
    that those who read slowly, however many they are, leave the rest to the members."""

    def __init__(self, limit: int = FOR_STRANGERS) -> None:
        self._limit = limit
        self._open: Counter[str] = Counter()

    def enter(self, project: str) -> bool:
        """Count one more; False when the share is used up."""
        if self._open[project] >= self._limit:
            return False
        self._open[project] += 1
        return True

    def leave(self, project: str) -> None:
        """The request is over."""
        self._open[project] -= 1
        if not self._open[project]:
            del self._open[project]


class Relays:
    """Every relay of the hub by project and person, so that a right's end reaches them."""

    def __init__(
        self,
        *,
        per_person: int = PER_PERSON,
        per_project: int = PER_PROJECT,
        for_strangers: int = FOR_STRANGERS,
    ) -> None:
        self._per_person = per_person
        self._per_project = per_project
        self._for_strangers = for_strangers
        self._people: Counter[tuple[str, str]] = Counter()
        self._projects: Counter[str] = Counter()
        self._strangers: Counter[str] = Counter()
        self._open: dict[Relay, tuple[str, str, str]] = {}
        self._none_open = asyncio.Event()

    def __len__(self) -> int:
        return len(self._open)

    @contextmanager
    def place(self, project: str, subject: str, *, stranger: bool = False) -> Iterator[None]:
        """Room for one socket, kept from before the pod is dialled. Raises `TooManySockets`.

        Strangers, who may be as many as they like, share `FOR_STRANGERS` places: the members' stay free.
        """
        counted: list[tuple[Counter[Any], Any, int]] = [
            (self._people, (project, subject), self._per_person),
            (self._projects, project, self._per_project),
        ]
        if stranger:
            counted.append((self._strangers, project, self._for_strangers))
        if any(counter[key] >= limit for counter, key, limit in counted):
            raise TooManySockets
        for counter, key, _ in counted:
            counter[key] += 1
        try:
            yield
        finally:
            for counter, key, _ in counted:
                counter[key] -= 1
                if not counter[key]:
                    del counter[key]

    @contextmanager
    def listed(self, relay: Relay, project: str, subject: str, credential: str = "") -> Iterator[None]:
        """Lists the relay while it runs. ``credential`` is the id of the session or token it came with."""
        self._open[relay] = (project, subject, credential)
        try:
            yield
        finally:
            del self._open[relay]
            if not self._open:
                self._none_open.set()

    async def close(self) -> None:
        """Close every socket that is still open with 1012; returns when they are, or soon after."""
        self._close(list(self._open), Ending(GOING_AWAY, "The hub is stopping"))
        self._none_open.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(2 * CLOSE_GRACE + 1):
                    await self._none_open.wait()

    def subjects(self, project: str) -> set[str]:
        """Who has sockets on a project."""
        return {subject for at, subject, _ in self._open.values() if at == project}

    def projects(self, subject: str) -> set[str]:
        """On which projects a person has sockets."""
        return {project for project, who, _ in self._open.values() if who == subject}

    def drop_subject(self, project: str, subject: str) -> int:
        """Close a person's sockets on a project with 4403; gives their number."""
        return self._close(
            [r for r, key in self._open.items() if key[:2] == (project, subject)],
            Ending(RIGHT_ENDED, "No longer allowed"),
        )

    def drop_credential(self, credential: str) -> int:
        """A session or token has ended: close its sockets with 4403; gives their number."""
        return self._close([r for r, key in self._open.items() if key[2] == credential], _LOGGED_OUT)

    def drop_sessions(self, subject: str, *, but: str = "") -> int:
        """A person's sessions have ended, all ``but`` one: close their sockets with 4403."""
        return self._close(
            [
                relay
                for relay, (_, who, credential) in self._open.items()
                if who == subject and credential.startswith(SESSION) and credential != but
            ],
            _LOGGED_OUT,
        )

    def drop_project(self, project: str) -> int:
        """Close every socket of a project with 1012; gives their number."""
        return self._close(
            [r for r, key in self._open.items() if key[0] == project],
            Ending(GOING_AWAY, "The workspace has stopped"),
        )

    @staticmethod
    def _close(relays: list[Relay], ending: Ending) -> int:
        for relay in relays:
            relay.close(ending.code, ending.reason)
        return len(relays)
