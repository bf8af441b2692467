"""What the hub needs goes away for a while, or a project takes all it can: nothing is lost, others go on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import time

import aiohttp
import pytest

from tests.harness import Client, HubProcess, Refused, processes
from tests.system.kit import (
    children,
    connect,
    disk,
    editing,
    frozen,
    kill,
    kill_worker,
    put,
    reading,
    resident,
    until,
)


async def durability(person: Client, project: str) -> dict[str, object]:
    found: dict[str, object] = await person.call("GET", f"/p/{project}/api/durability")
    return found


async def lose_the_machine(hub: HubProcess, person: Client, project: str) -> None:
    """Stop, forget everything on this disk, start again: what is there afterwards was in the bucket."""
    await person.stop(project)
    shutil.rmtree(hub.data_dir / "workspaces" / project)
    await person.ready(project)


# the object store


async def test_the_object_store_hangs_and_comes_back(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "doc.txt", "")
    await ana.durable(project)
    with frozen(hub, "weed"):
        async with editing(ana, project, "doc.txt") as a:
            a.text.insert(0, "typed while the store hung")
            await put(ana, project, "file.txt", "written while the store hung")

            async def told() -> bool:
                status = await durability(ana, project)
                return bool(status["pending"] and status["last_error"])

            await until(told, "the durability status to tell of the error", 60)
            # /readyz tells the operator, quickly
            begin = time.monotonic()
            async with ana.http.get(f"{hub.url}/readyz") as answer:
                assert answer.status == 503 and not (await answer.json())["object_store"]["ok"]
            assert time.monotonic() - begin < 10
            # people work on
            assert await ana.read(project, "file.txt") == "written while the store hung"
            async with ana.terminal(project) as terminal:
                await terminal.type("echo fine-$((1+1))\n")
                await terminal.until("fine-2")
    await ana.durable(project, 90)
    assert not (await durability(ana, project))["last_error"]
    await lose_the_machine(hub, ana, project)
    assert await ana.read(project, "file.txt") == "written while the store hung"
    assert await ana.read(project, "doc.txt") == "typed while the store hung"


async def test_the_object_store_is_killed_again_and_again(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    written = {}
    for i in range(4):
        kill(*children(hub, "weed"))
        for j in range(3):
            name = f"{i}-{j}.txt"
            written[name] = f"{name} " * 2000
            await put(ana, project, name, written[name])
            await asyncio.sleep(0.1)
        if i == 2:
            kill_worker(project)

            async def back() -> bool:
                return await reading(ana, project, "0-0.txt") is not None

            await until(back, "the worker to be back", 60)
        await until(lambda: children(hub, "weed"), "the store to be started again")
    await ana.durable(project, 90)
    await lose_the_machine(hub, ana, project)
    for name, text in written.items():
        assert await ana.read(project, name) == text, name


# the database


async def test_the_database_hangs_and_comes_back(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "doc.txt", "one ")
    async with editing(ana, project, "doc.txt") as a, ana.terminal(project) as terminal:
        with frozen(hub, "mongod"):
            begin = time.monotonic()
            with pytest.raises(Refused, match=r": 503 ") as refused:
                await ana.call("GET", "/api/projects")
            assert time.monotonic() - begin < 10
            assert "detail" in refused.value.body and "Traceback" not in refused.value.body
            begin = time.monotonic()
            async with ana.http.get(f"{hub.url}/readyz") as answer:
                found = await answer.json()
                assert answer.status == 503 and not found["database"]["ok"] and found["object_store"]["ok"]
            async with ana.http.get(f"{hub.url}/healthz") as answer:
                assert answer.status == 200
            assert time.monotonic() - begin < 10
            # what is open goes on
            await terminal.type("echo open-$((1+1))\n")
            await terminal.until("open-2")
            a.text.insert(len(a.text), "two")
            file = disk(hub, project) / "doc.txt"
            await until(lambda: file.read_text() == "one two", "the edit to be saved")

        async def healed() -> bool:
            async with ana.http.get(f"{hub.url}/readyz") as answer:
                return answer.status == 200

        await until(healed, "the hub to be ready again")
        assert len(await ana.call("GET", "/api/projects")) == 1

    # killed outright: the hub starts it again; what was acknowledged is there
    title = f"Title {os.urandom(4).hex()}"
    await ana.call("PATCH", f"/api/projects/{project}", {"title": title})
    kill(*children(hub, "mongod"))

    async def renamed() -> bool:
        with contextlib.suppress(Refused):
            return bool((await ana.call("GET", f"/api/projects/{project}"))["title"] == title)
        return False

    await until(renamed, "the database to be back")


# the supervisor, and a second worker


async def test_a_killed_supervisor_is_told_and_nothing_is_lost(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "doc.txt", "")
    a = await connect(ana, project, "doc.txt")
    a.text.insert(0, "acknowledged")
    await put(ana, project, "file.txt", "acknowledged")
    file = disk(hub, project) / "doc.txt"
    await until(lambda: file.read_text() == "acknowledged", "the edit to be on disk")
    supervisors = processes("pod_runtime/supervisor", project)
    assert supervisors
    kill(*supervisors)
    await a.close()

    async def failed() -> dict[str, object] | None:
        server = (await ana.call("GET", f"/api/projects/{project}"))["server"]
        return server if server["state"] == "failed" else None

    server = await until(failed, "the project to be told as failed")
    assert server["reason"]
    await until(lambda: not processes("pod_runtime.", project), "nothing of it to be left")
    with pytest.raises(Refused, match=r": 503 "):
        await ana.read(project, "file.txt")
    await ana.ready(project)
    assert await ana.read(project, "file.txt") == "acknowledged"
    assert await ana.read(project, "doc.txt") == "acknowledged"
    b = await connect(ana, project, "doc.txt", a.doc)
    assert str(b.text) == "acknowledged"
    await b.close()
    await ana.durable(project)


async def test_a_worker_of_an_older_generation_is_fenced(hub: HubProcess, ana: Client) -> None:
    """The machine froze; the project was started anew elsewhere; the machine wakes up and may not write."""
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "file.txt", "first")
    await ana.durable(project)
    stale = processes("pod_runtime.worker", project) + processes("pod_runtime/supervisor", project)
    # frozen together, so that the supervisor does not end the worker when it is forgotten
    for pid in stale:
        os.kill(pid, signal.SIGSTOP)
    root = hub.data_dir / "workspaces" / project
    await asyncio.to_thread(hub.kill)
    aside = root.with_name("aside")
    root.rename(aside)
    try:
        await asyncio.to_thread(hub.start)
        await ana.ready(project)
        assert await ana.read(project, "file.txt") == "first"
        await put(ana, project, "file.txt", "second")
        await ana.durable(project)
        (aside / "workspace" / "file.txt").write_text("stale")
        for pid in stale:
            os.kill(pid, signal.SIGCONT)
        # the stale worker finds out by itself, and ends

        def running() -> set[int]:
            return set(stale) & set(processes("pod_runtime.worker", project))

        await until(lambda: not running(), "it to be fenced", 60)
        await put(ana, project, "other.txt", "third")
        await lose_the_machine(hub, ana, project)
        assert await ana.read(project, "file.txt") == "second"
        assert await ana.read(project, "other.txt") == "third"
    finally:
        kill(*stale)
        shutil.rmtree(aside, ignore_errors=True)


# one project takes all it can


async def latencies(*people: tuple[Client, str], seconds: float) -> list[float]:
    """How long these people wait for a file and for the hub, while something goes on."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for person, project in people:
            begin = time.monotonic()
            await person.read(project, "main.py")
            await person.call("GET", "/api/user")
            found.append(time.monotonic() - begin)
        await asyncio.sleep(0.05)
    return found


