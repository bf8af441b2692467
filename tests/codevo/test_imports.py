"""Projects from uploaded archives, over REST, with a real database and object store."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import sys
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import pytest

from codevo.embedded.s3 import S3Settings
from codevo.objects import imports
from codevo.objects.archive_readers import Bounds
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.store import StoreError
from tests.codevo.archive_kit import Thing, folder, link, tar_zst, untar, zipped
from tests.codevo.hub_site import Site, running_site
from tests.codevo.hubs import Person, TestHub, open_hub
from tests.harness import within

ZIP, ZST = "application/zip", "application/zstd"
THINGS = (
    Thing("main.py", b"print(1)\n"),
    Thing("bin/run me.sh", b"#!/bin/sh\n", 0o755),
    Thing(b"caf\xe9 \n\x01".decode("utf-8", "surrogateescape"), b"latin"),
    Thing("naïve 😀/x", b""),
    Thing("locked", b"l" * 2000, 0o444),
    folder("empty", 0o750),
    folder("workspace"),
    link("latest", "bin/run me.sh"),
    link("dangling", "../../nowhere/ünd"),
    Thing("large", random.Random(1).randbytes(9 * 2**20)),
)


@pytest.fixture
async def hub(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[TestHub]:
    async with open_hub(mongo_url, s3, tmp_path) as found:
        yield found


async def everything(hub: TestHub) -> set[str]:
    return {i.key async for i in hub.hub.bucket.store.list("projects/")}


async def send(person: Person, data: bytes, kind: str = ZIP, title: str = "Mine", **more: object) -> dict:
    answer = await person("POST", f"/api/projects?title={quote(title)}", data, Content_Type=kind, **more)
    return {"status": answer.status, **json.loads(answer.body)}


async def test_a_zip_becomes_a_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    data = zipped(Thing("app/main.py", b"print()\n"), Thing("app/go", b"x", 0o755), folder("app/out"))
    made = await send(ann, data, title=" Wetter & Wind 🎈 ")
    assert made["status"] == 201
    assert (made["title"], made["template"], made["role"]) == ("Wetter & Wind 🎈", "imported", "owner")
    exported = await ann("GET", f"/api/projects/{made['id']}/export", expect=200)
    found = untar(exported.body)
    assert found["app/go"][1] == 0o755 and found["app/main.py"][2] == b"print()\n"
    assert found["app/out"][0] == tarfile.DIRTYPE
    assert [p["id"] for p in (await ann("GET", "/api/projects", expect=200)).json] == [made["id"]]
    fork = await ann("POST", f"/api/projects/{made['id']}/fork", {}, expect=201)
    assert fork.json["template"] == "imported"


async def test_what_export_writes_import_reads_back(hub: TestHub) -> None:
    ann = await hub.person("ann")
    first = await send(ann, tar_zst(*THINGS), ZST)
    assert first["status"] == 201, first
    exported = (await ann("GET", f"/api/projects/{first['id']}/export", expect=200)).body
    found = untar(exported, times=True)
    assert {t.name for t in THINGS} == set(found)
    second = await send(ann, exported, ZST)
    again = (await ann("GET", f"/api/projects/{second['id']}/export", expect=200)).body
    assert untar(again, times=True) == found


async def test_refusals_name_field_and_leave_nothing(hub: TestHub) -> None:
    ann = await hub.person("ann")
    before = await everything(hub)
    for data, kind, status in [
        (b"PK nonsense", ZIP, 400),
        (zipped(Thing("../x", b"1")), ZIP, 400),
        (tar_zst(Thing("x", kind=tarfile.FIFOTYPE)), ZST, 400),
        (zipped(Thing("a", b"1")), ZST, 400),
        (tar_zst(Thing("a", os.urandom(10 * 2**20)))[: -(2**20)], ZST, 400),
        (zipped(Thing("a", b"1")), "application/octet-stream", 415),
        (zipped(Thing("a", b"1")), "multipart/form-data; boundary=x", 415),
        (zipped(Thing("a", b"1")), "application/gzip", 415),
    ]:
        answer = await send(ann, data, kind)
        assert (answer["status"], answer["field"]) == (status, "archive"), answer
        assert len(answer["message"]) > 20
    for title in ("", "  ", "x" * 101, "a\nb"):
        answer = await send(ann, zipped(Thing("a", b"1")), title=title)
        assert (answer["status"], answer["field"]) == (400, "title")
    missing = await ann("POST", "/api/projects", zipped(Thing("a", b"1")), Content_Type=ZIP, expect=400)
    assert missing.json["field"] == "title"
    assert (await ann("GET", "/api/projects")).json == []
    assert await everything(hub) == before


async def test_bounds_of_an_installation(mongo_url: str, s3: S3Settings, tmp_path: Path) -> None:
    bounds = {"max_import": 3000, "max_import_unpacked": 5000, "max_import_members": 5, "max_projects": 1}
    async with open_hub(mongo_url, s3, tmp_path, **bounds) as hub:
        ann = await hub.person("ann")
        for data in (
            zipped(Thing("a", os.urandom(4000))),
            zipped(Thing("a", bytes(5001))),
            zipped(*(Thing(f"{n}") for n in range(6))),
        ):
            answer = await send(ann, data)
            assert (answer["status"], answer["field"], answer["code"]) == (413, "archive", "too-large")
        assert (await send(ann, zipped(Thing("a", bytes(5000)))))["status"] == 201
        full = await send(ann, zipped(Thing("a", b"1")))
        assert (full["status"], full["code"]) == (409, "quota")
        assert len(await everything(hub)) > 0


async def test_who_may_not(hub: TestHub) -> None:
    data = zipped(Thing("a", b"1"))
    assert (await send(hub.guest, data))["status"] == 401
    reader = await hub.person("reader", "read")
    assert (await send(reader, data))["status"] == 403
    # the route's other methods do not take what was refused for an answer
    answer = await hub.guest("GET", "/api/projects", b"x", Content_Type=ZIP)
    assert answer.status == 401


async def test_the_store_goes_away_in_the_middle(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await hub.person("ann")
    before = await everything(hub)

    async def fail(*_: object, **__: object) -> None:
        raise StoreError("away")

    monkeypatch.setattr(type(hub.hub.bucket.store), "put", fail)
    answer = await send(ann, tar_zst(*THINGS), ZST)  # its snapshot is complete, HEAD is not written
    assert answer["status"] == 503
    monkeypatch.undo()
    assert await everything(hub) == before and (await ann("GET", "/api/projects")).json == []


# -- as a browser and a hostile client meet it: the whole hub


@pytest.fixture
async def small(tmp_path: Path, mongo_url: str, s3: S3Settings) -> AsyncIterator[Site]:
    async with running_site(tmp_path, mongo_url, s3) as found:
        found.hub.projects.max_import = 4 * 2**20
        yield found


def open_files(folder: Path) -> list[str]:
    """Files in ``folder`` that this process holds open."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if target.startswith(str(folder)) and target.endswith("(deleted)"):
            found.append(target)
    return found


