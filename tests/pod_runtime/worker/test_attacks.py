"""What hostile user code plants in a workspace, and every way out of a real worker that holds secrets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import dataclasses
import hashlib
import io
import json
import os
import secrets
import socket
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import zstandard
from yarl import URL

from codevo.embedded.s3 import S3Settings
from pod_runtime.journal.projects import export
from pod_runtime.journal.s3 import S3Store
from pod_runtime.protocol.config import StoreConfig
from pod_runtime.protocol.roles import Role
from tests.harness import within
from tests.pod_runtime.worker.test_whole import WholeSite

#: No request may take longer than this, seconds.
BOUND = 20
NOTED = "is a pipe, socket or device and is not saved"


class Target(WholeSite):
    """A worker with secrets in its environment, its configuration, /state and beside the workspace."""

    def __init__(self, tmp_path: Path, store: StoreConfig) -> None:
        super().__init__(tmp_path)
        self.use(store, tmp_path / "one", 1)
        self.config = dataclasses.replace(self.config, flush_quiet=0.05, flush_max=0.2, max_documents=500)
        self.outside, self.state = tmp_path / "outside", tmp_path / "one" / "state"
        self.outside.mkdir()
        self.state.mkdir()
        self.in_environment, in_file = (f"secret-{secrets.token_hex(20)}" for _ in range(2))
        for place in (self.outside / "secret", self.state / "secret"):
            place.write_text(in_file)
        passwd = Path("/etc/passwd").read_bytes()
        self.forbidden = {
            *(self.in_environment.encode(), in_file.encode(), passwd[:40]),
            *(store.secret_access_key.encode(), hashlib.sha256(in_file.encode()).hexdigest().encode()),
            hashlib.sha256(passwd).hexdigest().encode(),
        }
        self.notices: list[str] = []
        self.log = tmp_path / "worker.log"

    async def start(self, **options: Any) -> None:
        os.environ["CODEVO_TEST_SECRET"] = self.in_environment
        saved = os.dup(2)
        with self.log.open("ab") as log:
            os.dup2(log.fileno(), 2)
        try:
            await super().start()
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            del os.environ["CODEVO_TEST_SECRET"]
        environment = Path(f"/proc/{self.process.pid}/environ").read_bytes()
        assert self.in_environment.encode() in environment, "the test would show nothing"
        self.listener = await self.session.ws_connect(
            self.url + "/api/worker/events", headers=self.headers(), max_msg_size=0
        )
        self.listening = asyncio.create_task(self._listen())

    async def _listen(self) -> None:
        async for message in self.listener:
            self.clean(message.data.encode())
            event = json.loads(message.data)
            if event["type"] == "notice":
                self.notices.append(event["message"])

    async def stop(self) -> None:
        self.listening.cancel()
        await asyncio.gather(self.listening, return_exceptions=True)
        await super().stop()

    def clean(self, data: bytes) -> None:
        """Assert that ``data`` holds no byte of a secret, as it is or in base64."""
        texts = [data]
        if b'"base64"' in data:
            with contextlib.suppress(ValueError, TypeError, AttributeError):
                texts.append(base64.b64decode(json.loads(data).get("content")))
        for text in texts:
            for secret in self.forbidden:
                assert secret not in text

    async def ask(self, method: str, path: str, **more: Any) -> tuple[int, bytes]:
        """A request whose whole answer is looked at. It is bounded, and never an error of ours."""
        role = more.pop("role", Role.EDITOR)
        headers = {**self.headers(role), **more.pop("headers", {})}
        async with asyncio.timeout(BOUND):
            async with self.session.request(
                method, URL(self.url + path, encoded=True), headers=headers, **more
            ) as answer:
                data = await answer.read()
        self.clean(data + repr(answer.headers).encode())
        assert answer.status in {*range(200, 500), 507}, (method, path, answer.status, data)
        return answer.status, data

    async def is_well(self) -> None:
        """An ordinary file is still read and written, and committed."""
        content = secrets.token_hex(8)
        assert (await self.ask("PUT", "/files/ordinary", data=content))[0] in (200, 201)
        assert await self.ask("GET", "/files/ordinary") == (200, content.encode())
        status, answer = await self.ask("POST", "/_codevo/flush", role=Role.HUB)
        assert (status, json.loads(answer)["pending"]) == (200, False), answer
        assert self.process.returncode is None
        assert not self.listener.closed

    async def noticed(self, words: str) -> None:
        async with asyncio.timeout(BOUND):
            while not any(words in notice for notice in self.notices):
                await asyncio.sleep(0.05)

    async def every_way_out(self, path: str, name: str = "") -> None:
        """``name``: how the path stands in addresses, where that is not its quoted form."""
        name = name or quote(os.fsencode(path))
        contents, file = f"/api/contents/{name}", f"/files/{name}"
        for query in ("", "?content=0&hash=1", "?type=file&format=base64&hash=1", "?type=directory"):
            await self.ask("GET", contents + query)
        for range_ in ("bytes=0-99", "bytes=-50", "bytes=5-5"):
            await self.ask("GET", file, headers={"Range": range_})
        await self.ask("HEAD", file)
        await self.ask("GET", f"{contents}/checkpoints")
        if (await self.ask("POST", f"{contents}/checkpoints"))[0] == 201:
            await self.ask("POST", f"{contents}/checkpoints/checkpoint")
        status, answer = await self.ask("POST", "/api/contents/", json={"copy_from": path})
        if status == 201:
            await self.ask("GET", "/files/" + quote(os.fsencode(json.loads(answer)["path"])))
        elsewhere = secrets.token_hex(8)
        if (await self.ask("PATCH", contents, json={"path": elsewhere}))[0] == 200:
            await self.ask("GET", f"/api/contents/{elsewhere}?format=base64")
            await self.ask("GET", f"/files/{elsewhere}", headers={"Range": "bytes=0-99"})
            await self.ask("PATCH", f"/api/contents/{elsewhere}", json={"path": path})
        status, answer = await self.ask("GET", f"/api/history/{name}")
        for version in json.loads(answer)["versions"] if status == 200 else ({"seq": 1},):
            await self.ask("GET", f"/api/history/{name}?seq={version['seq']}")
        with contextlib.suppress(ValueError):
            client = await within(self.client(path, sync=False), BOUND)
            await client.until(lambda: client.synced.is_set() or client.ws.closed, BOUND)  # type: ignore[union-attr]
            self.clean(str(client.text).encode())
            await client.close()
            self.clients.remove(client)

    async def search(self) -> None:
        for query in ("q=secret-[0-9a-f]{4}&regex=1", "q=root:x", "q=AWS_|PATH%3d&regex=1&include=**/*,*"):
            status, answer = await self.ask("GET", f"/api/search?ignored=1&{query}")
            assert status == 200
            assert json.loads(answer.splitlines()[-1])["done"]

    async def bucket(self) -> dict[str, tarfile.TarInfo]:
        """Look through all objects and the export; gives the export's members."""
        config = self.config.store
        async with S3Store(dataclasses.replace(config, prefix="")) as store:
            keys = [item.key async for item in store.list(config.prefix)]
            assert keys
            for key in keys:
                data = b"".join([chunk async for chunk in store.stream(key)])
                self.clean(data)
                if key.endswith(".zst"):
                    self.clean(unpacked(data))
            data = unpacked(b"".join([chunk async for chunk in export(store, config.prefix)]))
        self.clean(data)
        self.clean(self.log.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
            return {member.name.removeprefix("workspace/"): member for member in tar}


def unpacked(data: bytes) -> bytes:
    stream = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True)
    return stream.read()


