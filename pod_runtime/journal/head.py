"""The names of a log's objects, and ``HEAD.json``. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pod_runtime.journal.format import FORMAT
from pod_runtime.journal.store import StoreError

HEAD = "HEAD.json"
JOURNAL = "journal/"
SNAPSHOTS = "snapshots/"
SUFFIX = ".tar.zst"
DIGITS = 16


class LogError(StoreError):
    """The log itself is damaged: a hole, a record that is no record. A person has to look."""


def journal_key(seq: int) -> str:
    return f"{JOURNAL}{seq:0{DIGITS}d}{SUFFIX}"


def snapshot_key(seq: int) -> str:
    return f"{SNAPSHOTS}{seq:0{DIGITS}d}{SUFFIX}"


def seq_of(key: str) -> int | None:
    """The sequence number in a key of the journal or of a snapshot; None for foreign keys."""
    name = key.rpartition("/")[2]
    digits = name.removesuffix(SUFFIX)
    return int(digits) if name != digits and len(digits) == DIGITS and digits.isdecimal() else None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A state that somebody named, or that was kept by itself (``auto``); compaction keeps what it needs.

    ``by``: the name of the person for whom it was made, empty for nobody.
    """

    name: str
    seq: int
    time: str
    auto: bool = False
    by: str = ""

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = {"name": self.name, "seq": self.seq, "time": self.time}
        if self.auto:
            found["auto"] = True
        if self.by:
            found["by"] = self.by
        return found

    @classmethod
    def from_json(cls, c: dict[str, Any]) -> Checkpoint:
        """Raises ``KeyError``, ``ValueError``, ``TypeError``."""
        return cls(str(c["name"]), int(c["seq"]), str(c["time"]), c.get("auto") is True, str(c.get("by", "")))


@dataclass(frozen=True, slots=True)
class Head:
    """``HEAD.json``: the newest snapshot, and what outlives the records before it.

    ``generation`` is that of the last record when HEAD was written. Records up to ``inherited`` were copied
    from another project's log, so their generations do not count here.
    """

    snapshot: int
    generation: int = 0
    inherited: int = 0
    checkpoints: tuple[Checkpoint, ...] = ()

    def to_json(self) -> bytes:
        return json.dumps(
            {
                "format": FORMAT,
                "snapshot": self.snapshot,
                "snapshot_key": snapshot_key(self.snapshot),
                "generation": self.generation,
                "inherited": self.inherited,
                "checkpoints": [c.to_json() for c in self.checkpoints],
            }
        ).encode()

    @classmethod
    def from_json(cls, raw: bytes) -> Head:
        """Parse. Raises `LogError`."""
        try:
            found: dict[str, Any] = json.loads(raw)
            if found["format"] != FORMAT:
                raise LogError(f"{HEAD}: format {found['format']!r} is not known to this version")
            marks = tuple(map(Checkpoint.from_json, found["checkpoints"]))
            return cls(int(found["snapshot"]), int(found["generation"]), int(found["inherited"]), marks)
        except (ValueError, KeyError, TypeError) as e:
            raise LogError(f"{HEAD}: {type(e).__name__}: {e}") from e
