"""``make bench``: the figures that the project promises, measured on this machine in one run.

``python -m tests.bench [--only NAME …] [--rounds N] [--peers]``. Times are wall clock, as a person's page
would see them; p50 over the rounds, with minimum and maximum. ``--peers`` measures JupyterHub with its local
spawner in the same run and prints the ratio (installs it into a cache of its own on the first time).

``python -m tests.bench collab --help``: rooms, histories and restores beside those of others.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from tests.bench import jupyterhub, page
from tests.bench.collab import cli as collab
from tests.harness import Client, HubProcess, processes
from tests.system.kit import editing


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report; ``limit`` is the promise, in the same unit as the values."""

    name: str
    unit: str
    values: list[float]
    limit: float

    @property
    def p50(self) -> float:
        return statistics.median(self.values)

    def line(self) -> str:
        spread = f"{min(self.values):.2f}–{max(self.values):.2f}"
        verdict = "ok" if self.p50 <= self.limit else "ABOVE"
        return f"{self.name:<52} p50 {self.p50:8.2f} {self.unit:<4} ({spread}, n={len(self.values)})" \
               f"  promise ≤ {self.limit:g}  {verdict}"  # fmt: skip


async def _first_prompt(person: Client, project: str) -> float:
    """Seconds from ``POST …/server`` until a new terminal shows its prompt."""
    start = time.perf_counter()
    await person.ready(project)
    async with person.terminal(project) as terminal:
        await terminal.until(r"[$#] ")
    return time.perf_counter() - start


async def start_new(hub: HubProcess, person: Client, rounds: int) -> Figure:
    values = []
    for _ in range(rounds):
        project = await person.new_project("python")
        values.append(await _first_prompt(person, project))
        await person.call("DELETE", f"/api/projects/{project}")
    return Figure("start to first prompt, new Python project", "s", values, 1.0)


async def start_existing(hub: HubProcess, person: Client, rounds: int) -> Figure:
    project = await person.new_project("python")
    values = []
    for _ in range(rounds + 1):
        values.append(await _first_prompt(person, project))
        await person.stop(project)
    return Figure("start to first prompt, existing Python project", "s", values[1:], 0.6)


async def react_preview(hub: HubProcess, person: Client, rounds: int) -> Figure:
    """From the click on the template to the first module that Vite serves through the preview."""
    values = []
    for _ in range(max(2, rounds // 3) + 1):
        start = time.perf_counter()
        project = await person.new_project("react")
        await person.ready(project)
        run = await person.run(project)
        while not (await person.call("GET", f"/p/{project}/api/ports"))["main"]:
            await asyncio.sleep(0.05)
        code = await person.call("POST", f"/api/projects/{project}/preview-codes", {})
        parts = urlsplit(code["url"])
        base = f"http://127.0.0.1:{parts.port}"
        async with aiohttp.ClientSession(headers={"Host": parts.netloc}) as http:
            async with http.get(f"{base}{parts.path}?{parts.query}", allow_redirects=False) as entered:
                cookie = entered.headers["Set-Cookie"].split(";")[0]
            while True:
                async with http.get(base + "/src/main.jsx", headers={"Cookie": cookie}) as answer:
                    if answer.status == 200 and "createRoot" in await answer.text():
                        break
                await asyncio.sleep(0.05)
        values.append(time.perf_counter() - start)
        await run.close()
        await person.call("DELETE", f"/api/projects/{project}")
    return Figure("React template, click to first preview, second time", "s", values[1:], 5.0)


async def keystroke_durable(hub: HubProcess, person: Client, rounds: int) -> Figure:
    """From a keystroke in an open document until the worker says that it is in the bucket."""
    project = await person.new_project("python")
    await person.ready(project)
    await person.durable(project)
    values = []
    async with (
        editing(person, project, "main.py") as document,
        person.socket(project, "api/worker/events") as events,
    ):
        for _ in range(rounds * 2):
            start = time.perf_counter()
            document.text += "x"
            seen_pending = False
            async for message in events:
                event = message.json()
                if event["type"] != "durability":
                    continue
                seen_pending = seen_pending or event["pending"]
                if seen_pending and not event["pending"]:
                    break
            values.append(time.perf_counter() - start)
    return Figure("keystroke to durable in S3", "s", values, 2.0)


async def idle_memory(hub: HubProcess, person: Client, rounds: int) -> Figure:
    """Resident memory of supervisor, runner and worker (and their sandbox helpers) of an idle workspace."""
    project = await person.new_project("python")
    await person.ready(project)
    await person.durable(project)
    await asyncio.sleep(5)
    total = 0
    for pid in processes("pod_runtime.", project):
        status = Path(f"/proc/{pid}/status").read_text()
        total += int(status.split("VmRSS:")[1].split()[0])
    return Figure("RSS of an idle workspace", "MiB", [total / 1024], 130)


async def page_weight(hub: HubProcess, person: Client, rounds: int) -> Figure:
    weight = await page.ide_weight(hub, person)
    return Figure("IDE page, compressed JavaScript before a terminal", "kB", [weight / 1000], 350)


BENCHES: tuple[Callable[[HubProcess, Client, int], Awaitable[Figure]], ...] = (
    start_new, start_existing, react_preview, keystroke_durable, idle_memory, page_weight
)  # fmt: skip


async def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument(
        "--only", nargs="*", help="names of the benches: " + ", ".join(b.__name__ for b in BENCHES)
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", action="store_true", help="measure JupyterHub too")
    arguments = parser.parse_args()
    failed = False
    figures: dict[str, Figure] = {}
    with tempfile.TemporaryDirectory(prefix="codevo-bench-") as folder:
        hub = HubProcess(Path(folder) / "data")
        await asyncio.to_thread(hub.start)
        try:
            async with Client(hub.url) as person:
                await person.sign_up("bench")
                for bench in BENCHES:
                    if arguments.only and bench.__name__ not in arguments.only:
                        continue
                    figure = figures[bench.__name__] = await bench(hub, person, arguments.rounds)
                    failed |= figure.p50 > figure.limit
                    print(figure.line(), flush=True)
        finally:
            await asyncio.to_thread(hub.cleanup)
    if arguments.peers:
        peer = await jupyterhub.first_prompt(arguments.rounds)
        print(
            f"{'JupyterHub, local spawner, start to first prompt':<52} p50 {statistics.median(peer):8.2f} s"
        )
        if "start_existing" in figures:
            ratio = statistics.median(peer) / figures["start_existing"].p50
            print(f"{'Codevo starts an existing project':<52} {ratio:12.1f} times as fast")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["collab"]:
        sys.exit(asyncio.run(collab.main(sys.argv[2:])))
    sys.exit(asyncio.run(main()))