@pytest.fixture
async def target(s3: S3Settings, tmp_path: Path) -> AsyncIterator[Target]:
    prefix = f"projects/{secrets.token_hex(6)}/"
    keys = (s3.access_key_id, s3.secret_access_key)
    site = Target(tmp_path, StoreConfig(s3.endpoint_url, s3.bucket, prefix, *keys, region=s3.region))
    await site.start()
    yield site
    await site.stop()
    # too deep for pytest's own way
    subprocess.run(["rm", "-rf", str(site.path)], check=False)


def plant_links(site: Target) -> list[str]:
    """Links of all kinds; gives what to ask for."""
    ws, pid = site.path, site.process.pid
    secret = site.outside / "secret"
    files = {
        "own": "/proc/self/environ",
        "worker": f"/proc/{pid}/environ",
        "by root": f"/proc/{pid}/root{secret}",
        "by cwd": f"/proc/{pid}/cwd/../../../..{secret}",
        "memory": f"/proc/{pid}/mem",
        "absolute": str(secret),
        "relative": os.path.relpath(secret, ws),
        "state file": str(site.state / "secret"),
        "passwd": "/etc/passwd",
        "config": str(ws.parent / "config.json"),
        "loop": "loop",
        "dangling": "nowhere",
        "to itself": ".",
        "to a link": "absolute",
        "book.ipynb": str(secret),
    }
    folders = {
        "etc": ("/etc", ["passwd"]),
        "state": (str(site.state), ["secret"]),
        "proc": ("/proc/self", ["environ", *(f"fd/{n}" for n in range(8))]),
        "pid": (f"/proc/{pid}", ["environ", "cwd/x", f"root{secret}"]),
        "up": ("..", ["config.json", "state/secret"]),
        "inner/out": (str(site.outside), ["secret"]),
        ".codevo": (str(site.outside), ["secret"]),
    }
    (ws / "inner").mkdir()
    paths = [*files, *folders]
    for name, goal in files.items():
        (ws / name).symlink_to(goal)
    for name, (goal, below) in folders.items():
        (ws / name).symlink_to(goal)
        paths += [f"{name}/{inner}" for inner in below]
    return paths


