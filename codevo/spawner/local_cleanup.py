"""Deleting what workspaces leave on this machine. All of it blocks: call it in a thread."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from codevo.spawner.local_spec import Places


def remove_tree(root: Path) -> None:
    """Delete it all, folders that their owner shut himself out of too. Nothing may run in it any more."""

    def open_up(_: object, path: str, error: tuple[type[BaseException], BaseException, object]) -> None:
        folder = Path(path)
        if not isinstance(error[1], PermissionError) or folder.is_symlink():
            raise error[1]
        if folder.is_dir() and folder.stat().st_mode & 0o700 != 0o700:
            folder.chmod(0o700)
        elif folder.parent.stat().st_mode & 0o700 != 0o700:
            folder.parent.chmod(0o700)
        else:
            raise error[1]
        shutil.rmtree(path, onerror=open_up) if folder.is_dir() else folder.unlink()

    shutil.rmtree(root, onerror=open_up)


def clean_run(places: Places, patience: float = 3.0) -> None:
    """Remove what a supervisor that is no more left: sockets and cgroups."""
    for name in ("runner", "gateway", "worker", "supervisor"):
        (places.run / f"{name}.sock").unlink(missing_ok=True)
    file = places.run / "cgroups"
    if not file.exists():
        return
    deadline = time.monotonic() + patience
    for group in filter(None, file.read_text().split("\n")):
        while True:
            try:
                Path(group).rmdir()
            except FileNotFoundError:
                break
            except OSError:
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
            else:
                break
    file.unlink(missing_ok=True)
