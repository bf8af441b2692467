from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import os
from pathlib import Path
from urllib.parse import quote

import pytest

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import contents, file_handlers
from pod_runtime.worker.file_handlers import parse_range
from tests.harness import within
from tests.pod_runtime.worker.harness import Site

NAMES = ["plain.py", "with space.txt", "ünï ☃ %20.txt", "new\nline.txt", os.fsdecode(b"bad-\xff.txt"), ".hid"]
KEYS = {
    "name",
    "path",
    "last_modified",
    "created",
    "content",
    "format",
    "mimetype",
    "size",
    "writable",
    "hash",
    "hash_algorithm",
    "type",
}


def url(path: str, kind: str = "api/contents") -> str:
    return f"/{kind}/{quote(os.fsencode(path))}"


@pytest.mark.parametrize("name", NAMES)
async def test_life_of_a_file(site: Site, name: str) -> None:
    status, _ = await site.call("PUT", url("d"), json={"type": "directory"})
    assert status == 201
    path = f"d/{name}"
    body = {"type": "file", "format": "text", "content": "é😀\r\n"}
    status, model = await site.call("PUT", url(path), json=body)
    assert (status, model["path"], model["content"], set(model)) == (201, path, None, KEYS)
    status, model = await site.call("PUT", url(path), json=body)
    assert status == 200
    status, model = await site.call("GET", url(path) + "?hash=1")
    assert (model["content"], model["format"], model["type"]) == ("é😀\r\n", "text", "file")
    assert model["hash"] == contents.sha256("é😀\r\n".encode())
    status, model = await site.call("GET", url(path) + "?format=base64&type=file")
    assert base64.b64decode(model["content"]) == "é😀\r\n".encode()
    status, model = await site.call("GET", url(path) + "?content=0")
    assert model["content"] is None
    assert model["size"] == 8
    status, model = await site.call("GET", url("d"))
    assert [e["path"] for e in model["content"]] == [path]
    assert set(model["content"][0]) == KEYS
    status, model = await site.call("POST", url("d"), json={"copy_from": path})
    assert (status, model["name"].count("-Copy1")) == (201, 1)
    status, model = await site.call("PATCH", url(path), json={"path": "moved"})
    assert (status, model["path"]) == (200, "moved")
    assert (site.path / "moved").read_bytes() == "é😀\r\n".encode()
    assert (await site.call("GET", url(path)))[0] == 404
    assert (await site.call("DELETE", url("d")))[0] == 204
    assert os.listdir(site.path) == ["moved"]


async def test_untitled(site: Site) -> None:
    made = []
    for body in ({}, {"ext": ".py"}, {"ext": "py"}, {"type": "directory"}, {"type": "notebook"}, {}):
        status, model = await site.call("POST", "/api/contents", json=body)
        assert status == 201
        made.append(model["path"])
    names = ["untitled", "untitled.py", "untitled1.py", "Untitled Folder", "Untitled.ipynb", "untitled1"]
    assert made == names
    status, model = await site.call("GET", "/api/contents/Untitled.ipynb")
    assert (model["type"], model["format"], model["content"]["nbformat"]) == ("notebook", "json", 4)
    status, _ = await site.call("PUT", "/api/contents/Untitled.ipynb", json=model)
    assert status == 200
    status, model = await site.call("GET", "/api/contents/Untitled.ipynb?type=file")
    assert (model["type"], model["format"]) == ("file", "text")


async def test_chunked_upload(site: Site) -> None:
    for chunk, piece in ((1, b"one"), (2, b"two"), (-1, b"end")):
        body = {
            "type": "file",
            "format": "base64",
            "content": base64.b64encode(piece).decode(),
            "chunk": chunk,
        }
        assert (await site.call("PUT", url("f"), json=body))[0] in (200, 201)
    assert (site.path / "f").read_bytes() == b"onetwoend"


@pytest.mark.parametrize(
    "path",
    ["../secret", "%2e%2e/secret", "a/%2E%2E/%2E%2E/secret", "a//b", "./a", "a%00b", "x" * 300, "..%2fx"],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "POST"])
async def test_hostile_paths(site: Site, tmp_path: Path, method: str, path: str) -> None:
    (tmp_path / "secret").write_text("secret")
    (site.path / "a").mkdir()
    body = {"path": "b"} if method == "PATCH" else {"content": "x", "type": "file", "format": "text"}
    status, answer = await site.call(method, f"/api/contents/{path}", json=body)
    assert status == 400
    assert answer["message"]
    assert answer["reason"]
    if method in ("GET", "PUT"):
        assert (await site.call(method, f"/files/{path}"))[0] == 400
    assert (tmp_path / "secret").read_text() == "secret"
    assert os.listdir(site.path) == ["a"]


