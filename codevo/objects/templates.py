"""Starter projects: read from the package, published to the bucket when they change."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

#: Bounds of one template: a starter project is small.
MAX_FILES = 500
MAX_BYTES = 8 * 2**20

_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")
_FIELDS = {"title": str, "language": str, "description": str}


class TemplateError(ValueError):
    """A template's folder is malformed; the text names the template and the field."""


class UnknownTemplate(LookupError):
    """There is no template of that name."""


class TemplateUnavailable(Exception):
    """The template's tools are missing on this machine; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class TemplateFile:
    """``path`` is relative, with slashes; ``executable`` as in the package."""

    path: str
    data: bytes
    executable: bool


@dataclass(frozen=True, slots=True)
class Template:
    """``version`` is a hash of the files: the same content has the same version on every machine."""

    name: str
    title: str
    language: str
    description: str
    order: int
    requires: tuple[str, ...]
    hint: str
    version: str
    files: tuple[TemplateFile, ...]

    @property
    def snapshot(self) -> str:
        """Key of its snapshot in the bucket."""
        return f"templates/{self.name}/{self.version}/snapshot.tar.zst"


def read_template(folder: Path) -> Template:
    """One template from its ``template.toml`` and ``files/``. Raises `TemplateError`."""
    name = folder.name
    if not _NAME.fullmatch(name):
        raise TemplateError(f"template {name!r}: expected a name of lower-case letters, digits and hyphens")
    try:
        raw = tomllib.loads((folder / "template.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise TemplateError(f"template {name}: template.toml cannot be read: {e}") from e
    for key, kind in _FIELDS.items():
        if not isinstance(raw.get(key), kind):
            raise TemplateError(f"template {name}: {key}: expected text")
    order, requires, hint = raw.get("order", 1000), raw.get("requires", []), raw.get("why_not", "")
    if not isinstance(order, int) or not isinstance(hint, str):
        raise TemplateError(f"template {name}: order: expected a number, why_not: expected text")
    if not isinstance(requires, list) or not all(isinstance(r, str) and r for r in requires):
        raise TemplateError(f"template {name}: requires: expected a list of commands")
    files = _read_files(name, folder / "files")
    return Template(
        name=name,
        title=raw["title"],
        language=raw["language"],
        description=raw["description"],
        order=order,
        requires=tuple(requires),
        hint=hint,
        version=_version(files),
        files=files,
    )


def _read_files(name: str, root: Path) -> tuple[TemplateFile, ...]:
    files: list[TemplateFile] = []
    size = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(d for d in folders if d not in ("node_modules", "__pycache__", ".git"))
        for entry in sorted(names):
            path = Path(folder, entry)
            if path.is_symlink() or not path.is_file():
                raise TemplateError(f"template {name}: {entry}: only regular files are allowed")
            data = path.read_bytes()
            size += len(data)
            executable = bool(path.stat().st_mode & 0o100)
            files.append(TemplateFile(path.relative_to(root).as_posix(), data, executable))
    if not files:
        raise TemplateError(f"template {name}: files/ is empty")
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise TemplateError(f"template {name}: more than {MAX_FILES} files or {MAX_BYTES} bytes")
    return tuple(sorted(files, key=lambda f: f.path))


def _version(files: Sequence[TemplateFile]) -> str:
    digest = hashlib.sha256()
    for f in files:
        digest.update(f"{f.path}\0{int(f.executable)}\0{len(f.data)}\0".encode())
        digest.update(f.data)
    return digest.hexdigest()[:16]


class Tools:
    """Which commands projects find: the toolbox first, then the system's folders, as in the sandbox."""

    def __init__(self, toolbox: Path | None = None) -> None:
        cache = Path(os.environ.get("CODEVO_CACHE") or Path.home() / ".cache" / "codevo")
        toolbox = toolbox or cache / "toolbox" / "bin"
        self._path = os.pathsep.join(map(str, (toolbox, "/usr/local/bin", "/usr/bin", "/bin")))

    def missing(self, template: Template) -> list[str]:
        """The commands of ``template`` that are not there."""
        return [c for c in template.requires if shutil.which(c, path=self._path) is None]

    def why_not(self, template: Template) -> str:
        """Why the template cannot be used here, for people; "" when it can."""
        missing = self.missing(template)
        if not missing:
            return ""
        return template.hint or f"{', '.join(missing)}: not installed on this machine."


PACKAGED = Path(__file__).parent.parent / "templates"


async def load_templates(folder: Path = PACKAGED) -> list[Template]:
    """`read_templates` in a thread; a malformed template is left out, with a line in the log."""

    def read() -> list[Template]:
        found = []
        for toml in folder.glob("*/template.toml"):
            try:
                found.append(read_template(toml.parent))
            except TemplateError as e:
                log.error("%s", e)
        return sorted(found, key=lambda t: (t.order, t.name))

    return await asyncio.to_thread(read)
