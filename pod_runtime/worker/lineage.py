"""Updates made apart from an open document: a history's begin, and what others wrote into its file."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

from pycrdt import Doc, Map, Text

from pod_runtime.worker import merge


def new_history(text: str) -> tuple[int, bytes]:
    """A fresh history of ``text``: its epoch and its update. The marker is the first operation."""
    epoch = secrets.randbelow(2**32 - 1) + 1
    doc: Doc[Any] = Doc(client_id=epoch)
    doc.get("codevo", type=Map)["epoch"] = epoch
    if text:
        doc.get("source", type=Text).insert(0, text)
    return epoch, doc.get_update()


def _edit(text: Text, changes: list[merge.Edit]) -> None:
    for change in reversed(changes):
        if change.end > change.start:
            del text[change.start : change.end]
        if change.text:
            text.insert(change.start, change.text)


def client_for(state: bytes, merged: str) -> int:
    """The client id for bringing a closed document of this state up to date with its file.

    Another machine that does the same, because it has file and history from the log and no more, makes the
    same operations: a client that comes from the first one has them already.
    """
    apart: Doc[Any] = Doc()
    apart.apply_update(state)
    # encoded anew, so that it does not matter in which pieces the state was written
    seed = hashlib.blake2b(apart.get_update(), digest_size=32)
    seed.update(merged.encode())
    return int.from_bytes(seed.digest()[:4], "big") or 1


def edited(state: bytes, client: int, changes: list[merge.Edit]) -> bytes:
    """The update of ``changes`` to a document of this state, made apart from it. It counts on as the document
    itself would, so nothing else may be made under its client id until the update is applied."""
    apart: Doc[Any] = Doc(client_id=client)
    apart.apply_update(state)
    updates: list[bytes] = []
    subscription = apart.observe(lambda event: updates.append(event.update))
    with apart.transaction():
        _edit(apart.get("source", type=Text), changes)
    apart.unobserve(subscription)
    (update,) = updates
    return update
