"""The beginning of a worker's persistence: its place in /state, the log opened, and what works on both."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path

from pod_runtime.journal import reader
from pod_runtime.journal.store import ObjectStore, StoreError
from pod_runtime.journal.writer import LogWriter
from pod_runtime.protocol.config import WorkerConfig
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.changes import Notice
from pod_runtime.worker.persistence.maintenance import Maintenance
from pod_runtime.worker.persistence.manifest import Manifest
from pod_runtime.worker.persistence.opening import Opener, Progress
from pod_runtime.worker.persistence.timeline import Timeline
from pod_runtime.worker.ports import Documents

log = logging.getLogger(__name__)

MAX_BACKOFF = 30.0
OPEN_ATTEMPTS = 6
#: Seconds for an earlier worker of the same /state to let go of it.
LOCK_WAIT = 10.0


@dataclass(frozen=True, slots=True)
class Session:
    """What there is once the log is open."""

    manifest: Manifest
    writer: LogWriter
    timeline: Timeline
    maintenance: Maintenance


async def begin(
    stack: contextlib.AsyncExitStack,
    spool: Path,
    config: WorkerConfig,
    root: safefs.Root,
    documents: Documents,
    store: ObjectStore | None,
    *,
    notice: Notice,
    progress: Progress,
) -> Session:
    """Bring workspace and log together and commit the ``open`` record; ``stack`` ends it all.

    ``store`` None: S3 by the configuration. Raises `Fenced`, `StoreError` when the store stays away for about
    a minute, `LogError`, ``OSError`` (a full disk, or another worker on the same /state).
    """
    await asyncio.to_thread(_prepare, stack, spool)
    if store is None:
        from pod_runtime.journal.s3 import S3Store

        store = await stack.enter_async_context(S3Store(config.store))
    manifest = await asyncio.to_thread(Manifest, spool / "manifest.db")
    stack.callback(manifest.close)
    writer = LogWriter(store, config.generation)
    opener = Opener(
        root,
        documents,
        manifest,
        writer,
        spool=spool,
        max_workspace=config.max_workspace,
        notice=notice,
        progress=progress,
    )
    failures = 0
    while True:
        try:
            await opener.run()
            break
        except reader.LogError:
            raise
        except StoreError as e:
            failures += 1
            if failures >= OPEN_ATTEMPTS:
                raise
            progress(0, "Waiting for the object store")
            log.warning("cannot open the log: %s", e)
            await asyncio.sleep(backoff(failures))
    timeline = await asyncio.to_thread(Timeline, store, spool / "index.db")
    stack.callback(timeline.close)
    # the first record of a log is the `open` of its first worker
    start = writer.last if writer.last > 1 else None
    return Session(manifest, writer, timeline, Maintenance(writer, timeline, start))


def _prepare(stack: contextlib.AsyncExitStack, spool: Path) -> None:
    spool.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(spool / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    stack.callback(os.close, fd)
    deadline = time.monotonic() + LOCK_WAIT
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    for left in spool.glob("commit-*"):
        left.unlink(missing_ok=True)


def backoff(failures: int) -> float:
    """Seconds to wait: 0.5, 1, 2 …, at most `MAX_BACKOFF`, times a random factor from 0.5 to 1."""
    return float(min(0.5 * 2 ** (failures - 1), MAX_BACKOFF) * random.uniform(0.5, 1.0))  # noqa: S311
