"""What the tests of LocalSpawner share."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from codevo.spawner.base import PodAddress, Progress, WorkspaceSpec
from codevo.spawner.local import LocalSpawner
from codevo.spawner.local_client import connect
from pod_runtime.protocol.config import RunnerConfig, StoreConfig, WorkerConfig

STAND_IN = str(Path(__file__).with_name("local_spawner_stand_in.py"))
SECRET = "the-store-secret-key"


def spec(project: str, generation: int = 1) -> WorkspaceSpec:
    store = StoreConfig("http://127.0.0.1:1", "bucket", f"projects/{project}/", "key", SECRET)
    return WorkspaceSpec(
        project, "someone", WorkerConfig(project, "pem", generation, store), RunnerConfig(project, "pem")
    )


def spawner(data: Path, **traits: Any) -> LocalSpawner:
    binds = [STAND_IN, *traits.pop("extra_binds", [])]
    traits = {"runner_program": [STAND_IN], "worker_program": [STAND_IN], **traits}
    return LocalSpawner(data_dir=str(data), extra_binds=binds, **traits)


async def ask(address: str, **request: Any) -> dict[str, Any]:
    """One request to a stand-in."""
    async with asyncio.timeout(40):
        reader, writer = await connect(Path(address.removeprefix("unix:")))
        writer.write(json.dumps(request).encode() + b"\n")
        line = await reader.readline()
        writer.close()
        answer: dict[str, Any] = json.loads(line)
        return answer


async def shell(address: PodAddress, script: str, timeout: float = 20) -> dict[str, Any]:
    """Run a script in the runner's sandbox: {code, out, err}."""
    return await ask(address.runner, run=["/bin/bash", "-c", script], timeout=timeout)


async def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    """Wait for a condition, sync or async; gives its first true value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.02)


def silent(_: Progress) -> None:
    pass


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def sandboxes_work() -> bool:
    try:
        done = subprocess.run(
            ["bwrap", "--unshare-user", "--disable-userns", "--ro-bind", "/", "/", "true"],
            capture_output=True,
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def as_root() -> bool:
    return os.geteuid() == 0
