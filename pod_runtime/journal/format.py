"""The records of the log, encoded and decoded: tar inside zstd, as `docs/journal.md` describes. Pure.

A record (a commit or a snapshot) is two zstd frames behind each other. The first holds the tar member
``meta.json`` alone, so that a record can be numbered anew without compressing its files again; the second
holds ``workspace/…`` and ``docs/…`` and the end of the archive. Together they are one ordinary ``.tar.zst``.

Paths are ``str``; bytes that are not UTF-8 are lone surrogates (PEP 383).
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import zstandard

from pod_runtime.journal.meta import (
    BLOCK,
    FORMAT,
    MAX_CHANGED,
    MAX_META,
    MAX_NAME,
    MAX_PATH,
    MAX_PAX,
    META,
    Area,
    DocMeta,
    FormatError,
    Kind,
    Member,
    Meta,
    check_path,
    now,
    split_name,
)

__all__ = [
    "BLOCK",
    "FORMAT",
    "MAX_CHANGED",
    "MAX_META",
    "MAX_NAME",
    "MAX_PATH",
    "META",
    "Area",
    "BodyWriter",
    "Decoder",
    "DocMeta",
    "FormatError",
    "Kind",
    "Member",
    "Meta",
    "Sink",
    "check_path",
    "encode_body",
    "meta_frame",
    "now",
    "parse_mtime",
    "parse_pax",
    "split_name",
]

#: Compressed bytes decoded at a time. zstd packs up to 128 KiB into 4 bytes, so this bounds what one step
#: can blow up to (16 MiB) whatever was put into the archive.
SLICE = 512
#: Decoded bytes that are gathered before the sink gets them, so that it is not called for every slice.
GATHER = 2**17


# -- encoding


def _header(name: str, kind: Kind, mode: int, mtime_ns: int, size: int, target: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.type = {Kind.FILE: tarfile.REGTYPE, Kind.DIRECTORY: tarfile.DIRTYPE, Kind.SYMLINK: tarfile.SYMTYPE}[
        kind
    ]
    info.mode = mode & 0o7777
    info.size = size if kind is Kind.FILE else 0
    info.linkname = target
    seconds, fraction = divmod(mtime_ns, 10**9)
    info.mtime = max(seconds, 0)
    if fraction and seconds >= 0:
        info.pax_headers = {"mtime": f"{seconds}.{fraction:09d}"}
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _padding(size: int) -> bytes:
    return b"\0" * (-size % BLOCK)


def _compressor() -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=3, write_checksum=True)


def meta_frame(meta: Meta) -> bytes:
    """The first frame of a record."""
    data = meta.to_json()
    if len(data) > MAX_META:
        raise FormatError("the record's meta data is too large")
    return _compressor().compress(
        _header(META, Kind.FILE, 0o644, 0, len(data), "") + data + _padding(len(data))
    )


class BodyWriter:
    """The second frame of a record, written piece by piece to ``write``. Also any plain tar.zst."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write
        self._zstd = _compressor().compressobj()
        self._left = 0
        self._pad = b""
        #: bytes of tar so far, before compression
        self.size = 0

    def _emit(self, data: bytes) -> None:
        self.size += len(data)
        out = self._zstd.compress(data)
        if out:
            self._write(out)

    def begin(self, member: Member, name: str | None = None) -> None:
        """Start a member (``name`` overrides where it stands); ``member.size`` bytes of data must follow."""
        if self._left:
            raise FormatError("the previous member is not complete")
        size = member.size if member.kind is Kind.FILE else 0
        self._emit(
            _header(name or member.name, member.kind, member.mode, member.mtime_ns, size, member.target)
        )
        self._left, self._pad = size, _padding(size)

    def data(self, chunk: bytes) -> None:
        if len(chunk) > self._left:
            raise FormatError("more data than the member's size")
        self._left -= len(chunk)
        self._emit(chunk)
        if not self._left and self._pad:
            self._emit(self._pad)
            self._pad = b""

    def add(self, member: Member, chunks: Iterable[bytes] = ()) -> None:
        """A whole member."""
        self.begin(member)
        for chunk in chunks:
            self.data(chunk)
        if self._left:
            raise FormatError("less data than the member's size")

    def close(self) -> None:
        """Write the end of the archive."""
        if self._left:
            raise FormatError("the last member is not complete")
        self._emit(b"\0" * 2 * BLOCK)
        self._write(self._zstd.flush())


