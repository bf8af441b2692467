"""What a file's bytes are as a document's text, and back. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


class NotText(ValueError):
    """The bytes are not UTF-8 text, so they are not opened as a document."""


@dataclass(frozen=True, slots=True)
class TextFile:
    """``text`` has ``\\n`` only where ``crlf``: then every line of the file ended in CR LF.

    Files of mixed line ends keep theirs inside ``text``.
    """

    text: str
    crlf: bool

    @classmethod
    def decode(cls, data: bytes) -> TextFile:
        """Raises `NotText` for NUL bytes and for anything that is not UTF-8."""
        if b"\0" in data:
            raise NotText("The file is binary")
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as e:
            raise NotText("The file is not UTF-8 text") from e
        newlines = text.count("\n")
        crlf = newlines > 0 and text.count("\r\n") == newlines and text.count("\r") == newlines
        return cls(text.replace("\r\n", "\n") if crlf else text, crlf)

    def encode(self) -> bytes:
        """The bytes of the file. Where ``crlf``, a line's end is CR LF even if the text has one already."""
        return (self.text.replace("\r\n", "\n").replace("\n", "\r\n") if self.crlf else self.text).encode()


def sha256(data: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(data).hexdigest()
