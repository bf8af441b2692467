"""A program's output on its way to the clients: decoded, coalesced, and thinned when it floods. No I/O."""

from __future__ import annotations

import codecs
from collections import deque


class OutputBuffer:
    """Collects output between two flushes.

    ``rate`` bytes a second with bursts of ``burst`` pass whole. Beyond that the oldest of what waits is left
    out (``keep`` bytes of the newest stay), with a notice in its place; the end is never lost.
    """

    def __init__(
        self, rate: int = 512 * 1024, burst: int = 2**20, keep: int = 64 * 1024, now: float = 0.0
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._keep = keep
        self._tokens = float(burst)
        self._then = now
        self._pieces: deque[tuple[str, str]] = deque()
        self._size = 0
        self._left_out = 0
        self._decoders = {n: codecs.getincrementaldecoder("utf-8")("replace") for n in ("stdout", "stderr")}

    @property
    def size(self) -> int:
        """Characters that wait."""
        return self._size

    def add(self, name: str, data: bytes, *, final: bool = False) -> str:
        """Append bytes of ``stdout`` or ``stderr``; give what they decode to."""
        text = self._decoders[name].decode(data, final)
        if text:
            self._pieces.append((name, text))
            self._size += len(text)
        return text

    def _trim(self) -> None:
        while self._size > self._keep:
            name, text = self._pieces.popleft()
            excess = self._size - self._keep
            if len(text) > excess:
                cut = text.find("\n", excess - 1) + 1
                # a whole line if there is one nearby
                cut = cut if 0 < cut <= excess + 1000 else excess
                if cut < len(text):
                    self._pieces.appendleft((name, text[cut:]))
                text = text[:cut]
            self._size -= len(text)
            self._left_out += len(text)

    def take(self, now: float, *, final: bool = False) -> list[tuple[str, str]]:
        """What may be sent now, in order, neighbours of one stream joined; all of it when ``final``."""
        self._tokens = min(self._burst, self._tokens + (now - self._then) * self._rate)
        self._then = now
        if self._size > self._tokens:
            self._trim()
            if self._size > self._tokens and not final:
                return []
        if not self._pieces:
            return []
        self._tokens -= self._size
        taken: list[tuple[str, str]] = []
        if self._left_out:
            taken.append(("stderr", f"\n[… {self._left_out} characters of output left out …]\n"))
            self._left_out = 0
        run: list[str] = []
        last = ""
        for name, text in self._pieces:
            if name != last and run:
                taken.append((last, "".join(run)))
                run = []
            last = name
            run.append(text)
        taken.append((last, "".join(run)))
        self._pieces.clear()
        self._size = 0
        return taken