def encode_body(members: Iterable[tuple[Member, bytes]]) -> bytes:
    """A small body in memory."""
    out = bytearray()
    writer = BodyWriter(out.extend)
    for member, data in members:
        writer.add(member, (data,) if data else ())
    writer.close()
    return bytes(out)


# -- decoding


class Sink(Protocol):
    """Takes a record as it is decoded: ``meta`` once, then per member ``begin``, ``data``…, ``end``."""

    def meta(self, meta: Meta) -> None: ...

    def begin(self, member: Member) -> bool:
        """Whether the member is wanted; if not, neither ``data`` nor ``end`` follows."""

    def data(self, chunk: bytes) -> None: ...

    def end(self) -> None: ...


class Decoder:
    """Feed it the bytes of a record; it checks them and calls the sink. Raises `FormatError`.

    Memory stays bounded whatever the archive holds; ``max_bytes`` bounds the decompressed size. Links that
    are not symbolic, devices and FIFOs are refused.
    """

    def __init__(self, sink: Sink, *, max_bytes: int = 2**40) -> None:
        self._sink = sink
        self._max = max_bytes
        self._zstd: Any = None
        self._buffer = bytearray()
        self._pax: dict[str, str] = {}
        self._left = 0
        self._skip = 0
        self._wanted = False
        self._collect: str = ""
        self._member: Member | None = None
        self._zeros = 0
        #: the record's meta data, once seen
        self.meta: Meta | None = None
        #: whether the end of the archive was seen
        self.complete = False

    def feed(self, data: bytes) -> None:
        """Decode what ``data`` completes. Blocks for the work: call it in a thread for large input."""
        view = memoryview(data)
        while view:
            piece, view = bytes(view[:SLICE]), view[SLICE:]
            while piece:
                if self._zstd is None:
                    self._zstd = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj()
                try:
                    out = self._zstd.decompress(piece)
                except zstandard.ZstdError as e:
                    raise FormatError(f"zstd: {e}") from e
                piece = b""
                if self._zstd.eof:
                    piece = self._zstd.unused_data
                    self._zstd = None
                if out:
                    self._max -= len(out)
                    if self._max < 0:
                        raise FormatError("the archive unpacks to more than allowed")
                    self._buffer += out
                    if len(self._buffer) >= GATHER:
                        self._parse()
        self._parse()

    def close(self) -> None:
        """Raises `FormatError` when the record ended early."""
        if not self.complete or self._zstd is not None or self.meta is None:
            raise FormatError("the record ends early")

    def _parse(self) -> None:
        buffer = self._buffer
        while buffer and not self.complete:
            if self._skip:
                n = min(self._skip, len(buffer))
                del buffer[:n]
                self._skip -= n
            elif self._collect:
                if len(buffer) < self._left:
                    return
                body = bytes(buffer[: self._left])
                del buffer[: self._left]
                self._skip, self._left = -self._left % BLOCK, 0
                self._collected(body)
            elif self._member is not None:
                self._body()
            else:
                if len(buffer) < BLOCK:
                    return
                block = bytes(buffer[:BLOCK])
                del buffer[:BLOCK]
                self._block(block)
        if self.complete:
            buffer.clear()  # tar pads its end with zeros

    def _body(self) -> None:
        n = min(self._left, len(self._buffer))
        if self._wanted and n:
            self._sink.data(bytes(self._buffer[:n]))
        del self._buffer[:n]
        self._left -= n
        if not self._left:
            self._finish()

    def _finish(self) -> None:
        assert self._member is not None
        self._skip = -self._member.size % BLOCK
        self._member = None
        if self._wanted:
            self._sink.end()

    def _collected(self, body: bytes) -> None:
        what, self._collect = self._collect, ""
        if what == "pax":
            self._pax = parse_pax(body)
        elif what == "meta":
            self.meta = Meta.from_json(body)
            self._sink.meta(self.meta)

    def _block(self, block: bytes) -> None:
        if not any(block):
            self._zeros += 1
            self.complete = self._zeros == 2
            return
        self._zeros = 0
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as e:
            raise FormatError(f"tar: {e}") from e
        pax, self._pax = self._pax, {}
        if info.size < 0:
            raise FormatError("a negative size")
        if info.type == tarfile.XHDTYPE:
            self._gather("pax", info.size, MAX_PAX)
            return
        size = _number(pax["size"]) if "size" in pax else info.size
        if self.meta is None:
            if info.name != META or info.type != tarfile.REGTYPE:
                raise FormatError(f"the first member is not {META}")
            self._gather("meta", size, MAX_META)
            return
        self._start(info, pax, size)

    def _gather(self, what: str, size: int, limit: int) -> None:
        if not 0 < size <= limit:
            raise FormatError(f"{what}: a size of {size} bytes is out of bounds")
        self._collect, self._left = what, size

    def _start(self, info: tarfile.TarInfo, pax: dict[str, str], size: int) -> None:
        kinds = {
            tarfile.REGTYPE: Kind.FILE,
            tarfile.AREGTYPE: Kind.FILE,
            tarfile.DIRTYPE: Kind.DIRECTORY,
            tarfile.SYMTYPE: Kind.SYMLINK,
        }
        kind = kinds.get(info.type)
        if kind is None:
            raise FormatError(f"a member of type {info.type!r} is not allowed")
        area, path = split_name(pax.get("path", info.name).rstrip("/"))
        if area is Area.DOCS and kind is not Kind.FILE:
            raise FormatError("docs/ holds files only")
        target = pax.get("linkpath", info.linkname) if kind is Kind.SYMLINK else ""
        if kind is Kind.SYMLINK and (not target or "\0" in target or len(os.fsencode(target)) > MAX_PATH):
            raise FormatError("a symbolic link without a proper target")
        assert self.meta is not None
        doc = self.meta.docs.get(path) if area is Area.DOCS else None
        if area is Area.DOCS and doc is None:
            raise FormatError("a history without its epoch")
        mtime = parse_mtime(pax["mtime"]) if "mtime" in pax else int(info.mtime) * 10**9
        self._member = Member(
            area, path, kind, info.mode & 0o777, mtime, size if kind is Kind.FILE else 0, target, doc
        )
        self._left = self._member.size
        self._wanted = self._sink.begin(self._member)
        if not self._left:
            self._finish()


def _number(text: str) -> int:
    if not text.isdecimal() or len(text) > 19:
        raise FormatError("a number is expected")
    return int(text)


def parse_mtime(text: str) -> int:
    """``123.456`` seconds → nanoseconds; out of bounds counts as 0."""
    seconds, _, fraction = text.partition(".")
    if not seconds.isdecimal() or len(seconds) > 10 or not (fraction + "0").isdecimal():
        return 0
    return int(seconds) * 10**9 + int(fraction[:9].ljust(9, "0"))


def parse_pax(body: bytes) -> dict[str, str]:
    """The records ``LENGTH KEY=VALUE\\n`` of an extended header."""
    found: dict[str, str] = {}
    while body:
        length, space, _ = body[:20].partition(b" ")
        if not space or not length.isdigit():
            raise FormatError("pax: no length")
        n = int(length)
        if n <= len(length) + 1 or n > len(body) or body[n - 1 : n] != b"\n":
            raise FormatError("pax: a bad length")
        key, equals, value = body[len(length) + 1 : n - 1].partition(b"=")
        if not equals:
            raise FormatError("pax: no value")
        found[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        body = body[n:]
    return found
