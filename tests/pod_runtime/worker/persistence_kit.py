"""Documents and workers for the tests of persistence."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.store import ObjectStore
from pod_runtime.protocol.config import StoreConfig, WorkerConfig
from pod_runtime.worker import safefs
from pod_runtime.worker.authors import Authors
from pod_runtime.worker.persistence import Persister
from pod_runtime.worker.ports import DocumentCapture

NO_STORE = StoreConfig("http://127.0.0.1:1", "bucket", "projects/p/", "key", "secret")


class FakeDocuments:
    """`ports.Documents` without Yjs: a history is just bytes that name the text."""

    def __init__(self) -> None:
        self.authors = Authors()
        self.texts: dict[str, tuple[bytes, int]] = {}
        self.open: set[str] = set()
        self.unsynced: OSError | None = None
        self.imported: dict[str, tuple[bytes, int, str]] = {}

    def edit(self, path: str, text: bytes) -> None:
        self.texts[path] = (text, self.texts.get(path, (b"", 0))[1] + 1)
        self.open.add(path)

    async def save_all(self) -> None:
        pass

    async def refresh(self, paths: Iterable[str]) -> None:
        pass

    async def sync(self) -> OSError | None:
        return self.unsynced

    def capture(self, since: dict[str, int]) -> list[DocumentCapture]:
        return [
            DocumentCapture(path, text, b"history of " + text, 7, version)
            for path, (text, version) in self.texts.items()
            if version > since.get(path, -1)
        ]

    def histories(self) -> set[str]:
        return self.texts.keys() | self.imported.keys()

    def open_paths(self) -> set[str]:
        return set(self.open)

    async def saved(self, path: str) -> None:
        pass

    @contextlib.asynccontextmanager
    async def removing(self, path: str) -> AsyncIterator[None]:
        yield

    async def outside(self, paths: Iterable[str]) -> None:
        pass

    def import_history(self, path: str, history: bytes, epoch: int, text_sha256: str) -> None:
        assert history.startswith(b"history of ")
        assert hashlib.sha256(history.removeprefix(b"history of ")).hexdigest() == text_sha256
        self.imported[path] = (history, epoch, text_sha256)


class Machine:
    """One place where a worker runs: a workspace and a state folder that outlive its processes."""

    def __init__(self, folder: Path, store: ObjectStore) -> None:
        self.workspace = folder / "workspace"
        self.state = folder / "state"
        self.workspace.mkdir(parents=True)
        self.state.mkdir()
        self.store = store
        self.notices: list[str] = []
        self.progress: list[str] = []
        self.documents = FakeDocuments()

    def worker(self, generation: int, **changes: object) -> Persister:
        settings = {"flush_quiet": 0.02, "flush_max": 0.1, **changes}
        config = WorkerConfig(
            "p",
            "",
            generation,
            NO_STORE,
            str(self.workspace),
            str(self.state),
            **settings,  # type: ignore[arg-type]
        )
        return Persister(
            config,
            safefs.Root(self.workspace),
            self.documents,
            self.store,
            notice=lambda level, message: self.notices.append(message),
        )

    async def opened(self, generation: int, **changes: object) -> Persister:
        worker = self.worker(generation, **changes)
        await worker.open(lambda percent, words: self.progress.append(words))
        return worker

    def tree(self) -> dict[bytes, object]:
        return tree(self.workspace)


def crash(worker: Persister) -> None:
    """End a worker as kill -9 would: nothing is flushed, its lock and files are let go."""
    maintenance = worker._maintenance.task if worker._maintenance is not None else None
    for task in (worker._task, maintenance):
        if task is not None:
            task.cancel()
    if worker.timeline is not None:
        worker.timeline.close()
    if worker._manifest is not None:
        worker._manifest.close()
        worker._manifest = None
    callbacks = worker._stack.pop_all()._exit_callbacks
    for _, callback in callbacks:
        if getattr(callback, "__wrapped__", None) is os.close:
            callback(None, None, None)


def tree(folder: Path) -> dict[bytes, object]:
    """Everything beneath a folder: content and mode of files, targets of links, folders."""
    found: dict[bytes, object] = {}
    top = os.fsencode(folder)
    for base, folders, files in os.walk(top):
        for name in folders + files:
            path = os.path.join(base, name)
            key = os.path.relpath(path, top)
            st = os.lstat(path)
            if os.path.islink(path):
                found[key] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[key] = ("folder", st.st_mode & 0o777)
            elif os.path.isfile(path):
                with open(path, "rb") as f:
                    found[key] = ("file", st.st_mode & 0o777, f.read())
    return found


def memory() -> MemoryStore:
    return MemoryStore()
