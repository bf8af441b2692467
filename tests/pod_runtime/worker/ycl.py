"""A small y-websocket client: what `y-websocket` of npm does, over aiohttp."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import aiohttp
from pycrdt import (
    Doc,
    Text,
    create_awareness_message,
    create_sync_message,
    create_update_message,
    handle_sync_message,
    read_message,
)
from yarl import URL

from pod_runtime.worker import presence


class YClient:
    def __init__(self, doc: Doc[Any] | None = None) -> None:
        self.doc: Doc[Any] = doc if doc is not None else Doc()
        self.text: Text = self.doc.get("source", type=Text)
        self.awareness: dict[int, Any] = {}
        self.synced = asyncio.Event()
        self.changed = asyncio.Event()
        self.ws: aiohttp.ClientWebSocketResponse | None = None
        self._applying = False
        self._clock = 0
        self._out: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self.doc.observe(self._observe)

    def _observe(self, event: Any) -> None:
        if not self._applying and event.update != b"\0\0":
            self._out.put_nowait(create_update_message(event.update))

    async def connect(self, session: aiohttp.ClientSession, url: URL, headers: dict[str, str]) -> YClient:
        while not self._out.empty():
            self._out.get_nowait()
        self.synced.clear()
        self.ws = await session.ws_connect(url, headers=headers, max_msg_size=0)
        await self.ws.send_bytes(create_sync_message(self.doc))
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._write())]
        return self

    async def _write(self) -> None:
        while True:
            message = await self._out.get()
            assert self.ws is not None
            if self.ws.closed:
                return
            try:
                await self.ws.send_bytes(message)
            except (ConnectionError, aiohttp.ClientError):
                return

    async def _read(self) -> None:
        assert self.ws is not None
        async for message in self.ws:
            data = message.data
            if data[0] == 0:
                self._applying = True
                reply = handle_sync_message(data[1:], self.doc)
                self._applying = False
                if reply is not None:
                    self._out.put_nowait(reply)
                if data[1] == 1:
                    self.synced.set()
            elif data[0] == 1:
                for state in presence.decode(read_message(data[1:])):
                    value = json.loads(state.text)
                    if value is None:
                        self.awareness.pop(state.client, None)
                    else:
                        self.awareness[state.client] = value
            self.changed.set()
        self.changed.set()

    def say(self, state: Any, client: int | None = None) -> None:
        self._clock += 1
        states = [presence.State(client or self.doc.client_id, self._clock, json.dumps(state))]
        self._out.put_nowait(create_awareness_message(presence.encode(states)))

    def send(self, message: bytes) -> None:
        self._out.put_nowait(message)

    async def until(self, condition: Callable[[], bool], timeout: float = 15) -> None:
        async with asyncio.timeout(timeout):
            while not condition():
                self.changed.clear()
                await self.changed.wait()

    async def has(self, text: str) -> None:
        try:
            await self.until(lambda: str(self.text) == text)
        except TimeoutError:
            raise AssertionError(f"expected {text!r}, have {str(self.text)!r}") from None

    async def closed(self) -> int | None:
        assert self.ws is not None
        await self.until(lambda: self.ws is not None and self.ws.closed)
        return self.ws.close_code

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.ws is not None:
            await self.ws.close()
