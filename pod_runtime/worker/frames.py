"""WebSocket frames of the server's side (RFC 6455, sections 5 and 7). No I/O.

Frames of a server carry no mask, so one encoded frame is the same for every client.
"""

from __future__ import annotations

import struct

from tornado.util import _websocket_mask

FRAGMENT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10

_MAX_CONTROL = 125
_LONG = struct.Struct("!BBH")
_HUGE = struct.Struct("!BBQ")


class FrameError(Exception):
    """The client broke the protocol; ``code`` is what to close it with."""

    def __init__(self, code: int, words: str) -> None:
        super().__init__(words)
        self.code = code


def encode(opcode: int, payload: bytes) -> bytes:
    """One whole frame of a server."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return _LONG.pack(0x80 | opcode, 126, size) + payload
    return _HUGE.pack(0x80 | opcode, 127, size) + payload


def encode_close(code: int, reason: str = "") -> bytes:
    """A close frame; the reason is cut to what fits."""
    words = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
    return encode(CLOSE, struct.pack("!H", code) + words)


def close_code(payload: bytes) -> int:
    """What to answer a client's close frame with: its own code, or 1002 for one that must not be sent."""
    if not payload:
        return 1000
    code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 0
    sound = 3000 <= code <= 4999 or (1000 <= code <= 1014 and code not in (1004, 1005, 1006))
    return code if sound else 1002


class FrameReader:
    """Takes a client's bytes apart. `next` gives one message at a time, so that the caller keeps the pace.

    A message larger than ``limit`` bytes, fragments together, is refused by the header that announces it:
    no more than that and one read is ever held.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._at = 0
        self._fragments = bytearray()
        self._opcode = 0

    def feed(self, data: bytes) -> None:
        """Take what came from the socket."""
        if self._at:
            del self._buffer[: self._at]
            self._at = 0
        self._buffer += data

    def next(self) -> tuple[int, bytes] | None:
        """The next message or control frame as opcode and payload; None until more is fed.

        A fragment that ends no message is given as `FRAGMENT` and ``b""``: work, too, for who keeps the pace.
        Raises `FrameError`; nothing more can be read then.
        """
        frame = self._frame()
        if frame is None:
            return None
        head, payload = frame
        opcode = head & 0x0F
        if opcode >= CLOSE:
            return opcode, payload
        if opcode == FRAGMENT:
            if not self._opcode:
                raise FrameError(1002, "a fragment of nothing")
        elif self._opcode:
            raise FrameError(1002, "a message within a message")
        elif head & 0x80:
            return opcode, payload
        else:
            self._opcode = opcode
        self._fragments += payload
        if not head & 0x80:
            return FRAGMENT, b""
        opcode, whole = self._opcode, bytes(self._fragments)
        self._fragments = bytearray()
        self._opcode = 0
        return opcode, whole

    def _frame(self) -> tuple[int, bytes] | None:
        buffer, at = self._buffer, self._at
        have = len(buffer) - at
        if have < 2:
            return None
        head, second = buffer[at], buffer[at + 1]
        size = second & 127
        start = at + 6
        if size == 126:
            start = at + 8
            if have >= 4:
                size = int.from_bytes(buffer[at + 2 : at + 4], "big")
        elif size == 127:
            start = at + 14
            if have >= 10:
                size = int.from_bytes(buffer[at + 2 : at + 10], "big")
        self._check(head, second, size)
        end = start + size
        if len(buffer) < end:
            return None
        payload = _websocket_mask(bytes(buffer[start - 4 : start]), bytes(buffer[start:end]))
        self._at = end
        return head, payload

    def _check(self, head: int, second: int, size: int) -> None:
        opcode = head & 0x0F
        if head & 0x70:
            raise FrameError(1002, "an extension that was not agreed on")
        if not second & 0x80:
            raise FrameError(1002, "a frame without a mask")
        if opcode >= CLOSE:
            if not head & 0x80 or second & 127 > _MAX_CONTROL:
                raise FrameError(1002, "a control frame that is fragmented or too long")
            if opcode > PONG:
                raise FrameError(1002, "unknown opcode")
        elif opcode > BINARY:
            raise FrameError(1002, "unknown opcode")
        elif size + len(self._fragments) > self._limit:
            raise FrameError(1009, "message too big")
