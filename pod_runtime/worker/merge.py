"""Three-way merge of texts, and the smallest edits that turn one text into another. Pure.

Offsets are of ``str`` (code points); `to_utf8` is the one place that turns them into the UTF-8 byte offsets
of pycrdt. (Browsers count UTF-16 units, but only ever exchange Y updates, which carry neither.)
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

# above this many lines in the differing middle a diff would block for seconds
_MAX_LINES = 20_000
# the same for the words of changed lines
_MAX_WORDS = 4_000
_WORD = re.compile(r"\w+|\s|[^\w\s]")


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


@dataclass(slots=True)
class _Cluster:
    """Hunks of both sides that have to do with each other, and the range of the base that they cover."""

    start: int
    end: int
    mine: list[_Hunk]
    yours: list[_Hunk]

    @property
    def clashes(self) -> bool:
        """Whether both put something in the place of the same."""
        return self.start < self.end and all(any(h.lines for h in s) for s in (self.mine, self.yours))


def edits(old: str, new: str) -> list[Edit]:
    """Ascending, disjoint edits that turn ``old`` into ``new``: by lines, inside of changed lines by words.

    Never by characters: what somebody types between two words at the same time must not end up inside one,
    which happens when the beginning of one word and the end of another are kept.
    """
    a, b = _lines(old), _lines(new)
    offsets = _offsets(a)
    found = []
    for hunk in _hunks(a, b):
        start = offsets[hunk.start]
        words = _WORD.findall("".join(a[hunk.start : hunk.end]))
        places = _offsets(words)
        found += [
            Edit(start + places[h.start], start + places[h.end], "".join(h.lines))
            for h in _hunks(words, _WORD.findall("".join(hunk.lines)), _MAX_WORDS)
        ]
    return found


def distance(old: str, new: str) -> int:
    """How much has to be changed, characters."""
    return sum(change.end - change.start + len(change.text) for change in edits(old, new))


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
    """Both sides' changes to ``base``: by lines, and by words where both changed the same lines.

    Where they clash (both put something else in the place of the same words), our lines and then theirs:
    nothing is dropped. A side that deleted what the other changed loses: text is kept rather than removed.
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
            out += _both(
                lines[start:end], _patched(lines, start, end, mine), _patched(lines, start, end, yours)
            )
    return "".join(out + lines[at:])


def _both(base: list[str], mine: list[str], yours: list[str]) -> list[str]:
    if mine == yours or not yours:
        return mine
    if not mine:
        return yours
    texts = ["".join(part) for part in (base, mine, yours)]
    words, left, right = (_WORD.findall(text) for text in texts)
    if not words or max(map(len, (words, left, right))) > _MAX_WORDS:
        return _stacked(mine, yours)
    out: list[str] = []
    at = 0
    for cluster in _by_words(words, _hunks(words, left), _hunks(words, right)):
        out += words[at : cluster.start]
        at = cluster.end
        out += _settled(words, cluster)
    return out + words[at:]


def _by_words(words: list[str], left: list[_Hunk], right: list[_Hunk]) -> list[_Cluster]:
    """Clusters of hunks in order; one that clashes spans whole lines with all that changed in them."""
    found: list[_Cluster] = []
    while left or right:
        new = _Cluster(*_next_cluster(left, right))
        while found and (_line_start(words, new) if new.clashes else new.start) < found[-1].end:
            before = found.pop()
            new = _Cluster(
                before.start, max(before.end, new.end), before.mine + new.mine, before.yours + new.yours
            )
        if new.clashes:
            new.start = _line_start(words, new)
            while new.end < len(words) and words[new.end - 1] != "\n":
                new.end += 1
        found.append(new)
    return found


def _line_start(words: list[str], cluster: _Cluster) -> int:
    start = cluster.start
    while start and words[start - 1] != "\n":
        start -= 1
    return start


