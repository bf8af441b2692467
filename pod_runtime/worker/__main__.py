"""``python -m pod_runtime.worker --config SRC --listen ADDR --project ID``."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import signal
import sys

from pod_runtime.protocol.config import ConfigError, WorkerConfig, listening_socket, read_config

_M_ARENA_MAX = -8
#: Seconds that a thread which saves or commits may keep the loop waiting for the interpreter; 5 ms is usual.
_SWITCH = 0.001


def _few_arenas() -> None:
    """Let glibc's threads share two heaps: an arena for each costs an idle worker several MiB."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


def _skip_authorities(endpoint: str) -> None:
    """Spare a store without TLS the 16 to 35 ms in which aiohttp, when imported, loads the CA bundle."""
    if endpoint.startswith("http:"):
        os.environ["SSL_CERT_FILE"] = os.devnull


def _give_back() -> None:
    """Return to the system what opening the workspace and its S3 client needed for a moment."""
    gc.collect()
    # what is here now stays: later collections, during which nobody hears anybody, need not look at it
    gc.freeze()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


async def _after_opening(settled: asyncio.Event) -> None:
    await settled.wait()
    _give_back()


async def _run(config: WorkerConfig, listen: str) -> int:
    from pod_runtime.worker.app import Worker

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    worker = Worker(config)
    sock = listening_socket(listen)
    worker.serve(sock)
    logging.getLogger(__name__).info("worker listens on %s", sock.getsockname())
    settled = asyncio.create_task(_after_opening(worker.settled))
    waits = [asyncio.create_task(event.wait()) for event in (stop, worker.persistence.fenced)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for task in (*waits, settled):
        task.cancel()
    await worker.close()
    return worker.exit_code()


def main() -> None:
    """Run until SIGTERM. Exit code 2 for a bad configuration."""
    parser = argparse.ArgumentParser(prog="python -m pod_runtime.worker", description=__doc__)
    parser.add_argument("--config", required=True, help="fd:N or a path")
    parser.add_argument("--listen", required=True, help="fd:N or tcp:HOST:PORT")
    parser.add_argument("--project", required=True, help="the project's id, shown in process lists")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    try:
        config = WorkerConfig.from_json(read_config(args.config))
        if config.project != args.project:
            raise ConfigError("--project differs from the configuration")
    except (ConfigError, OSError, ValueError) as e:
        sys.exit(f"codevo worker: {e}")
    # user code may link a FIFO or exceed a quota: writes fail with an error, they do not kill
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.setswitchinterval(_SWITCH)
    _few_arenas()
    _skip_authorities(config.store.endpoint_url)
    sys.exit(asyncio.run(_run(config, args.listen)))


if __name__ == "__main__":
    main()