CLIMBING = [
    "../outside/secret", "..%2foutside%2fsecret", "%2e%2e/%2e%2e/outside/secret", "/etc/passwd",
    "%2fetc%2fpasswd", "inner/../../outside/secret", "x%00/../secret", "etc/./passwd",
]  # fmt: skip


async def test_links_lead_nowhere(target: Target) -> None:
    site = target
    before = {path: path.lstat().st_mtime_ns for path in site.outside.rglob("*")}
    (site.path / "ordinary").write_text("x")
    paths = plant_links(site)
    await site.is_well()
    for path in paths:
        await site.every_way_out(path)
    for path in CLIMBING:
        await site.every_way_out(path, path)
    # and no way in: neither what is there nor anything new outside
    for path in (*paths, "inner/out/new", "up/new", ".codevo/new", "../outside/new"):
        name = quote(path)
        for method, body in (("PUT", {"data": b"stolen"}), ("PUT", {"json": {"content": "x"}})):
            where = "/files/" if "data" in body else "/api/contents/"
            assert (await site.ask(method, where + name, **body))[0] >= 400, path
        assert (await site.ask("PATCH", "/api/contents/ordinary", json={"path": path}))[0] >= 400, path
        if "/" in path and not (site.path / path).is_symlink():
            assert (await site.ask("DELETE", f"/api/contents/{name}"))[0] >= 400, path
    await site.search()
    await site.is_well()
    members = await site.bucket()
    for path in ("own", "passwd", "etc", "inner/out", ".codevo", "loop"):
        assert members[path].type == tarfile.SYMTYPE, path
    assert not [name for name in members if name.startswith(("etc/", "state/", "up/", ".codevo/"))]
    assert {path: path.lstat().st_mtime_ns for path in site.outside.rglob("*")} == before
    assert "Traceback" not in site.log.read_text()


async def test_a_hard_link_cannot_lead_out(target: Target) -> None:
    """In the sandbox the workspace is a mount of its own: not even root can link to what is outside."""
    ws = str(target.path)
    script = "import os, sys\ntry: os.link(*sys.argv[1:])\nexcept OSError as e: print(e.errno)"
    bind = ["bwrap", "--bind", "/", "/", "--bind", ws, ws, sys.executable, "-c", script]
    done = subprocess.run([*bind, str(target.outside / "secret"), f"{ws}/hard"], capture_output=True)
    assert done.stdout == b"18\n", done  # EXDEV
    # inside it is a file like any other
    (target.path / "ordinary").write_text("x")
    os.link(target.path / "ordinary", target.path / "hard")
    await target.every_way_out("hard")
    await target.is_well()
    assert "hard" in await target.bucket()


