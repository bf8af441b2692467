"""Limits for everything the user runs, by a cgroup of its own where we may make one (v1 or v2)."""

from __future__ import annotations

import contextlib
import os
import time

_ROOT = "/sys/fs/cgroup"
_PERIOD = 100_000


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _read(path: str) -> str:
    with open(path) as f:
        return f.read()


def _own_groups() -> dict[str, str]:
    """Our own cgroup by controller; the unified hierarchy is named ``""``."""
    groups = {}
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def _v1_settings(memory: int, pids: int, cpu: float) -> dict[str, list[tuple[str, str, bool]]]:
    return {
        # the second fails without swap accounting, and then swap is not a way round the first
        "memory": [
            ("memory.limit_in_bytes", str(memory), True),
            ("memory.memsw.limit_in_bytes", str(memory), False),
        ],
        "pids": [("pids.max", str(pids), True)],
        "cpu": [
            ("cpu.cfs_period_us", str(_PERIOD), True),
            ("cpu.cfs_quota_us", str(int(cpu * _PERIOD)), True),
        ],
    }


def _v2_settings(memory: int, pids: int, cpu: float) -> list[tuple[str, str, bool]]:
    return [
        ("memory.max", str(memory), True),
        ("memory.swap.max", "0", False),
        ("pids.max", str(pids), True),
        ("cpu.max", f"{int(cpu * _PERIOD)} {_PERIOD}", False),
    ]


def _make(parent: str, name: str, settings: list[tuple[str, str, bool]]) -> str:
    path = f"{parent}/{name}"
    with contextlib.suppress(FileExistsError):
        os.mkdir(path)
    try:
        for file, value, needed in settings:
            try:
                _write(f"{path}/{file}", value)
            except OSError:
                if needed:
                    raise
    except OSError:
        os.rmdir(path)
        raise
    return path


def _v2_parent(own: str) -> str | None:
    """The nearest group above our own that we may write to and that hands memory and pids down."""
    unified = _ROOT if os.path.exists(f"{_ROOT}/cgroup.controllers") else f"{_ROOT}/unified"
    path = unified + own.rstrip("/")
    if not os.path.exists(f"{path}/cgroup.procs"):
        return None
    while True:
        try:
            handed = _read(f"{path}/cgroup.subtree_control").split()
        except OSError:
            return None
        writable = os.access(path, os.W_OK) and os.access(f"{path}/cgroup.procs", os.W_OK)
        if "memory" in handed and "pids" in handed and writable:
            return path
        if path == unified:
            return None
        path = path.rpartition("/")[0]


def create(name: str, memory: int, pids: int, cpu: float) -> tuple[list[str], list[str]]:
    """Make groups ``name`` with these limits (bytes, processes, cores).

    Gives the groups' folders and which of memory, pids, cpu they limit; what is missing is the caller's to
    limit otherwise. Never raises: a machine without cgroups is a machine without these limits.
    """
    paths: list[str] = []
    limited: list[str] = []
    try:
        groups = _own_groups()
    except OSError:
        return paths, limited
    for controller, settings in _v1_settings(memory, pids, cpu).items():
        own = groups.get(controller)
        if own is None or not os.path.isdir(f"{_ROOT}/{controller}"):
            continue
        for parent in (f"{_ROOT}/{controller}{own.rstrip('/')}", f"{_ROOT}/{controller}"):
            try:
                paths.append(_make(parent, name, settings))
                limited.append(controller)
                break
            except OSError:
                continue
    if not limited and "" in groups:
        parent_v2 = _v2_parent(groups[""])
        if parent_v2 is not None:
            try:
                paths.append(_make(parent_v2, name, _v2_settings(memory, pids, cpu)))
                limited += ["memory", "pids", "cpu"]
            except OSError:
                pass
    if paths and not _may_enter(paths):
        # a user may be allowed to make a group, but not to leave the one that his session is in
        remove(paths)
        return [], []
    return paths, limited


def _may_enter(paths: list[str]) -> bool:
    pid = os.fork()
    if pid == 0:
        try:
            enter(paths)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def enter(paths: list[str]) -> None:
    """Move the calling process into the groups."""
    for path in paths:
        _write(f"{path}/cgroup.procs", "0")


def remove(paths: list[str], patience: float = 2.0) -> None:
    """Delete the groups; the kernel allows it once their last process is reaped, hence some patience."""
    deadline = time.monotonic() + patience
    for path in paths:
        while True:
            try:
                os.rmdir(path)
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.01)
            else:
                break
