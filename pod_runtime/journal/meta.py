"""What a record says of itself and of its members, and the rules for names. Pure; see `docs/journal.md`.

Paths are ``str``; bytes that are not UTF-8 are lone surrogates (PEP 383).
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

FORMAT = 1
META = "meta.json"
BLOCK = 512
MAX_META = 64 * 2**20
MAX_PAX = 2**20
MAX_PATH = 4095
MAX_NAME = 255
#: Paths named in ``changed``; ``changed_count`` says how many there were.
MAX_CHANGED = 1000


class FormatError(ValueError):
    """The bytes are not a record of this format, or break one of its bounds."""


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class Area(StrEnum):
    """The two top folders of a record: the project's files, and the documents' histories."""

    WORKSPACE = "workspace"
    DOCS = "docs"


@dataclass(frozen=True, slots=True)
class DocMeta:
    """Beside a history: its epoch and the SHA-256 (hex) of the text that it renders to."""

    epoch: int
    text_sha256: str


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a record. ``size`` in bytes; ``mtime_ns`` since 1970; ``mode`` the permission bits."""

    area: Area
    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    doc: DocMeta | None = None

    @property
    def name(self) -> str:
        return f"{self.area}/{self.path}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What a record says about itself. ``deleted`` are full names (``workspace/a``, ``docs/a``).

    ``changed``: the paths in ``workspace/`` that the record writes or deletes, with the names of the people
    whose edits are in them; at most `MAX_CHANGED` of ``changed_count``. None: the record does not say.
    """

    kind: str
    seq: int
    writer: str
    generation: int
    id: str = ""
    time: str = ""
    deleted: tuple[str, ...] = ()
    docs: dict[str, DocMeta] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] | None = None
    changed_count: int = 0

    def to_json(self) -> bytes:
        docs = {path: {"epoch": d.epoch, "text_sha256": d.text_sha256} for path, d in self.docs.items()}
        said: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "seq": self.seq,
            "writer": self.writer,
            "generation": self.generation,
            "id": self.id,
            "time": self.time,
            "deleted": list(self.deleted),
            "docs": docs,
        }
        if self.changed is not None:
            said |= {"changed": self.changed, "changed_count": self.changed_count}
        return json.dumps(said).encode()

    @property
    def names_all(self) -> bool:
        """Whether ``changed`` is there and complete."""
        return self.changed is not None and self.changed_count <= len(self.changed)

    @classmethod
    def from_json(cls, raw: bytes) -> Meta:
        """Parse and check. Raises `FormatError`."""
        try:
            found = json.loads(raw)
            if found["format"] != FORMAT:
                raise FormatError(f"format {found['format']!r} is not known to this version")
            deleted = tuple(found["deleted"])
            for name in deleted:
                split_name(name)
            docs = {}
            for path, d in found["docs"].items():
                check_path(path)
                docs[path] = DocMeta(int(d["epoch"]), str(d["text_sha256"]))
            changed = None
            if found.get("changed") is not None:
                changed = {check_path(p): tuple(map(str, who)) for p, who in found["changed"].items()}
            return cls(
                kind=str(found["kind"]),
                seq=int(found["seq"]),
                writer=str(found["writer"]),
                generation=int(found["generation"]),
                id=str(found["id"]),
                time=str(found["time"]),
                deleted=deleted,
                docs=docs,
                changed=changed,
                changed_count=int(found.get("changed_count", 0)) if changed is not None else 0,
            )
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise FormatError(f"{META}: {type(e).__name__}: {e}") from e


def now() -> str:
    """The time as the wire has it: RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def check_path(path: str) -> str:
    """``path`` if it is relative, without ``.``, ``..``, empty parts or NUL, and within the bounds."""
    if not isinstance(path, str):
        raise FormatError("a path is not text")
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as e:
        raise FormatError("a path is not valid text") from e
    if not raw or len(raw) > MAX_PATH or b"\0" in raw:
        raise FormatError("a path is empty, too long, or holds a NUL")
    for part in raw.split(b"/"):
        if part in (b"", b".", b"..") or len(part) > MAX_NAME:
            raise FormatError(f"the path {path!r} is absolute, climbs, or has a bad component")
    return path


def split_name(name: str) -> tuple[Area, str]:
    """``workspace/a/b`` → (workspace, ``a/b``). Raises `FormatError` for anything else."""
    top, _, path = name.partition("/") if isinstance(name, str) else ("", "", "")
    try:
        area = Area(top)
    except ValueError:
        raise FormatError(f"{name!r} is in neither workspace/ nor docs/") from None
    return area, check_path(path)
