"""A worker's life with a large workspace: ``python large.py CONFIG FOLDER MEGABYTES``.

CONFIG is a file with the store's configuration as JSON.

Prints one line of JSON for each step: what it was, the peak of this process's memory so far (MiB), and the
seconds since its start.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from pod_runtime.journal import writer
from pod_runtime.journal.s3 import S3Store
from pod_runtime.protocol.config import StoreConfig
from tests.pod_runtime.worker.persistence_kit import Machine

FILE = 12 * 2**20
BEGAN = time.monotonic()


def write(path: Path) -> None:
    with path.open("wb") as f:
        for _ in range(FILE // 2**20):
            f.write(os.urandom(2**20))


def step(name: str) -> None:
    # not ru_maxrss, which begins at what the parent process had
    (line,) = [li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmHWM:")]
    seconds = round(time.monotonic() - BEGAN, 1)
    print(json.dumps({"step": name, "peak": int(line.split()[1]) // 1024, "seconds": seconds}), flush=True)


async def run(config: StoreConfig, folder: Path, megabytes: int) -> None:
    async with S3Store(config) as store:
        here = Machine(folder / "here", store)
        worker = await here.opened(1)
        (here.workspace / "small").write_text("1")
        await worker.flush()
        step("begin")
        count = max(megabytes * 2**20 // FILE, 2)
        for n in range(count):
            write(here.workspace / f"f{n}")
        assert not (await worker.flush()).pending
        step("commit")
        assert worker.past is not None
        mark = await worker.past.checkpoint("then")
        write(here.workspace / "f0")
        (here.workspace / "f1").unlink()
        wanted = (here.workspace / "f2").read_bytes()[-100:]
        (here.workspace / "f2").write_bytes(b"")
        await worker.flush()
        assert worker._writer is not None
        assert worker._maintenance is not None
        if worker._maintenance.task is not None:
            await worker._maintenance.task
        await worker._writer.snapshot()
        step("snapshot")
        assert await writer.compact(store, at=datetime.now(UTC) + timedelta(days=2))
        step("compaction")
        done = await worker.past.restore(mark.seq, by="ana")
        assert (done.restored, done.deleted, done.skipped) == (3, 0, 0)
        assert (here.workspace / "f2").read_bytes()[-100:] == wanted
        step("restore of a checkpoint")
        assert (await worker.past.versions("f1"))[0]
        step("versions of a file")
        await worker.close()
        there = Machine(folder / "there", store)
        await (await there.opened(2)).close()
        assert len(list(there.workspace.glob("f*"))) == count
        step("restore at the start")


if __name__ == "__main__":
    asyncio.run(
        run(StoreConfig.from_json(Path(sys.argv[1]).read_bytes()), Path(sys.argv[2]), int(sys.argv[3]))
    )
