"""The tail of a terminal's output that a newly connected client is shown. No I/O."""

from __future__ import annotations

import re

#: One control sequence (ECMA-48): CSI; OSC, DCS, SOS, PM, APC strings; two- and three-byte escapes.
_SEQUENCE = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]*[0-OQ-WYZ`-~\\])", re.DOTALL
)
#: Sequences that ask the terminal for an answer. Replayed, they would make each new client type one.
_QUERY = re.compile(
    rb"\x1b\[[>=?]?[0-9;]*[cn]|\x1b\[>[0-9]*q|\x1b\[\?u|\x1b\[\??[0-9;]*\$p"
    rb"|\x1b\][0-9;]*\?(?:\x07|\x1b\\)|\x1b\]52;[^\x07\x1b]*(?:\x07|\x1b\\)|\x1bP[$+]q[^\x1b]*\x1b\\"
)
#: What a terminal answers to queries: device attributes, status, cursor, colours, settings.
_REPLY = re.compile(
    r"(?:\x1b\[[>=?]?[0-9;]*[cnR]|\x1b\[\?[0-9;]*(?:\$y|u)|\x1b\][0-9;]+;rgb:[^\x07\x1b]*(?:\x07|\x1b\\)"
    r"|\x1bP[01]?[$+>|][^\x1b]*\x1b\\)+"
)


def is_terminal_reply(text: str) -> bool:
    """Whether ``text`` is nothing but a terminal's own answer to a query, not something a person typed."""
    return text.startswith("\x1b") and _REPLY.fullmatch(text) is not None


class Tail:
    """The newest output, at most ``limit`` bytes and ``slack`` more, cut at a safe boundary.

    The kept bytes never start inside a control sequence or a UTF-8 character.
    """

    def __init__(self, limit: int = 256 * 1024, slack: int = 64 * 1024) -> None:
        self._limit = limit
        self._slack = slack
        self._data = bytearray()

    def __len__(self) -> int:
        return len(self._data)

    def feed(self, data: bytes) -> None:
        """Append output."""
        self._data += data
        if len(self._data) > self._limit + self._slack:
            del self._data[: self._safe(len(self._data) - self._limit)]

    def _safe(self, at: int) -> int:
        """The first position from ``at`` on that is between two characters or sequences."""
        # the data starts at a boundary, so sequences found from its start are the real ones
        for match in _SEQUENCE.finditer(self._data):
            if match.start() >= at:
                break
            if match.end() > at:
                at = match.end()
                break
        while at < len(self._data) and self._data[at] & 0xC0 == 0x80:
            at += 1
        return at

    def text(self) -> str:
        """What to show; an unfinished character or query at the end is left out."""
        return _QUERY.sub(b"", bytes(self._data)).decode("utf-8", "ignore")
