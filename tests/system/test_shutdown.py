"""SIGTERM stops every workspace after its flush and exits with status 0; what was typed is there later."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.harness import Client, HubProcess, processes


async def test_sigterm_flushes_stops_and_exits_0(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "data")
    try:
        await asyncio.to_thread(hub.start)
        async with Client(hub.url) as ana:
            await ana.sign_up("ana")
            project = await ana.new_project("python")
            await ana.ready(project)
            body = {"type": "file", "format": "text", "content": "last words\n"}
            await ana.call("PUT", f"/p/{project}/api/contents/last.txt", body)
            assert await asyncio.to_thread(hub.terminate) == 0, hub.log()
            assert not processes(str(hub.data_dir))
            await asyncio.to_thread(hub.start)
            await ana.ready(project)
            assert await ana.read(project, "last.txt") == "last words\n"
    finally:
        await asyncio.to_thread(hub.cleanup)
