"""Uploaded archives on their way into the bucket: received into a file, converted, written as a snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from codevo.objects.archive_readers import Bounds, Refused
from pod_runtime.journal.format import Meta, meta_frame, now
from pod_runtime.journal.projects import Prefixed
from pod_runtime.journal.reader import HEAD, Head, snapshot_key
from pod_runtime.journal.store import ObjectStore

log = logging.getLogger(__name__)

_CHUNK = 2**18
_MAX_WORDS = 2**16
#: What the converting process sees of the hub's environment: enough to find the same packages.
_PASSED = ("PATH", "HOME", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "LD_LIBRARY_PATH", "TZ")


class NoRoom(Exception):
    """The upload could not be written to the hub's disk; the text is for people."""


@dataclass(eq=False)
class Upload:
    """A request's body in a file without a name, so that nothing is left of it whatever happens.

    ``folder`` is on the disk that holds it. One call at a time.
    """

    folder: Path
    size: int = 0
    _file: IO[bytes] | None = None
    _waiting: bytearray = field(default_factory=bytearray)
    _closed: bool = False

    async def write(self, chunk: bytes) -> None:
        """Add to it. Raises `NoRoom`."""
        self.size += len(chunk)
        self._waiting += chunk
        if len(self._waiting) >= 2**20:
            await self._flush()

    async def file(self) -> IO[bytes]:
        """The file with everything in it. Raises `NoRoom`."""
        await self._flush()
        assert self._file is not None
        return self._file

    async def _flush(self) -> None:
        data, self._waiting = bytes(self._waiting), bytearray()
        try:
            self._file = await asyncio.to_thread(self._append, data)
        except OSError as e:
            raise NoRoom(f"The server has no room for the upload just now ({e.strerror}).") from e
        if self._closed:  # meanwhile
            self._file.close()

    def _append(self, data: bytes) -> IO[bytes]:
        file = self._file or tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        return file

    def close(self) -> None:
        """Let go of it; what is still being written ends with it. Idempotent."""
        self._closed = True
        self._waiting.clear()
        if self._file is not None:
            self._file.close()


async def write_snapshot(
    store: ObjectStore, prefix: str, archive: IO[bytes], kind: str, bounds: Bounds
) -> dict[str, int]:
    """Begin a log at ``prefix`` with the files of an archive; gives ``{files, bytes, left_out}``.

    Constant memory. Raises `Refused`, `StoreError`; delete the prefix then.
    """
    at = Prefixed(store, prefix)
    counts: dict[str, int] = {}
    frame = meta_frame(Meta("snapshot", 0, "import", 0, "", now()))
    async with _converted(archive, kind, bounds, counts) as body:
        await at.put_stream(snapshot_key(0), _joined(frame, body))
    await at.put(HEAD, Head(0).to_json(), if_none_match=True)
    return counts


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    yield first
    async for chunk in rest:
        yield chunk


@asynccontextmanager
async def _converted(
    archive: IO[bytes], kind: str, bounds: Bounds, counts: dict[str, int]
) -> AsyncIterator[AsyncGenerator[bytes, None]]:
    """The body of a snapshot, from a process that ends with this context."""
    environment = {name: os.environ[name] for name in _PASSED if name in os.environ}
    command = (sys.executable, "-P", "-m", "codevo.objects.unpack")
    process = await asyncio.create_subprocess_exec(
        *command,
        *(kind, str(bounds.unpacked), str(bounds.members)),
        stdin=archive,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
        cwd="/",
        limit=2**18,
    )
    assert process.stdout is not None and process.stderr is not None
    stdout, said = process.stdout, asyncio.create_task(_tail(process.stderr))

    async def body() -> AsyncGenerator[bytes, None]:
        while chunk := await stdout.read(_CHUNK):
            yield chunk
        # the last piece is not given out before it is known to be the last of a whole archive
        counts.update(_result(await process.wait(), await said))

    chunks = body()
    try:
        yield chunks
    finally:
        await chunks.aclose()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        said.cancel()
        await asyncio.gather(process.wait(), said, return_exceptions=True)
        process._transport.close()  # type: ignore[attr-defined]  # its pipes, now and not some time


async def _tail(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while chunk := await stream.read(_MAX_WORDS):
        kept = (kept + chunk)[-_MAX_WORDS:]
    return kept


def _result(status: int, said: bytes) -> dict[str, int]:
    """What the process has said, or `Refused`."""
    found: Any = None
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(said.splitlines()[-1])
    if status == 0 and isinstance(found, dict):
        return {name: int(found[name]) for name in ("files", "bytes", "left_out")}
    if status == 1 and isinstance(found, dict) and "refused" in found:
        raise Refused(str(found["refused"]), too_large=bool(found.get("too_large")))
    log.warning("unpacking an archive ended with %s: %s", status, said[-500:].decode(errors="replace"))
    raise Refused("The archive takes too long or too much memory to unpack.", too_large=True)
