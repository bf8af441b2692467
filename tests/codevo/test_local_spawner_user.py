"""LocalSpawner when the hub is an ordinary user: no uids of its own, no cgroups, no staging."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.codevo.local_spawner_help import as_root, sandboxes_work

ROOT = Path(__file__).parents[2]
USER = 1000
PYTHON = "/usr/bin/python3"
SITE = str(Path(pytest.__file__).parents[1])

SCRIPT = """
import asyncio, json, os, signal, sys
sys.path[:0] = [sys.argv[1]]
sys.path.append(sys.argv[3])
from pathlib import Path
from tests.codevo.local_spawner_help import *

async def main():
    s = spawner(Path(sys.argv[2]), pids_limit=40, memory_limit=256 * 2**20)
    await s.open()
    a = await s.start(spec("mine"), silent)
    r = {"warning": s.warning, "uid": os.getuid()}
    r["id"] = (await shell(a, "id -un"))["out"].strip()
    r["net"] = (await shell(a, "cat /proc/net/route"))["out"]
    connect = "import socket; socket.create_connection((\\"10.0.2.2\\", 22), 3)"
    r["host"] = (await shell(a, f"python3 -c '{connect}'"))["err"]
    r["hub"] = (await shell(a, f"ls {sys.argv[2]}"))["code"]
    r["caps"] = (await shell(a, "grep CapEff /proc/self/status"))["out"].split()[1]
    r["bomb"] = (await shell(a, "for i in $(seq 100); do sleep 5 & done; kill $(jobs -p)", 30))["err"]
    r["memory"] = (await shell(a, "python3 -c 'bytearray(600 * 2**20)'"))["code"]
    r["worker"] = (await ask(a.worker, run=["/bin/true"]))["code"]
    before = await s.poll("mine")
    os.kill(before.pids["worker"], signal.SIGKILL)
    await until(lambda: not alive(before.pids["worker"]))
    while "back" not in r:  # what the dying worker had accepted is reset
        try:
            r["back"] = (await ask(a.worker))["role"]
        except ConnectionError:
            await asyncio.sleep(0.05)
    await shell(a, "mkdir -p a/b; chmod 0 a")
    await s.remove("mine")
    await until(lambda: not any(alive(p) for p in before.pids.values()))
    r["left"] = os.listdir(Path(sys.argv[2]) / "workspaces")
    await s.close()
    print(json.dumps(r))

asyncio.run(main())
"""


def _runs() -> bool:
    command = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", PYTHON, "-c"]
    check = f"import sys; sys.path += [{str(ROOT)!r}, {SITE!r}]\nimport traitlets\nfrom enum import StrEnum"
    try:
        return subprocess.run([*command, check], capture_output=True, cwd="/").returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.sandbox
@pytest.mark.skipif(
    not (as_root() and sandboxes_work() and _runs()), reason="needs root, to become another user"
)
def test_as_an_ordinary_user() -> None:
    folder = tempfile.mkdtemp(prefix="codevo-")
    os.chown(folder, USER, USER)
    try:
        done = subprocess.run(
            [
                *(
                    "setpriv",
                    f"--reuid={USER}",
                    f"--regid={USER}",
                    "--clear-groups",
                    "env",
                    "-i",
                    f"HOME={folder}",
                ),
                *("PATH=/usr/bin:/bin:/usr/sbin", PYTHON, "-c", SCRIPT, str(ROOT), folder, SITE),
            ],
            capture_output=True,
            text=True,
            cwd="/",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
    finally:
        shutil.rmtree(folder)
    result = json.loads(done.stdout)
    assert result["uid"] == USER
    assert result["id"] == "codevo"
    assert "tap0" in result["net"]
    assert "PermissionError" in result["host"]
    assert result["hub"] != 0
    assert int(result["caps"], 16) == 0
    assert "fork" in result["bomb"]
    assert result["memory"] != 0
    assert result["worker"] == 0
    assert result["back"] == "worker"
    assert result["left"] == []
