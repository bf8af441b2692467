"""The versions of one file, from what is known of the log. Pure."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta

from pod_runtime.journal.checkpoints import moment
from pod_runtime.journal.reader import Checkpoint

#: Changes of the same people within this time after the first are one version.
TOGETHER = timedelta(minutes=5)
#: Names beside one version.
MAX_PEOPLE = 20


@dataclass(frozen=True, slots=True)
class Change:
    """Record ``seq`` wrote or deleted (``gone``) the file; ``size`` in bytes, None when not known.

    ``found``: it is not known when, only that snapshot ``seq`` has it so.
    """

    seq: int
    time: str
    people: tuple[str, ...] = ()
    gone: bool = False
    size: int | None = None
    found: bool = False


@dataclass(frozen=True, slots=True)
class Version:
    """One version: the file as it was after record ``seq``, which is still kept."""

    seq: int
    time: str
    people: tuple[str, ...]
    gone: bool
    size: int | None
    checkpoint: str | None = None


def kept_ranges(snapshots: Iterable[int], records: Iterable[int]) -> list[tuple[int, int]]:
    """The states that can still be read, as ascending ranges (first, last): a snapshot, or nothing (0),
    and the records that follow it without a gap."""
    there = sorted(set(records))
    found: list[tuple[int, int]] = []
    for base in sorted({0, *snapshots}):
        if found and base <= found[-1][1]:
            continue
        at = bisect_right(there, base)
        last = base
        while at < len(there) and there[at] == last + 1:
            last += 1
            at += 1
        found.append((base, last))
    return found


def versions(
    changes: Sequence[Change], kept: Sequence[tuple[int, int]], marks: Iterable[Checkpoint]
) -> list[Version]:
    """Newest first. ``changes`` ascend; a state between two of them is the file as the first one left it.

    A change whose state is no longer kept goes into the next one that is, with its people. One whose own
    number is not kept, but a later number of the same state is, gets that number.
    """
    starts = [first for first, _ in kept]
    found: list[Version] = []
    alone: set[int] = set()
    people: set[str] = set()
    for n, change in enumerate(changes):
        following = changes[n + 1].seq if n + 1 < len(changes) else None
        seq = _readable(change.seq, following, kept, starts)
        people.update(change.people)
        if seq is None:
            continue
        names = tuple(sorted(people)[:MAX_PEOPLE])
        people.clear()
        found.append(Version(seq, change.time, names, change.gone, change.size))
        if change.found:
            alone.add(seq)
    named = _named([v.seq for v in found], marks)
    out: list[Version] = []
    since = ""
    for version in found:
        version = replace(version, checkpoint=named.get(version.seq))
        if out and out[-1].seq not in alone and _together(out[-1], version, since):
            out[-1] = version
        else:
            out.append(version)
            since = version.time
    return out[::-1]


def _readable(
    seq: int, following: int | None, kept: Sequence[tuple[int, int]], starts: Sequence[int]
) -> int | None:
    at = bisect_right(starts, seq)
    if at and seq <= kept[at - 1][1]:
        return seq
    if at < len(kept) and (following is None or starts[at] < following):
        return starts[at]
    return None


def _together(before: Version, version: Version, since: str) -> bool:
    """Whether both are one version; one that a checkpoint holds stands by itself."""
    return (
        not before.gone
        and not version.gone
        and before.checkpoint is None
        and before.people == version.people
        and moment(version.time) - moment(since) <= TOGETHER
    )


def _named(seqs: Sequence[int], marks: Iterable[Checkpoint]) -> dict[int, str]:
    """The checkpoint in which each version is found; the newest, one that somebody named before others."""
    found: dict[int, str] = {}
    for mark in sorted(marks, key=lambda m: (not m.auto, m.seq)):
        at = bisect_right(seqs, mark.seq)
        if at:
            found[seqs[at - 1]] = mark.name
    return found
