"""HTTP/1.1 heads for the preview gateway: strict parsing, so that no two programs see different requests.

Sources: RFC 9112 (message syntax, framing, smuggling), RFC 9110 (hop-by-hop fields). No I/O.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HEAD = 64 * 1024
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(rb"/[\x21-\x7e\x80-\xff]*")
#: Field values hold no control characters but the tab.
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_DIGITS = re.compile(rb"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9][0-9])(?: ([\t\x20-\x7e\x80-\xff]*))?")

Headers = list[tuple[bytes, bytes]]

_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"content-length",
    }
)


class BadHead(ValueError):
    """The head is not acceptable; ``status`` is what to answer to a request."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Framing:
    """How long the body is: ``length`` bytes, or ``chunked``, or neither: to the end of the connection."""

    length: int | None
    chunked: bool = False


@dataclass(frozen=True)
class RequestHead:
    method: bytes
    target: bytes
    headers: Headers
    framing: Framing

    def get(self, name: bytes) -> bytes | None:
        """The only value of a field; several are a `BadHead`."""
        values = all_values(self.headers, name)
        if len(values) > 1:
            raise BadHead(f"several {name.decode()} fields")
        return values[0] if values else None

    @property
    def upgrade(self) -> bytes | None:
        """What the client asks to upgrade to."""
        if b"upgrade" not in tokens(self.headers, b"connection"):
            return None
        return self.get(b"upgrade")

    @property
    def keep_alive(self) -> bool:
        return b"close" not in tokens(self.headers, b"connection")


@dataclass(frozen=True)
class ResponseHead:
    status: int
    reason: bytes
    headers: Headers
    framing: Framing


def all_values(headers: Headers, name: bytes) -> list[bytes]:
    return [v for n, v in headers if n.lower() == name]


def tokens(headers: Headers, name: bytes) -> set[bytes]:
    """The comma-separated tokens of a field, in lower case."""
    return {t.strip().lower() for v in all_values(headers, name) for t in v.split(b",")}


def _headers(lines: list[bytes]) -> Headers:
    headers: Headers = []
    for line in lines:
        name, colon, value = line.partition(b":")
        # folded lines and blanks before the colon fail here too
        if not colon or not _TOKEN.fullmatch(name) or not _VALUE.fullmatch(value):
            raise BadHead("a header line is malformed")
        headers.append((name, value.strip(b" \t")))
    return headers


def _framing(headers: Headers) -> Framing | None:
    """What the fields say; ``None`` when they say nothing."""
    lengths, codings = all_values(headers, b"content-length"), all_values(headers, b"transfer-encoding")
    if codings:
        if lengths:
            raise BadHead("both Content-Length and Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            raise BadHead("a Transfer-Encoding other than chunked", 501)
        return Framing(None, chunked=True)
    if lengths:
        if len(lengths) > 1 or not _DIGITS.fullmatch(lengths[0]):
            raise BadHead("Content-Length is not one number")
        return Framing(int(lengths[0]))
    return None


def _lines(head: bytes) -> list[bytes]:
    if not head.endswith(b"\r\n\r\n"):
        raise BadHead("the head does not end")
    lines = head[:-4].split(b"\r\n")
    if any(b"\n" in line or b"\r" in line for line in lines):
        raise BadHead("a line does not end with CRLF")
    return lines


def parse_request(head: bytes) -> RequestHead:
    """A request head with its blank line. Raises `BadHead`."""
    first, *rest = _lines(head)
    parts = first.split(b" ")
    if len(parts) != 3 or not _TOKEN.fullmatch(parts[0]):
        raise BadHead("the request line is malformed")
    method, target, version = parts
    if version != b"HTTP/1.1":
        raise BadHead("HTTP/1.1 only", 505)
    if method == b"CONNECT" or not (_TARGET.fullmatch(target) or (method, target) == (b"OPTIONS", b"*")):
        raise BadHead("the request target is malformed")
    headers = _headers(rest)
    if len(all_values(headers, b"host")) != 1:
        raise BadHead("expected one Host field")
    return RequestHead(method, target, headers, _framing(headers) or Framing(0))


def parse_response(head: bytes, method: bytes) -> ResponseHead:
    """The head of a response to ``method``. Raises `BadHead`."""
    first, *rest = _lines(head)
    match = _STATUS.fullmatch(first)
    if match is None:
        raise BadHead("the status line is malformed")
    status, headers = int(match[1]), _headers(rest)
    framing = _framing(headers) or Framing(None)
    if method == b"HEAD" or status < 200 or status in (204, 304):
        framing = Framing(0)
    return ResponseHead(status, match[2] or b"", headers, framing)


def parse_chunk_size(line: bytes) -> int:
    """The size in a chunk's first line (with CRLF). Raises `BadHead`."""
    match = _CHUNK_SIZE.fullmatch(line[:-2])
    if not line.endswith(b"\r\n") or match is None:
        raise BadHead("a chunk's size is malformed")
    return int(match[1], 16)


def _end_to_end(headers: Headers) -> Headers:
    dropped = _HOP | (tokens(headers, b"connection") - {b"host"})
    return [(n, v) for n, v in headers if n.lower() not in dropped and not n.lower().startswith(b"codevo-")]


def _framing_headers(framing: Framing, upgrade: bytes | None) -> Headers:
    found: Headers = []
    if framing.chunked:
        found.append((b"Transfer-Encoding", b"chunked"))
    elif framing.length:
        found.append((b"Content-Length", b"%d" % framing.length))
    if upgrade is not None:
        found += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade)]
    return found


def _serialise(first: bytes, headers: Headers) -> bytes:
    return b"\r\n".join([first, *(n + b": " + v for n, v in headers), b"", b""])


def forwarded_request(request: RequestHead, port: int) -> bytes:
    """The head for the program: its own Host and Origin, none of our fields, one request a connection."""
    host = b"localhost:%d" % port
    headers: Headers = [(b"Host", host)]
    for name, value in _end_to_end(request.headers):
        match name.lower():
            case b"host":
                continue
            case b"origin":
                headers.append((name, b"http://" + host))
            case _:
                headers.append((name, value))
    headers += _framing_headers(request.framing, request.upgrade)
    if request.framing.length == 0 and all_values(request.headers, b"content-length"):
        headers.append((b"Content-Length", b"0"))
    if request.upgrade is None:
        headers.append((b"Connection", b"close"))
    return _serialise(b"%s %s HTTP/1.1" % (request.method, request.target), headers)


def _relative(location: bytes, port: int) -> bytes:
    """A redirect to the address by which only we know the program, as a path."""
    path = location.removeprefix(b"http://localhost:%d" % port)
    return path if path.startswith(b"/") and not path.startswith((b"//", b"/\\")) else location


def forwarded_response(response: ResponseHead, port: int, *, close: bool) -> bytes:
    """The head for the client. ``close``: the connection ends with this response."""
    headers = _end_to_end(response.headers)
    headers = [(n, _relative(v, port) if n.lower() == b"location" else v) for n, v in headers]
    if response.status == 101:
        upgrade = all_values(response.headers, b"upgrade")
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", upgrade[0] if upgrade else b"websocket")]
    elif response.status >= 200:
        if response.framing.chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            # a HEAD's or 304's length says how long the body would be
            headers += [(b"Content-Length", v) for v in all_values(response.headers, b"content-length")]
        headers.append((b"Connection", b"close" if close else b"keep-alive"))
    return _serialise(b"HTTP/1.1 %d %s" % (response.status, response.reason), headers)
