"""Persistence on a real S3 server that is killed in the middle."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from pathlib import Path

import pytest

from codevo.embedded.s3 import EmbeddedS3, S3Settings
from pod_runtime.journal.s3 import S3Store
from pod_runtime.protocol.config import StoreConfig
from tests.pod_runtime.worker.persistence_kit import Machine, crash


def config(s3: S3Settings) -> StoreConfig:
    prefix = f"projects/{secrets.token_hex(6)}/"
    return StoreConfig(
        s3.endpoint_url, s3.bucket, prefix, s3.access_key_id, s3.secret_access_key, region=s3.region
    )


async def test_save_and_restore(s3: S3Settings, tmp_path: Path) -> None:
    async with S3Store(config(s3)) as store:
        here, there = Machine(tmp_path / "here", store), Machine(tmp_path / "there", store)
        worker = await here.opened(1)
        worker.start()
        for n in range(300):
            (here.workspace / f"d{n % 7}").mkdir(exist_ok=True)
            (here.workspace / f"d{n % 7}" / f"f{n}").write_text(str(n) * n)
        worker.touched()
        async with asyncio.timeout(20):
            while worker.status().pending:
                await asyncio.sleep(0.01)
        (here.workspace / "d1" / "f1").unlink()
        await worker.close()
        await (await there.opened(2)).close()
        assert there.tree() == here.tree()


async def test_kill_9_of_the_store_loses_nothing_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pod_runtime.worker.persistence.persister._backoff", lambda failures: 0.2)
    server = EmbeddedS3(tmp_path / "s3", logging.getLogger(__name__))
    await server.start()
    try:
        async with S3Store(config(server.settings)) as store:
            here, there = Machine(tmp_path / "here", store), Machine(tmp_path / "there", store)
            worker = await here.opened(1)
            worker.start()
            acknowledged = 0
            failed = False
            assert server.child is not None
            async with asyncio.timeout(90):
                for n in range(60):
                    (here.workspace / "counter").write_text(str(n))
                    worker.touched("counter")
                    wanted = worker.status().saved_seq
                    if n == 20:
                        assert server.child.pid
                        os.kill(server.child.pid, signal.SIGKILL)
                    while worker.status().durable_seq < wanted:
                        failed = failed or worker.status().last_error is not None
                        await asyncio.sleep(0.01)
                    acknowledged = n
            assert failed
            assert worker.status().last_error is None
            crash(worker)
            await (await there.opened(2)).close()
            assert (there.workspace / "counter").read_text() == str(acknowledged)
    finally:
        await server.stop()