async def test_links_and_special_files(site: Site, tmp_path: Path) -> None:
    (site.path / "passwd").symlink_to("/etc/passwd")
    (site.path / "state").symlink_to(tmp_path / "state")
    (site.path / "loop").symlink_to("loop")
    os.mkfifo(site.path / "fifo")
    for path in ("passwd", "fifo", "loop"):
        for method, kind in (
            ("GET", "api/contents"),
            ("GET", "files"),
            ("PUT", "api/contents"),
            ("PUT", "files"),
        ):
            body = b'{"content": "x", "format": "text"}'
            assert (await site.call(method, url(path, kind), data=body))[0] == 403, (method, kind, path)
    for path in ("state/docs", "state/x"):
        for method in ("GET", "PUT", "DELETE"):
            assert (await site.call(method, url(path), data=b'{"content": "x"}'))[0] in (400, 403, 404)
    _, model = await site.call("GET", "/api/contents/")
    assert {e["name"]: e["special"] for e in model["content"]} == {
        "passwd": "symlink",
        "state": "symlink",
        "loop": "symlink",
        "fifo": "other",
    }
    for path in ("passwd", "state", "fifo"):
        assert (await site.call("DELETE", url(path)))[0] == 204
    assert (tmp_path / "state/docs").is_dir()


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/api/contents/none", None, 404),
        ("DELETE", "/api/contents/none", None, 404),
        ("DELETE", "/api/contents/", None, 400),
        ("PUT", "/api/contents/", b"{}", 400),
        ("PATCH", "/api/contents/f", b'{"path": "g"}', 409),
        ("PATCH", "/api/contents/none", b'{"path": "h"}', 404),
        ("PATCH", "/api/contents/f", b"{}", 400),
        ("PATCH", "/api/contents/f", b'{"path": "../x"}', 400),
        ("PATCH", "/api/contents/d", b'{"path": "d/e"}', 400),
        ("PUT", "/api/contents/none/f", b'{"content": ""}', 404),
        ("PUT", "/api/contents/f/x", b'{"content": ""}', 400),
        ("PUT", "/api/contents/x", b"not json", 400),
        ("PUT", "/api/contents/x", b"[]", 400),
        ("PUT", "/api/contents/x", b'{"content": 5}', 400),
        ("PUT", "/api/contents/x", b'{"content": "!", "format": "rot13"}', 400),
        ("PUT", "/api/contents/x", b'{"content": "\\ud800"}', 400),
        ("PUT", "/api/contents/x", b'{"content": "", "type": "socket"}', 400),
        ("PUT", "/api/contents/d", b'{"content": ""}', 400),
        ("PUT", "/api/contents/f", b'{"type": "directory"}', 400),
        ("GET", "/api/contents/d?type=file", None, 400),
        ("GET", "/api/contents/f?type=directory", None, 400),
        ("GET", "/api/contents/f?type=nonsense", None, 400),
        ("GET", "/api/contents/f?content=maybe", None, 400),
        ("GET", "/api/contents/bin?format=text", None, 400),
        ("GET", "/api/contents/bad.ipynb", None, 400),
        ("POST", "/api/contents/", b'{"copy_from": "d"}', 400),
        ("POST", "/api/contents/", b'{"copy_from": "../x"}', 400),
        ("POST", "/api/contents/", b'{"ext": "/../../x"}', 400),
        ("POST", "/api/contents/f", b"{}", 400),
        ("GET", "/files/d", None, 400),
        ("GET", "/files/none", None, 404),
        ("GET", "/nothing", None, 404),
    ],
)
async def test_bad_requests(site: Site, method: str, path: str, body: bytes | None, status: int) -> None:
    for name in ("f", "g", "bad.ipynb"):
        (site.path / name).write_text("x")
    (site.path / "bin").write_bytes(b"\0")
    (site.path / "d").mkdir()
    found, answer = await site.call(method, path, data=body)
    assert found == status
    assert answer["message"]
    assert "reason" in answer
    assert (site.path / "g").read_text() == "x"


async def test_binary_is_base64(site: Site) -> None:
    (site.path / "b").write_bytes(b"\0\xff")
    _, model = await site.call("GET", "/api/contents/b")
    assert (model["format"], base64.b64decode(model["content"])) == ("base64", b"\0\xff")


