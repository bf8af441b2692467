"""A worker process with a persistence that only counts: ``python process.py CONFIG FD [FILE_SIZE | die]``.

With ``die`` it ends as by kill -9 between the fsync of a document's history and the write of its text.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

from pod_runtime.protocol.config import WorkerConfig, listening_socket
from pod_runtime.worker import document
from pod_runtime.worker.app import Worker
from tests.pod_runtime.worker.harness import CountingPersistence


async def run() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    worker = Worker(
        WorkerConfig.from_json(Path(sys.argv[1]).read_bytes()),
        lambda *args: CountingPersistence(),  # type: ignore[arg-type, return-value]
    )
    worker.serve(listening_socket(f"fd:{sys.argv[2]}"))
    await stop.wait()
    await worker.close()


def die(*args: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if sys.argv[3:] == ["die"]:
    document.write_file = die  # type: ignore[assignment]
elif len(sys.argv) > 3:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
asyncio.run(run())
