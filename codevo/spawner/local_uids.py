"""A user id of its own for each project, when the hub runs as root; kept in a file, to stay the same."""

from __future__ import annotations

import json
import os
from pathlib import Path


class UidTable:
    """``path`` holds ``{project: uid}``. Not for use from several threads at once."""

    def __init__(self, path: Path, first: int, count: int) -> None:
        self._path = path
        self._range = range(first, first + count)
        try:
            self._uids: dict[str, int] = json.loads(path.read_text())
        except FileNotFoundError:
            self._uids = {}

    def get(self, project: str) -> int:
        """The project's uid, newly taken if it has none. Raises ValueError when the range is used up."""
        uid = self._uids.get(project)
        if uid is None:
            taken = set(self._uids.values())
            uid = next((n for n in self._range if n not in taken), None)
            if uid is None:
                raise ValueError(
                    f"all {len(self._range)} user ids of LocalSpawner.uid_first/uid_count are taken"
                )
            self._uids[project] = uid
            self._save()
        return uid

    def release(self, project: str) -> None:
        """For another project to have; only once nothing of this one is left."""
        if self._uids.pop(project, None) is not None:
            self._save()

    def _save(self) -> None:
        temporary = self._path.with_suffix(".new")
        with temporary.open("w") as f:
            json.dump(self._uids, f)
            f.flush()
            os.fsync(f.fileno())
        temporary.replace(self._path)


def own(folder: Path, uid: int) -> None:
    """Make ``folder`` and what is in it the user's, following no links; nothing to do when it is already."""
    if folder.stat().st_uid == uid:
        return
    for _, folders, files, fd in os.fwalk(folder, follow_symlinks=False):
        for name in (*folders, *files):
            os.chown(name, uid, uid, dir_fd=fd, follow_symlinks=False)
    os.chown(folder, uid, uid)  # last, so that an interrupted walk is done again
