"""Three-way merge of texts, and the smallest edits that turn one text into another. Pure.

Offsets are of ``str`` (code points); `to_utf8` is the one place that turns them into the UTF-8 byte offsets
of pycrdt. (Browsers count UTF-16 units, but only ever exchange Y updates, which carry neither.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

# above this many lines in the differing middle a diff would block for seconds
_MAX_LINES = 20_000


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace ``old[start:end]`` by ``text``."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class _Hunk:
    start: int
    end: int
    lines: tuple[str, ...]


def edits(old: str, new: str) -> list[Edit]:
    """Ascending, disjoint edits that turn ``old`` into ``new``: by lines, each trimmed to the characters."""
    a, b = _lines(old), _lines(new)
    offsets = _offsets(a)
    found = []
    for hunk in _hunks(a, b):
        start, end, text = offsets[hunk.start], offsets[hunk.end], "".join(hunk.lines)
        before = old[start:end]
        head = _common_prefix(before, text)
        tail = _common_prefix(before[head:][::-1], text[head:][::-1])
        found.append(Edit(start + head, end - tail, text[head : len(text) - tail]))
    return found


def apply(old: str, changes: Iterable[Edit]) -> str:
    """``old`` after ascending, disjoint ``changes``."""
    parts, at = [], 0
    for change in changes:
        parts += [old[at : change.start], change.text]
        at = change.end
    return "".join([*parts, old[at:]])


def to_utf8(old: str, changes: Iterable[Edit]) -> list[Edit]:
    """The same edits with offsets counted in bytes of ``old`` as UTF-8."""
    found, at, at_bytes = [], 0, 0
    for change in changes:
        start = at_bytes + len(old[at : change.start].encode())
        end = start + len(old[change.start : change.end].encode())
        found.append(Edit(start, end, change.text))
        at, at_bytes = change.end, end
    return found


def merge(base: str, ours: str, theirs: str) -> str:
    """Both sides' changes to ``base``. Where they clash, our lines and then theirs: nothing is dropped.

    A side that deleted what the other changed loses: text is kept rather than removed.
    """
    if ours in (base, theirs):
        return theirs
    if theirs == base:
        return ours
    lines = _lines(base)
    left, right = _hunks(lines, _lines(ours)), _hunks(lines, _lines(theirs))
    out: list[str] = []
    at = 0
    while left or right:
        start, end, mine, yours = _next_cluster(left, right)
        out += lines[at:start]
        at = end
        if not yours:
            out += _patched(lines, start, end, mine)
        elif not mine:
            out += _patched(lines, start, end, yours)
        else:
            out += _both(_patched(lines, start, end, mine), _patched(lines, start, end, yours))
    return "".join(out + lines[at:])


def _both(mine: list[str], yours: list[str]) -> list[str]:
    if mine == yours or not yours:
        return mine
    if not mine:
        return yours
    if not mine[-1].endswith("\n"):
        mine = [*mine[:-1], mine[-1] + "\n"]
    return mine + yours


def _next_cluster(left: list[_Hunk], right: list[_Hunk]) -> tuple[int, int, list[_Hunk], list[_Hunk]]:
    """Take the first hunk and all that overlap it, of both sides; give their common range of lines.

    Hunks that only touch do not overlap; of those that begin at one place, insertions come first.
    """
    start = min(side[0].start for side in (left, right) if side)
    mine, yours = ([side.pop(0)] if side and side[0].end == start else [] for side in (left, right))
    if mine or yours:
        return start, start, mine, yours
    end, grew = start + 1, True
    while grew:
        grew = False
        for side, taken in ((left, mine), (right, yours)):
            while side and side[0].start < end:
                end = max(end, side[0].end)
                taken.append(side.pop(0))
                grew = True
    return start, end, mine, yours


def _patched(lines: Sequence[str], start: int, end: int, hunks: Iterable[_Hunk]) -> list[str]:
    out: list[str] = []
    at = start
    for hunk in hunks:
        out += [*lines[at : hunk.start], *hunk.lines]
        at = hunk.end
    return out + list(lines[at:end])


def _lines(text: str) -> list[str]:
    """Lines with their ends; only ``\\n`` ends a line (str.splitlines knows a dozen more)."""
    parts = [part + "\n" for part in text.split("\n")]
    parts[-1] = parts[-1][:-1]
    return parts if parts[-1] else parts[:-1]


def _offsets(lines: Sequence[str]) -> list[int]:
    found = [0]
    for line in lines:
        found.append(found[-1] + len(line))
    return found


def _common_prefix(a: Sequence[str], b: Sequence[str]) -> int:
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle
    return low


def _hunks(a: list[str], b: list[str]) -> list[_Hunk]:
    head = _common_prefix(a, b)
    tail = _common_prefix(a[head:][::-1], b[head:][::-1])
    x, y = a[head : len(a) - tail], b[head : len(b) - tail]
    if not x and not y:
        return []
    if not x or not y or len(x) + len(y) > _MAX_LINES:
        return [_Hunk(head, head + len(x), tuple(y))]
    # autojunk keeps files of many equal lines from taking quadratic time
    return [
        _Hunk(head + i1, head + i2, tuple(y[j1:j2]))
        for tag, i1, i2, j1, j2 in SequenceMatcher(None, x, y).get_opcodes()
        if tag != "equal"
    ]
