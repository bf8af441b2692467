"""The object store as the journal needs it: a small port, so that its logic is tested without a network."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol


class StoreError(Exception):
    """The store did not do it: unreachable, overloaded, refused. Whether a put arrived is then unknown."""


class NotFound(StoreError):
    """There is no object of that key."""


class PreconditionFailed(StoreError):
    """``If-None-Match`` or ``If-Match`` did not hold (HTTP 412)."""


@contextlib.contextmanager
def one_error() -> Iterator[None]:
    """Raises the first error of a `TaskGroup` instead of the group: callers look for `StoreError`."""
    try:
        yield
    except BaseExceptionGroup as group:
        first: BaseException = group
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    key: str
    size: int
    etag: str
    modified: datetime


class ObjectStore(Protocol):
    """Keys are relative to the store's prefix. All methods raise `StoreError` when the store is away."""

    async def get(self, key: str) -> tuple[bytes, str]:
        """The whole object and its ETag. Raises `NotFound`. For small objects."""

    async def first(self, key: str, size: int) -> bytes:
        """The first ``size`` bytes (all of a shorter object), and no more is read. Raises `NotFound`."""

    def stream(self, key: str) -> AsyncIterator[bytes]:
        """The object in chunks of at most 1 MiB. Raises `NotFound` on the first step."""

    async def put(
        self, key: str, data: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Store and return the ETag. ``if_none_match`` means: only when no such key exists.

        ``data`` may be the path of a local file (at most 5 GiB), which is then streamed.
        """

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        """Store a body of unknown length in equal-sized multipart parts; nothing appears on failure."""

    def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        """Objects under ``prefix`` in the order of their keys, paged underneath."""

    async def copy(self, source: str, target: str) -> None:
        """Copy inside the bucket, server-side. Keys are relative to this store's prefix."""

    async def delete(self, *keys: str) -> None:
        """Delete; missing keys are no error."""
