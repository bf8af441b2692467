"""The command ``collab`` of the benches: what to measure, the tables, and the JSON."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

from codevo.embedded import EmbeddedServices
from codevo.embedded.s3 import S3Settings
from tests.bench.collab import servers
from tests.bench.collab.requests import counted, hourly
from tests.bench.collab.restore import Restores
from tests.bench.collab.rooms import prepared, replay, typing
from tests.bench.collab.servers import Peers, Server

TRACE = "CODEVO_BENCH_TRACE"
SERVERS = ("worker", "worker-no-store", "hub", "pycrdt-websocket", "y-websocket", "hocuspocus")
PARTS = ("typing", "trace", "restore", "requests")
#: Files and bytes of the workspaces that are restored.
WORKSPACES = ((1_000, 20 * 10**6), (10_000, 150 * 10**6))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests.bench collab", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--clients", nargs="+", type=int, default=[2, 10, 30])
    parser.add_argument("--seconds", type=float, default=10.0, help="of measured typing")
    parser.add_argument("--minutes", type=float, default=1.0, help="of typing while requests are counted")
    parser.add_argument("--repeat", type=int, default=1, help="rounds; the median is shown")
    parser.add_argument("--trace", type=Path, help=f"a recorded editing session (.json.gz); or ${TRACE}")
    parser.add_argument("--json", type=Path, help="write all figures there")
    return parser


def _table(title: str, head: list[str], rows: list[list[object]]) -> None:
    texts = [head, *([f"{c:.2f}" if isinstance(c, float) else str(c) for c in row] for row in rows)]
    widths = [max(len(row[n]) for row in texts) for n in range(len(head))]
    print(f"\n{title}")
    for row in texts:
        cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


class Bench:
    def __init__(self, arguments: argparse.Namespace, peers: Peers, folder: Path, s3: S3Settings) -> None:
        self._arguments, self._peers, self._folder, self._s3 = arguments, peers, folder, s3
        self._number = 0

    def _server(self, name: str, files: list[str]) -> AbstractAsyncContextManager[Server]:
        self._number += 1
        folder = self._folder / f"{self._number}"
        if name == "worker":
            return servers.worker(folder, self._s3, files)
        if name == "worker-no-store":
            return servers.worker(folder, None, files)
        folder.mkdir()
        if name == "hub":
            return servers.hub(folder, files)
        return servers.peer(name, self._peers, folder)

    async def typing(self) -> list[dict[str, Any]]:
        """All servers with all numbers of clients, as many times as asked, in turns."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        files = [f"typing-{n}.txt" for n in self._arguments.clients]
        for _ in range(self._arguments.repeat):
            for name in self._arguments.servers:
                async with self._server(name, files) as server:
                    for clients, file in zip(self._arguments.clients, files, strict=True):
                        figures = await typing(self._peers, server, file, clients, self._arguments.seconds)
                        found.setdefault((name, clients), []).append(figures)
                        print(".", end="", flush=True)
        results = [{"server": s, "clients": c} | _median(rounds) for (s, c), rounds in found.items()]
        results.sort(key=lambda r: r["clients"])
        columns = ("clients", "p50", "p99", "max", "cpu_ms_per_1000", "rss_mib", "lost", "load_cpu")
        _table(
            "Typing in one room: edit to everybody in ms, CPU in ms per 1,000 delivered, RSS in MiB",
            ["server", *columns],
            [[r["server"], *(r[c] for c in columns)] for r in results],
        )
        return results

    async def trace(self) -> list[dict[str, Any]]:
        """A real editing session as one client's stream."""
        trace = self._arguments.trace or os.environ.get(TRACE)
        if not trace:
            print(f"\nno recorded session: give --trace FILE or set {TRACE}")
            return []
        updates = await prepared(self._peers, Path(trace))
        results = []
        for name in self._arguments.servers:
            async with self._server(name, ["trace.txt"]) as server:
                idle = server.memory()
                figures = await replay(self._peers, server, "trace.txt", updates)
                results.append({"server": name, "idle_mib": idle} | figures)
                print(".", end="", flush=True)
        columns = ("edits", "taken", "cpu", "idle_mib", "peak_mib", "loaded", "peak_after_load_mib", "bytes")
        _table(
            "A real session of one writer: seconds to take it, then to load it; MiB",
            ["server", *columns],
            [[r["server"], *(r[c] for c in columns)] for r in results],
        )
        return results

    async def restore(self) -> list[dict[str, Any]]:
        """Whole workspaces, from the local S3 server."""
        restores = Restores(self._peers, self._s3, self._folder)
        results = [
            await restores.measure(files, size, max(3, self._arguments.repeat)) for files, size in WORKSPACES
        ]
        columns = ("files", "bytes", "log", "get", "rclone", "get_ratio", "rclone_ratio")
        _table(
            "A workspace from the bucket: seconds, and how many times longer than by our log",
            list(columns),
            [[r[c] for c in columns] for r in results],
        )
        return results

    async def requests(self) -> list[dict[str, Any]]:
        """The bucket's requests while one and while ten people type without a pause."""
        results = []
        for clients in (1, 10):
            self._number += 1
            async with counted(self._s3) as (s3, seen):
                folder = self._folder / f"{self._number}"
                async with servers.worker(folder, s3, ["typing.txt"]) as server:
                    seconds = self._arguments.minutes * 60
                    counts: list[Counter[str]] = []
                    await typing(
                        self._peers, server, "typing.txt", clients, seconds,
                        mark=lambda seen=seen, counts=counts: counts.append(seen.copy()),
                    )  # fmt: skip
                    found = hourly(counts[1] - counts[0], seconds)
            results.append({"clients": clients} | found)
        columns = ("clients", "class_a_per_hour", "class_b_per_hour", "dollars_per_1000_hours", "seen")
        _table(
            "Requests to the bucket, extrapolated to an hour of typing, and R2's price for them",
            list(columns),
            [[r[c] for c in columns] for r in results],
        )
        return results


def _median(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: statistics.median(r[key] for r in rounds) for key in rounds[0]}


@contextlib.asynccontextmanager
async def _store(folder: Path) -> AsyncIterator[S3Settings]:
    services = EmbeddedServices(folder, mongo=False, s3=True, log=logging.getLogger("bench"))
    async with services:
        yield services.s3


async def main(argv: list[str]) -> int:
    """Measure what was asked for. Nothing here passes or fails by its times."""
    arguments = _parser().parse_args(argv)
    peers = await asyncio.to_thread(servers.install)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="codevo-bench-") as name:
        folder = Path(name)
        os.sched_setaffinity(0, {servers.cores()[1]})
        async with _store(folder / "store") as s3:
            bench = Bench(arguments, peers, folder, s3)
            for part in arguments.parts:
                results[part] = await getattr(bench, part)()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return 0
