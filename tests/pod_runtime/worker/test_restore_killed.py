"""A worker process that is killed in the middle of the restore of a checkpoint, on a real S3 server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import signal
from pathlib import Path

import aiohttp

from codevo.embedded.s3 import S3Settings
from pod_runtime.protocol.config import StoreConfig
from pod_runtime.protocol.roles import Role
from tests.pod_runtime.worker.persistence_kit import tree
from tests.pod_runtime.worker.test_whole import WholeSite

FILES = 400


async def test_a_restore_that_is_killed_is_done_again(s3: S3Settings, tmp_path: Path) -> None:
    store = StoreConfig(
        s3.endpoint_url,
        s3.bucket,
        f"projects/{secrets.token_hex(6)}/",
        s3.access_key_id,
        s3.secret_access_key,
        region=s3.region,
    )
    site = WholeSite(tmp_path)
    site.use(store, tmp_path / "one", 1)
    await site.start()
    try:
        names = [f"d{n % 7}/f{n:03}" for n in range(FILES)]
        for name in names:
            (site.path / name).parent.mkdir(exist_ok=True)
            (site.path / name).write_bytes(os.urandom(20_000))
        (site.path / "notes.md").write_text("then\n")
        body = {"name": "then", "by": "ana"}
        status, mark = await site.call("POST", "/_codevo/checkpoint", role=Role.HUB, json=body)
        assert status == 201, mark
        wanted = tree(site.path)
        for name in names:
            (site.path / name).write_text("overwritten")
        ana = await site.client("notes.md")
        ana.text += "now\n"
        await site.on_disk("notes.md", "then\nnow\n")
        before = tree(site.path)

        async def restore() -> None:
            await site.call("POST", "/_codevo/restore", role=Role.HUB, json={"seq": mark["seq"], "by": "bo"})

        restoring = asyncio.create_task(restore())
        async with asyncio.timeout(60):
            while (site.path / names[FILES // 10]).read_bytes() == b"overwritten":
                await asyncio.sleep(0.001)
        await site.kill(signal.SIGKILL)
        with contextlib.suppress(aiohttp.ClientError):
            await restoring
        half = tree(site.path)
        changed = sum(half.get(os.fsencode(n)) == wanted[os.fsencode(n)] for n in names)
        assert 0 < changed < FILES, "it was killed too early or too late"
        doc = ana.doc
        await site.stop()
        site.use(store, tmp_path / "one", 2)
        await site.start()
        status, answer = await site.call(
            "POST", "/_codevo/restore", role=Role.HUB, json={"seq": mark["seq"], "by": "bo"}
        )
        assert (status, answer["skipped"]) == (200, 0), answer
        assert tree(site.path) == wanted
        assert not list(site.path.glob(".codevo*"))
        back = await site.client("notes.md", doc=doc)
        await back.has("then\n")
        # what was there before the first attempt is kept, too
        status, marks = await site.call("GET", "/api/history/notes.md")
        first = next(v for v in reversed(marks["versions"]) if v["checkpoint"] == "Before restoring then")
        status, text = await site.call("GET", f"/api/history/notes.md?seq={first['seq']}")
        assert (status, text) == (200, b"then\nnow\n")
        assert before[b"notes.md"] == ("file", 0o644, text)
    finally:
        await site.stop()