async def until(what: object, seconds: float = 15) -> None:
    async def wait() -> None:
        while not what():  # type: ignore[operator]
            await asyncio.sleep(0.02)

    await within(wait(), seconds)


async def test_a_browser_uploads_more_than_other_bodies_may_have(small: Site) -> None:
    _, browser = await small.person("ann")
    data = tar_zst(Thing("a", os.urandom(3 * 2**20)))
    made = await browser(
        "POST", "/api/projects?title=Mine", data=io.BytesIO(data), headers={"Content-Type": ZST}
    )
    assert made.status == 201, made.text
    json_still_works = await browser("POST", "/api/projects", {"title": "One", "template": "static"})
    assert json_still_works.status == 201
    forged = await browser(
        "POST",
        "/api/projects?title=x",
        data=io.BytesIO(data),
        headers={"Content-Type": ZST, "X-XSRFToken": "no"},
    )
    assert forged.status == 403
    strange = await browser(
        "POST",
        "/api/projects?title=x",
        data=io.BytesIO(data),
        headers={"Content-Type": ZST, "Origin": "http://evil"},
    )
    assert strange.status == 403
    openapi = (await browser("GET", "/api/openapi.json")).json["paths"]["/api/projects"]["post"]
    assert set(openapi["requestBody"]["content"]) == {"application/json", ZIP, ZST}
    assert [p["name"] for p in openapi["parameters"]] == ["title"]


async def test_too_long_bodies_are_told_so(small: Site) -> None:
    _, browser = await small.person("ann")
    kind = {"Content-Type": ZIP}
    for size in (4 * 2**20 + 1, 5 * 2**20):
        answer = await browser("POST", "/api/projects?title=x", data=io.BytesIO(bytes(size)), headers=kind)
        assert (answer.status, answer.json["field"]) == (413, "archive")

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(65):
            yield bytes(2**16)

    answer = await browser("POST", "/api/projects?title=x", data=chunks(), headers=kind)
    assert answer.status == 413
    # far too long: at once, without reading it
    token = (
        await small.hub.store.tokens.create(
            (await small.hub.store.users.by_name("ann")).id, note="", scopes=("all",)
        )
    )[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(small.base.rpartition(":")[2]))
    head = (
        f"POST /api/projects?title=x HTTP/1.1\r\nHost: {small.base[7:]}\r\nAuthorization: Bearer {token}\r\n"
    )
    writer.write(f"{head}Content-Type: {ZIP}\r\nContent-Length: {10**12}\r\n\r\n".encode())
    answer_head = await within(reader.readuntil(b"\r\n\r\n"), 15)
    assert b" 413 " in answer_head and b"Connection: close" in answer_head
    writer.close()
    assert not open_files(small.hub.data_dir)


