from __future__ import annotations

from pod_runtime.journal.reader import Checkpoint
from pod_runtime.journal.versions import Change, Version, kept_ranges, versions


def at(minute: float) -> str:
    return f"2026-01-31T{12 + int(minute // 60):02}:{int(minute % 60):02}:{int(minute * 60 % 60):02}.000000Z"


def shown(found: list[Version]) -> list[tuple[int, tuple[str, ...], bool]]:
    return [(v.seq, v.people, v.gone) for v in found]


def test_kept_ranges() -> None:
    assert kept_ranges([], []) == [(0, 0)]
    assert kept_ranges([], [1, 2, 3]) == [(0, 3)]
    assert kept_ranges([4, 9], [1, 2, 5, 6, 10, 11]) == [(0, 2), (4, 6), (9, 11)]
    assert kept_ranges([2, 4], [1, 2, 3, 4, 5]) == [(0, 5)]


def test_the_same_people_soon_after_are_one_version() -> None:
    changes = [
        Change(2, at(0), ("ana",), size=1),
        Change(3, at(2), ("ana",), size=2),
        Change(4, at(5), ("ana",), size=3),
        Change(5, at(6), ("ana",), size=4),
        Change(6, at(7), ("ana", "bo"), size=5),
        Change(7, at(8), gone=True),
        Change(8, at(8.5), ("ana",), size=6),
    ]
    found = versions(changes, [(0, 9)], [])
    assert shown(found) == [
        (8, ("ana",), False),
        (7, (), True),
        (6, ("ana", "bo"), False),
        (5, ("ana",), False),
        (4, ("ana",), False),
    ]
    assert found[-1].size == 3
    assert found[-1].time == at(5)


def test_what_is_no_longer_kept_is_in_the_next() -> None:
    changes = [
        Change(n, at(10 * n), (name,)) for n, name in ((2, "a"), (4, "b"), (6, "c"), (8, "d"), (12, "e"))
    ]
    # a checkpoint on the snapshot 7, and the snapshot 10 with what follows
    found = versions(changes, [(0, 0), (7, 7), (10, 12)], [Checkpoint("exam", 7, at(75))])
    assert shown(found) == [(12, ("e",), False), (10, ("d",), False), (7, ("a", "b", "c"), False)]
    assert [v.checkpoint for v in found] == [None, None, "exam"]


def test_a_checkpoint_stands_by_itself() -> None:
    changes = [Change(n, at(n / 10), ("ana",)) for n in range(2, 9)]
    marks = [Checkpoint("named", 4, "t"), Checkpoint("auto", 5, "t", auto=True), Checkpoint("other", 5, "t")]
    found = versions(changes, [(0, 20)], marks)
    assert [(v.seq, v.checkpoint) for v in found] == [(8, None), (5, "other"), (4, "named")]
    later = versions(changes, [(0, 20)], [Checkpoint("a", 1, "t"), Checkpoint("late", 15, "t")])
    assert [(v.seq, v.checkpoint) for v in later] == [(8, "late")]


def test_nothing_is_known() -> None:
    assert versions([], [(0, 3)], [Checkpoint("a", 1, "t")]) == []
