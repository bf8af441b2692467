"""Jupyter messages and their two framings on a WebSocket. No I/O.

Sources: the Jupyter messaging specification 5.3, and Jupyter Server's "WebSocket kernel wire protocols"
(the default JSON framing, and ``v1.kernel.websocket.jupyter.org``).
"""

from __future__ import annotations

import functools
import itertools
import json
import struct
import uuid
from dataclasses import dataclass
from typing import Any

from pod_runtime.runner.times import rfc3339

V1 = "v1.kernel.websocket.jupyter.org"
PROTOCOL_VERSION = "5.3"
CHANNELS = frozenset({"shell", "control", "stdin", "iopub"})
_MAX_PARTS = 1000


class BadFrame(ValueError):
    """A client's frame is not a Jupyter message; the text says why."""


@dataclass(frozen=True)
class Message:
    """One message; the four dictionaries as JSON bytes, as they are on every wire."""

    channel: str
    header: bytes
    parent_header: bytes
    metadata: bytes
    content: bytes
    buffers: tuple[bytes, ...] = ()

    @functools.cached_property
    def size(self) -> int:
        """Bytes, about."""
        parts = (self.header, self.parent_header, self.metadata, self.content, *self.buffers)
        return sum(map(len, parts)) + 100

    def json_frame(self) -> str | bytes:
        """The default framing: text, or binary when there are buffers."""
        header = json.loads(self.header)
        # Jupyter Server repeats these two at the top, and clients read them there
        names = dumps({"channel": self.channel, "msg_id": header["msg_id"], "msg_type": header["msg_type"]})
        text = b'%s,"header":%s,"parent_header":%s,"metadata":%s,"content":%s,"buffers":[]}' % (
            names[:-1],
            self.header,
            self.parent_header,
            self.metadata,
            self.content,
        )
        if not self.buffers:
            return text.decode()
        parts = [text, *self.buffers]
        offsets = [4 * (len(parts) + 1)]
        for part in parts[:-1]:
            offsets.append(offsets[-1] + len(part))
        return struct.pack(f">{len(parts) + 1}I", len(parts), *offsets) + b"".join(parts)

    def v1_frame(self) -> bytes:
        """The framing of `V1`, always binary."""
        parts = [
            self.channel.encode(),
            self.header,
            self.parent_header,
            self.metadata,
            self.content,
            *self.buffers,
        ]
        # one more offset than parts: the last one is the end
        offsets = [8 * (len(parts) + 2)]
        for part in parts:
            offsets.append(offsets[-1] + len(part))
        return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(parts)


@dataclass(frozen=True)
class Request:
    """A client's message, decoded."""

    channel: str
    msg_type: str
    header: dict[str, Any]
    parent_header: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: tuple[bytes, ...] = ()


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def make(
    channel: str,
    msg_type: str,
    content: dict[str, Any],
    *,
    session: str,
    parent: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    now: float,
) -> Message:
    """A message of the kernel's own."""
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": msg_type,
        "username": "codevo",
        "session": session,
        "date": rfc3339(now),
        "version": PROTOCOL_VERSION,
    }
    return Message(channel, dumps(header), dumps(parent or {}), dumps(metadata or {}), dumps(content))


def _request(channel: Any, parts: list[Any], buffers: tuple[bytes, ...]) -> Request:
    header, parent, metadata, content = (p if isinstance(p, dict) else {} for p in parts)
    msg_type = header.get("msg_type")
    if channel is None:
        channel = "shell"
    if channel not in CHANNELS:
        raise BadFrame("unknown channel")
    if not isinstance(msg_type, str) or not isinstance(header.get("msg_id"), str):
        raise BadFrame("the header has no msg_id and msg_type")
    return Request(channel, msg_type, header, parent, metadata, content, buffers)


def parse_json(text: str | bytes, buffers: tuple[bytes, ...] = ()) -> Request:
    """A text frame of the default framing."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise BadFrame("not JSON") from e
    if not isinstance(raw, dict):
        raise BadFrame("not a JSON object")
    names = ("header", "parent_header", "metadata", "content")
    return _request(raw.get("channel"), [raw.get(n) for n in names], buffers)


def _cut(frame: bytes, offsets: list[int], first: int) -> list[bytes]:
    if offsets[0] != first or offsets != sorted(offsets) or offsets[-1] > len(frame):
        raise BadFrame("offsets out of order")
    return [frame[a:b] for a, b in itertools.pairwise(offsets)]


def parse_binary(frame: bytes) -> Request:
    """A binary frame of the default framing: JSON and buffers."""
    if len(frame) < 8:
        raise BadFrame("too short")
    (count,) = struct.unpack_from(">I", frame)
    if not 0 < count <= _MAX_PARTS or len(frame) < 4 * (count + 1):
        raise BadFrame("too short for its parts")
    offsets = [*struct.unpack_from(f">{count}I", frame, 4), len(frame)]
    text, *buffers = _cut(frame, offsets, 4 * (count + 1))
    return parse_json(text, tuple(buffers))


def parse_v1(frame: bytes) -> Request:
    """A frame of `V1`."""
    if len(frame) < 8:
        raise BadFrame("too short")
    (count,) = struct.unpack_from("<Q", frame)
    if not 6 <= count <= _MAX_PARTS or len(frame) < 8 * (count + 1):
        raise BadFrame("too short for its parts")
    channel, *parts = _cut(frame, list(struct.unpack_from(f"<{count}Q", frame, 8)), 8 * (count + 1))
    try:
        decoded = [json.loads(p) for p in parts[:4]]
        return _request(channel.decode(), decoded, tuple(parts[4:]))
    except BadFrame:
        raise
    except (ValueError, RecursionError) as e:
        raise BadFrame("not JSON") from e
