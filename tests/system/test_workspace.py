"""The main job over the wire, against a real hub: what a person's page does, without the page."""

from __future__ import annotations

import asyncio
import os
import signal
from urllib.parse import urlsplit

import aiohttp
import pytest

from tests.harness import Client, HubProcess, Refused, processes


async def test_terminal_files_and_restart_of_the_hub(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    async with ana.terminal(project) as terminal:
        await terminal.type("echo from-$((40+2)) > note.txt; MARK=here; echo done-$?\n")
        await terminal.until(r"done-0")
    assert await ana.read(project, "note.txt") == "from-42\n"
    before = set(processes("pod_runtime.", project))
    assert before

    hub.kill()
    assert set(processes("pod_runtime.", project)) == before, "workspaces go on without their hub"
    await asyncio.to_thread(hub.start)

    found = await ana.call("GET", f"/api/projects/{project}")
    assert found["server"]["state"] == "ready"
    assert set(processes("pod_runtime.", project)) == before, "adopted, not restarted"
    async with ana.terminal(project, terminal.name) as again:
        await again.type("echo $MARK-still\n")
        await again.until(r"here-still")
    assert "from-42" in await ana.read(project, "note.txt")


async def test_stop_and_start_again_from_the_bucket(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    body = {"type": "file", "format": "text", "content": "kept = True\n"}
    await ana.call("PUT", f"/p/{project}/api/contents/k%C3%A9pt%20%F0%9F%8E%88.py", body)
    await ana.durable(project)
    await ana.stop(project)
    workspace = hub.data_dir / "workspaces" / project
    assert not processes("pod_runtime.", project)
    # the machine is lost: only the bucket remembers
    import shutil

    shutil.rmtree(workspace)
    await ana.ready(project)
    assert await ana.read(project, "képt 🎈.py") == "kept = True\n"
    assert "def greet" in await ana.read(project, "main.py")


async def test_run_output_stdin_and_stop(ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    run = await ana.run(project)
    await run.until("What is your name?")
    await run.line("Ada")
    await run.until("Hello, Ada!")
    reply = await run.until("execute_reply")
    assert reply["content"]["status"] == "ok"
    await run.close()

    run = await ana.run(project, "echo started; sleep 600")
    await run.until("started")
    kernel = await ana.call("GET", f"/p/{project}/api/kernels/{run.kernel}")
    assert kernel["execution_state"] == "busy"
    await ana.call("POST", f"/p/{project}/api/kernels/{run.kernel}/interrupt")
    reply = await run.until("execute_reply")
    assert reply["content"]["status"] == "error"
    await run.close()


async def test_roles_and_strangers(ana: Client, ben: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    with pytest.raises(Refused, match=r": 404 "):
        await ben.call("GET", f"/api/projects/{project}")
    with pytest.raises(Refused, match=r": 404 "):
        await ben.read(project, "main.py")

    invite = await ana.call(
        "POST", f"/api/projects/{project}/invites", {"role": "viewer", "expires_in": 3600}
    )
    await ben.call("POST", f"/api/invites/{invite['code']}")
    assert "greet" in await ben.read(project, "main.py")
    body = {"type": "file", "format": "text", "content": "mine"}
    for method, path in (
        ("PUT", "api/contents/main.py"),
        ("DELETE", "api/contents/main.py"),
        ("POST", "api/terminals"),
    ):
        with pytest.raises(Refused, match=r": 403 "):
            await ben.call(method, f"/p/{project}/{path}", body if method == "PUT" else None)

    await ana.call("PUT", f"/api/projects/{project}/members/{ben.name}", {"role": "editor"})
    await ben.call("PUT", f"/p/{project}/api/contents/main.py", body)
    await ana.call("DELETE", f"/api/projects/{project}/members/{ben.name}")
    with pytest.raises(Refused, match=r": 404 "):
        await ben.read(project, "main.py")


async def test_worker_comes_back_and_nothing_is_lost(ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    body = {"type": "file", "format": "text", "content": "x = 1\n"}
    await ana.call("PUT", f"/p/{project}/api/contents/x.py", body)
    for pid in processes("pod_runtime.worker", project):
        os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(10):
        while True:
            try:
                assert await ana.read(project, "x.py") == "x = 1\n"
                break
            except Refused as e:
                assert e.status == 503, e
                await asyncio.sleep(0.1)
    await ana.durable(project)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("flask", "Guest book"), ("express", "It works"), ("react", "/src/main.jsx"), ("static", "My page"),
    ],
)  # fmt: skip
async def test_web_templates_show_their_preview(ana: Client, template: str, words: str) -> None:
    project = await ana.new_project(template)
    await ana.ready(project)
    run = await ana.run(project)
    async with asyncio.timeout(60):
        while not (await ana.call("GET", f"/p/{project}/api/ports"))["main"]:
            await asyncio.sleep(0.1)
    code = await ana.call("POST", f"/api/projects/{project}/preview-codes", {})
    parts = urlsplit(code["url"])
    # glibc does not resolve *.localhost; browsers do
    local = f"http://127.0.0.1:{parts.port}{parts.path}?{parts.query}"
    async with aiohttp.ClientSession() as http:
        host = {"Host": parts.netloc}
        async with http.get(local, headers=host, allow_redirects=False) as entered:
            assert entered.status in (302, 303), await entered.text()
            cookie = entered.headers["Set-Cookie"]
            assert "HttpOnly" in cookie and "SameSite=None" in cookie and "Partitioned" in cookie
        kept = cookie.split(";")[0]
        async with asyncio.timeout(20):
            while True:
                headers = {"Host": parts.netloc, "Cookie": kept}
                async with http.get(f"http://127.0.0.1:{parts.port}/", headers=headers) as page:
                    text = await page.text()
                if words in text:
                    break
                await asyncio.sleep(0.2)
        async with http.get(local, headers=host, allow_redirects=False) as twice:
            assert twice.status >= 400, "a code works once"
        async with http.get(f"http://127.0.0.1:{parts.port}/", headers=host, allow_redirects=False) as nobody:
            assert words not in await nobody.text()
    await run.close()


async def test_cpp_builds_and_runs(ana: Client) -> None:
    project = await ana.new_project("cpp")
    await ana.ready(project)
    run = await ana.run(project)
    await run.until("What is your name?", timeout=60)
    await run.line("Ada")
    await run.until("Hello, Ada!")
    await run.close()


async def test_fork_is_a_copy_of_its_own(ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    body = {"type": "file", "format": "text", "content": "original\n"}
    await ana.call("PUT", f"/p/{project}/api/contents/a.txt", body)
    fork = (await ana.call("POST", f"/api/projects/{project}/fork", {}))["id"]
    await ana.ready(fork)
    assert await ana.read(fork, "a.txt") == "original\n"
    await ana.call("PUT", f"/p/{fork}/api/contents/a.txt", body | {"content": "changed\n"})
    assert await ana.read(project, "a.txt") == "original\n"


async def test_deleted_project_leaves_nothing(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    await ana.call("DELETE", f"/api/projects/{project}")
    with pytest.raises(Refused, match=r": 404 "):
        await ana.call("GET", f"/api/projects/{project}")
    assert not processes("pod_runtime.", project)
    assert not (hub.data_dir / "workspaces" / project).exists()
