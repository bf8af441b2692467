"""People and programs that mean harm, against a real hub."""

from __future__ import annotations

import asyncio
import base64
import http.client
import itertools
import json
import os
import re
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import pytest
from yarl import URL

from tests.harness import Client, HubProcess, Refused
from tests.pod_runtime.worker.ycl import YClient
from tests.system.kit import collab_url, disk, editing, put, resident, until

_names = itertools.count(1)

#: What anybody may call without an account; everything else of the API must refuse.
PUBLIC = {
    "GET /healthz",
    "GET /readyz",
    "GET /api/config",
    "GET /api/openapi.json",
    "GET /api/templates",
    "POST /api/signup",
    "POST /api/login",
    "POST /api/logout",
    "GET /api/invites/{code}",
}


async def raw(
    hub: HubProcess, method: str, target: str, headers: dict[str, str] | None = None, body: bytes = b""
) -> tuple[int, dict[str, str], bytes]:
    """A request with exactly this target: other clients tidy paths up."""

    def call() -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=30)
        try:
            connection.putrequest(method, target, skip_host="Host" in (headers or {}))
            for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                connection.putheader(name, value)
            connection.endheaders(body or None)
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    return await asyncio.to_thread(call)


async def bearer(person: Client) -> dict[str, str]:
    made = await person.call("POST", "/api/tokens", {"note": "test"})
    return {"Authorization": f"Bearer {made['token']}"}


def cookies(person: Client) -> dict[str, str]:
    """The session's cookies by hand, as another site's page would make the browser send them."""
    found = person.http.cookie_jar.filter_cookies(URL(person.url))
    return {"Cookie": "; ".join(f"{c.key}={c.value}" for c in found.values())}


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(b"0123456789abcdef").decode(),
}


# who may


