"""The port on a real S3 server; the store in memory has to behave alike."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from codevo.embedded.s3 import S3Settings
from pod_runtime.journal import projects, reader
from pod_runtime.journal import s3 as module
from pod_runtime.journal.format import Area, Member, encode_body
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.s3 import PART, S3Store
from pod_runtime.journal.store import NotFound, ObjectStore, PreconditionFailed, StoreError
from pod_runtime.journal.writer import Commit, Fenced, LogWriter
from pod_runtime.protocol.config import StoreConfig


def config(s3: S3Settings, prefix: str | None = None, endpoint: str | None = None) -> StoreConfig:
    return StoreConfig(
        endpoint or s3.endpoint_url,
        s3.bucket,
        f"test-{secrets.token_hex(6)}/" if prefix is None else prefix,
        s3.access_key_id,
        s3.secret_access_key,
        region=s3.region,
    )


@pytest.fixture(params=["memory", "s3"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ObjectStore]:
    if request.param == "memory":
        yield MemoryStore("some/prefix/")
        return
    async with S3Store(config(request.getfixturevalue("s3"))) as real:
        yield real


async def body(store: ObjectStore, key: str) -> bytes:
    return b"".join([chunk async for chunk in store.stream(key)])


async def test_put_get_and_stream(store: ObjectStore, tmp_path: Path) -> None:
    etag = await store.put("a", b"1")
    assert await store.get("a") == (b"1", etag)
    assert await body(store, "a") == b"1"
    await store.put("empty", b"")
    assert (await store.get("empty"))[0] == b""
    assert await body(store, "empty") == b""
    data = os.urandom(3 * 2**20 + 7)
    (tmp_path / "f").write_bytes(data)
    await store.put("file", tmp_path / "f", if_none_match=True)
    assert await body(store, "file") == data
    assert await store.first("file", 10) == data[:10]
    await store.put("short", b"abc")
    await store.put("empty", b"")
    assert (await store.first("short", 100), await store.first("empty", 100)) == (b"abc", b"")
    for missing in (store.get("no"), store.first("no", 9), body(store, "no"), store.copy("no", "x")):
        with pytest.raises(NotFound):
            await missing


async def test_conditional_puts(store: ObjectStore) -> None:
    first = await store.put("h", b"1", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        await store.put("h", b"2", if_none_match=True)
    second = await store.put("h", b"2", if_match=first)
    with pytest.raises(PreconditionFailed):
        await store.put("h", b"3", if_match=first)
    with pytest.raises(PreconditionFailed):
        await store.put("missing", b"3", if_match=second)
    assert (await store.get("h"))[0] == b"2"


async def test_one_of_many_wins(store: ObjectStore) -> None:
    async def one(n: int) -> int | None:
        try:
            await store.put("lock", str(n).encode(), if_none_match=True)
        except PreconditionFailed:
            return None
        return n

    won = [n for n in await asyncio.gather(*map(one, range(16))) if n is not None]
    assert len(won) == 1
    assert (await store.get("lock"))[0] == str(won[0]).encode()


async def test_list_copy_delete(store: ObjectStore) -> None:
    names = [f"j/{n:04d}" for n in range(30)]
    await asyncio.gather(*(store.put(n, n.encode()) for n in names))
    await store.put("k", b"")
    assert [i.key async for i in store.list("j/")] == names
    assert [i.key async for i in store.list("j/", start_after="j/0027")] == names[28:]
    assert [i.size async for i in store.list("j/0001")] == [6]
    await store.copy("j/0001", "copy")
    assert (await store.get("copy"))[0] == b"j/0001"
    await store.delete(*names, "never there")
    assert [i.key async for i in store.list("")] == ["copy", "k"]
    await store.delete()


@pytest.mark.parametrize("size", [0, 5, PART, PART + 1, 2 * PART + 5])
async def test_put_stream(store: ObjectStore, size: int) -> None:
    data = os.urandom(size)

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, size, 700_001):
            yield data[start : start + 700_001]

    await store.put_stream("big", chunks())
    assert await body(store, "big") == data


async def test_a_stream_that_fails_leaves_nothing(store: ObjectStore) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield bytes(PART)
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="broke"):
        await store.put_stream("big", chunks())
    with pytest.raises(NotFound):
        await store.get("big")


async def test_listing_goes_over_pages(s3: S3Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with S3Store(config(s3)) as store:
        await asyncio.gather(*(store.put(f"{n}", b"") for n in range(7)))
        real = store._client.list_objects_v2
        calls = []

        async def small(**arguments: object) -> object:
            calls.append(arguments)
            return await real(**arguments, MaxKeys=3)

        monkeypatch.setattr(store._client, "list_objects_v2", small)
        assert [i.key async for i in store.list("")] == [str(n) for n in range(7)]
        assert len(calls) == 3


async def test_refusals_are_told_at_once(s3: S3Settings) -> None:
    good = config(s3)
    bad = StoreConfig(good.endpoint_url, good.bucket, good.prefix, good.access_key_id, "wrong")
    async with S3Store(bad) as store:
        async with asyncio.timeout(10):
            with pytest.raises(StoreError, match="403"):
                await store.get("a")


async def test_a_store_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_backoff", lambda failures: 0.01)
    async with S3Store(StoreConfig("http://127.0.0.1:9", "b", "p/", "k", "s")) as store:
        for call in (
            store.get("a"),
            store.put("a", b"", if_none_match=True),
            body(store, "a"),
            store.delete("a"),
        ):
            with pytest.raises(StoreError):
                await call


@contextlib.asynccontextmanager
async def cutting_proxy(target: str, cut_after: list[int]) -> AsyncIterator[tuple[str, list[int]]]:
    """Forward TCP to ``target``; connection n is cut after so many bytes towards the client (0: never)."""
    host, _, port = target.removeprefix("http://").partition(":")
    cuts: list[int] = []
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader_: asyncio.StreamReader, writer_: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(host, int(port))
        writers.update((writer_, up_writer))
        limit = cut_after.pop(0) if cut_after else 0

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, bound: int) -> None:
            passed = 0
            with contextlib.suppress(ConnectionError):
                while data := await source.read(65536):
                    passed += len(data)
                    if bound and passed > bound:
                        cuts.append(passed)
                        break
                    sink.write(data)
                    await sink.drain()
            writer_.transport.abort()
            up_writer.transport.abort()

        await asyncio.gather(pump(reader_, up_writer, 0), pump(up_reader, writer_, limit))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", cuts
    finally:
        server.close()
        for w in writers:
            w.transport.abort()
        await asyncio.sleep(0.05)


async def test_a_broken_download_goes_on_where_it_broke(
    s3: S3Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_backoff", lambda failures: 0.01)
    data = os.urandom(5 * 2**20)
    plain = config(s3)
    async with S3Store(plain) as store:
        await store.put("big", data)
    async with cutting_proxy(s3.endpoint_url, [2**20, 2**21, 300, 0]) as (address, cuts):
        async with S3Store(config(s3, plain.prefix, address)) as store:
            assert await body(store, "big") == data
        assert len(cuts) == 3


async def test_a_put_cut_off_in_the_middle_leaves_no_torn_record(s3: S3Settings) -> None:
    plain = config(s3)
    async with (
        cutting_proxy(s3.endpoint_url, [1, 1, 1]) as (address, cuts),
        S3Store(config(s3, plain.prefix, address)) as store,
    ):
        w = LogWriter(store, 1)
        w._heard = w._clock()
        c = Commit(encode_body([(Member(Area.WORKSPACE, "a", size=1), b"1")]))
        for _ in range(5):
            # cut off with the server's first byte, so the body may not have arrived
            with contextlib.suppress(StoreError):
                assert await w.append(c) == 1
                break
        assert cuts
        assert (await reader.load(store)).tail == (1,)
        assert (await reader.read_meta(store, reader.journal_key(1))).id == c.id


async def test_a_log_on_the_real_thing(s3: S3Settings) -> None:
    root = config(s3, "")
    project = f"projects/{secrets.token_hex(6)}/"
    async with S3Store(root) as bucket, S3Store(config(s3, project)) as store:
        template = await projects.publish_template(bucket, {"m": b"1"}, "python", secrets.token_hex(4))
        await projects.create_from_snapshot(bucket, template, project)
        with pytest.raises(PreconditionFailed):
            await projects.create_from_snapshot(bucket, template, project)
        one, two = LogWriter(store, 1), LogWriter(store, 2)
        await one.position(await reader.load(store))
        await one.open()
        large = os.urandom(9 * 2**20)
        await one.append(Commit(encode_body([(Member(Area.WORKSPACE, "l", size=len(large)), large)])))
        await two.position(await reader.load(store))
        await two.open()
        with pytest.raises(Fenced):
            await one.append(Commit(encode_body(())))
        assert await two.snapshot() == 3
        fork = project[:-1] + "-fork/"
        assert await projects.fork(bucket, project, fork) == 3
        found = await projects.summary(bucket, fork)
        assert (found.files, found.bytes) == (2, 1 + len(large))
        size = sum([len(c) async for c in projects.export(bucket, fork)])
        assert size > len(large)
        assert await projects.delete_prefix(bucket, fork) == 1
        assert [i async for i in bucket.list(fork)] == []


@pytest.mark.parametrize("region", ["auto", "us-east-1", "eu-central-1", "cn-north-1", "garage"])
async def test_requests_go_to_the_endpoint_signed_for_the_region(region: str) -> None:
    """The client does without botocore's table of endpoints."""
    seen: list[tuple[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append((request.raw_path, request.headers["Authorization"]))
        return web.Response(body=b"x", headers={"ETag": '"e"'})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", answer)
    server = TestServer(app)
    async with server:
        where = StoreConfig(str(server.make_url("/")).rstrip("/"), "b", "p/", "key", "s", region=region)
        async with S3Store(where) as store:
            assert await store.get("ä b") == (b"x", '"e"')
    ((path, authorization),) = seen
    assert path == "/b/p/%C3%A4%20b"
    assert re.search(rf"Credential=key/\d+/{region}/s3/aws4_request", authorization)
