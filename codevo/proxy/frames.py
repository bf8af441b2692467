"""Following WebSocket frames (RFC 6455, section 5) by their headers. No I/O.

A relay passes bytes through a `FrameFollower` for each direction. Data frames go through as they are,
fragments, masks and compression included. Control frames (at most 125 bytes) are held until they are whole,
so that the relay can see, swallow or replace them, and put frames of its own between two frames.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

CLOSE, PING, PONG = 8, 9, 10

#: Codes that only exist inside a program and must never be sent (RFC 6455, section 7.4.1).
RESERVED_CODES = frozenset({1004, 1005, 1006, 1015})
#: What stands on the wire in their place.
ABNORMAL = 1011

_MAX_CONTROL = 125


class FrameError(Exception):
    """The peer sent something that is not a WebSocket frame of its direction."""


def encode(opcode: int, payload: bytes, *, masked: bool) -> bytes:
    """One unfragmented control frame. ``payload`` is at most 125 bytes, else ``ValueError``."""
    if len(payload) > _MAX_CONTROL:
        raise ValueError(f"control frame of {len(payload)} bytes")
    head = bytes([0x80 | opcode, len(payload) | (0x80 if masked else 0)])
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + _unmask(payload, mask)


def close_payload(code: int, reason: str = "") -> bytes:
    """Body of a close frame; the reason is cut to what fits. Reserved codes: ``ValueError``."""
    if code in RESERVED_CODES or not 1000 <= code <= 4999:
        raise ValueError(f"close code {code} must not be sent")
    text = reason.encode()[: _MAX_CONTROL - 2].decode(errors="ignore").encode()
    return struct.pack("!H", code) + text


def repaired_close(payload: bytes) -> bytes | None:
    """A body to send instead of ``payload``, or None when it may go through unchanged."""
    if not payload:
        return None
    code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 0
    if code in RESERVED_CODES or not 1000 <= code <= 4999:
        return close_payload(ABNORMAL)
    return None


def _unmask(data: bytes, mask: bytes) -> bytes:
    return bytes(byte ^ mask[i & 3] for i, byte in enumerate(data))


class Pace:
    """How long to pause for the frames that one direction has had. Looking at one costs the loop about a
    microsecond, so a peer that sends nothing but empty frames would keep it from everybody else.

    `BURST` frames are free, then `RATE` a second. ``size`` is how many bytes to read next: few while they
    are full of frames, so that one read does not take long either.
    """

    RATE = 5_000.0
    BURST = 10_000.0
    #: More frames than this in one read make the next one small.
    DENSE = 512

    def __init__(self, follower: FrameFollower, size: int, small: int = 4096) -> None:
        self._follower = follower
        self._sizes = (size, small)
        self._counted = 0
        self._free = self.BURST
        self._at = 0.0
        self.size = size

    def pause(self, now: float) -> float:
        """Seconds to wait after a read; ``now`` is a monotonic clock in seconds."""
        if self._at:
            self._free = min(self.BURST, self._free + (now - self._at) * self.RATE)
        self._at = now
        frames = self._follower.frames - self._counted
        self._counted += frames
        self._free -= frames
        self.size = self._sizes[frames > self.DENSE or self._free < 0]
        return max(0.0, -self._free / self.RATE)


class FrameFollower:
    """Follows one direction of a connection.

    ``masked`` says whether frames of this direction carry masks (client to server: yes). ``on_control`` gets
    opcode and unmasked payload of each whole control frame; it gives None to pass the frame unchanged, or the
    bytes to send in its place (``b""`` swallows it). After a close frame everything is dropped.
    """

    def __init__(self, *, masked: bool, on_control: Callable[[int, bytes], bytes | None]) -> None:
        self._masked = masked
        self._on_control = on_control
        self._held = bytearray()  # the start of a header, or of a control frame
        self._remaining = 0  # payload bytes of the current data frame that are still to come
        self.closed = False
        #: Frames begun so far.
        self.frames = 0

    @property
    def at_boundary(self) -> bool:
        """Whether what has been given out so far ends with a whole frame."""
        return self._remaining == 0

    def feed(self, data: bytes, inject: bytes = b"", *, last: bool = False) -> tuple[bytes, bool]:
        """Bytes to send on for the bytes that came, and whether ``inject`` is among them.

        ``inject`` is put at the first boundary; when ``data`` ends before one, the caller brings it again.
        With ``last`` nothing follows it.
        Raises `FrameError`; what was given out before ends at a boundary then.
        """
        out: list[bytes | memoryview] = []
        view = memoryview(data)
        position, end = 0, len(data)
        injected = not inject
        while True:
            if self._remaining:
                taken = min(self._remaining, end - position)
                out.append(view[position : position + taken])
                position += taken
                self._remaining -= taken
                if self._remaining:
                    break
            if not injected:
                out.append(inject)
                injected = True
                self.closed = self.closed or last
            if self.closed or position >= end:
                break
            position = self._take_head(view, position, out)
        return b"".join(out), injected and bool(inject)

    def _take_head(self, view: memoryview, position: int, out: list[bytes | memoryview]) -> int:
        """Complete the header (of a control frame: all of it) that `_held` began; give the new position."""
        held, end = self._held, len(view)
        while True:
            needed = self._needed()
            if len(held) >= needed:
                break
            if position >= end:
                return position
            taken = min(needed - len(held), end - position)
            held += view[position : position + taken]
            position += taken
        frame = bytes(held)
        held.clear()
        self.frames += 1
        opcode = frame[0] & 0x0F
        if opcode < CLOSE:
            self._remaining = self._length(frame)
            out.append(frame)
            return position
        length = frame[1] & 0x7F
        payload = frame[len(frame) - length :]
        if self._masked:
            payload = _unmask(payload, frame[2:6])
        self.closed = opcode == CLOSE
        replacement = self._on_control(opcode, payload)
        out.append(frame if replacement is None else replacement)
        return position

    def _needed(self) -> int:
        """How many bytes of the current header (or control frame) must be held before it can be judged."""
        held = self._held
        if len(held) < 2:
            return 2
        opcode, fin = held[0] & 0x0F, held[0] & 0x80
        masked, length = bool(held[1] & 0x80), held[1] & 0x7F
        if masked != self._masked:
            raise FrameError("a frame without the mask that its direction needs, or with one")
        if opcode in (3, 4, 5, 6, 7) or opcode > PONG:
            raise FrameError(f"unknown opcode {opcode}")
        head = 2 + (4 if masked else 0)
        if opcode >= CLOSE:
            if not fin or length > _MAX_CONTROL:
                raise FrameError("a control frame that is fragmented or too long")
            return head + length
        return head + {126: 2, 127: 8}.get(length, 0)

    @staticmethod
    def _length(frame: bytes) -> int:
        length = frame[1] & 0x7F
        if length == 126:
            return int.from_bytes(frame[2:4], "big")
        if length == 127:
            length = int.from_bytes(frame[2:10], "big")
            if length >> 63:
                raise FrameError("a frame longer than 2^63 bytes")
        return length
