"""Work that would be lost is set aside: into a visible folder of the workspace."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from pod_runtime.journal.format import Kind
from pod_runtime.journal.ignore import Ignore
from pod_runtime.worker import safefs
from pod_runtime.worker.persistence.changes import MAX_FILE, Changes
from pod_runtime.worker.persistence.manifest import Manifest
from pod_runtime.worker.ports import DocumentCapture

ASIDE = ".codevo"
PREFIX = f"{ASIDE}/set-aside-"


def aside_folder() -> str:
    """Where unsaved work is set aside now."""
    return f"{PREFIX}{datetime.now(UTC):%Y%m%dT%H%M%SZ}"


class SetAside:
    """A visible folder in the workspace for work that lost against the log. Made when first needed."""

    def __init__(self, root: safefs.Root, folder: str) -> None:
        self._root = root
        self.folder = folder
        self.count = 0

    def _place(self, path: str) -> str:
        self._make_room()
        try:
            target = self._free(path)
        except safefs.DiskFull:
            raise
        except (OSError, safefs.InvalidPath):
            # too long here, or a file stands where its folder would be
            short = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
            target = self._free(f"{short}-{path.rpartition('/')[2][:60]}")
        self.count += 1
        return target

    def _free(self, path: str) -> str:
        target = safefs.join(self.folder, path)
        number = 1
        while self._root.exists(target):
            number += 1
            target = safefs.join(self.folder, f"{path}~{number}")
        self._root.mkdir(target.rpartition("/")[0], parents=True, exist_ok=True)
        return target

    def _make_room(self) -> None:
        """Whoever put a file or a link in the place of our folder keeps it under another name."""
        try:
            kind = safefs.kind_of(self._root.lstat(ASIDE))
        except FileNotFoundError:
            return
        if kind is not safefs.Kind.DIRECTORY:
            self._root.rename(ASIDE, f"{ASIDE}-{secrets.token_hex(4)}")

    def move(self, path: str) -> None:
        """Take the file or link at ``path`` away to here."""
        self._root.rename(path, self._place(path))

    def copy(self, path: str, limit: int) -> None:
        """Leave ``path`` where it is and put a copy here."""
        data = self._root.read_bytes(path, limit)
        self._root.write_atomic(self._place(path), data, sync=False)

    def write(self, path: str, data: bytes) -> None:
        """Text that is not on disk."""
        self._root.write_atomic(self._place(path), data, sync=False)


def set_unsaved_aside(
    aside: SetAside,
    root: safefs.Root,
    manifest: Manifest,
    ignore: Ignore,
    spool: Path,
    captures: Iterable[DocumentCapture],
    live: set[str],
) -> None:
    """Copy what was never committed: files that differ from the manifest, and the open documents' texts."""
    captures = list(captures)
    prepared = Changes(
        root,
        manifest,
        ignore,
        spool=spool,
        live=live,
        max_workspace=2**62,
        notice=lambda level, message: None,
    ).build(captures, set(manifest.docs), None)
    prepared.discard()
    texts = {c.path: c.text for c in captures if c.path in live}
    for path, entry in prepared.delta.entries.items():
        if entry is None or entry.kind is not Kind.FILE or path.startswith(PREFIX):
            continue
        with contextlib.suppress(OSError, safefs.InvalidPath):
            if path in texts:
                aside.write(path, texts[path])
            else:
                aside.copy(path, MAX_FILE)
