"""What Run runs: ``codevo.toml``, or what a project without one plainly means. Reads small files only."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

MAX_FILE = 256 * 1024
DEFAULT_PORT = 3000

#: How a file of a language is run: ``{}`` is the quoted path, ``{out}`` a place for a built program.
_LANGUAGES = {
    ".py": "{python} {}",
    ".js": "node {}",
    ".mjs": "node {}",
    ".cjs": "node {}",
    ".ts": "npx --yes tsx {}",
    ".sh": "bash {}",
    ".c": "cc -g -Wall -o {out} {} -lm && {out}",
    ".cpp": "c++ -g -Wall -std=c++17 -o {out} {} && {out}",
    ".cc": "c++ -g -Wall -std=c++17 -o {out} {} && {out}",
    ".go": "go run {}",
    ".rs": "rustc -o {out} {} && {out}",
    ".java": "java {}",
    ".rb": "ruby {}",
    ".php": "php {}",
    ".pl": "perl {}",
    ".lua": "lua {}",
    ".r": "Rscript {}",
}
_NODE = re.compile(r"\b(?:npm|npx|node|yarn|pnpm|vite|next|tsx)\b")
_INSTALLS = re.compile(r"\b(?:npm|pnpm|yarn) (?:install|i|ci|add)\b")


class ProjectError(ValueError):
    """``codevo.toml`` cannot be used, or there is nothing to run; the text is for the person."""


@dataclass(frozen=True)
class Plan:
    """Commands for the shell, one after another while they succeed; the last one is the program.

    ``needs_dependencies``: packages are missing; ``installs``: the commands would fetch them by themselves.
    """

    commands: tuple[str, ...]
    port: int = DEFAULT_PORT
    env: dict[str, str] = field(default_factory=dict)
    needs_dependencies: bool = False
    installs: bool = False


@dataclass(frozen=True)
class Settings:
    """The parts of ``codevo.toml`` that a Run needs."""

    build: str | None = None
    command: str | None = None
    port: int = DEFAULT_PORT
    env: dict[str, str] = field(default_factory=dict)


def read_small(path: Path) -> bytes | None:
    """A regular file's bytes, or ``None``. Never waits on a FIFO. `ProjectError` when too big."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as f:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        data = f.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ProjectError(f"{path.name} is larger than {MAX_FILE // 1024} KiB")
    return data


def parse_settings(text: str) -> Settings:
    """Check and take ``[run]`` and ``[env]``. Raises `ProjectError` naming the field."""
    import tomllib

    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as e:
        raise ProjectError(f"codevo.toml: {e}") from e
    run, env = raw.get("run", {}), raw.get("env", {})
    if not isinstance(run, dict) or not isinstance(env, dict):
        raise ProjectError("codevo.toml: [run] and [env] are tables")
    for name in ("build", "command"):
        if name in run and not isinstance(run[name], str):
            raise ProjectError(f"codevo.toml: [run] {name}: expected text")
    port = run.get("port", DEFAULT_PORT)
    if not isinstance(port, int) or isinstance(port, bool) or not 0 < port < 65536:
        raise ProjectError("codevo.toml: [run] port: expected a number from 1 to 65535")
    values = {}
    for name, value in env.items():
        if isinstance(value, dict | list) or "=" in name or "\0" in name or "\0" in str(value):
            raise ProjectError(f"codevo.toml: [env] {name}: expected a plain value")
        values[name] = str(value).lower() if isinstance(value, bool) else str(value)
    return Settings(run.get("build") or None, run.get("command") or None, port, values)


def settings(root: Path) -> Settings:
    """The settings of the project at ``root``; the defaults when it has no ``codevo.toml``."""
    data = read_small(root / "codevo.toml")
    if data is None:
        return Settings()
    try:
        return parse_settings(data.decode())
    except UnicodeDecodeError as e:
        raise ProjectError("codevo.toml is not UTF-8") from e


def _python(path: str | None) -> str:
    return "python" if shutil.which("python", path=path) else "python3"


def _package(root: Path) -> dict[str, Any]:
    data = read_small(root / "package.json")
    try:
        package = json.loads(data) if data is not None else {}
    except ValueError as e:
        raise ProjectError(f"package.json: {e}") from e
    return package if isinstance(package, dict) else {}


def _guess(root: Path, search: str | None) -> tuple[str, ...]:
    """The commands of a project that names none."""
    for name in ("main.py", "app.py"):
        if (root / name).is_file():
            return (f"{_python(search)} {name}",)
    if (root / "package.json").is_file():
        package = _package(root)
        scripts = package.get("scripts")
        for script in ("dev", "start"):
            if isinstance(scripts, dict) and isinstance(scripts.get(script), str):
                return (f"npm run {script}",)
        if isinstance(package.get("main"), str) and (root / package["main"]).is_file():
            return (f"node {shlex.quote(package['main'])}",)
    if (root / "Makefile").is_file():
        return ("make",)
    for name in ("index.js", "main.js", "server.js"):
        if (root / name).is_file():
            return (f"node {name}",)
    if (root / "index.html").is_file():
        return (f'{_python(search)} -m http.server "$PORT"',)
    for name in ("main.c", "main.cpp", "main.go", "main.rs", "Main.java", "main.rb", "main.sh"):
        if (root / name).is_file():
            return (file_command(name, search) or "",)
    raise ProjectError(
        "There is nothing to run yet: add a main.py, a package.json, a Makefile or an index.html, "
        'or write codevo.toml with [run] command = "…"'
    )


def file_command(path: str, search: str | None) -> str | None:
    """The shell command that runs one file, by its suffix; ``None`` for an unknown one."""
    template = _LANGUAGES.get(PurePosixPath(path).suffix.lower())
    if template is None:
        return None
    quoted = shlex.quote(path if path.startswith(("/", "./")) else f"./{path}")
    out = shlex.quote(f"/tmp/codevo-run-{PurePosixPath(path).stem}")  # noqa: S108 - the sandbox's own
    return template.format(quoted, out=out, python=_python(search))


def _workspace_file(root: Path, code: str) -> str | None:
    """``code`` as a relative path when it names a file of the workspace."""
    name = code.strip()
    if not name or "\n" in name or "\0" in name or len(name) > 1000:
        return None
    try:
        real, path = root.resolve(), (root / name).resolve()
        if path.is_file() and path.is_relative_to(real):
            return str(path.relative_to(real))
    except (OSError, RuntimeError):
        return None
    return None


def _needs_dependencies(root: Path, commands: tuple[str, ...]) -> bool:
    """Whether a Node project's commands want packages that are not there."""
    if not _NODE.search("\n".join(commands)) or (root / "node_modules").is_dir():
        return False
    package = _package(root)
    return bool(package.get("dependencies") or package.get("devDependencies"))


def plan(root: Path, code: str, search: str | None) -> Plan:
    """What ``code`` asks for: nothing = the project, a file's name = that file, else a shell command.

    ``search`` is the PATH of programs. Raises `ProjectError`.
    """
    found = settings(root)
    if not code.strip():
        commands = (found.command,) if found.command else _guess(root, search)
        commands = (found.build, *commands) if found.build else commands
        if _needs_dependencies(root, commands):
            installs = _INSTALLS.search("\n".join(commands)) is not None
            return Plan(commands, found.port, found.env, needs_dependencies=True, installs=installs)
    else:
        path = _workspace_file(root, code)
        commands = ((path and file_command(path, search)) or code,)
    return Plan(tuple(c for c in commands if c), found.port, found.env)
