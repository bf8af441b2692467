"""Two workers with one project: one writes on, the other stops with words and sets its unsaved work aside."""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from codevo.embedded.s3 import S3Settings
from pod_runtime.journal import writer as journal
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.protocol.config import StoreConfig
from pod_runtime.protocol.roles import Role
from tests.harness import within
from tests.pod_runtime.worker.persistence_kit import Machine
from tests.pod_runtime.worker.test_whole import WholeSite


def aside(workspace: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in workspace.glob(".codevo/set-aside-*/**/*") if f.is_file()}


def records(bucket: MemoryStore) -> set[str]:
    return {key for key in bucket.objects if "/journal/" in key}


@pytest.mark.parametrize("compacted", [False, True])
async def test_one_that_slept_through_a_compaction(tmp_path: Path, compacted: bool) -> None:
    """The next number would be a hole in the log, and the put would succeed: it has to look first."""
    bucket = MemoryStore("p/")
    here, there = Machine(tmp_path / "here", bucket), Machine(tmp_path / "there", bucket)
    sleeper = await here.opened(1)
    (here.workspace / "f").write_text("both")
    await sleeper.flush()
    other = await there.opened(2)
    (there.workspace / "g").write_text("the other's")
    await other.flush()
    if compacted:
        assert other._writer is not None
        await other._writer.snapshot()
        doomed = await journal.compact(bucket, at=datetime.now(UTC) + timedelta(hours=25))
        assert any(key.startswith("journal/") for key in doomed)
    # an hour later, by its own clock
    assert sleeper._writer is not None
    clock = sleeper._writer._clock
    sleeper._writer._clock = lambda: clock() + 3600
    (here.workspace / "h").write_text("slept on")
    here.documents.edit("f", b"typed before the sleep")
    before = records(bucket)
    status = await sleeper.flush()
    assert status.pending
    assert "started again elsewhere" in (status.last_error or "")
    assert "set-aside" in (status.last_error or "")
    assert sleeper.fenced.is_set()
    assert records(bucket) == before
    found = aside(here.workspace)
    assert found["h"] == b"slept on"
    assert found["f"] == b"typed before the sleep"
    (there.workspace / "g").write_text("goes on")
    assert not (await other.flush()).pending
    await sleeper.close()
    await other.close()


async def test_a_stopped_process_wakes_up_fenced(s3: S3Settings, tmp_path: Path) -> None:
    prefix = f"projects/{secrets.token_hex(6)}/"
    store = StoreConfig(
        s3.endpoint_url, s3.bucket, prefix, s3.access_key_id, s3.secret_access_key, region=s3.region
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = WholeSite(tmp_path / "a"), WholeSite(tmp_path / "b")
    first.use(store, tmp_path / "one", 1)
    # typed, but never to be committed by it
    first.config = dataclasses.replace(first.config, flush_quiet=3600, flush_max=3600)
    second.use(store, tmp_path / "two", 2)
    (first.path / "f").write_text("both\n")
    await first.start()
    try:
        assert (await first.call("POST", "/_codevo/flush", role=Role.HUB))[1]["pending"] is False
        ann = await first.client("f")
        await ann.has("both\n")
        ann.text += "typed\n"
        await first.on_disk("f", "both\ntyped\n")
        first.process.send_signal(signal.SIGSTOP)
        await second.start()
        bob = await second.client("f", subject="bob")
        bob.text += "elsewhere\n"
        await second.on_disk("f", "both\nelsewhere\n")
        assert (await second.call("POST", "/_codevo/flush", role=Role.HUB))[1]["pending"] is False
        first.process.send_signal(signal.SIGCONT)
        # its next commit, here by the hub's call
        flush = asyncio.create_task(first.call("POST", "/_codevo/flush", role=Role.HUB))
        assert await within(first.process.wait(), 60) == 3
        await asyncio.gather(flush, return_exceptions=True)
        assert aside(first.path)["f"] == b"both\ntyped\n"
        bob.text += "and on\n"
        await second.on_disk("f", "both\nelsewhere\nand on\n")
        assert (await second.call("POST", "/_codevo/flush", role=Role.HUB))[1]["pending"] is False
    finally:
        await first.stop()
        await second.stop()
