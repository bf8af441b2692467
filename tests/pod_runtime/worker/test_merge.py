from __future__ import annotations

from itertools import pairwise

import pycrdt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pod_runtime.worker.merge import apply, edits, merge, to_utf8
from pod_runtime.worker.textfile import NotText, TextFile

LINE = st.sampled_from(["a\n", "b\n", "c\n", "\n", "é😀\n", "x\r\n", "long line\n"])
TEXT = st.builds(
    lambda lines, end: "".join(lines) + end, st.lists(LINE, max_size=12), st.sampled_from(["", "z", "😀"])
)
ANY = st.text(max_size=40) | TEXT


@given(ANY, ANY)
def test_edits_lead_there(old: str, new: str) -> None:
    found = edits(old, new)
    assert apply(old, found) == new
    assert all(a.end <= b.start for a, b in pairwise(found))
    assert not [e for e in found if e.start == e.end and not e.text]


@given(TEXT, TEXT)
def test_edits_on_a_real_y_text(old: str, new: str) -> None:
    doc = pycrdt.Doc()
    text = doc.get("source", type=pycrdt.Text)
    text.insert(0, old) if old else None
    with doc.transaction():
        for e in reversed(to_utf8(old, edits(old, new))):
            if e.end > e.start:
                del text[e.start : e.end]
            if e.text:
                text.insert(e.start, e.text)
    assert str(text) == new


@given(ANY, ANY)
def test_one_sided(base: str, changed: str) -> None:
    assert merge(base, changed, base) == changed
    assert merge(base, base, changed) == changed
    assert merge(base, changed, changed) == changed


@given(st.data())
def test_changes_of_distant_lines_are_both_made(data: st.DataObject) -> None:
    base = [f"line {i}\n" for i in range(10)]
    i = data.draw(st.integers(0, 9))
    j = data.draw(st.integers(0, 9).filter(lambda j: j != i))
    ours, theirs, both = base[:], base[:], base[:]
    ours[i] = both[i] = data.draw(st.sampled_from(["ours\n", "", "two\nlines\n"]))
    theirs[j] = both[j] = data.draw(st.sampled_from(["theirs\n", "", "two\nothers\n"]))
    assert merge("".join(base), "".join(ours), "".join(theirs)) == "".join(both)


@given(TEXT, st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=8))
def test_nobody_loses_what_they_typed(base: str, inserts: list[tuple[int, bool]]) -> None:
    """Each side inserts lines of its own; all of them are in the result, once and in order."""
    sides = []
    for side in (False, True):
        lines = base.splitlines(keepends=True)
        for n, (at, which) in enumerate(inserts):
            if which is side:
                lines.insert(min(at, len(lines)), f"typed {n}\n")
        sides.append("".join(lines))
    result = merge(base, *sides)
    for n in range(len(inserts)):
        assert result.count(f"typed {n}\n") == 1


def test_conflict_keeps_both() -> None:
    assert merge("a\nb\nc\n", "a\nours\nc\n", "a\ntheirs\nc\n") == "a\nours\ntheirs\nc\n"
    assert merge("a\nb\nc\n", "a\nours\nc\n", "a\nc\n") == "a\nours\nc\n"
    assert merge("a\nb\nc\n", "a\nc\n", "a\ntheirs\nc\n") == "a\ntheirs\nc\n"
    assert merge("a", "ours", "theirs") == "ours\ntheirs"
    assert merge("", "ours", "theirs\n") == "ours\ntheirs\n"


def test_large_texts_do_not_take_long() -> None:
    old = "\n".join(str(i % 7) for i in range(60_000))
    new = "\n".join(str(i % 5) for i in range(60_000))
    assert apply(old, edits(old, new)) == new


@given(st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_text_files_come_back(text: str) -> None:
    data = text.encode()
    assert TextFile.decode(data).encode() == data


def test_line_ends() -> None:
    assert TextFile.decode(b"a\r\nb\r\n") == TextFile("a\nb\n", True)
    assert TextFile.decode(b"a\r\nb\n") == TextFile("a\r\nb\n", False)
    assert TextFile.decode(b"") == TextFile("", False)
    for bad in (b"\0", b"\xff\xfe", b"\xed\xa0\x80"):
        with pytest.raises(NotText):
            TextFile.decode(bad)


def test_touching_changes_do_not_clash() -> None:
    assert merge("a\nb\nc\n", "a\nnew\nb\nc\n", "a\nB\nc\n") == "a\nnew\nB\nc\n"
    assert merge("a\nb\nc\n", "a\nB\nc\n", "a\nb\nnew\nc\n") == "a\nB\nnew\nc\n"
