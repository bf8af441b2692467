"""The clients of others against a whole hub: y-websocket and yjs from npm, unmodified, in Node."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.harness import Client, HubProcess, within
from tests.system.kit import disk, put, until

_PACKAGES = Path(__file__).parents[2] / "static" / "package.json"


@pytest.mark.skipif(
    shutil.which("node") is None or not (_PACKAGES.parent / "node_modules" / "y-websocket").exists(),
    reason="needs Node and the page's packages (make setup)",
)
async def test_y_websocket_and_yjs_as_they_are(hub: HubProcess) -> None:
    async with Client(hub.url) as ana:
        await ana.sign_up("y-websocket")
        project = await ana.new_project("python")
        await ana.ready(project)
        await put(ana, project, "y.txt", "")
        token = (await ana.call("POST", "/api/tokens", {"note": "y"}))["token"]
        base = f"{hub.url}/p/{project}/collab".replace("http", "ws", 1)
        # a WebSocket of its own since 22, before behind a switch
        version = await asyncio.to_thread(subprocess.check_output, ["node", "-p", "process.versions.node"])
        switch = ["--experimental-websocket"] if int(version.split(b".")[0]) < 22 else []
        process = await asyncio.create_subprocess_exec(
            *("node", *switch, str(Path(__file__).with_name("y_websocket.cjs"))),
            *(str(_PACKAGES), base, "y.txt", token),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await within(process.communicate(), 90)
        assert process.returncode == 0, err.decode()
        text = json.loads(out)
        assert text.count("offline") == text.count("meanwhile") == 1
        file = disk(hub, project) / "y.txt"
        await until(lambda: file.read_text() == text, "the text on disk")
