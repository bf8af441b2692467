"""The object store port in memory, for tests: same answers as S3, and faults on demand."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pod_runtime.journal.store import NotFound, ObjectInfo, PreconditionFailed

Fault = Callable[[str, str, str], Awaitable[None]]
"""``await fault(operation, key, phase)``, phase ``before`` (nothing done yet) or ``after`` (done, the answer
not yet given: raising here is a lost acknowledgement). Raise `StoreError` to fail, sleep to be slow."""


class MemoryStore:
    """`ObjectStore` in a dictionary. `view` gives another prefix of the same bucket, as another client."""

    def __init__(self, prefix: str = "", *, fault: Fault | None = None) -> None:
        self._prefix = prefix
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.fault = fault
        self.calls: list[tuple[str, str]] = []

    def view(self, prefix: str, *, fault: Fault | None = None) -> MemoryStore:
        """A client with its own prefix and faults on the same objects."""
        other = MemoryStore(prefix, fault=fault)
        other.objects = self.objects
        return other

    async def _step(self, operation: str, key: str, phase: str) -> None:
        if phase == "before":
            self.calls.append((operation, key))
        if self.fault is not None:
            await self.fault(operation, key, phase)

    def _find(self, key: str) -> tuple[bytes, ObjectInfo]:
        try:
            return self.objects[self._prefix + key]
        except KeyError:
            raise NotFound(key) from None

    def _store(self, key: str, data: bytes) -> str:
        etag = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'
        name = self._prefix + key
        self.objects[name] = (data, ObjectInfo(name, len(data), etag, datetime.now(UTC)))
        return etag

    async def get(self, key: str) -> tuple[bytes, str]:
        await self._step("get", key, "before")
        data, info = self._find(key)
        await self._step("get", key, "after")
        return data, info.etag

    async def first(self, key: str, size: int) -> bytes:
        await self._step("first", key, "before")
        data, _ = self._find(key)
        await self._step("first", key, "after")
        return data[:size]

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        await self._step("stream", key, "before")
        data, _ = self._find(key)
        for start in range(0, len(data), 2**20):
            yield data[start : start + 2**20]
        await self._step("stream", key, "after")

    async def put(
        self, key: str, data: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        await self._step("put", key, "before")
        body = data.read_bytes() if isinstance(data, Path) else data
        current = self.objects.get(self._prefix + key)
        if if_none_match and current is not None:
            raise PreconditionFailed(key)
        if if_match is not None and (current is None or current[1].etag != if_match):
            raise PreconditionFailed(key)
        etag = self._store(key, body)
        await self._step("put", key, "after")
        return etag

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        await self._step("put_stream", key, "before")
        body = b"".join([chunk async for chunk in chunks])
        self._store(key, body)
        await self._step("put_stream", key, "after")

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        await self._step("list", prefix, "before")
        first = self._prefix + start_after if start_after else ""
        for name in sorted(self.objects):
            if name.startswith(self._prefix + prefix) and name > first and name in self.objects:
                yield replace(self.objects[name][1], key=name[len(self._prefix) :])

    async def copy(self, source: str, target: str) -> None:
        await self._step("copy", source, "before")
        self._store(target, self._find(source)[0])
        await self._step("copy", source, "after")

    async def delete(self, *keys: str) -> None:
        for key in keys:
            await self._step("delete", key, "before")
            self.objects.pop(self._prefix + key, None)
            await self._step("delete", key, "after")