async def test_strange_files_and_names(target: Target) -> None:
    site, ws = target, target.path
    os.mkfifo(ws / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    here = os.open(ws, os.O_PATH)
    sock.bind(f"/proc/self/fd/{here}/sock")
    special = ["fifo", "sock"]
    with contextlib.suppress(PermissionError):
        os.mknod(ws / "device", 0o666 | stat.S_IFCHR, os.makedev(1, 5))  # /dev/zero
        special.append("device")
    with (ws / "sparse").open("wb") as f:
        f.truncate(2**40)
    strange = ["new\nline", os.fsdecode(b"not \xff\xfe utf-8"), "n" * 255, "\x1b[31m", " ", "-rf", "%2e%2e"]
    for name in strange:
        (ws / name).write_text("strange")
    deep = os.open(ws, os.O_PATH)
    for _ in range(25):
        os.mkdir("d" * 200, dir_fd=deep)
        deeper = os.open("d" * 200, os.O_PATH, dir_fd=deep)
        os.close(deep)
        deep = deeper
    os.close(deep)
    os.close(here)
    (ws / "many").mkdir()
    for n in range(6000):
        (ws / "many" / str(n)).touch()
    deepest = ["/".join(["d" * 200] * n) for n in (1, 20, 25)]
    for path in (*special, *strange, *deepest, "sparse"):
        await site.every_way_out(path)
    listed = json.loads((await site.ask("GET", "/api/contents/many"))[1])
    assert len(listed["content"]) == 5000 and listed["truncated"]
    await site.search()
    await site.is_well()
    for name in special:
        await site.noticed(f"'{name}' {NOTED}")
    await site.noticed("'sparse' is larger than")
    await site.noticed("lies too deep and is not saved")
    members = await site.bucket()
    assert set(strange) <= members.keys()
    assert not members.keys() & {*special, "sparse"}
    sock.close()


async def test_notices_are_bounded(target: Target) -> None:
    for n in range(1000):
        os.mkfifo(target.path / f"fifo{n}")
    await target.is_well()
    await target.noticed("More files and folders than these")
    for n in range(5):
        (target.path / f"more{n}").write_text("x")
        await target.is_well()
    assert len([n for n in target.notices if NOTED in n]) < 100


@pytest.mark.parametrize("what", ["link", "fifo", "folder", "patterns"])
async def test_settings_that_are_none(target: Target, what: str) -> None:
    place = target.path / "codevo.toml"
    if what == "link":
        place.symlink_to(target.outside / "secret")
    elif what == "fifo":
        os.mkfifo(place)
    elif what == "folder":
        place.mkdir()
    else:
        place.write_text("[persist]\nignore = ['%s']" % ("*a" * 200))
    (target.path / ("a" * 255)).write_text("x")
    await target.is_well()
    await target.noticed("codevo.toml")
    assert "a" * 255 in await target.bucket()


async def test_swapped_while_it_is_read(target: Target) -> None:
    """A folder and a file that are now themselves and now a link out of the workspace."""
    site, ws = target, target.path
    for name in ("swap", "swap-file"):
        (ws / f"{name}.link").symlink_to(site.outside if name == "swap" else site.outside / "secret")
    (ws / "swap").mkdir()
    (ws / "swap" / "secret").write_text("decoy")
    (ws / "swap-file").write_text("decoy")
    libc = ctypes.CDLL(None, use_errno=True)
    ended, swaps = threading.Event(), 0

    def swap() -> None:
        nonlocal swaps
        while not ended.is_set():
            for name in ("swap", "swap-file"):
                one, other = (os.fsencode(ws / n) for n in (name, f"{name}.link"))
                # RENAME_EXCHANGE: at no time is nothing there
                libc.renameat2(-100, one, -100, other, 2)
            swaps += 1

    async def read(path: str) -> None:
        for _ in range(6):
            for where in (f"/api/contents/{path}?hash=1", f"/files/{path}", f"/api/contents/{path}"):
                await site.ask("GET", where)
            await site.ask("PUT", "/files/swap/new", data=b"x")
            await site.ask("PUT", "/files/swap/sub/new", data=b"x")
            await site.ask("POST", f"/api/contents/{path}/checkpoints")
            await site.ask("POST", "/_codevo/flush", role=Role.HUB)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        await asyncio.gather(read("swap/secret"), read("swap-file"), site.search())
        for _ in range(2):
            await site.every_way_out("swap/secret")
            await site.every_way_out("swap-file")
    finally:
        ended.set()
        await asyncio.to_thread(thread.join)
    assert swaps > 100
    assert os.listdir(site.outside) == ["secret"]
    await site.is_well()
    await site.bucket()
