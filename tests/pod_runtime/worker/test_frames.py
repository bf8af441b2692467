from __future__ import annotations

import os
import struct

import pytest
from tornado.util import _websocket_mask

from pod_runtime.worker import frames
from pod_runtime.worker.frames import BINARY, CLOSE, FRAGMENT, PING, TEXT, FrameError, FrameReader


def masked(opcode: int, payload: bytes, *, last: bool = True) -> bytes:
    """A client's frame."""
    mask = os.urandom(4)
    size = len(payload)
    head = bytes([opcode | (0x80 if last else 0)])
    if size < 126:
        head += bytes([0x80 | size])
    elif size < 65536:
        head += bytes([0x80 | 126]) + struct.pack("!H", size)
    else:
        head += bytes([0x80 | 127]) + struct.pack("!Q", size)
    return head + mask + _websocket_mask(mask, payload)


def everything(reader: FrameReader) -> list[tuple[int, bytes]]:
    found = []
    while (frame := reader.next()) is not None:
        found.append(frame)
    return found


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
@pytest.mark.parametrize("step", [1, 3, 7, 10_000_000])
def test_messages_of_every_size_in_pieces_of_every_size(size: int, step: int) -> None:
    if size > 1000 and step < 7:
        step = 999
    message = os.urandom(size)
    data = masked(BINARY, message) + masked(PING, b"now") + masked(BINARY, b"after")
    reader = FrameReader(300_000)
    found = []
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        found += everything(reader)
    assert found == [(BINARY, message), (PING, b"now"), (BINARY, b"after")]


def test_fragments_make_one_message_with_control_frames_between() -> None:
    reader = FrameReader(100)
    reader.feed(masked(TEXT, b"a", last=False) + masked(PING, b"p") + masked(0, b"b", last=False))
    reader.feed(masked(0, b"c") + masked(BINARY, b"d"))
    assert everything(reader) == [
        (FRAGMENT, b""), (PING, b"p"), (FRAGMENT, b""), (TEXT, b"abc"), (BINARY, b"d")
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(BINARY, bytes(101)), 1009),
        (masked(BINARY, bytes(60), last=False) + masked(0, bytes(41)), 1009),
        (b"\x82\xff\x7f" + b"\xff" * 7, 1009),
        (b"\x82\xff" + bytes(7) + b"\x65", 1009),
        (frames.encode(BINARY, b"no mask"), 1002),
        (masked(0, b"of nothing"), 1002),
        (masked(BINARY, b"a", last=False) + masked(BINARY, b"b"), 1002),
        (masked(3, b""), 1002),
        (masked(11, b""), 1002),
        (masked(PING, b"", last=False), 1002),
        (masked(CLOSE, bytes(126)), 1002),
        (b"\xc2" + masked(BINARY, b"x")[1:], 1002),
    ],
)
def test_what_is_no_frame_is_refused(data: bytes, code: int) -> None:
    reader = FrameReader(100)
    reader.feed(data)
    with pytest.raises(FrameError) as error:
        everything(reader)
    assert error.value.code == code


def test_too_large_is_known_by_the_head_alone() -> None:
    reader = FrameReader(1000)
    reader.feed(masked(BINARY, bytes(1001))[:8])
    with pytest.raises(FrameError):
        reader.next()


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_what_the_server_sends(size: int) -> None:
    data = frames.encode(BINARY, bytes(size))
    assert data[0] == 0x82
    assert len(data) == size + (2 if size < 126 else 4 if size < 65536 else 10)
    assert len(frames.encode_close(4400, "ä" * 200)) <= 127


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", 1000),
        (b"\x03\xe8", 1000),
        (b"\x0f\xa0x", 4000),
        (b"\x03", 1002),
        (b"\x03\xed", 1002),
        (b"\0\0", 1002),
    ],
)
def test_answers_to_close_frames(payload: bytes, code: int) -> None:
    assert frames.close_code(payload) == code
