"""Projects and servers on a real hub with real workspaces."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from tests.harness import Client, HubProcess

pytestmark = pytest.mark.sandbox


async def export(client: Client, project: str) -> dict[str, bytes]:
    async with client.http.get(f"{client.url}/api/projects/{project}/export") as answer:
        assert answer.status == 200
        data = await answer.read()
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m))}


async def write(client: Client, project: str, path: str, text: str) -> None:
    body = {"type": "file", "format": "text", "content": text}
    await client.call("PUT", f"/p/{project}/api/contents/{path}", body)


async def test_a_project_lives(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path / "data")
    try:
        hub.start()
        async with Client(hub.url) as ann:
            await ann.sign_up("ann")
            project = await ann.new_project()
            ready = await ann.ready(project)
            stream = await ann.call("GET", f"/api/projects/{project}/server/progress")
            seen = [json.loads(x[6:]) for x in stream.splitlines() if x.startswith("data: ")]
            assert [s["state"] for s in seen][-1] == "ready" and seen[0]["state"] == "starting"

            # what was written a moment ago is in the copies: they flush first
            await write(ann, project, "new.txt", "fresh")
            fork = (await ann.call("POST", f"/api/projects/{project}/fork", {}))["id"]
            assert (await export(ann, fork))["workspace/new.txt"] == b"fresh"
            await write(ann, project, "new.txt", "fresher")
            assert (await export(ann, project))["workspace/new.txt"] == b"fresher"
            assert (await export(ann, fork))["workspace/new.txt"] == b"fresh"

            # the hub dies and comes back: the server is the same one
            hub.kill()
            hub.start()
            again = await ann.call("GET", f"/api/projects/{project}")
            assert again["server"]["state"] == "ready"
            assert again["server"]["since"] <= ready["server"]["since"]
            assert await ann.read(project, "new.txt") == "fresher"

            # stopped, started from the log, and gone
            await ann.stop(project)
            await ann.ready(project)
            assert await ann.read(project, "new.txt") == "fresher"
            folder = tmp_path / "data" / "workspaces" / project
            assert folder.exists()
            await ann.call("DELETE", f"/api/projects/{project}")
            assert not folder.exists()
            assert [p["id"] for p in await ann.call("GET", "/api/projects")] == [fork]
            await ann.ready(fork)
            assert await ann.read(fork, "new.txt") == "fresh"
        assert hub.terminate() == 0, hub.log()
    finally:
        hub.cleanup()
