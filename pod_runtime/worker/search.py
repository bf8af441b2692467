"""Text search: what is asked, and where it stands in a text. Pure.

Lines end at ``\\n`` only, as in the editor. Lines and columns count from 1, columns and lengths in UTF-16
code units, as browsers do. Expressions are Python's, matched line by line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: Longest query and filter, characters.
MAX_QUERY = 1000
#: Matches in one answer unless less is asked for, and most that can be asked for.
DEFAULT_LIMIT, MAX_LIMIT = 2000, 10_000
#: Most matches in one file.
MAX_PER_FILE = 500
#: Most characters of a line that are shown, and how many of them stand before a match further along.
MAX_EXCERPT, _LEAD = 240, 60


class BadQuery(ValueError):
    """The query cannot be used; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Query:
    """``include``: patterns as in .gitignore, separated by commas; those with ``!`` before leave files out.

    ``ignored``: look into ignored folders as well. ``limit``: most matches in all.
    """

    text: str
    case: bool = False
    word: bool = False
    regex: bool = False
    include: str = ""
    ignored: bool = False
    limit: int = DEFAULT_LIMIT

    def __post_init__(self) -> None:
        if not self.text:
            raise BadQuery("q: expected what to search for")
        if len(self.text) > MAX_QUERY or len(self.include) > MAX_QUERY:
            raise BadQuery(f"q and include: at most {MAX_QUERY} characters")
        if "\n" in self.text or "\r" in self.text:
            raise BadQuery("q: a match cannot span lines")
        if not 1 <= self.limit <= MAX_LIMIT:
            raise BadQuery(f"limit: expected 1 to {MAX_LIMIT}")


@dataclass(frozen=True, slots=True)
class Match:
    """``text`` is the line or, of a long one, an excerpt, in which the match begins at ``start`` (UTF-16)."""

    line: int
    column: int
    length: int
    text: str
    start: int

    def json(self) -> dict[str, Any]:
        """As it is answered."""
        return {name: getattr(self, name) for name in self.__slots__}


def compiled(query: Query) -> re.Pattern[str]:
    """Raises `BadQuery` for what is no expression."""
    source = query.text if query.regex else re.escape(query.text)
    if query.word:
        source = rf"(?<!\w)(?:{source})(?!\w)"
    try:
        return re.compile(source, 0 if query.case else re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as e:
        words = str(e) or type(e).__name__
        raise BadQuery(f"This is not a regular expression: {words[:200]}") from e


def find(pattern: re.Pattern[str], text: str, *, by_line: bool) -> Iterator[Match]:
    """The matches in order. Empty ones are left out. ``by_line`` keeps an expression from matching across
    lines; a literal cannot, and is found faster without."""
    return _by_line(pattern, text) if by_line else _at_once(pattern, text)


def _at_once(pattern: re.Pattern[str], text: str) -> Iterator[Match]:
    line, at, column = 1, 0, _Column("")
    begin = end = -1
    for match in pattern.finditer(text):
        start = match.start()
        if start > end:
            line += text.count("\n", at, start)
            at = start
            begin = text.rfind("\n", 0, start) + 1
            end = text.find("\n", start)
            end = len(text) if end < 0 else end
            column = _Column(text[begin:end])
        yield column.match(line, start - begin, match.end() - begin)


def _by_line(pattern: re.Pattern[str], text: str) -> Iterator[Match]:
    begin, number = 0, 0
    while begin <= len(text):
        number += 1
        end = text.find("\n", begin)
        end = len(text) if end < 0 else end
        # the CR of a CR LF belongs to the line's end, so that $ means what one expects
        line = text[begin : end - 1 if text[begin:end].endswith("\r") else end]
        column = None
        for match in pattern.finditer(line):
            if match.end() > match.start():
                column = column or _Column(line)
                yield column.match(number, match.start(), match.end())
        begin = end + 1


class _Column:
    """UTF-16 offsets in one line, asked in ascending order: a long line is counted once."""

    def __init__(self, line: str) -> None:
        self._line, self._at, self._units = line, 0, 0

    def match(self, number: int, start: int, end: int) -> Match:
        self._units += utf16(self._line[self._at : start])
        self._at = start
        line = self._line
        first = 0 if len(line) <= MAX_EXCERPT else max(0, start - _LEAD)
        excerpt = line[first : first + MAX_EXCERPT].rstrip("\r")
        length = utf16(line[start:end])
        return Match(number, self._units + 1, length, excerpt, utf16(line[first:start]))


def utf16(text: str) -> int:
    """The number of UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le", "surrogatepass")) // 2