async def test_who_goes_away_leaves_nothing(small: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    user, browser = await small.person("ann")
    _, token = await small.hub.store.tokens.create(user.id, note="", scopes=("all",))
    data = tar_zst(Thing("a", os.urandom(3 * 2**20)))
    head = (
        f"POST /api/projects?title=x HTTP/1.1\r\nHost: {small.base[7:]}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {ZST}\r\nContent-Length: {len(data)}\r\n\r\n"
    ).encode()

    async def connect(body: bytes) -> asyncio.StreamWriter:
        _, writer = await asyncio.open_connection("127.0.0.1", int(small.base.rpartition(":")[2]))
        writer.write(head + body)
        await writer.drain()
        return writer

    # in the middle of the upload
    writer = await connect(data[: 2 * 2**20])
    await until(lambda: open_files(small.hub.data_dir))
    writer.close()
    await until(lambda: not open_files(small.hub.data_dir))
    # while it is unpacked
    entered, out = asyncio.Event(), asyncio.Event()
    real = imports.write_snapshot

    async def slow(*arguments: object) -> dict[str, int]:
        found = await real(*arguments)  # type: ignore[arg-type]
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            out.set()
        return found

    monkeypatch.setattr(imports, "write_snapshot", slow)
    before = {i.key async for i in small.hub.bucket.store.list("projects/")}
    writer = await connect(data)
    await within(entered.wait(), 20)
    assert {i.key async for i in small.hub.bucket.store.list("projects/")} > before
    writer.close()
    await within(out.wait(), 15)

    async def clean() -> None:
        while {i.key async for i in small.hub.bucket.store.list("projects/")} != before:
            await asyncio.sleep(0.05)

    await within(clean(), 15)
    await until(lambda: not open_files(small.hub.data_dir))
    assert (await browser("GET", "/api/projects")).json == []
    # their places are free again
    monkeypatch.undo()
    for _ in range(3):
        made = await browser(
            "POST", "/api/projects?title=x", data=io.BytesIO(data), headers={"Content-Type": ZST}
        )
        assert made.status == 201


async def test_so_many_at_a_time(small: Site) -> None:
    user, browser = await small.person("ann")
    _, token = await small.hub.store.tokens.create(user.id, note="", scopes=("all",))
    head = (
        f"POST /api/projects?title=x HTTP/1.1\r\nHost: {small.base[7:]}\r\nAuthorization: Bearer {token}\r\n"
        f"Content-Type: {ZST}\r\nContent-Length: {2 * 2**20}\r\n\r\n"
    ).encode()
    port = int(small.base.rpartition(":")[2])
    writers = []
    for n in range(2):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + bytes(2**20 + 2**19))
        writers.append(writer)
        await until(lambda n=n: len(open_files(small.hub.data_dir)) == n + 1)
    third = await browser("POST", "/api/projects?title=x", data=b"x", headers={"Content-Type": ZST})
    assert third.status == 429 and third.headers["Retry-After"]
    for writer in writers:
        writer.close()
    await until(lambda: not open_files(small.hub.data_dir))


# -- the process that unpacks


async def converted(data: bytes, kind: str, tmp_path: Path) -> dict[str, int]:
    file = tmp_path / "archive"
    file.write_bytes(data)
    with file.open("rb") as archive:
        return await imports.write_snapshot(MemoryStore(), "projects/x/", archive, kind, Bounds(2**30, 1000))


async def test_the_unpacking_process_knows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    seen: dict = {}
    real = asyncio.create_subprocess_exec

    async def spy(*arguments: str, **options: object) -> asyncio.subprocess.Process:
        seen.update(options)
        return await real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spy)
    assert (await converted(zipped(Thing("a", b"1")), "zip", tmp_path))["files"] == 1
    assert "hunter2" not in str(seen["env"])


async def test_memory_of_the_unpacking_process_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pax header of 7 MiB many times over fits; what an attacker finds to get more does not."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "greedy.py").write_text(
        "import sys\nfrom codevo.objects import unpack\n"
        "unpack.convert = lambda *a: bytes(2**31)\n"
        "sys.argv[1:] = ['zip', '1', '1']\nsys.exit(unpack.main())\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "greedy", stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()
    assert process.returncode != 0 and b"MemoryError" in said


async def test_a_cancelled_import_ends_its_process(tmp_path: Path) -> None:
    file = tmp_path / "archive"
    file.write_bytes(tar_zst(Thing("a", os.urandom(3 * 2**20))))
    store = MemoryStore()
    stuck = asyncio.Event()

    async def fault(operation: str, key: str, phase: str) -> None:
        stuck.set()
        await asyncio.Event().wait()

    store.fault = fault
    with file.open("rb") as archive:
        task = asyncio.create_task(
            imports.write_snapshot(store, "projects/x/", archive, "tar.zst", Bounds(2**30, 10))
        )
        await within(stuck.wait(), 15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(task, 15)
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    for pid in children:
        assert b"codevo.objects.unpack" not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_no_room(tmp_path: Path) -> None:
    upload = imports.Upload(tmp_path / "missing")
    with pytest.raises(imports.NoRoom):
        await upload.write(bytes(2**20))
    upload.close()
