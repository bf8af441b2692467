"""The hub as a whole: pages, health, faults of its neighbours, configuration, the command itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from traitlets import TraitError

from codevo import datadir, logs
from codevo.app import Codevo
from codevo.embedded.s3 import S3Settings
from codevo.hub import Sockets
from codevo.store import Store
from tests.codevo.hub_site import PASSWORD, Site, running_site
from tests.harness import within


async def test_health_and_readiness(site: Site) -> None:
    browser = await site.browser()
    assert (await browser("GET", "/healthz")).json == {"status": "ok"}
    ready = await browser("GET", "/readyz")
    assert ready.status == 200 and ready.json["database"]["ok"] and ready.json["object_store"]["ok"]
    site.hub.spawner.age = 3600.0  # type: ignore[attr-defined]
    old = await browser("GET", "/readyz")
    assert old.status == 503 and not old.json["spawner"]["ok"]


async def test_metrics(site: Site) -> None:
    browser = await site.browser()
    await browser("GET", "/api/user")
    text = (await browser("GET", "/metrics")).text
    assert 'codevo_requests_total{handler="CurrentUser",method="GET",status="401"} 1.0' in text
    assert "codevo_loop_lag_seconds" in text and "codevo_sockets 0.0" in text


async def test_a_lost_database_is_503_and_heals(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ana = await site.person("ana")
    away = Store("mongodb://127.0.0.1:1", timeout=0.2)
    with monkeypatch.context() as patch:
        patch.setattr(site.hub, "store", away)
        answer = await ana("GET", "/api/user")
        assert answer.status == 503 and answer.headers["Retry-After"] and answer.json["code"] == "database"
        ready = await ana("GET", "/readyz")
        assert ready.status == 503 and not ready.json["database"]["ok"] and "127.0.0.1" not in ready.text
        assert (await ana("GET", "/healthz")).status == 200
    await away.close()
    assert (await ana("GET", "/api/user")).status == 200


async def test_an_unbuilt_page_says_what_to_do(site: Site) -> None:
    answer = await (await site.browser())("GET", "/projects/abc")
    assert answer.status == 503 and "make setup" in answer.text


async def test_pages_and_files(site: Site) -> None:
    page = site.hub.static_dir
    (page / "assets").mkdir(parents=True)
    for name in ("index", "admin", "embed"):
        (page / f"{name}.html").write_text(f"<!doctype html><title>{name}</title>")
    (page / "assets" / "app-1.js").write_text("export {}")
    (page / "assets" / "app-1.js.br").write_bytes(b"brotli")
    (page / "embed.js").write_text("0")
    browser = await site.browser()
    for path in ("/", "/login", "/signup", "/account", "/projects/abc", "/invite/XyZ-1"):
        answer = await browser("GET", path)
        assert (
            answer.status == 200 and "index" in answer.text and answer.headers["Cache-Control"] == "no-cache"
        )
    assert browser.cookie("_xsrf")
    assert "admin" in (await browser("GET", "/admin/users")).text
    assert "embed" in (await browser("GET", "/embed/abc")).text
    plain = await browser("GET", "/assets/app-1.js", headers={"Accept-Encoding": "identity"})
    assert plain.text == "export {}" and "immutable" in plain.headers["Cache-Control"]
    assert plain.headers["Content-Type"].startswith("text/javascript")
    again = await browser(
        "GET",
        "/assets/app-1.js",
        headers={"If-None-Match": plain.headers["Etag"], "Accept-Encoding": "identity"},
    )
    assert again.status == 304
    async with aiohttp.ClientSession(auto_decompress=False) as raw:
        async with raw.get(site.base + "/assets/app-1.js", headers={"Accept-Encoding": "gzip, br"}) as r:
            assert r.headers["Content-Encoding"] == "br" and await r.read() == b"brotli"
        async with raw.get(site.base + "/assets/app-1.js", headers={"Accept-Encoding": "br;q=0"}) as r:
            assert "Content-Encoding" not in r.headers
        async with raw.head(site.base + "/") as r:
            assert r.status == 200 and int(r.headers["Content-Length"]) > 10
    assert (await browser("GET", "/embed.js")).headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert (await browser("GET", "/assets/none.js")).status == 404
    assert (await browser("POST", "/nothing", {})).status == 404
    assert (await browser("DELETE", "/api/config")).status == 405


async def test_by_tls_cookies_are_host_bound(tmp_path: Path, mongo_url: str, s3: S3Settings) -> None:
    async with running_site(tmp_path, mongo_url, s3, public_url="https://codevo.example") as site:
        assert site.hub.origin == "https://codevo.example"
        browser = await site.browser(Host="codevo.example")
        body = {"name": "ana", "password": PASSWORD, "setup_code": site.hub.setup_code}
        origin = {"Origin": "https://codevo.example"}
        made = await browser("POST", "/api/signup", body, headers=origin)
        cookies = made.headers.getall("Set-Cookie")
        session = next(c for c in cookies if "session" in c)
        assert (
            session.startswith("__Host-codevo-session=") and "Secure" in session and "Domain" not in session
        )
        assert "Strict-Transport-Security" in made.headers


def test_the_data_directory_is_private_and_has_one_user(tmp_path: Path) -> None:
    path = datadir.prepare(tmp_path / "a" / "b")
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    with datadir.lock(path), pytest.raises(datadir.InUse, match=str(os.getpid())), datadir.lock(path):
        pass
    with datadir.lock(path):
        pass
    key = datadir.signing_key(path)
    assert stat.S_IMODE((path / "hub" / "signing.key").stat().st_mode) == 0o600
    assert datadir.signing_key(path).private_bytes_raw() == key.private_bytes_raw()
    assert datadir.derived_key(key, "a") != datadir.derived_key(key, "b")
    (path / "hub" / "signing.key").write_text("nonsense")
    with pytest.raises(datadir.DataDirError, match="not a private key"):
        datadir.signing_key(path)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(datadir.DataDirError, match="--data-dir"):
        datadir.prepare(file / "below")


def test_settings_come_from_file_and_command_line(tmp_path: Path) -> None:
    file = tmp_path / "codevo_config.py"
    file.write_text("c.Codevo.port = 1234\nc.Codevo.ip = '127.0.0.9'\nc.ServerManager.max_running = 3\n")
    app = Codevo()
    app.initialize(["--config", str(file), "--port=4321", "--ObjectStore.bucket=b"])
    assert (app.port, app.ip) == (4321, "127.0.0.9")
    assert app.config.ServerManager.max_running == 3 and app.config.ObjectStore.bucket == "b"


@pytest.mark.parametrize(
    "argument",
    [
        "--config=/nowhere.py",
        "--port=x",
        "--port=70000",
        "--Codevo.public_url=codevo",
        "--Codevo.preview_domain=a;b",
    ],
)
def test_wrong_settings_are_said(argument: str) -> None:
    with pytest.raises((TraitError, SystemExit)):
        Codevo().initialize([argument])


def test_every_setting_has_help() -> None:
    for cls in Codevo.classes:
        for name, trait in cls.class_own_traits(config=True).items():
            assert trait.help, f"{cls.__name__}.{name}"
    for name, trait in Codevo.class_own_traits(config=True).items():
        assert trait.help, name


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("GET /x?token=abcdef", "abcdef"),
        ("http://h/p/x?code=1&y=2", "y=2"),
        ("Authorization: Bearer abcdefghijkl", "abcdefghijkl"),
        ("Cookie: codevo-session=abc; x=y", "x=y"),
        ("/invite/AbCdEfGhIjKl", "AbCdEfGhIjKl"),
        ("/api/invites/AbCdEfGhIjKl", "AbCdEfGhIjKl"),
        ("mongodb://me:pw@host/db", "pw"),
        ('{"password": "hunter22"}', "hunter22"),
    ],
)
def test_logs_hold_no_secrets(text: str, gone: str) -> None:
    assert gone not in logs.scrub(text)


def test_log_lines_cannot_be_forged() -> None:
    record = logging.LogRecord("codevo", logging.INFO, "", 0, "name=%s", ("a\n2026 error x",), None)
    record.fields = {"path": '/a b"'}
    line = logs.LineFormatter().format(record)
    assert "\n" not in line and line.endswith('path="/a b\\""')
    assert json.loads(logs.JsonFormatter().format(record))["path"] == '/a b"'


async def test_sockets_are_closed_and_waited_for() -> None:
    sockets = Sockets()
    await within(sockets.gone(), 10)
    heard: list[int] = []

    def close(code: int, reason: str) -> None:
        heard.append(code)
        asyncio.get_running_loop().call_later(0.01, sockets.discard, close)

    def broken(code: int, reason: str) -> None:
        sockets.discard(broken)
        raise RuntimeError("broken")

    sockets.add(close)
    sockets.add(broken)
    assert sockets.close_all() == 2
    await within(sockets.gone(), 10)
    assert heard == [1001] and len(sockets) == 0


class Command:
    """``codevo`` as a process."""

    def __init__(self, data_dir: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "codevo.cli", f"--data-dir={data_dir}", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    async def ready(self) -> str:
        line = await asyncio.to_thread(self.process.stdout.readline)  # type: ignore[union-attr]
        assert line.startswith("Codevo is ready at http://127.0.0.1:"), self.process.communicate()[1]
        return line.split()[-1]

    async def ended(self) -> tuple[int, str, str]:
        out, err = await asyncio.to_thread(self.process.communicate, timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
async def arguments(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[list[str]]:
    config = tmp_path / "config.py"
    config.write_text(
        f"c.Codevo.mongo_url = {mongo_url!r}\nc.Codevo.db_name = 'app-{os.getpid()}'\n"
        "c.Codevo.bcrypt_rounds = 4\n"
        "c.Codevo.spawner_class = 'tests.codevo.hub_site.QuietSpawner'\n"
        f"c.ObjectStore.endpoint_url = {s3.endpoint_url!r}\nc.ObjectStore.bucket = {s3.bucket!r}\n"
        f"c.ObjectStore.region = {s3.region!r}\nc.ObjectStore.access_key_id = {s3.access_key_id!r}\n"
        f"c.ObjectStore.secret_access_key = {s3.secret_access_key!r}\n"
    )
    yield [f"--config={config}"]


async def test_the_command_starts_says_so_and_stops(tmp_path: Path, arguments: list[str]) -> None:
    command = Command(tmp_path / "data", *arguments, "--port=0")
    base = await command.ready()
    async with aiohttp.ClientSession() as session, session.get(base + "/readyz") as r:
        assert r.status == 200
    second = Command(tmp_path / "data", *arguments, "--port=0")
    code, out, err = await second.ended()
    assert code == 1 and not out and "already uses" in err and str(command.process.pid) in err
    taken = Command(tmp_path / "other", *arguments, f"--port={base.rpartition(':')[2]}")
    code, _, err = await taken.ended()
    assert code == 1 and "Cannot listen" in err
    command.process.send_signal(signal.SIGTERM)
    code, out, err = await command.ended()
    assert code == 0 and not out and "Traceback" not in err


async def test_a_start_without_a_database_says_what_to_check(tmp_path: Path, arguments: list[str]) -> None:
    command = Command(tmp_path / "data", *arguments, "--port=0", "--Codevo.mongo_url=mongodb://127.0.0.1:1")
    code, _, err = await command.ended()
    assert code == 1 and "mongo_url" in err and "Traceback" not in err