async def test_what_is_no_base64_is_refused(site: Site) -> None:
    (site.path / "b").write_bytes(b"keep")
    body = {"type": "file", "format": "base64", "content": "!!!"}
    assert (await site.call("PUT", "/api/contents/b", json=body))[0] == 400
    assert (site.path / "b").read_bytes() == b"keep"
    body["content"] = "AAEC\n/w==\n"  # broken into lines, as the GET answers
    assert (await site.call("PUT", "/api/contents/b", json=body))[0] == 200
    assert (site.path / "b").read_bytes() == b"\0\1\2\xff"


async def test_messages_hold_names_as_they_are(site: Site) -> None:
    status, answer = await site.call("GET", url("né.txt"))
    assert (status, answer["message"]) == (404, "No such file or directory: né.txt")


async def test_huge_files_are_not_answered_in_json(site: Site) -> None:
    with open(site.path / "sparse", "wb") as f:
        f.truncate(1 << 40)
    assert (await site.call("GET", "/api/contents/sparse"))[0] == 413
    assert (await site.call("GET", "/api/contents/sparse?content=0"))[0] == 200


async def test_long_folders_are_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "MAX_ENTRIES", 10)
    for i in range(20):
        (site.path / f"f{i}").touch()
    _, model = await site.call("GET", "/api/contents")
    assert len(model["content"]) == 10
    assert model["truncated"]


async def test_roles(site: Site) -> None:
    (site.path / "f").write_text("x")
    for method, path in [
        ("PUT", "/api/contents/f"),
        ("POST", "/api/contents/"),
        ("PATCH", "/api/contents/f"),
        ("DELETE", "/api/contents/f"),
        ("PUT", "/files/f"),
        ("POST", "/api/contents/f/checkpoints"),
        ("POST", "/_codevo/flush"),
    ]:
        assert (await site.call(method, path, role=Role.VIEWER))[0] == 403
        async with site.session.request(method, site.url + path) as r:
            assert r.status == 401
    for path in (
        "/api/contents/f",
        "/files/f",
        "/api/durability",
        "/api/worker/events",
        "/collab/f",
        "/presence",
    ):
        async with site.session.get(site.url + path) as r:
            assert r.status == 401
    assert (await site.call("GET", "/api/contents/f", role=Role.VIEWER))[0] == 200
    assert (await site.call("GET", "/_codevo/health", role=Role.OWNER))[0] == 403
    assert (site.path / "f").read_text() == "x"


async def test_checkpoints(site: Site) -> None:
    (site.path / "f").write_text("one")
    assert (await site.call("GET", "/api/contents/f/checkpoints"))[1] == []
    status, model = await site.call("POST", "/api/contents/f/checkpoints")
    assert (status, model["id"]) == (201, "checkpoint")
    (site.path / "f").write_text("two")
    assert (await site.call("POST", "/api/contents/f/checkpoints/checkpoint"))[0] == 204
    assert (site.path / "f").read_text() == "one"
    assert (await site.call("DELETE", "/api/contents/f/checkpoints/checkpoint"))[0] == 204
    assert (await site.call("POST", "/api/contents/f/checkpoints/checkpoint"))[0] == 404


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, None),
        ("bytes=0-4", (0, 5)),
        ("bytes=5-", (5, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-30", (0, 10)),
        ("bytes=8-100", (8, 10)),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=a-b", None),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=²-", None),
    ],
)
def test_ranges(header: str | None, span: tuple[int, int] | None) -> None:
    assert parse_range(header, 10) == span


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0", "bytes=99-100"])
def test_ranges_outside(header: str) -> None:
    with pytest.raises(ValueError):
        parse_range(header, 10)


async def test_streaming(site: Site) -> None:
    data = os.urandom(3_000_000)
    body = io.BytesIO(data)
    status, model = await site.call("PUT", url("sub dir/bïg", "files"), data=body)
    assert (status, model["size"]) == (201, len(data))
    assert await site.call("GET", url("sub dir/bïg", "files")) == (200, data)
    status, part = await site.call("GET", url("sub dir/bïg", "files"), headers={"Range": "bytes=-10"})
    assert (status, part) == (206, data[-10:])
    assert (await site.call("GET", url("sub dir/bïg", "files"), headers={"Range": "bytes=9999999-"}))[
        0
    ] == 416
    async with site.session.head(site.url + "/files/sub%20dir/b%C3%AFg", headers=site.headers()) as r:
        assert r.headers["Content-Length"] == str(len(data))
        assert r.headers["Content-Disposition"].startswith("attachment")
        assert r.headers["Content-Type"] == "application/octet-stream"
        etag = r.headers["ETag"]
    status, _ = await site.call("GET", url("sub dir/bïg", "files"), headers={"If-None-Match": etag})
    assert status == 304
    stale = {"Range": "bytes=0-1", "If-Range": '"old"'}
    assert (await site.call("GET", url("sub dir/bïg", "files"), headers=stale))[0] == 200


