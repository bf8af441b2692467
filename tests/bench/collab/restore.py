"""How fast a workspace comes back from the bucket: our log, one GET a file, and rclone."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import secrets
import shutil
import sysconfig
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from codevo.embedded.s3 import S3Settings
from pod_runtime.protocol.config import StoreConfig, WorkerConfig
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence import Persister
from tests.bench.collab.servers import Peers
from tests.pod_runtime.worker.persistence_kit import FakeDocuments

#: GETs, and rclone's transfers, at the same time.
IN_FLIGHT = 64


def fill(folder: Path, count: int, size: int) -> int:
    """``count`` files of source text, about ``size`` bytes in all, the same each time; gives their bytes."""
    chance = random.Random(count)
    source = b"".join(f.read_bytes() for f in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")))
    total = 0
    for n in range(count):
        length = int(chance.lognormvariate(0, 1) * size / count / 1.65) + 1
        start = chance.randrange(max(1, len(source) - length))
        place = folder / f"package{n % 37}" / f"part{n % 11}"
        place.mkdir(parents=True, exist_ok=True)
        # a line of its own, or the store could keep one file for several
        data = b"# %d\n" % n + source[start : start + length]
        (place / f"file{n}.py").write_bytes(data)
        total += len(data)
    return total


def _same(one: Path, other: Path) -> None:
    for file in one.rglob("*.py"):
        if (other / file.relative_to(one)).read_bytes() != file.read_bytes():
            raise RuntimeError(f"{file} came back with another content")


class Restores:
    def __init__(self, peers: Peers, s3: S3Settings, folder: Path) -> None:
        self._peers, self._s3, self._folder = peers, s3, folder

    async def measure(self, count: int, size: int, rounds: int) -> dict[str, Any]:
        """Seconds (the best of ``rounds``, in turns) that each needs for the same files."""
        original = self._folder / f"original{count}"
        original.mkdir()
        total = fill(original, count, size)
        store = self._store()
        await self._save(store, original)
        await self._upload(f"plain/{count}/", original)
        ways: dict[str, Callable[[Path], Coroutine[Any, Any, None]]] = {
            "log": lambda place: self._log(store, place),
            "get": lambda place: self._get(f"plain/{count}/", place),
            "rclone": lambda place: self._rclone(f"plain/{count}", place),
        }
        found: dict[str, list[float]] = {name: [] for name in ways}
        for n in range(rounds):
            for name, restore in ways.items():
                place = self._folder / f"{name}{count}-{n}"
                place.mkdir()
                start = time.perf_counter()
                await restore(place)
                found[name].append(time.perf_counter() - start)
                await asyncio.to_thread(_same, original, place / "workspace" if name == "log" else place)
                shutil.rmtree(place)
        shutil.rmtree(original)
        best = {name: min(times) for name, times in found.items()}
        ratios = {f"{name}_ratio": best[name] / best["log"] for name in ("get", "rclone")}
        return {"files": count, "bytes": total, **best, **ratios, "all": found}

    def _store(self) -> StoreConfig:
        return StoreConfig(
            self._s3.endpoint_url, self._s3.bucket, f"projects/{secrets.token_hex(8)}/",
            self._s3.access_key_id, self._s3.secret_access_key, region=self._s3.region,
        )  # fmt: skip

    @contextlib.asynccontextmanager
    async def _client(self) -> Any:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession

        async with AioSession().create_client(
            "s3", endpoint_url=self._s3.endpoint_url, region_name=self._s3.region,
            aws_access_key_id=self._s3.access_key_id, aws_secret_access_key=self._s3.secret_access_key,
            config=AioConfig(max_pool_connections=IN_FLIGHT, s3={"addressing_style": "path"}),
        ) as client:  # fmt: skip
            yield client

    @contextlib.asynccontextmanager
    async def _worker(self, store: StoreConfig, place: Path, generation: int) -> Any:
        config = WorkerConfig(
            "abcdefghijklmnop", "", generation, store, str(place / "workspace"), str(place / "state")
        )
        for folder in (config.workspace, config.state):
            Path(folder).mkdir(exist_ok=True)
        root = safefs.Root(config.workspace)
        persister = Persister(config, root, FakeDocuments())
        try:
            await persister.open()
            yield persister
        finally:
            await persister.close()
            root.close()

    async def _save(self, store: StoreConfig, original: Path) -> None:
        place = self._folder / "saving"
        place.mkdir()
        (place / "workspace").symlink_to(original)
        async with self._worker(store, place, 1) as persister:
            persister.start()
            persister.touched()
            await persister.flush()
        shutil.rmtree(place)

    async def _log(self, store: StoreConfig, place: Path) -> None:
        generation = time.time_ns()  # each worker that opens a log must be newer than the last
        async with self._worker(store, place, generation):
            pass

    async def _upload(self, prefix: str, original: Path) -> None:
        async with self._client() as client:
            limit = asyncio.Semaphore(16)

            async def one(file: Path) -> None:
                async with limit:
                    key = prefix + str(file.relative_to(original))
                    await client.put_object(Bucket=self._s3.bucket, Key=key, Body=file.read_bytes())

            await asyncio.gather(*(one(f) for f in original.rglob("*.py")))

    async def _get(self, prefix: str, place: Path) -> None:
        async with self._client() as client:
            limit = asyncio.Semaphore(IN_FLIGHT)

            async def one(key: str) -> None:
                async with limit:
                    answer = await client.get_object(Bucket=self._s3.bucket, Key=key)
                    data = await answer["Body"].read()
                file = place / key.removeprefix(prefix)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)

            async with asyncio.TaskGroup() as tasks:
                pages = client.get_paginator("list_objects_v2")
                async for page in pages.paginate(Bucket=self._s3.bucket, Prefix=prefix):
                    for found in page.get("Contents", ()):
                        tasks.create_task(one(found["Key"]))

    async def _rclone(self, prefix: str, place: Path) -> None:
        env = {
            "RCLONE_S3_PROVIDER": "Other",
            "RCLONE_S3_ENDPOINT": self._s3.endpoint_url,
            "RCLONE_S3_REGION": self._s3.region,
            "RCLONE_S3_ACCESS_KEY_ID": self._s3.access_key_id,
            "RCLONE_S3_SECRET_ACCESS_KEY": self._s3.secret_access_key,
            "RCLONE_CONFIG": "/dev/null",
        }
        process = await asyncio.create_subprocess_exec(
            *(str(self._peers.bin / "rclone"), "copy", f":s3:{self._s3.bucket}/{prefix}", str(place)),
            *(f"--transfers={IN_FLIGHT}", f"--checkers={IN_FLIGHT}", "--log-level=ERROR"),
            env=os.environ | env,
        )
        if await process.wait():
            raise RuntimeError("rclone failed; see above")
