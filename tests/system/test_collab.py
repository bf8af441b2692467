"""Documents edited together through the hub, with everything between the people failing in turn."""

from __future__ import annotations

import asyncio
import shutil

import pytest
from pycrdt import Doc, Text

from tests.harness import Client, HubProcess, Refused
from tests.pod_runtime.worker.ycl import YClient
from tests.system.kit import collab_url, connect, disk, editing, kill_worker, put, until


async def invite(ana: Client, ben: Client, project: str, role: str = "editor") -> None:
    found = await ana.call("POST", f"/api/projects/{project}/invites", {"role": role, "expires_in": 3600})
    await ben.call("POST", f"/api/invites/{found['code']}")


async def on_disk(hub: HubProcess, project: str, path: str, text: str) -> None:
    file = disk(hub, project) / path
    await until(lambda: file.exists() and file.read_text() == text, f"{path} on disk to be {text!r}")


async def test_two_people_through_faults_lose_and_double_nothing(
    hub: HubProcess, ana: Client, ben: Client
) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await invite(ana, ben, project)
    await ana.call("PUT", f"/p/{project}/api/contents/deep", {"type": "directory"})
    await put(ana, project, "deep/ä 🎈.txt", "")
    a = await connect(ana, project, "deep/ä 🎈.txt")
    b = await connect(ben, project, "deep/ä 🎈.txt")

    async def both(text_of_a: str, text_of_b: str) -> None:
        """Each types one character at a time, at once."""
        for i in range(max(len(text_of_a), len(text_of_b))):
            a.text.insert(0, text_of_a[i : i + 1])
            b.text.insert(len(b.text), text_of_b[i : i + 1])
            await asyncio.sleep(0)

    def typed() -> str:
        assert sorted(str(a.text)) == sorted(str(b.text))
        return str(a.text)

    await both("héllo🙂", "wörld👩‍🚀")
    await until(lambda: str(a.text) == str(b.text) and len(str(a.text)) == 14, "both to see all")

    async def again() -> None:
        """As y-websocket does: a new socket for the same document."""
        nonlocal a, b
        await a.close()
        await b.close()
        a = await connect(ana, project, "deep/ä 🎈.txt", a.doc)
        b = await connect(ben, project, "deep/ä 🎈.txt", b.doc)
        await until(lambda: str(a.text) == str(b.text), "both to agree")

    async def faulty(fault: str) -> None:
        before = sorted(str(a.text))
        mark_a, mark_b = f"<{fault} a>", f"<{fault} b>"
        await both(mark_a[:4], mark_b[:4])
        if fault in ("worker", "both"):
            kill_worker(project)
        if fault in ("hub", "both"):
            await asyncio.to_thread(hub.kill)
        await both(mark_a[4:], mark_b[4:])  # typed while nobody listens
        if fault in ("hub", "both"):
            await asyncio.to_thread(hub.start)
        await again()
        assert sorted(typed()) == sorted([*before, *mark_a, *mark_b]), fault

    for fault in ("worker", "hub", "both"):
        await faulty(fault)
    await on_disk(hub, project, "deep/ä 🎈.txt", typed())
    await ana.durable(project)
    text = typed()

    # the machine is lost, one client stays away and types on: history comes back from the bucket
    await a.close()
    await b.close()
    await ana.stop(project)
    shutil.rmtree(hub.data_dir / "workspaces" / project)
    a.text.insert(0, "offline ")
    await ana.ready(project)
    assert await ana.read(project, "deep/ä 🎈.txt") == text
    await again()
    assert str(a.text) == str(b.text) == "offline " + text
    await on_disk(hub, project, "deep/ä 🎈.txt", "offline " + text)
    await a.close()
    await b.close()


async def test_another_history_is_refused_and_roles_hold(hub: HubProcess, ana: Client, ben: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await invite(ana, ben, project, "viewer")
    await put(ana, project, "a.txt", "kept\n")
    async with editing(ana, project, "a.txt") as a, editing(ben, project, "a.txt") as b:
        await b.has("kept\n")
        a.text.insert(0, "yes ")
        await b.has("yes kept\n")
        b.text.insert(0, "NO ")
        assert await b.closed() == 4403
        a.text.insert(0, "and ")
        await on_disk(hub, project, "a.txt", "and yes kept\n")
        assert str(a.text) == "and yes kept\n"

    doc: Doc[object] = Doc()
    doc.get("source", type=Text).insert(0, "kept\n")  # equal text, another history
    stranger = YClient(doc)
    await stranger.connect(ana.http, collab_url(ana.url, project, "a.txt"), {"Origin": ana.url})
    assert await stranger.closed() == 4409
    await stranger.close()
    assert await ana.read(project, "a.txt") == "and yes kept\n"

    gone = YClient()
    await gone.connect(ana.http, collab_url(ana.url, project, "nothing here.txt"), {"Origin": ana.url})
    assert await gone.closed() == 4404
    await gone.close()


async def test_files_change_under_open_documents(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    lines = "".join(f"line {i}\n" for i in range(1, 9))
    await put(ana, project, "a.txt", lines)
    async with editing(ana, project, "a.txt") as a, ana.terminal(project) as terminal:
        await terminal.type("git init -q . && git add a.txt && git -c user.name=a -c user.email=a@b.c "
                            "commit -qm one && echo committed-$?\n")  # fmt: skip
        await terminal.until("committed-0")

        await terminal.type("sed -i 's/line 2/LINE 2/' a.txt; echo sed-$?\n")
        await terminal.until("sed-0")
        await a.has(lines.replace("line 2", "LINE 2"))
        a.text.insert(len(a.text), "typed 🙂\n")
        await on_disk(hub, project, "a.txt", lines.replace("line 2", "LINE 2") + "typed 🙂\n")

        await terminal.type("git checkout -q a.txt; echo checkout-$?\n")
        await terminal.until("checkout-0")
        await a.has(lines)

        # into a folder that is not there: refused in words, the document is where it was
        with pytest.raises(Refused, match=r": 404 .*sub dir"):
            await ana.call("PATCH", f"/p/{project}/api/contents/a.txt", {"path": "sub dir/b.txt"})
        a.text.insert(0, "first\n")
        await on_disk(hub, project, "a.txt", "first\n" + lines)


async def test_rename_and_removal_under_an_open_document(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await put(ana, project, "a.txt", "one\n")
    async with editing(ana, project, "a.txt") as a:
        await ana.call("PATCH", f"/p/{project}/api/contents/a.txt", {"path": "b.txt"})
        a.text.insert(0, "zero\n")
        await on_disk(hub, project, "b.txt", "zero\none\n")
        assert not (disk(hub, project) / "a.txt").exists()
        async with ana.terminal(project) as terminal:
            await terminal.type("rm b.txt; echo removed-$?\n")
            await terminal.until("removed-0")
        assert await a.closed() == 4404
    with pytest.raises(Refused, match=": 404 "):
        await ana.read(project, "b.txt")
