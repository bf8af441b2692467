"""The seam between the worker's two halves: live documents, and the persistence that makes them durable."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from pod_runtime.worker.authors import Authors


@dataclass(frozen=True, slots=True)
class DocumentCapture:
    """One document at one instant: the text was rendered from the very history beside it.

    ``path`` is relative to /workspace. ``history`` is the whole document as one Y update (v1).
    ``epoch`` is the client id of the history's first operation. ``version`` counts the document's changes.
    """

    path: str
    text: bytes
    history: bytes
    epoch: int
    version: int


@dataclass(frozen=True, slots=True)
class DurabilityStatus:
    """What the status bar shows: ``saved_seq`` counts states on disk, ``durable_seq`` those in the bucket.

    ``pending`` is false exactly when everything on disk and in documents is in the bucket.
    """

    saved_seq: int
    durable_seq: int
    pending: bool
    last_error: str | None
    last_commit: str | None


class Documents(Protocol):
    """What persistence asks of the live documents (implemented by ``worker.documents``).

    ``authors`` gathers who edits what, in documents and by the contents API.
    """

    authors: Authors

    async def save_all(self) -> None:
        """Write every open document's text to disk."""

    def capture(self, since: dict[str, int]) -> Iterable[DocumentCapture]:
        """Documents whose version is above the one in ``since`` (by path; absent = never captured).

        Synchronous, so that all captures are of one instant.
        """

    async def refresh(self, paths: Iterable[str]) -> None:
        """Take what others wrote into these files into the histories of those whose documents are closed.

        A commit of the file alone would leave it to each machine that comes after to do so, by operations of
        its own: what a client has from this machine and not from the log would stand there twice.
        """

    async def sync(self) -> OSError | None:
        """Bring the histories of what was captured to stable storage in /state; gives what went wrong.

        Until then a crash could put an older state of a document in the place of a committed one.
        """

    def histories(self) -> set[str]:
        """Paths that have a history, open or not."""

    def open_paths(self) -> set[str]:
        """Paths of the open documents: their text goes into the log from captures only, never from disk."""

    async def saved(self, path: str) -> None:
        """Write the open documents at and beneath ``path``."""

    def removing(self, path: str) -> AbstractAsyncContextManager[None]:
        """While somebody replaces or deletes ``path``: its document writes nothing there, and is closed
        afterwards when the file is gone."""

    async def outside(self, paths: Iterable[str]) -> None:
        """These files changed on disk, or vanished: open documents take that in."""

    def import_history(self, path: str, history: bytes, epoch: int, text_sha256: str) -> None:
        """Take a history from the log into /state, before serving starts."""


class Persistence(Protocol):
    """What the documents, contents and watcher ask of persistence (implemented by ``worker.persistence``)."""

    def touched(self, *paths: str) -> None:
        """These paths may have changed on disk or in a document; a commit will follow."""

    async def flush(self) -> DurabilityStatus:
        """Commit what is there now; returns when it is durable, ``pending`` when the store is away."""

    def status(self) -> DurabilityStatus: ...