async def test_nothing_is_told_without_credentials(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    described = await ana.call("GET", "/api/openapi.json")
    values = {"project_id": project, "name": ana.name}
    unguarded = set()
    for path, operations in described["paths"].items():
        target = re.sub(r"\{(\w+)\}", lambda m: values.get(m[1], "x"), path)
        for method in operations:
            status, _, text = await raw(hub, method.upper(), target, {"Content-Type": "application/json"})
            assert status < 500, (method, path, text)
            if status not in (401, 404):
                unguarded.add(f"{method.upper()} {path}")
    assert unguarded <= PUBLIC, unguarded - PUBLIC

    for path in (
        "api/contents/main.py", "files/main.py", "api/kernels", "api/terminals", "api/durability", "api/me",
        "api/status", "api/ports", "api/search?q=x", "nothing",
    ):  # fmt: skip
        assert (await raw(hub, "GET", f"/p/{project}/{path}"))[0] == 401, path
        assert (await raw(hub, "DELETE", f"/p/{project}/{path}"))[0] == 401, path
    for path in (
        "terminals/websocket/1", "api/kernels/x/channels", "api/events", "collab/main.py", "presence",
        "api/worker/events", "lsp/python",
    ):  # fmt: skip
        status, _, _ = await raw(hub, "GET", f"/p/{project}/{path}", UPGRADE | {"Origin": hub.url})
        assert status == 401, path
    # the pod's private routes are not the public's, nor their owner's
    for path in ("_codevo/health", "_codevo/flush", "%5fcodevo/flush", "//_codevo/flush", "_codevo%2fhealth"):
        for method in ("GET", "POST"):
            status, _, _ = await raw(hub, method, f"/p/{project}/{path}", await bearer(ana))
            assert status == 404, path


async def test_forged_requests_are_refused(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    cookie, token = cookies(ana), ana.headers()
    content = {"Content-Type": "application/json"}
    rename = (b'{"title": "Stolen"}', content)
    write = (b'{"type": "file", "format": "text", "content": "stolen"}', content)
    for target, method, (body, kind) in (
        (f"/api/projects/{project}", "PATCH", rename),
        (f"/p/{project}/api/contents/main.py", "PUT", write),
        (f"/p/{project}/api/terminals", "POST", (b"{}", content)),
    ):
        for headers in (
            {},
            {"Origin": hub.url},
            {"X-XSRFToken": "x"},
            token | {"Origin": "https://evil.example"},
            token | {"Origin": "null"},
            token | {"Origin": hub.url + ".evil.example"},
            token | {"Origin": f"http://{project}.localhost:{hub.port}"},
        ):
            status, _, text = await raw(hub, method, target, cookie | kind | headers, body)
            assert status == 403, (target, headers, text)
    assert (await ana.call("GET", f"/api/projects/{project}"))["title"] == "Test"
    assert "stolen" not in await ana.read(project, "main.py")

    name = (await ana.call("POST", f"/p/{project}/api/terminals", {}))["name"]
    for origin in (
        "https://evil.example",
        "null",
        hub.url + ".evil.example",
        f"{hub.url}@evil.example",
        None,
    ):
        for path in (f"terminals/websocket/{name}", "collab/main.py", "presence", "api/events"):
            given = UPGRADE | cookie | ({"Origin": origin} if origin else {})
            assert (await raw(hub, "GET", f"/p/{project}/{path}", given))[0] == 403, (origin, path)

    # DNS rebinding: another name for this address
    for host in ("evil.example", f"evil.example:{hub.port}", f"127.0.0.1.evil.example:{hub.port}", "0.0.0.0"):
        for target in ("/", "/api/user", f"/p/{project}/api/contents/main.py"):
            status, _, text = await raw(hub, "GET", target, cookie | {"Host": host})
            assert status == 421 and b"greet" not in text, (host, target)


async def test_guessing_passwords_is_slowed_down(hub: HubProcess, ana: Client) -> None:
    async with Client(hub.url) as guest:
        statuses = []
        for i in range(12):
            try:
                await guest.log_in(ana.name, f"wrong password {i}")
            except Refused as e:
                statuses.append(e.status)
                if e.status == 429:
                    break
        assert statuses[0] == 401 and statuses[-1] == 429, statuses
        # the right one has to wait as well, or the limit would tell it
        with pytest.raises(Refused, match=r": 429 "):
            await guest.log_in(ana.name)
    assert (await ana.call("GET", "/api/user"))["name"] == ana.name, "who is in stays in"


async def test_rights_that_end_close_their_sockets(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    link = await ana.call("POST", f"/api/projects/{project}/invites", {"role": "editor", "expires_in": 600})
    # the first person of the hub is its administrator; a command makes one for certain
    admin = f"root{next(_names)}"
    await command(
        hub, "user", "add", admin, "--admin", "--password-file", "-", text="correct horse battery\n"
    )
    async with (
        Client(hub.url) as root,
        Client(hub.url) as one,
        Client(hub.url) as two,
        Client(hub.url) as three,
    ):
        await root.log_in(admin)
        sockets: dict[str, list[aiohttp.ClientWebSocketResponse]] = {}
        for word, person in (("removed", one), ("disabled", two), ("left", three)):
            await person.sign_up(f"{word}{next(_names)}")
            await person.call("POST", f"/api/invites/{link['code']}")
            made = await person.call("POST", f"/p/{project}/api/terminals", {})
            sockets[word] = [
                await person.socket(project, path)
                for path in (f"terminals/websocket/{made['name']}", "presence", "api/events")
            ]

        async def codes(word: str) -> set[int | None]:
            found = set()
            for socket in sockets[word]:
                async with asyncio.timeout(20):
                    async for _ in socket:
                        pass
                found.add(socket.close_code)
            return found

        await ana.call("DELETE", f"/api/projects/{project}/members/{one.name}")
        assert await codes("removed") == {4403}
        await root.call("PATCH", f"/api/admin/users/{two.name}", {"disabled": True})
        assert await codes("disabled") == {4403}
        with pytest.raises(Refused, match=r": 401 "):
            await two.call("GET", "/api/user")
        old = cookies(three)
        await three.call("POST", "/api/logout")
        assert (await raw(hub, "GET", "/api/user", old))[0] == 401
        assert (await raw(hub, "GET", f"/p/{project}/api/contents/", old))[0] == 401
        assert await codes("left") == {4403}


# paths

CLIMBS = [
    "../{}", "..%2f{}", "%2e%2e/{}", "%2e%2e%2f{}", "..%5c{}", "a/../../{}", ".%2e/{}", "%252e%252e/{}",
    "/etc/passwd", "//etc/passwd", "%2fetc/passwd", "....//{}", "..%00/{}", "%c0%ae%c0%ae/{}", "..;/{}",
    "~/{}", "file:///etc/passwd", "%0a..%2f{}", "..%ef%bc%8f{}",
]  # fmt: skip


async def test_no_path_leads_out(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    root = hub.data_dir / "workspaces" / project
    canaries = [hub.data_dir / "canary.txt", root.parent / "canary.txt", root / "canary.txt"]
    for canary in canaries:
        canary.write_text("CANARY")
    token = await bearer(ana)
    kind = token | {"Content-Type": "application/json"}
    new = json.dumps({"type": "file", "format": "text", "content": "PWNED"}).encode()
    prefixes = [f"/p/{project}/api/contents/", f"/p/{project}/files/", f"/p/{project}/collab/"]
    prefixes += [f"/p/{project}/api/terminals/", f"/p/{project}/terminals/websocket/"]
    prefixes += [f"/p/{project}/api/kernels/", f"/p/{project}/lsp/", f"/p/{project}/"]
    prefixes += [
        "/p/",
        "/api/projects/",
        "/api/invites/",
        f"/api/projects/{project}/members/",
        "/api/tokens/",
    ]
    prefixes += ["/embed/", "/invite/", "/projects/", "/static/", "/", "/preview/"]
    for prefix, climb in itertools.product(prefixes, CLIMBS):
        for up in ("canary.txt", "../canary.txt", "../../canary.txt") if "{}" in climb else ("",):
            target = prefix + climb.format(up)
            status, _, text = await raw(hub, "GET", target, token)
            assert status < 500, (target, text)
            assert b"CANARY" not in text and b"root:x:0" not in text, target
    for climb in CLIMBS:
        for up in ("pwned.txt", "../../pwned.txt"):
            inside = climb.format(up)
            for method, path in (("PUT", "api/contents/"), ("PUT", "files/"), ("POST", "api/contents/")):
                status, _, text = await raw(hub, method, f"/p/{project}/{path}{inside}", kind, new)
                assert status < 500, (method, inside, text)
            rename = json.dumps({"path": inside.replace("%2f", "/").replace("%2e", ".")}).encode()
            status, _, text = await raw(hub, "PATCH", f"/p/{project}/api/contents/README.md", kind, rename)
            assert status < 500, (inside, text)
            if status < 300:
                back = json.loads(text)["path"]
                body = b'{"path": "README.md"}'
                from urllib.parse import quote

                status, _, text = await raw(
                    hub, "PATCH", f"/p/{project}/api/contents/{quote(back)}", kind, body
                )
                assert status == 200, text
    workspace = disk(hub, project)
    outside = [p for p in hub.data_dir.rglob("*pwned*") if workspace not in p.parents]
    assert not outside
    for body in ({"template": "../../x"}, {"template": "/etc"}, {"template": "python/../flask"}):
        with pytest.raises(Refused, match=r": 400 "):
            await ana.call("POST", "/api/projects", {"title": "x", **body})
    # a terminal's folder is the sandbox's business, and must be inside of it
    for cwd in ("../..", "/etc", "/proc/1/root", "/state", "a\x00b"):
        try:
            await ana.call("POST", f"/p/{project}/api/terminals", {"cwd": cwd})
        except Refused as e:
            assert e.status in (400, 404), e
    # redirects of a preview stay on its origin
    code = await ana.call("POST", f"/api/projects/{project}/preview-codes", {})
    parts = urlsplit(code["url"])
    for to in (
        "//evil.example",
        "https://evil.example",
        "/\\evil.example",
        "javascript:alert(1)",
        "/%0d%0aX:%20y",
    ):
        target = f"{parts.path}?{parts.query.partition('&to=')[0]}&to={to}"
        status, headers, _ = await raw(hub, "GET", target, {"Host": parts.netloc})
        assert "evil" not in headers.get("location", "") and "x" not in headers, to


async def test_odd_names_and_what_is_not_text(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    async with ana.terminal(project) as terminal:
        await terminal.type(
            r"""printf nl > $'new\nline.txt'; printf bad > $'not-\xff-utf8';"""
            r""" printf sp > ' lead and trail ';"""
            r""" printf q > '"q?#%&.txt'; printf x > $'esc\e[31m.txt'; ln -s /etc/passwd link; mkfifo pipe;"""
            r""" head -c 3000 /dev/urandom > bin.dat; truncate -s 1G sparse; ln -s loop loop; echo made-$?"""
            "\n"
        )
        await terminal.until("made-0")
    listed = await ana.call("GET", f"/p/{project}/api/contents/")
    names = {item["name"] for item in listed["content"]}
    assert {"bin.dat", " lead and trail ", '"q?#%&.txt'} <= names
    for name in names:
        target = f"/p/{project}/api/contents/" + "".join(f"%{b:02x}" for b in os.fsencode(name))
        status, _, text = await raw(hub, "GET", target, await bearer(ana))
        assert status < 500 and b"root:x" not in text, (name, status, text[:200])
        if name in ("new\nline.txt", " lead and trail ", '"q?#%&.txt', "esc\x1b[31m.txt"):
            assert status == 200, (name, status, text[:200])
    async with editing(ana, project, "new\nline.txt") as client:
        await client.has("nl")
    found = await ana.call("GET", f"/p/{project}/api/contents/bin.dat")
    assert found["format"] == "base64"
    assert base64.b64decode(found["content"]) == (disk(hub, project) / "bin.dat").read_bytes()
    for name in ("bin.dat", "sparse", "link", "pipe", "loop"):
        client = YClient()
        try:
            await client.connect(ana.http, collab_url(ana.url, project, name), {"Origin": ana.url})
            assert await client.closed() in (4404, 4413, 4415), name
        finally:
            await client.close()
    await ana.call("DELETE", f"/p/{project}/api/contents/sparse")
    await ana.durable(project)
    await ana.stop(project)
    import shutil

    shutil.rmtree(hub.data_dir / "workspaces" / project)
    await ana.ready(project)
    workspace = disk(hub, project)
    assert (workspace / "new\nline.txt").read_text() == "nl"
    assert (workspace / " lead and trail ").read_text() == "sp"
    assert len((workspace / "bin.dat").read_bytes()) == 3000


async def test_large_files_stream_and_leave_the_hub_small(hub: HubProcess, ana: Client) -> None:
    project = await ana.new_project("python")
    await ana.ready(project)
    assert hub.process
    before, most = resident(hub.process.pid), 0
    size = 300 * 2**20
    chunk = bytes(2**20)

    async def body() -> Any:
        nonlocal most
        for _ in range(size // len(chunk)):
            yield chunk
            most = max(most, resident(hub.process.pid))  # type: ignore[union-attr]

    url = f"{hub.url}/p/{project}/files/big.bin"
    headers = ana.headers() | {"Content-Length": str(size)}
    async with ana.http.put(url, data=body(), headers=headers) as answer:
        assert answer.status in (200, 201, 204), await answer.text()
    got = 0
    async with ana.http.get(url) as answer:
        assert answer.status == 200
        async for part in answer.content.iter_chunked(2**20):
            got += len(part)
            most = max(most, resident(hub.process.pid))
    assert got == size
    assert most - before < 48 * 2**20, (before, most)
    with pytest.raises(Refused) as refused:
        await ana.read(project, "big.bin")
    assert refused.value.status in (400, 413)
    await ana.call("DELETE", f"/p/{project}/api/contents/big.bin")


# a runner that user code has taken over

EVIL = """
import asyncio, json, socket, sys
def argument(name): return sys.argv[sys.argv.index(name) + 1]
async def serve(reader, writer):
    try:
        while True:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode("latin-1")
            target = head.split(" ")[1]
            if target.startswith("/_codevo/"):
                body = json.dumps({"state": "ready", "percent": 100, "message": "", "last_activity": None,
                                   "busy": False}).encode()
                kind, extra, status = "application/json", "", "200 OK"
            else:
                print("SAW " + json.dumps(head), flush=True, file=sys.stderr)
                body = b"<script>fetch('/api/user')</script>"
                kind = "text/html"
                status = "302 Found" if "redirect" in target else "200 OK"
                extra = ("Set-Cookie: codevo-session=evil; Path=/\\r\\nSet-Cookie: _xsrf=evil\\r\\n"
                         "Location: https://evil.example/\\r\\nAccess-Control-Allow-Origin: *\\r\\n"
                         "Service-Worker-Allowed: /\\r\\nRefresh: 0;url=https://evil.example/\\r\\n"
                         "Clear-Site-Data: \\"*\\"\\r\\nContent-Security-Policy: default-src *\\r\\n"
                         "Link: </evil.js>; rel=preload\\r\\nWWW-Authenticate: Basic realm=x\\r\\n")
            writer.write((f"HTTP/1.1 {status}\\r\\nContent-Type: {kind}\\r\\n{extra}"
                          f"Content-Length: {len(body)}\\r\\n\\r\\n").encode() + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    for name in ("--listen", "--gateway"):
        sock = socket.socket(fileno=int(argument(name).partition(":")[2]))
        await asyncio.start_unix_server(serve, sock=sock)
    await asyncio.Event().wait()
asyncio.run(main())
"""


EVIL_CONFIG = """
from traitlets import List, Unicode
from codevo.spawner.local import LocalSpawner
class Spawner(LocalSpawner):
    runner_program = List(Unicode(), ["{script}"])
Spawner.__module__ = LocalSpawner.__module__
c.Codevo.spawner_class = Spawner
c.Spawner.extra_binds = ["{script}"]
"""


async def test_a_runner_taken_over_can_do_nothing_to_the_hubs_origin(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("evil")
    script = folder / "evil.py"
    script.write_text(EVIL)
    config = folder / "config.py"
    config.write_text(EVIL_CONFIG.format(script=str(script)))
    evil = HubProcess(
        folder / "data",
        f"--config={config}",
    )
    try:
        await asyncio.to_thread(evil.start)
        async with Client(evil.url) as ana:
            await ana.sign_up("ana")
            project = await ana.new_project("python")
            await ana.ready(project)
            for path in (
                "api/kernels",
                "api/terminals",
                "api/me",
                "api/status?redirect",
                "kernelspecs/x.svg",
            ):
                url = f"{evil.url}/p/{project}/{path}"
                async with ana.http.get(url, allow_redirects=False) as answer:
                    text = await answer.text()
                    assert b"<script>" in text.encode(), text
                    headers = answer.headers
                    assert headers["Content-Security-Policy"] == "sandbox"
                    assert headers["X-Content-Type-Options"] == "nosniff"
                    assert headers["Content-Type"] == "application/octet-stream"
                    assert headers["Content-Disposition"] == "attachment"
                    for name in (
                        "Set-Cookie", "Location", "Refresh", "Access-Control-Allow-Origin", "Link",
                        "Service-Worker-Allowed", "Clear-Site-Data", "WWW-Authenticate",
                    ):  # fmt: skip
                        assert name not in headers, name
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await ana.socket(project, "api/events")
            assert refused.value.status == 502
            # the preview is the program's own origin: its headers pass, our cookies' names do not
            code = await ana.call("POST", f"/api/projects/{project}/preview-codes", {})
            parts = urlsplit(code["url"])
            _, entered, _ = await raw(evil, "GET", f"{parts.path}?{parts.query}", {"Host": parts.netloc})
            kept = entered["set-cookie"].split(";")[0]
            status, headers, _ = await raw(evil, "GET", "/", {"Host": parts.netloc, "Cookie": kept})
            assert status == 200 and "codevo-session" not in headers.get("set-cookie", "")
            # the worker, and the person's session, are as they were
            assert "greet" in await ana.read(project, "main.py")
            assert (await ana.call("GET", "/api/user"))["name"] == "ana"
            log = (evil.data_dir / "workspaces" / project / "run" / "supervisor.log").read_text()
            seen = [line for line in log.splitlines() if "SAW" in line]
            assert seen
            for cookie in ana.http.cookie_jar:
                assert not any(cookie.value in line for line in seen), "a program saw a cookie of ours"
    finally:
        await asyncio.to_thread(evil.cleanup)


async def test_code_in_the_sandbox_cannot_become_the_runner(hub: HubProcess, ana: Client) -> None:
    """Same user id: it may end the runner, but neither take its sockets nor learn its configuration."""
    project = await ana.new_project("python")
    await ana.ready(project)
    attack = (
        "import ctypes,os,glob\n"
        "pids=[int(p.split('/')[2]) for p in glob.glob('/proc/[0-9]*/cmdline')"
        " if b'pod_runtime.runner' in open(p,'rb').read()]\n"
        "libc=ctypes.CDLL(None,use_errno=True)\n"
        "for pid in pids:\n"
        "    got=libc.syscall(434,pid,0)\n"
        "    for n in range(64):\n"
        "        fd=libc.syscall(438,got,n,0)\n"
        "        if fd>=0: print('GOT',n,os.readlink(f'/proc/self/fd/{fd}'))\n"
        "    for n in ('environ','mem'):\n"
        "        try:\n"
        "            open(f'/proc/{pid}/{n}','rb'); print('OPENED',n)\n"
        "        except OSError: pass\n"
        "    try: print('FDS',os.listdir(f'/proc/{pid}/fd'))\n"
        "    except OSError: pass\n"
        "print('looked','at',len(pids))\n"
    )
    await put(ana, project, "attack.py", attack)
    async with ana.terminal(project) as terminal:
        await terminal.type("python3 attack.py\n")
        seen = await terminal.until(r"looked at [1-9]")
    assert "GOT" not in seen and "OPENED" not in seen and "FDS" not in seen
    async with ana.terminal(project) as terminal:
        await terminal.type("pkill -9 -f pod_runtime.runner; kill -9 -1\n")
        async with asyncio.timeout(20):
            async for _ in terminal.ws:
                pass

    async def back() -> bool:
        try:
            async with ana.terminal(project) as again:
                await again.type("echo back-$((1+1))\n")
                await again.until("back-2")
            return True
        except (Refused, aiohttp.ClientError):
            return False

    await until(back, "the runner to be back")
    assert "looked" in await ana.read(project, "attack.py")


# the command, used beside the running hub


async def command(hub: HubProcess, *arguments: str, text: str = "") -> str:
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("codevo")), *arguments, "--data-dir", str(hub.data_dir),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, errors = await process.communicate(text.encode())
    assert process.returncode == 0, errors.decode()
    return out.decode()
