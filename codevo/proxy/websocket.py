"""The WebSocket handshake with a pod and with its client (RFC 6455, section 4)."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from tornado.httputil import HTTPHeaders, HTTPInputError
from tornado.web import RequestHandler

from codevo.proxy.headers import Headers, writable
from codevo.proxy.pods import PodClient, PodUnavailable

#: Seconds for the pod to answer the handshake (a language server may have to start first).
HANDSHAKE_TIMEOUT = 30.0

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_TARGET = re.compile(r"/[!-~]*")
_STATUS = re.compile(r"HTTP/1\.[01] ([1-5][0-9]{2})(?: .*)?")
_HANDSHAKE = frozenset(
    {
        "connection",
        "content-length",
        "host",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    }
)


class BadHandshake(Exception):
    """The client's request is no WebSocket handshake; the text says why."""


class UpgradeRefused(Exception):
    """The pod answered with ``status`` instead of an upgrade."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the pod answered {status}")
        self.status = status


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client asks for. ``protocols`` and ``extensions`` are the header's text, or ""."""

    key: str
    protocols: str
    extensions: str

    @property
    def accept(self) -> str:
        """The answer that proves that the other side speaks WebSocket."""
        return base64.b64encode(hashlib.sha1(self.key.encode() + _GUID).digest()).decode()  # noqa: S324


@dataclass(frozen=True, slots=True)
class Upgraded:
    """An open socket of a pod, and what it chose."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    protocol: str
    extensions: str
    headers: Headers = field(default_factory=list)


def wants_upgrade(headers: HTTPHeaders) -> bool:
    """Whether a request asks for a WebSocket."""
    tokens = {token.strip().lower() for token in headers.get("Connection", "").split(",")}
    return headers.get("Upgrade", "").strip().lower() == "websocket" and "upgrade" in tokens


def offer(headers: HTTPHeaders) -> Offer:
    """The client's side of the handshake. Raises `BadHandshake`."""
    if headers.get("Sec-WebSocket-Version") != "13":
        raise BadHandshake("Sec-WebSocket-Version: expected 13")
    key = headers.get("Sec-WebSocket-Key", "")
    try:
        if len(base64.b64decode(key, validate=True)) != 16:
            raise BadHandshake("Sec-WebSocket-Key: expected base64 of 16 bytes")
    except binascii.Error as e:
        raise BadHandshake("Sec-WebSocket-Key: expected base64 of 16 bytes") from e
    protocols = ", ".join(headers.get_list("Sec-WebSocket-Protocol"))
    extensions = ", ".join(headers.get_list("Sec-WebSocket-Extensions"))
    if not writable("x", protocols + extensions):
        raise BadHandshake("Sec-WebSocket-Protocol: unexpected characters")
    return Offer(key, protocols, extensions)


async def dial(pods: PodClient, address: str, target: str, headers: Headers, offered: Offer) -> Upgraded:
    """Open a socket to a pod. ``target`` is the path and query as they are.

    Raises `PodUnavailable`, `UpgradeRefused`, or ``TimeoutError`` after `HANDSHAKE_TIMEOUT`.
    """
    if not _TARGET.fullmatch(target):
        raise UpgradeRefused(400)
    lines = [
        f"GET {target} HTTP/1.1",
        "Host: pod",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {offered.key}",
    ]
    if offered.protocols:
        lines.append(f"Sec-WebSocket-Protocol: {offered.protocols}")
    if offered.extensions:
        lines.append(f"Sec-WebSocket-Extensions: {offered.extensions}")
    lines += [f"{n}: {v}" for n, v in headers if n.lower() not in _HANDSHAKE and writable(n, v)]
    reader, writer = await pods.connect(address)
    try:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT):
            writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
            head = await reader.readuntil(b"\r\n\r\n")
            return _upgraded(head, reader, writer, offered)
    except (asyncio.IncompleteReadError, OSError) as e:
        writer.transport.abort()
        if isinstance(e, TimeoutError):
            raise
        raise PodUnavailable("the workspace closed the connection") from e
    except (asyncio.LimitOverrunError, HTTPInputError, UnicodeDecodeError) as e:
        writer.transport.abort()
        raise UpgradeRefused(502) from e
    except BaseException:
        writer.transport.abort()
        raise


def _upgraded(
    head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, offered: Offer
) -> Upgraded:
    status_line, _, rest = head.decode("latin-1").partition("\r\n")
    found = _STATUS.fullmatch(status_line)
    if found is None:
        raise UpgradeRefused(502)
    status = int(found[1])
    if status != 101:
        raise UpgradeRefused(status if status >= 400 else 502)
    headers = HTTPHeaders.parse(rest.rstrip("\r\n"))
    protocol = headers.get("Sec-WebSocket-Protocol", "")
    asked = {name.strip() for name in offered.protocols.split(",")}
    extensions = headers.get("Sec-WebSocket-Extensions", "")
    if (
        not wants_upgrade(headers)
        or headers.get("Sec-WebSocket-Accept", "").strip() != offered.accept
        or (protocol and protocol not in asked)
        or (extensions and not offered.extensions)
        or not writable("x", extensions)
    ):
        raise UpgradeRefused(502)
    return Upgraded(reader, writer, protocol, extensions, list(headers.get_all()))


def accept(handler: RequestHandler, offered: Offer, upgraded: Upgraded, extra: Headers) -> None:
    """Answer the client with 101 and what the pod chose; the caller then detaches the stream."""
    handler._headers = HTTPHeaders()
    handler.set_status(101, "Switching Protocols")
    handler.set_header("Upgrade", "websocket")
    handler.set_header("Connection", "Upgrade")
    handler.set_header("Sec-WebSocket-Accept", offered.accept)
    if upgraded.protocol:
        handler.set_header("Sec-WebSocket-Protocol", upgraded.protocol)
    if upgraded.extensions:
        handler.set_header("Sec-WebSocket-Extensions", upgraded.extensions)
    for name, value in extra:
        handler.add_header(name, value)
    handler.finish()
