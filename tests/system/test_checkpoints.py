"""Checkpoints, imports and the garbage collector on a whole hub with real workspaces."""

from __future__ import annotations

import io
import subprocess
from urllib.parse import quote

import pytest

from tests.codevo.archive_kit import Thing, folder, link, tar_zst, untar
from tests.harness import CODEVO, Client, HubProcess, Refused
from tests.system.kit import editing, put, until

pytestmark = pytest.mark.sandbox


async def upload(person: Client, data: bytes, title: str = "Imported") -> str:
    async with person.http.post(
        f"{person.url}/api/projects?title={quote(title)}",
        data=io.BytesIO(data),
        headers=person.headers() | {"Content-Type": "application/zstd"},
    ) as answer:
        assert answer.status == 201, await answer.text()
        return str((await answer.json())["id"])


async def export(person: Client, project: str) -> bytes:
    async with person.http.get(f"{person.url}/api/projects/{project}/export") as answer:
        assert answer.status == 200
        return await answer.read()


async def test_a_checkpoint_comes_back_for_everybody(hub: HubProcess, ana: Client, ben: Client) -> None:
    project = await ana.new_project("python")
    checkpoints = f"/api/projects/{project}/checkpoints"
    first = await ana.call("POST", checkpoints, {"name": "as it was made"})
    assert (first["name"], first["by"], first["auto"]) == ("as it was made", ana.name, False)

    await ana.call("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": "editor"})
    await ana.ready(project)
    await put(ana, project, "notes.txt", "one\n")
    async with editing(ana, project, "main.py") as a, editing(ben, project, "main.py") as b:
        original = str(a.text)
        a.text.insert(0, "# typed by ana\n")
        await until(lambda: str(b.text) == "# typed by ana\n" + original, "ben to see it")
        # what was typed just now is in it
        second = await ben.call("POST", checkpoints, {"name": "typed"})
        assert second["seq"] > first["seq"] and second["by"] == ben.name
        b.text.insert(0, "# typed by ben\n")
        await put(ana, project, "later.txt", "x")
        await until(lambda: str(a.text).startswith("# typed by ben"), "ana to see it")

        done = await ana.call("POST", f"{checkpoints}/{second['seq']}/restore", {})
        assert done["deleted"] >= 1 and done["checkpoint"]["auto"], done
        for one in (a, b):
            await until(
                lambda one=one: str(one.text) == "# typed by ana\n" + original, "both to have it back"
            )
        with pytest.raises(Refused):
            await ana.read(project, "later.txt")
        # the state before the restore is a checkpoint, and comes back in its turn
        await ana.call("POST", f"{checkpoints}/{done['checkpoint']['seq']}/restore", {})
        await until(lambda: str(b.text).startswith("# typed by ben"), "the way back")
        assert await ana.read(project, "later.txt") == "x"

    # a stopped project is started for it
    await ana.stop(project)
    await ana.call("POST", f"{checkpoints}/{first['seq']}/restore", {})
    assert (await ana.call("GET", f"/api/projects/{project}"))["server"]["state"] == "ready"
    assert await ana.read(project, "main.py") == original
    with pytest.raises(Refused):
        await ana.read(project, "notes.txt")
    names = [c["name"] for c in await ben.call("GET", checkpoints)]
    assert {"as it was made", "typed"} < set(names)
    with pytest.raises(Refused) as e:
        await ben.call("DELETE", f"{checkpoints}/{first['seq']}")
    assert e.value.status == 403
    await ana.call("DELETE", f"{checkpoints}/{first['seq']}")
    with pytest.raises(Refused) as e:
        await ana.call("POST", f"{checkpoints}/{first['seq']}/restore", {})
    assert e.value.status == 404


async def test_an_import_runs_and_its_export_is_the_same(hub: HubProcess, ana: Client) -> None:
    odd = b"caf\xe9 \n\x01".decode("utf-8", "surrogateescape")
    things = [
        Thing("main.py", b"print('imported')\n"),
        Thing("bin/run me", b"#!/bin/sh\necho ran\n", 0o755),
        Thing("locked", b"l", 0o444),
        Thing(odd, b"latin"),
        Thing("naive \U0001f600.txt", b"n"),
        folder("empty"),
        folder("bin"),
        link("latest", "bin/run me"),
        link("dangling", "/nowhere"),
    ]
    project = await upload(ana, tar_zst(*things))
    await ana.ready(project)
    assert await ana.read(project, "main.py") == "print('imported')\n"
    async with ana.terminal(project) as terminal:
        await terminal.type("'./latest' && stat -c %a 'bin/run me' locked && ls --color=never -d empty\n")
        await terminal.until(r"ran\r?\n755\r?\n444\r?\nempty")
    await put(ana, project, "new.txt", "new")
    await ana.durable(project)
    await ana.stop(project)
    first = untar(await export(ana, project))
    assert {t.name for t in things} | {"new.txt"} == set(first)
    assert (first["bin/run me"][1], first["locked"][1], first["latest"][3]) == (0o755, 0o444, "bin/run me")
    again = await upload(ana, await export(ana, project))
    await ana.ready(again)
    await ana.durable(again)
    await ana.stop(again)
    assert untar(await export(ana, again)) == first


async def test_gc_beside_a_running_hub_touches_nothing_that_lives(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "a.txt", "a")
    await ana.durable(project)
    before = untar(await export(ana, project))
    for arguments in (["--dry-run"], []):
        done = subprocess.run(
            [str(CODEVO), "gc", "--data-dir", str(hub.data_dir), *arguments],
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "0 objects" in done.stdout.splitlines()[-1]
    assert untar(await export(ana, project)) == before
