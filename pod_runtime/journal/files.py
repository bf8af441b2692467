"""One file of one record, and the names in a record, without unpacking the rest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pod_runtime.journal.format import Area, Decoder, FormatError, Kind, Member, Meta
from pod_runtime.journal.reader import LogError
from pod_runtime.journal.store import ObjectStore

#: Compressed bytes that are decoded before it is looked whether the file is complete.
STEP = 2**16


class TooLarge(Exception):
    """The file has more bytes than were asked for."""


async def read_member(store: ObjectStore, key: str, path: str, limit: int) -> bytes | None:
    """The content of ``workspace/{path}`` in the record or snapshot at ``key``, at most ``limit`` bytes.

    None when there is no such file in it (a link or folder is none). Reads up to the file's end and
    holds nothing else. Raises `TooLarge`, `NotFound` (no such record), `LogError`, `StoreError`.
    """
    sink = _One(path, limit)
    await _decode(store, key, sink)
    return bytes(sink.data_of) if sink.found else None


async def read_names(store: ObjectStore, key: str) -> tuple[Meta, dict[str, tuple[int, int]]]:
    """A record's or snapshot's meta data, its files and links with (size, mtime_ns). Reads all of it."""
    sink = _Names()
    await _decode(store, key, sink)
    assert sink.said is not None
    return sink.said, sink.files


async def _decode(store: ObjectStore, key: str, sink: _Sink) -> None:
    decoder = Decoder(sink)
    stream = store.stream(key)
    try:
        async for chunk in stream:
            for start in range(0, len(chunk), STEP):
                await asyncio.to_thread(decoder.feed, chunk[start : start + STEP])
                if sink.done:
                    return
        decoder.close()
    except FormatError as e:
        raise LogError(f"{key}: {e}") from e
    finally:
        await _aclose(stream)


async def _aclose(stream: AsyncIterator[bytes]) -> None:
    with contextlib.suppress(AttributeError):
        await stream.aclose()  # type: ignore[attr-defined]


class _Sink:
    done = False

    def __init__(self) -> None:
        self.said: Meta | None = None

    def meta(self, meta: Meta) -> None:
        self.said = meta

    def begin(self, member: Member) -> bool:
        raise NotImplementedError

    def data(self, chunk: bytes) -> None:
        pass

    def end(self) -> None:
        pass


class _One(_Sink):
    def __init__(self, path: str, limit: int) -> None:
        super().__init__()
        self._path, self._limit = path, limit
        self.found = False
        self.data_of = bytearray()

    def begin(self, member: Member) -> bool:
        if self.done or member.area is not Area.WORKSPACE or member.path != self._path:
            return False
        self.done = member.kind is not Kind.FILE or not member.size
        self.found = member.kind is Kind.FILE
        if self.found and member.size > self._limit:
            raise TooLarge
        return self.found

    def data(self, chunk: bytes) -> None:
        self.data_of += chunk

    def end(self) -> None:
        self.done = True


class _Names(_Sink):
    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[int, int]] = {}

    def begin(self, member: Member) -> bool:
        if member.area is Area.WORKSPACE and member.kind is not Kind.DIRECTORY:
            self.files[member.path] = (member.size, member.mtime_ns)
        return False
