"""A workspace larger than the memory that the worker may take. ``CODEVO_TEST_LARGE_MB`` makes it larger."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from codevo.embedded.s3 import S3Settings
from pod_runtime.protocol.config import StoreConfig

#: How much more than at the beginning, MiB.
GROWTH = 100
ROOT = Path(__file__).parents[3]


async def test_memory_does_not_grow_with_the_workspace(s3: S3Settings, tmp_path: Path) -> None:
    megabytes = os.environ.get("CODEVO_TEST_LARGE_MB", "96")
    config = StoreConfig(
        s3.endpoint_url,
        s3.bucket,
        f"projects/{secrets.token_hex(6)}/",
        s3.access_key_id,
        s3.secret_access_key,
        region=s3.region,
    )
    (tmp_path / "config").write_text(config.to_json())
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(Path(__file__).with_name("large.py")),
            str(tmp_path / "config"),
            str(tmp_path / "data"),
            megabytes,
            stdout=asyncio.subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        out, _ = await process.communicate()
    finally:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    assert process.returncode == 0
    steps = [json.loads(line) for line in out.splitlines()]
    print(steps)
    assert steps[-1]["step"] == "restore at the start"
    for step in steps[1:]:
        assert step["peak"] - steps[0]["peak"] < GROWTH, steps