async def test_a_greedy_project_harms_nobody_else(hub: HubProcess, ana: Client, ben: Client) -> None:
    greedy, quiet = await ana.new_project("python"), await ben.new_project("python")
    await ana.ready(greedy)
    await ben.ready(quiet)
    async with ana.terminal(greedy) as bomb:
        await bomb.type("bomb() { bomb | bomb & }; bomb\n")
        waits = await latencies((ben, quiet), seconds=4)
        assert statistics.median(waits) < 1.0 and max(waits) < 5, waits
        async with ben.terminal(quiet) as other:
            await other.type("echo alive-$((1+1))\n")
            await other.until("alive-2")
    # the way out for its owner is always there
    await ana.stop(greedy)
    assert not processes("pod_runtime.", greedy)
    await ana.ready(greedy)

    async with ana.terminal(greedy) as hog:
        await hog.type("python3 -c 'x=[]\nwhile True: x.append(bytearray(50<<20))'; echo ended-$?\n")
        waits = await latencies((ben, quiet), seconds=1)
        assert statistics.median(waits) < 1.0, waits
        await hog.until(r"ended-\d+", 60)
        await hog.type("echo usable-$((1+1))\n")
        await hog.until("usable-2")
    assert "greet" in await ana.read(greedy, "main.py")


