"""Making folders that only root can reach reachable for a sandbox that runs as another user.

The data directory may lie below a folder of mode 0700 (``/root``). A private mount namespace gets a small
tmpfs, and there a bind mount of each thing that the sandboxes bind in turn. Nobody else sees it, nothing is
left behind.
"""

from __future__ import annotations

import os

from pod_runtime.supervisor import linux

_PLACES = ("/mnt", "/media", "/srv", "/opt", "/run")


def _covers(place: str, paths: list[str]) -> bool:
    return any(p == place or p.startswith(place + "/") for p in paths)


def stage(paths: list[str]) -> dict[str, str]:
    """Bind ``paths`` (those that exist) and give their new places. Raises OSError where we may not."""
    paths = [p for p in dict.fromkeys(paths) if os.path.exists(p)]
    real = [os.path.realpath(p) for p in paths]
    place = next(p for p in _PLACES if os.path.isdir(p) and not _covers(p, [*paths, *real]))
    linux.unshare(linux.CLONE_NEWNS)
    # slave: what the host unmounts later goes here too, what we mount stays here
    linux.mount("none", "/", "", linux.MS_REC | linux.MS_SLAVE)
    linux.mount("codevo", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0711,size=1m")
    staged = {}
    for i, path in enumerate(paths):
        target = f"{place}/{i}"
        if os.path.isdir(path):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
        linux.mount(path, target, "", linux.MS_BIND | linux.MS_REC)
        staged[path] = target
    return staged
