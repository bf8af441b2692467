"""Checkpoints: states of a log that have a name in HEAD, and which of the automatic ones are kept.

Automatic ones (``auto``): the newest of each hour for 24 hours, the newest of each day for 30 days. Those
made on somebody's behalf (``auto`` with ``by``: before a restore) all stay for 24 hours, then like others.
Hours and days are those of UTC. The functions without I/O come first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pod_runtime.journal import reader
from pod_runtime.journal.format import Meta, encode_body, meta_frame, now
from pod_runtime.journal.reader import Checkpoint, Head, snapshot_key
from pod_runtime.journal.store import ObjectStore
from pod_runtime.journal.writer import change_head

#: Named checkpoints of a project.
MAX_NAMED = 200
#: Checkpoints made before restores, of the last 24 hours.
MAX_ASKED = 50
MAX_NAME = 200
HOURLY = timedelta(hours=24)
DAILY = timedelta(days=30)


class TooManyCheckpoints(Exception):
    """The project has `MAX_NAMED` already."""


def clean_name(name: object) -> str:
    """A checkpoint's name as somebody gave it, trimmed. Raises ``ValueError`` with words for people."""
    if not isinstance(name, str) or not name.strip():
        raise ValueError("name: expected some text")
    name = name.strip()
    if len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"name: at most {MAX_NAME} characters, all of them printable")
    return name


def moment(text: str) -> datetime:
    """A time of the log. One that cannot be read is as old as can be."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def prune(marks: Iterable[Checkpoint], at: datetime) -> tuple[Checkpoint, ...]:
    """What is kept of ``marks`` at that time, in their order."""
    marks = tuple(marks)
    automatic = sorted((m for m in marks if m.auto), key=lambda m: (moment(m.time), m.seq), reverse=True)
    kept: set[Checkpoint] = {m for m in marks if not m.auto}
    hours: set[int] = set()
    days: set[int] = set()
    asked = 0
    for mark in automatic:
        seconds = int(moment(mark.time).timestamp())
        age = at - moment(mark.time)
        hour, day = seconds // 3600, seconds // 86400
        if age < HOURLY and mark.by:
            asked += 1
            if asked <= MAX_ASKED:
                kept.add(mark)
            continue
        if age < HOURLY and hour not in hours:
            hours.add(hour)
            days.add(day)
            kept.add(mark)
        elif age < DAILY and day not in days:
            days.add(day)
            kept.add(mark)
    return tuple(m for m in marks if m in kept)


def with_mark(marks: Iterable[Checkpoint], mark: Checkpoint, at: datetime) -> tuple[Checkpoint, ...]:
    """``marks`` and a new one, pruned.

    A state has one checkpoint and a name one state: a named one takes the place of those of its name or
    state; an automatic one gives way to a named one of its state. Raises `TooManyCheckpoints`.
    """
    marks = tuple(marks)
    if mark.auto:
        if any(m.seq == mark.seq and (not m.auto or m.by or not mark.by) for m in marks):
            return prune(marks, at)
        others = [m for m in marks if m.seq != mark.seq]
    else:
        others = [m for m in marks if m.seq != mark.seq and (m.auto or m.name != mark.name)]
        if sum(not m.auto for m in others) >= MAX_NAMED:
            raise TooManyCheckpoints(
                f"A project keeps at most {MAX_NAMED} named checkpoints; delete one first"
            )
    return prune((*others, mark), at)


# -- in a log; ``store`` is opened at the project's prefix


async def listed(store: ObjectStore) -> list[Checkpoint]:
    """All, newest first."""
    head, _ = await reader.read_head(store)
    marks = head.checkpoints if head else ()
    return sorted(marks, key=lambda m: (m.seq, m.time), reverse=True)


async def add(
    store: ObjectStore, name: str, seq: int, *, by: str = "", auto: bool = False, known: bool = False
) -> Checkpoint:
    """Keep the state ``seq``; gives the checkpoint that it has now (see `with_mark`).

    ``known`` says that the state is there; else `NotFound` is raised when it is not kept any more. Raises
    `TooManyCheckpoints`.
    """
    if not known:
        await reader.load(store, seq)
    mark = Checkpoint(name, seq, now(), auto, by)
    if (await reader.read_head(store))[0] is None:
        # HEAD names a snapshot, so a log without one gets an empty one to start from
        frame = meta_frame(Meta("snapshot", 0, "checkpoint", 0, "", now()))
        await store.put(snapshot_key(0), frame + encode_body(()))

    def change(head: Head) -> Head:
        return replace(head, checkpoints=with_mark(head.checkpoints, mark, datetime.now(UTC)))

    head = await change_head(store, change, Head(0, checkpoints=(mark,)))
    return next((m for m in head.checkpoints if m.seq == seq), mark)


async def remove(store: ObjectStore, seq: int) -> bool:
    """Forget the checkpoint of the state ``seq``; whether there was one. Compaction takes the rest."""
    head, _ = await reader.read_head(store)
    if head is None or not any(m.seq == seq for m in head.checkpoints):
        return False

    def change(head: Head) -> Head:
        return replace(head, checkpoints=tuple(m for m in head.checkpoints if m.seq != seq))

    await change_head(store, change, Head(0))
    return True