async def test_floods_of_output_are_bounded(hub: HubProcess, ana: Client, ben: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    link = await ana.call("POST", f"/api/projects/{project}/invites", {"role": "editor", "expires_in": 600})
    await ben.call("POST", f"/api/invites/{link['code']}")
    assert hub.process
    runner = processes("pod_runtime.runner", project)
    # of the sandbox's processes the largest is the runner itself
    before = {pid: resident(pid) for pid in [*runner, hub.process.pid]}

    async def drain(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for _ in socket:
            pass

    async with ana.terminal(project) as flood, ana.terminal(project) as unread:
        await flood.type("yes flood\n")
        await unread.type("yes nobody reads this\n")
        run = await ana.run(project, "yes program")
        draining = [asyncio.create_task(drain(s)) for s in (flood.ws, run.ws)]
        try:
            async with ben.terminal(project) as quiet:
                waits = []
                end = time.monotonic() + 4
                while time.monotonic() < end:
                    begin = time.monotonic()
                    mark = os.urandom(4).hex()
                    await quiet.type(f"echo {mark[:4]}''{mark[4:]}\n")
                    await quiet.until(mark)
                    waits.append(time.monotonic() - begin)
                assert statistics.median(waits) < 1.0, waits
                assert "greet" in await ben.read(project, "main.py")
            for pid, was in before.items():
                assert resident(pid) - was < 64 * 2**20, (pid, was, resident(pid))
            # Stop and Ctrl-C work in the midst of it
            await ana.call("POST", f"/p/{project}/api/kernels/{run.kernel}/interrupt")

            async def idle() -> bool:
                kernel = await ana.call("GET", f"/p/{project}/api/kernels/{run.kernel}")
                return bool(kernel["execution_state"] == "idle")

            await until(idle, "the program to stop")
        finally:
            for task in draining:
                task.cancel()
            await asyncio.gather(*draining, return_exceptions=True)
            await run.close()
    async with ana.terminal(project, flood.name) as again:
        await again.type("\x03")
        await again.type("echo calm-$((1+1))\n")
        await again.until("calm-2")


# a full disk


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
async def test_a_full_disk_is_said_and_loses_nothing(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "doc.txt", "before ")
    await ana.durable(project)
    await ana.stop(project)
    # the whole of the project's folder lies on a file system of 24 MiB
    root = hub.data_dir / "workspaces" / project
    shutil.rmtree(root)
    root.mkdir(0o755)
    mount = await asyncio.create_subprocess_exec(
        "mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", str(root)
    )
    if await mount.wait():
        pytest.skip("no file systems can be mounted here")
    try:
        await ana.ready(project)
        async with editing(ana, project, "doc.txt") as a, ana.terminal(project) as terminal:
            await terminal.type("head -c 40M /dev/zero > fill; echo filled-$?\n")
            await terminal.until(r"filled-1")
            with pytest.raises(Refused) as refused:
                await put(ana, project, "new.txt", "x" * 100_000)
            assert refused.value.status == 507, refused.value
            assert "space" in refused.value.body or "full" in refused.value.body
            assert await ana.read(project, "doc.txt") == "before "
            a.text.insert(len(a.text), "while full ")
            await asyncio.sleep(1)  # the save is tried, and cannot be done
            assert (await durability(ana, project))["pending"]
            await terminal.type("rm fill; echo freed-$?\n")
            await terminal.until("freed-0")
            a.text.insert(len(a.text), "after")
            file = disk(hub, project) / "doc.txt"
            await until(lambda: file.read_text() == "before while full after", "the document to be saved")
        await ana.durable(project)
        await ana.stop(project)
    finally:
        # lazily: a failed test leaves the workspace running
        await (await asyncio.create_subprocess_exec("umount", "-l", str(root))).wait()
    shutil.rmtree(root, ignore_errors=True)
    await ana.ready(project)
    assert await ana.read(project, "doc.txt") == "before while full after"
