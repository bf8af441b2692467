"""The command beside a hub, API tokens, and programs of others: an ordinary Jupyter client."""

from __future__ import annotations

import asyncio
import io
import sys
import tarfile
from pathlib import Path

import aiohttp
import pytest
import zstandard

from tests.harness import Client, HubProcess, Terminal, within
from tests.system.kit import put


async def codevo(hub: HubProcess, *arguments: str, text: str = "", status: int = 0) -> str:
    """Run the command on the hub's data directory; gives both outputs."""
    place = () if arguments == ("doctor",) else ("--data-dir", str(hub.data_dir))
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("codevo")), *arguments, *place,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await within(process.communicate(text.encode()), 60)
    assert process.returncode == status, out.decode()
    return out.decode()


def members(archive: Path) -> dict[str, bytes]:
    """The regular files of a ``.tar.zst``."""
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(archive.read_bytes())).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: tar.extractfile(m).read() for m in tar if m.isfile()}  # type: ignore[union-attr]


async def test_the_command(hub: HubProcess, tmp_path: Path) -> None:
    await codevo(hub, "user", "add", "carla", "--password-file", "-", text="a good long password\n")
    again = await codevo(hub, "user", "add", "carla", "--password-file", "-", text="a good one\n", status=1)
    assert "carla" in again or "taken" in again
    await codevo(hub, "user", "add", "weak", "--password-file", "-", text="123\n", status=1)
    async with Client(hub.url) as carla:
        await carla.log_in("carla", "a good long password")
        await codevo(hub, "user", "passwd", "carla", "--password-file", "-", text="another long password\n")
        async with carla.http.get(f"{hub.url}/api/user") as answer:
            assert answer.status == 401, "her sessions are over"
        await carla.log_in("carla", "another long password")

        project = await carla.new_project("python")
        await codevo(hub, "project", "export", project, str(tmp_path / "stopped.tar.zst"))
        assert any(name.endswith("main.py") for name in members(tmp_path / "stopped.tar.zst"))
        await carla.ready(project)
        await put(carla, project, "new ä.txt", "exported")
        await carla.durable(project)
        await codevo(hub, "project", "export", project, str(tmp_path / "running.tar.zst"))
        found = members(tmp_path / "running.tar.zst")
        assert b"exported" in found.values(), list(found)
        await codevo(hub, "project", "export", project, str(tmp_path / "running.tar.zst"), status=1)
        await codevo(hub, "project", "export", "a" * 16, str(tmp_path / "none.tar.zst"), status=1)
        await codevo(hub, "project", "export", "../../x", str(tmp_path / "none.tar.zst"), status=1)
        assert not list(tmp_path.glob("none*"))

        token = (await codevo(hub, "token", "carla")).strip()
        async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"}) as http:
            async with http.get(f"{hub.url}/api/user") as answer:
                assert (await answer.json())["name"] == "carla"
            async with http.post(f"{hub.url}/p/{project}/api/terminals", json={}) as answer:
                name = (await answer.json())["name"]
        async with aiohttp.ClientSession() as http:
            base = f"{hub.url}/p/{project}/terminals/websocket/{name}"
            with pytest.raises(aiohttp.WSServerHandshakeError, match="401"):
                await http.ws_connect(f"{base}?token=wrong")
            async with http.ws_connect(f"{base}?token={token}") as socket:
                terminal = Terminal(name, socket)
                await terminal.type("echo by-token-$((1+1))\n")
                await terminal.until("by-token-2")
                # a token that ends takes its sockets along
                listed = await carla.call("GET", "/api/tokens")
                await carla.call("DELETE", f"/api/tokens/{listed[0]['id']}")
                async with asyncio.timeout(20):
                    async for _ in socket:
                        pass
                assert socket.close_code == 4403
        assert token not in hub.log_file.read_text(errors="replace")


async def test_doctor_says_what_is_there(hub: HubProcess) -> None:
    said = await codevo(hub, "doctor")
    for word in ("MongoDB", "S3 server", "bubblewrap"):
        assert word in said, said


async def test_an_ordinary_jupyter_client(hub: HubProcess) -> None:
    jupyter = pytest.importorskip("jupyter_kernel_client")
    async with Client(hub.url) as ana:
        await ana.sign_up("jupyter-user")
        project = await ana.new_project("python")
        await ana.ready(project)
        await put(ana, project, "codevo.toml", '[run]\ncommand = "python3 main.py"\n')
        await put(ana, project, "main.py", "print('ran', 6 * 7)\n")
        token = (await ana.call("POST", "/api/tokens", {"note": "editor"}))["token"]

    def execute(kernel: str, code: str) -> tuple[str, str]:
        manager = jupyter.JupyterKernelClient(server_url=f"{hub.url}/p/{project}/", token=token)
        manager.start(name=kernel)
        try:
            reply = manager.execute(code, timeout=60)
            return reply["status"], "".join(str(o.get("text", "")) for o in reply["outputs"])
        finally:
            manager.stop()

    assert await asyncio.to_thread(execute, "program", "") == ("ok", "ran 42\n")
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"token {token}"}) as http,
        http.get(f"{hub.url}/p/{project}/api/kernelspecs") as answer,
    ):
        specs = await answer.json()
        assert specs["default"] == "program" and "program" in specs["kernelspecs"]
