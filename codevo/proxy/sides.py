"""The two connections of a WebSocket relay: each hands what it hears to the other, and waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from codevo.proxy.frames import FrameFollower, Pace

#: Most bytes passed on at once; when more than this waits for one side, the other is not read.
CHUNK = 64 * 1024


class Side(asyncio.Protocol):
    """One of the two connections of a relay: what came from it waits here until the other takes more."""

    def __init__(self, follower: FrameFollower, take: Callable[[bytes], None], *, keep: bool) -> None:
        self.follower = follower
        self.transport: asyncio.Transport | None = None
        #: Set when nothing more comes, by frame or by connection.
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.lost = asyncio.Event()
        #: What it was given waits: it takes less than comes.
        self.full = False
        self.on_taken: Callable[[], None] = lambda: None
        self._other: Side | None = None
        self._take = take
        self._keep = keep
        self._loop = asyncio.get_running_loop()
        self._pace = Pace(follower, CHUNK)
        self._data = b""
        self._turn: asyncio.Handle | None = None
        self._ended = False

    def begin(self, transport: asyncio.Transport, other: Side, early: bytes, *, ended: bool = False) -> None:
        """From now on everything goes to ``other``; ``ended``: nothing comes but ``early``."""
        self._other = other
        transport.set_write_buffer_limits(high=CHUNK)
        self.transport = transport
        self._data = early + self._data
        self._ended = self._ended or ended or transport.is_closing()
        self.go_on()

    def write(self, data: bytes) -> None:
        """Give it bytes; dropped when it has gone."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def stop(self) -> None:
        """Nothing more is passed on."""
        if self._turn is not None:
            self._turn.cancel()
        if not self.over.done():
            self.over.set_result(None)

    async def hang_up(self, grace: float) -> None:
        """Close; what it was given last still gets there when it is taken within ``grace`` seconds."""
        self.stop()
        if self.transport is None:
            return
        self.transport.close()
        try:
            async with asyncio.timeout(grace):
                await self.lost.wait()
        except TimeoutError:
            self.transport.abort()

    # -- asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        if self.over.done():
            return
        if self._data or self._turn is not None or self._other is None:
            self._data += data
        else:
            self._data = data
            self.go_on()

    def eof_received(self) -> bool:
        self._ended = True
        if not self._data and self._turn is None and self._other is not None:
            self.stop()
        return self._keep

    def connection_lost(self, error: Exception | None) -> None:
        self.eof_received()
        self.lost.set()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.on_taken()
        if self._other is not None:
            self._other.go_on()

    # -- inside

    def go_on(self) -> None:
        """Pass on what is here, at most a chunk at once, unless the other side is behind."""
        if self._turn is None:
            self._next()

    def _next(self) -> None:
        self._turn = None
        other, pause = self._other, 0.0
        if self.over.done() or other is None:
            return
        if self._data and not other.full:
            size = self._pace.size
            data, self._data = self._data[:size], self._data[size:]
            self._take(data)
            if self.over.done():
                return
            pause = self._pace.pause(self._loop.time())
        if pause:
            self._turn = self._loop.call_later(pause, self._next)
        elif self._data and not other.full:
            self._turn = self._loop.call_soon(self._next)
        elif self._ended and not self._data:
            self.stop()
        self._read(not (self._data or self._turn or other.full))

    def _read(self, on: bool) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if on and not transport.is_reading():
            transport.resume_reading()
        elif not on and transport.is_reading():
            transport.pause_reading()


async def left(reader: asyncio.StreamReader) -> tuple[bytes, bool]:
    """What the reader already holds, and whether the connection has ended there; waits for nothing."""
    data = b""
    while True:
        reading = asyncio.create_task(reader.read(CHUNK))
        try:
            await asyncio.sleep(0)
            if not reading.done():
                return data, False
            found = reading.result()
        except OSError:
            return data, True
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        if not found:
            return data, True
        data += found
