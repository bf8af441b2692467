"""The cache of toolbox and dependencies, the templates that use it, and the doctor's report."""

from __future__ import annotations

import json
import subprocess
import tomllib
from importlib.resources import files
from pathlib import Path

import pytest

from codevo import doctor, prepare

TEMPLATES = Path(str(files("codevo.templates")))
NAMES = sorted(p.name for p in TEMPLATES.iterdir() if (p / "template.toml").is_file())


def test_all_templates_are_there() -> None:
    assert {"python", "flask", "node", "express", "react", "cpp", "static"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_template_is_complete(name: str) -> None:
    folder = TEMPLATES / name
    about = tomllib.loads((folder / "template.toml").read_text())
    assert about["title"] and about["language"] and about["description"] and about["why_not"]
    assert about["requires"]
    run = tomllib.loads((folder / "files" / "codevo.toml").read_text())["run"]
    assert run["command"]
    assert "**Run**" in (folder / "files" / "README.md").read_text()


@pytest.mark.parametrize(("name", "folder"), list(prepare.template_locks()))
def test_lock_file_fits_the_package_and_names_no_private_registry(name: str, folder: Path) -> None:
    package = json.loads((folder / "package.json").read_text())
    lock = json.loads((folder / "package-lock.json").read_text())
    root = lock["packages"][""]
    for kind in ("dependencies", "devDependencies"):
        assert root.get(kind) == package.get(kind)
    for entry in lock["packages"].values():
        assert entry.get("resolved", "https://registry.npmjs.org/").startswith("https://registry.npmjs.org/")


def test_toolbox_has_what_templates_ask_for_and_is_made_once(caplog: pytest.LogCaptureFixture) -> None:
    cache = prepare.cache_dir()
    toolbox = prepare.prepare_toolbox(cache)
    stamp = (toolbox / ".recipe").stat().st_mtime_ns
    caplog.set_level("INFO")
    prepare.prepare_toolbox(cache)
    assert (toolbox / ".recipe").stat().st_mtime_ns == stamp
    assert "up to date" in caplog.text
    for program in ("python", "python3", "pip", "flask", "livereload"):
        assert (toolbox / "bin" / program).exists()
    out = subprocess.run(
        [toolbox / "bin" / "python", "-c", "import site; print(site.ENABLE_USER_SITE)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert out.stdout.strip() == "True", "packages of `pip install` without an environment must be found"


def test_dependencies_are_fetched_once_per_machine(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    prepare.prepare_dependencies(prepare.cache_dir())
    prepare.prepare_dependencies(prepare.cache_dir())
    assert caplog.text.count("react: dependencies are there") >= 1


def test_failing_step_names_the_command_and_its_output() -> None:
    with pytest.raises(prepare.PrepareError, match=r"sh -c .* status 4:\nno space left"):
        prepare._run(["sh", "-c", "echo no space left >&2; exit 4"])


def test_doctor_names_what_is_missing_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CODEVO_CACHE", str(tmp_path))
    assert doctor.run() == 1
    out = capsys.readouterr().out
    assert "apt-get install bubblewrap" in out and "make setup" in out


def test_doctor_is_content_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.run() == 0, capsys.readouterr().out
