"""What LocalSpawner tells a supervisor, and where things are on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pod_runtime
from codevo.spawner.base import WorkspaceSpec

_SYSTEM = "/usr/local/bin:/usr/bin:/bin"
_SYSTEM_DIRECTORIES = ("/usr", "/bin", "/lib", "/lib64", "/sbin")


@dataclass(frozen=True, slots=True)
class Places:
    """A workspace's folders, per docs/internals.md."""

    root: Path

    @property
    def workspace(self) -> Path:
        return self.root / "workspace"

    @property
    def home(self) -> Path:
        return self.root / "home"

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def control(self) -> Path:
        return self.run / "supervisor.sock"

    def addresses(self) -> dict[str, str]:
        return {name: f"unix:{self.run / name}.sock" for name in ("runner", "gateway", "worker")}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a workspace's user code may use: bytes, processes, cores. ``nofile`` holds for the worker too."""

    memory: int
    pids: int
    cpu: float
    file_size: int
    tmpfs: int
    nofile: int = 65536


def within(path: str, folders: tuple[str, ...]) -> bool:
    return any(path == f or path.startswith(f.rstrip("/") + "/") for f in folders)


def runtime_paths(cache: Path) -> list[str]:
    """What the sandboxes see of the hub's installation, read-only: interpreter, libraries, pod_runtime.

    Of an editable install only the package ``pod_runtime`` itself, at its own path, where the import system
    finds it; not the checkout around it.
    """
    executable = Path(sys.executable)
    candidates = [
        sys.prefix,
        sys.base_prefix,
        os.path.realpath(sys.base_prefix),
        str(executable.resolve()),
        str(Path(pod_runtime.__file__).parent),
        *(str(p) for p in (cache / "toolbox", cache / "deps") if p.is_dir()),
    ]
    kept: list[str] = []
    for path in candidates:
        if not within(path, (*_SYSTEM_DIRECTORIES, *kept)):
            kept.append(path)
    return kept


def program_environment(cache: Path, passed: dict[str, str], home: str = "/home/codevo") -> dict[str, str]:
    """The whole environment of the user's shells and programs."""
    toolbox = cache / "toolbox" / "bin"
    path = ":".join([f"{home}/.local/bin", *([str(toolbox)] if toolbox.is_dir() else []), _SYSTEM])
    return {
        **passed,
        "PATH": path,
        "HOME": home,
        "USER": "codevo",
        "LOGNAME": "codevo",
        "SHELL": "/bin/bash",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "COLORTERM": "truecolor",
        "PYTHONUNBUFFERED": "1",
        # not PIP_USER: it fails in virtual environments, and pip chooses the home by itself outside of them
        "PIP_BREAK_SYSTEM_PACKAGES": "1",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "npm_config_prefix": f"{home}/.local",
        "npm_config_cache": f"{home}/.npm",
        "npm_config_update_notifier": "false",
        "npm_config_fund": "false",
    }


def find_tools() -> dict[str, str]:
    """Absolute paths of the helpers, "" for those that are not installed."""
    search = os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
    return {name: shutil.which(name, path=search) or "" for name in ("bwrap", "slirp4netns", "setpriv")}


@dataclass(frozen=True, slots=True)
class Installation:
    """What is the same for all workspaces of this hub."""

    cache: Path
    tools: dict[str, str]
    sandbox: str
    limits: Limits
    passed: dict[str, str]
    extra_binds: list[str]
    allow_networks: list[str]
    runner_program: list[str]
    worker_program: list[str]


def supervisor_spec(spec: WorkspaceSpec, places: Places, uid: int | None, on: Installation) -> dict[str, Any]:
    """The supervisor's one document. It holds the worker's keys: by descriptor only."""
    isolated = on.sandbox != "none"
    home = "/home/codevo" if isolated else str(places.home)
    environment = {**program_environment(on.cache, on.passed, home), **spec.runner.environment}
    dependencies = on.cache / "deps"
    runner = dataclasses.replace(
        spec.runner,
        workspace="/workspace" if isolated else str(places.workspace),
        environment=environment,
        dependencies=spec.runner.dependencies or (str(dependencies) if dependencies.is_dir() else None),
    )
    worker = dataclasses.replace(
        spec.worker,
        workspace="/workspace" if isolated else str(places.workspace),
        state="/state" if isolated else str(places.state),
    )
    own = {"PATH": _SYSTEM, "LANG": "C.UTF-8", "HOME": "/tmp", "PYTHONUNBUFFERED": "1", **on.passed}  # noqa: S108
    unique = hashlib.sha256(os.fsencode(places.root)).hexdigest()[:8]
    return {
        "project": spec.project,
        "generation": spec.worker.generation,
        "hash": hashlib.sha256(
            json.dumps([runner.to_json(), dataclasses.asdict(on.limits), on.sandbox]).encode()
        ).hexdigest(),
        "address": places.addresses(),
        "run": str(places.run),
        "workspace": str(places.workspace),
        "home": str(places.home),
        "state": str(places.state),
        "python": sys.executable,
        "runtime": runtime_paths(on.cache),
        "extra_binds": on.extra_binds,
        "allow_networks": on.allow_networks,
        "sandbox": on.sandbox,
        "tools": on.tools,
        "uid": uid,
        "cgroup": f"codevo-{spec.project}-{unique}",
        "limits": dataclasses.asdict(on.limits),
        "runner": {
            "program": on.runner_program,
            "config": runner.to_json(),
            "environment": environment,
            "directory": str(places.workspace),
        },
        "worker": {
            "program": on.worker_program,
            "config": worker.to_json(),
            "environment": own,
            "directory": str(places.state),
        },
    }