async def test_uploads_are_bounded_and_whole(site: Site) -> None:
    import dataclasses

    assert site.worker is not None
    site.worker.config = dataclasses.replace(site.config, max_workspace=1000)
    (site.path / "f").write_text("old")

    async def body(n: int) -> object:
        for _ in range(n):
            yield b"x" * 600

    assert (await site.call("PUT", "/files/f", data=body(3)))[0] in (400, 413)
    assert (await site.call("PUT", "/files/f", data=b"x" * 2000))[0] == 413
    assert (site.path / "f").read_text() == "old"
    assert (await site.call("PUT", "/files/f", data=body(1)))[0] == 200
    assert os.listdir(site.path) == ["f"]


async def test_open_documents_and_contents(site: Site) -> None:
    (site.path / "d").mkdir()
    (site.path / "d/f").write_text("one\n")
    ann = await site.client("d/f")
    bob = await site.client("d/f", subject="bob")
    ann.text += "two\n"
    await bob.has("one\ntwo\n")
    _, model = await site.call("GET", "/api/contents/d/f")
    assert model["content"] == "one\ntwo\n"
    ann.text += "three\n"
    await bob.has("one\ntwo\nthree\n")
    assert await site.call("GET", "/files/d/f") == (200, b"one\ntwo\nthree\n")
    body = {"type": "file", "format": "text", "content": "zero\none\ntwo\nthree\n"}
    await site.call("PUT", "/api/contents/d/f", json=body)
    await ann.has("zero\none\ntwo\nthree\n")
    # a folder is renamed: the room goes along
    assert (await site.call("PATCH", "/api/contents/d", json={"path": "e"}))[0] == 200
    ann.text += "four\n"
    await bob.has("zero\none\ntwo\nthree\nfour\n")
    await site.on_disk("e/f", "zero\none\ntwo\nthree\nfour\n")
    assert not (site.path / "d").exists()
    again = await site.client("e/f", doc=bob.doc)
    assert str(again.text) == "zero\none\ntwo\nthree\nfour\n"
    assert (await site.call("DELETE", "/api/contents/e"))[0] == 204
    assert await ann.closed() == 4404
    assert os.listdir(site.path) == []


async def test_large_answers_wait_their_turn(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may look could else fill the memory with answers that nobody takes."""
    monkeypatch.setattr(file_handlers, "LARGE_WAIT", 0.2)
    (site.path / "large").write_bytes(os.urandom(24 << 20))
    (site.path / "small").write_text("x")
    (site.path / "middle").write_bytes(b"x" * (2 << 20))
    head = "".join(f"{n}: {v}\r\n" for n, v in site.headers(Role.VIEWER).items())
    host, _, port = site.url.partition("//")[2].partition(":")
    lazy = []
    for _ in range(file_handlers.LARGE_ANSWERS):
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"GET /api/contents/large HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
        assert b" 200 " in await within(reader.readline(), 20)
        lazy.append(writer)
    status, answer = await site.call("GET", "/api/contents/middle")
    assert status == 503 and "files/" in answer["message"]
    assert (await site.call("GET", "/api/contents/small"))[1]["content"] == "x"
    assert (await site.call("GET", "/api/contents/middle?content=0"))[0] == 200
    for writer in lazy:
        writer.close()
    async with asyncio.timeout(20):
        while (await site.call("GET", "/api/contents/middle"))[0] == 503:
            pass
    assert (await site.call("GET", "/api/contents/middle"))[1]["content"] == "x" * (2 << 20)


async def test_a_large_answer_that_nobody_takes_is_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_handlers, "LARGE_SECONDS", 0.5)
    (site.path / "large").write_bytes(os.urandom(24 << 20))
    head = "".join(f"{n}: {v}\r\n" for n, v in site.headers(Role.VIEWER).items())
    host, _, port = site.url.partition("//")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
    writer.write(f"GET /api/contents/large HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode())
    assert b" 200 " in await within(reader.readline(), 20)
    assert site.worker
    async with asyncio.timeout(20):
        while site.worker.large_answers._value != file_handlers.LARGE_ANSWERS:
            await asyncio.sleep(0.05)
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(20):
            assert len(await reader.read(-1)) < 24 << 20
    writer.close()
