"""Patterns as in .gitignore, whoever wrote them: matching takes time linear in the path for each wildcard.

Ordinary translations to expressions backtrack: ``*a*a*a*a*b`` against a name of many ``a`` takes minutes, in
which no other thread runs. Here each ``*`` and ``**/`` but the last of its level takes the first place where
what follows it fits and never comes back to it; a later place could not fit more. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: Any number of folders.
_FOLDERS = r"(?:[^/]++/)*"
_NEVER = r"(?!)"

_CLASSES = {
    "alnum": "a-zA-Z0-9",
    "alpha": "a-zA-Z",
    "blank": r" \t",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"\x21-\x7e",
    "lower": "a-z",
    "print": r"\x20-\x7e",
    "punct": r"!-/:-@\[-`{-~",
    "space": r" \t\n\r\x0b\x0c",
    "upper": "A-Z",
    "xdigit": "0-9a-fA-F",
}


@dataclass(frozen=True, slots=True)
class _Rule:
    expression: re.Pattern[str]
    takes: bool
    folders_only: bool
    #: whether the last component alone is compared
    by_name: bool


class Globs:
    """Patterns in order; the last one that matches decides. Raises ``ValueError`` for a bad one."""

    def __init__(self, patterns: Iterable[str]) -> None:
        found = [_rule(pattern) for pattern in patterns]
        self._rules = [rule for rule in reversed(found) if rule is not None]

    def match(self, path: str, *, folder: bool) -> bool:
        """Whether ``path`` itself is named. Folders above it are the caller's business."""
        name = path.rpartition("/")[2]
        for rule in self._rules:
            if rule.folders_only and not folder:
                continue
            if rule.expression.match(name if rule.by_name else path):
                return rule.takes
        return False

    def beneath(self, path: str) -> bool:
        """Whether the file ``path`` or a folder above it is named."""
        parts = path.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return any(self.match(f, folder=True) for f in above) or self.match(path, folder=False)


def _rule(pattern: str) -> _Rule | None:
    text = pattern
    while text.endswith(" ") and not text.endswith("\\ "):
        text = text[:-1]
    if not text or text.startswith("#"):
        return None
    takes = not text.startswith("!")
    text = text if takes else text[1:]
    folders_only = text.endswith("/")
    text = text.removesuffix("/")
    if not text:
        return None
    by_name = "/" not in text
    source = _segment(text) if by_name else _path(text.removeprefix("/").split("/"))
    return _Rule(re.compile(source + r"\Z", re.DOTALL), takes, folders_only, by_name)


def _path(parts: list[str]) -> str:
    """The expression of several components, of which ``**`` are any number."""
    parts = ["**" if len(part) > 1 and not part.strip("*") else part for part in parts]
    inside = parts[-1] == "**"
    if inside:
        parts = parts[:-1]
    blocks: list[list[str]] = [[]]
    for part in parts:
        if part == "**":
            blocks.append([])
        else:
            blocks[-1].append(_segment(part) if part else _NEVER)
    first, *rest = ["".join(s + "/" for s in block) for block in blocks]
    middle = [f"(?>{_FOLDERS}?{block})" for block in rest if block]
    if inside:
        return first + "".join(middle) + ".+"
    if not rest:
        return first.removesuffix("/")
    last = f"{_FOLDERS}{rest[-1].removesuffix('/')}"
    return first + "".join(middle[:-1]) + last


def _segment(text: str) -> str:
    """The expression of one component."""
    pieces = [""]
    at = 0
    while at < len(text):
        char = text[at]
        at += 1
        if char == "*":
            if len(pieces) == 1 or pieces[-1]:
                pieces.append("")
        elif char == "?":
            pieces[-1] += "[^/]"
        elif char == "[":
            found, at = _bracket(text, at)
            pieces[-1] += found
        else:
            if char == "\\":
                if at == len(text):
                    raise ValueError(f"{text!r} ends with a backslash")
                char = text[at]
                at += 1
            pieces[-1] += re.escape(char)
    if len(pieces) == 1:
        return pieces[0]
    if pieces == ["", ""]:
        return "[^/]+"  # a component is never empty
    first, *middle, last = pieces
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + f"[^/]*{last}"


def _bracket(text: str, at: int) -> tuple[str, int]:
    """The expression of ``[…]`` whose content begins at ``at``, and where it ends."""
    negated = text[at : at + 1] in ("!", "^") and at < len(text)
    at += negated
    begin, items = at, ""
    while at < len(text) and (text[at] != "]" or at == begin):
        end = text.find("]", at + 2) if text.startswith("[:", at) else -1
        if end > at + 2 and text[end - 1] == ":":
            known = _CLASSES.get(text[at + 2 : end - 1])
            if known is None:
                return _NEVER, len(text)
            items, at = items + known, end + 1
            continue
        low, at = _character(text, at)
        high = low
        if text[at : at + 1] == "-" and text[at + 1 : at + 2] not in ("", "]"):
            high, at = _character(text, at + 1)
        # as git: of a range from high to low the first character counts
        items += re.escape(low) + (f"-{re.escape(high)}" if low < high else "")
    if at >= len(text):
        return _NEVER, len(text)  # as git: what is not closed matches nothing
    if negated:
        return f"[^/{items}]", at + 1
    return f"(?!/)[{items}]", at + 1


def _character(text: str, at: int) -> tuple[str, int]:
    if text[at] == "\\" and at + 1 < len(text):
        return text[at + 1], at + 2
    return text[at], at + 1
