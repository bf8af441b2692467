from __future__ import annotations

import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from pod_runtime.journal import checkpoints, projects, reader
from pod_runtime.journal.checkpoints import TooManyCheckpoints, prune, with_mark
from pod_runtime.journal.format import Area, Member, encode_body
from pod_runtime.journal.memory import MemoryStore
from pod_runtime.journal.reader import Checkpoint, Head
from pod_runtime.journal.store import NotFound
from pod_runtime.journal.writer import Commit, LogWriter

START = datetime(2026, 1, 31, 12, tzinfo=UTC)


def stamp(at: datetime) -> str:
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def auto(seq: int, at: datetime, by: str = "") -> Checkpoint:
    return Checkpoint(f"Automatic {seq}", seq, stamp(at), auto=True, by=by)


def test_a_month_of_work_keeps_hours_and_days() -> None:
    chance = random.Random(7)
    marks: tuple[Checkpoint, ...] = (Checkpoint("exam", 1, stamp(START), by="ana"),)
    made: list[datetime] = []
    at, seq = START, 1
    while at < START + timedelta(days=45):
        # some hours nobody works, and the worker's hour drifts
        at += timedelta(minutes=chance.choice([60, 61, 61, 75, 190]))
        seq += 1
        marks = with_mark(marks, auto(seq, at), at)
        made.append(at)
        kept = [checkpoints.moment(m.time) for m in marks if m.auto]
        assert len(kept) <= 25 + 31
        assert kept[-1] == at
    assert marks[0].name == "exam"
    kept = [checkpoints.moment(m.time) for m in marks if m.auto]
    assert kept == sorted(kept)
    # the newest of every hour of the last day, the newest of every day of the last thirty
    hours = {m.replace(minute=0): m for m in made if at - m < timedelta(hours=24)}
    days = {m.date(): m for m in made if at - m < timedelta(days=30)}
    assert set(kept) == {*hours.values(), *days.values()}


def test_what_was_kept_before_restores_stays_a_day() -> None:
    marks: tuple[Checkpoint, ...] = ()
    for n in range(5):
        marks = with_mark(
            marks, auto(n + 1, START + timedelta(minutes=n), by="ana"), START + timedelta(minutes=n)
        )
    assert [m.seq for m in marks] == [1, 2, 3, 4, 5]
    assert [m.seq for m in prune(marks, START + timedelta(hours=25))] == [5]
    assert prune(marks, START + timedelta(days=31)) == ()
    for n in range(100):
        marks = with_mark(marks, auto(n + 10, START + timedelta(seconds=300 + n), by="ana"), START)
    assert len(marks) == checkpoints.MAX_ASKED
    assert marks[-1].seq == 109


def test_names_and_states_are_unique_and_bounded() -> None:
    named = Checkpoint("a", 5, stamp(START))
    marks = with_mark((auto(5, START),), named, START)
    assert marks == (named,)  # an automatic one of the same state goes
    assert with_mark(marks, auto(5, START, by="bo"), START) == marks
    assert with_mark((auto(5, START),), auto(5, START, by="bo"), START)[0].by == "bo"
    assert with_mark((auto(5, START, by="bo"),), auto(5, START), START)[0].by == "bo"
    again = Checkpoint("a", 7, stamp(START))
    assert with_mark(marks, again, START) == (again,)
    assert with_mark(marks, replace(named, name="b"), START) == (replace(named, name="b"),)
    many = tuple(Checkpoint(str(n), n, stamp(START)) for n in range(checkpoints.MAX_NAMED))
    with pytest.raises(TooManyCheckpoints):
        with_mark(many, Checkpoint("more", 999, stamp(START)), START)
    assert len(with_mark(many, Checkpoint("3", 999, stamp(START)), START)) == checkpoints.MAX_NAMED
    assert len(with_mark(many, auto(999, START), START)) == checkpoints.MAX_NAMED + 1


@pytest.mark.parametrize("name", ["", "  ", None, 3, "a\nb", "x" * 201, "a\x00"])
def test_bad_names(name: object) -> None:
    with pytest.raises(ValueError, match="name:"):
        checkpoints.clean_name(name)


def test_head_in_json() -> None:
    head = Head(3, 1, 0, (Checkpoint("a", 2, "t"), Checkpoint("b", 3, "t", True, "ana")))
    assert Head.from_json(head.to_json()) == head
    assert b'"auto"' not in replace(head, checkpoints=head.checkpoints[:1]).to_json()
    assert checkpoints.moment("rubbish") < START
    assert checkpoints.moment("2026-01-01T00:00:00").tzinfo is UTC


async def test_added_listed_and_removed_in_a_log() -> None:
    bucket = MemoryStore()
    view = bucket.view("projects/p/")
    writer = LogWriter(view, 1)
    await writer.open()
    for n in range(3):
        body = encode_body([(Member(Area.WORKSPACE, "f", size=1), str(n).encode())])
        await writer.append(Commit(body))
    assert await projects.checkpoints_of(bucket, "projects/p/") == []
    last = await projects.add_checkpoint(bucket, "projects/p/", "end", by="ana")
    assert (last.seq, last.by, last.auto) == (4, "ana", False)
    first = await checkpoints.add(view, "Automatic", 2, auto=True)
    assert await checkpoints.listed(view) == [last, first]
    assert await checkpoints.add(view, "Automatic again", 4, auto=True) == last
    with pytest.raises(NotFound):
        await checkpoints.add(view, "none", 9)
    assert await projects.remove_checkpoint(bucket, "projects/p/", 4)
    assert not await projects.remove_checkpoint(bucket, "projects/p/", 4)
    assert not await projects.remove_checkpoint(bucket, "projects/q/", 4)
    assert await checkpoints.listed(view) == [first]
    assert (await reader.load(view)).last == 4
