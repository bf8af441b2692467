"""The ``codevo`` command's subcommands, with the embedded services."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from codevo import cli


def codevo(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "codevo.cli", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "there is no command"),
        (["user"], "required"),
        (["user", "add"], "name"),
        (["project", "export", "x"], "file"),
        (["token", "ana", "--expires-in", "x"], "invalid int"),
    ],
)
def test_wrong_calls_are_explained(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    assert "codevo user add NAME" in capsys.readouterr().out


def test_every_command_takes_the_data_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "list", "--data-dir", str(tmp_path)]) == 0
    assert cli.main(["doctor", "--data-dir", str(tmp_path)]) in (0, 1)
    assert "Python" in capsys.readouterr().out


def test_templates_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["templates", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("python ") for line in lines)


def test_passwords_come_from_a_file_or_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = f"--data-dir={tmp_path}"
    assert cli.main(["user", "add", "ana", data, "--password-file", str(tmp_path / "none")]) == 1
    assert "--password-file" in capsys.readouterr().err
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert cli.main(["user", "add", "ana", data]) == 1
    assert "no terminal" in capsys.readouterr().err


async def test_people_and_tokens_without_and_beside_a_running_hub(tmp_path: Path) -> None:
    data = f"--data-dir={tmp_path / 'data'}"

    async def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(codevo, *arguments, data, stdin=stdin)

    password = "correct horse battery\n"
    added = await run("user", "add", "ana", "--admin", "--password-file=-", stdin=password)
    assert added.returncode == 0 and "administrator" in added.stdout, added.stderr
    hub = subprocess.Popen(
        [sys.executable, "-m", "codevo.cli", "serve", "--port=0", data,
         "--Codevo.spawner_class=tests.codevo.hub_site.QuietSpawner"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        line = await asyncio.to_thread(hub.stdout.readline)  # type: ignore[union-attr]
        base = line.split()[-1]
        again = await run("user", "add", "Ana", "--password-file=-", stdin=password)
        assert again.returncode == 1 and "taken" in again.stderr
        token = (await run("token", "ana")).stdout.strip()
        bearer = {"Authorization": f"Bearer {token}"}
        async with aiohttp.request("GET", base + "/api/admin/users", headers=bearer) as r:
            assert r.status == 200
        nobody = await run("token", "nobody")
        assert nobody.returncode == 1 and "nobody called" in nobody.stderr and not nobody.stdout
        changed = await run("user", "passwd", "ana", "--password-file=-", stdin="another good one\n")
        assert changed.returncode == 0, changed.stderr
        missing = await run("project", "export", "aaaaaaaaaaaaaaaa", str(tmp_path / "x.tar.zst"))
        assert missing.returncode == 1 and "no project" in missing.stderr
        assert not list(tmp_path.glob("x.tar.zst*"))
        swept = await run("gc", "--dry-run")
        assert swept.returncode == 0 and swept.stdout == "Would delete 0 objects, 0 bytes.\n", swept.stderr
    finally:
        hub.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(hub.wait, 60) == 0
        hub.stdout.close()  # type: ignore[union-attr]
    swept = await run("gc")  # with the embedded services that it starts itself
    assert swept.returncode == 0 and swept.stdout == "Deleted 0 objects, 0 bytes.\n", swept.stderr