def _settled(words: list[str], cluster: _Cluster) -> list[str]:
    """What stands in the cluster's place in the end."""
    start, end = cluster.start, cluster.end
    mine, yours = _patched(words, start, end, cluster.mine), _patched(words, start, end, cluster.yours)
    if mine == yours or not cluster.yours:
        return mine
    if not cluster.mine:
        return yours
    if cluster.clashes:
        return _stacked(mine, yours)
    mine_new, yours_new = (any(h.lines for h in side) for side in (cluster.mine, cluster.yours))
    if mine_new and yours_new:
        # both went on at one place, as two people who type there; perhaps one already has the other's
        if yours[: len(mine)] == mine:
            return yours
        return mine if mine[: len(yours)] == yours else mine + yours
    return mine if mine_new else yours if yours_new else []


def _stacked(mine: list[str], yours: list[str]) -> list[str]:
    """Both sides' lines below each other; lines that both begin or end with only once."""
    a, b = _lines("".join(mine)), _lines("".join(yours))
    head = _common_prefix(a, b)
    tail = _common_prefix(a[head:][::-1], b[head:][::-1])
    start, end = a[:head], a[len(a) - tail :]
    a, b = a[head : len(a) - tail], b[head : len(b) - tail]
    if a and (b or end) and not a[-1].endswith("\n"):
        a[-1] += "\n"
    return [*start, *a, *b, *end]


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


def _hunks(a: Sequence[str], b: Sequence[str], most: int = _MAX_LINES) -> list[_Hunk]:
    found = []
    i = j = 0
    for start, other, length in [*_blocks(a, b, most), (len(a), len(b), 0)]:
        if start > i or other > j:
            found.append(_Hunk(i, start, tuple(b[j:other])))
        i, j = start + length, other + length
    return found


def _blocks(a: Sequence[str], b: Sequence[str], most: int) -> list[tuple[int, int, int]]:
    """What is equal: places in ``a`` and ``b``, and length, in order.

    What stands once in each holds its place first (patience diff): taken for moved, a line that a side has
    left alone would count as deleted and inserted, and stand twice when the other side keeps it.
    """
    found: list[tuple[int, int, int]] = []
    waiting = [(0, len(a), 0, len(b))]
    while waiting:
        i, i_end, j, j_end = waiting.pop()
        x, y = a[i:i_end], b[j:j_end]
        head = _common_prefix(x, y)
        tail = _common_prefix(x[head:][::-1], y[head:][::-1])
        found += [(i, j, head), (i_end - tail, j_end - tail, tail)]
        i, j, i_end, j_end = i + head, j + head, i_end - tail, j_end - tail
        x, y = a[i:i_end], b[j:j_end]
        if not x or not y:
            continue
        anchors = _anchors(x, y)
        if anchors:
            k = m = 0
            for k_next, m_next in [*anchors, (len(x), len(y))]:
                if k < k_next and m < m_next:
                    waiting.append((i + k, i + k_next, j + m, j + m_next))
                k, m = k_next + 1, m_next + 1
            found += [(i + k, j + m, 1) for k, m in anchors]
        elif len(x) + len(y) <= most:
            # autojunk keeps files of many equal lines from taking quadratic time
            matches = SequenceMatcher(None, x, y).get_matching_blocks()
            found += [(i + k, j + m, n) for k, m, n in matches]
    return sorted(block for block in found if block[2])


def _anchors(x: Sequence[str], y: Sequence[str]) -> list[tuple[int, int]]:
    """The longest ascending run of places of what stands exactly once in each."""
    once_x, once_y = _once(x), _once(y)
    pairs = [(k, once_y[item]) for item, k in once_x.items() if item in once_y]
    ends: list[int] = []
    last: list[int] = []
    before: list[int] = []
    for n, (_, m) in enumerate(pairs):
        at = bisect_left(ends, m)
        before.append(last[at - 1] if at else -1)
        ends[at : at + 1] = [m]
        last[at : at + 1] = [n]
    run = []
    n = last[-1] if last else -1
    while n >= 0:
        run.append(pairs[n])
        n = before[n]
    return run[::-1]


def _once(items: Sequence[str]) -> dict[str, int]:
    counts = Counter(items)
    return {item: n for n, item in enumerate(items) if counts[item] == 1}
