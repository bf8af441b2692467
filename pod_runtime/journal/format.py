"""The records of the log, encoded and decoded: tar inside zstd, as `docs/journal.md` describes. Pure.

A record (a commit or a snapshot) is two zstd frames behind each other. The first holds the tar member
``meta.json`` alone, so that a record can be numbered anew without compressing its files again; the second
holds ``workspace/…`` and ``docs/…`` and the end of the archive. Together they are one ordinary ``.tar.zst``.

Paths are ``str``; bytes that are not UTF-8 are lone surrogates (PEP 383).
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Protocol

import zstandard

FORMAT = 1
META = "meta.json"
BLOCK = 512
MAX_META = 64 * 2**20
MAX_PAX = 2**20
MAX_PATH = 4095
MAX_NAME = 255
#: Paths named in ``changed``; ``changed_count`` says how many there were.
MAX_CHANGED = 1000
#: Compressed bytes decoded at a time. zstd packs up to 128 KiB into 4 bytes, so this bounds what one step
#: can blow up to (16 MiB) whatever was put into the archive.
SLICE = 512


#: Decoded bytes that are gathered before the sink gets them, so that it is not called for every slice.
GATHER = 2**17


class FormatError(ValueError):
    """The bytes are not a record of this format, or break one of its bounds."""


class Kind(StrEnum):
    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"


class Area(StrEnum):
    """The two top folders of a record: the project's files, and the documents' histories."""

    WORKSPACE = "workspace"
    DOCS = "docs"


@dataclass(frozen=True, slots=True)
class DocMeta:
    """Beside a history: its epoch and the SHA-256 (hex) of the text that it renders to."""

    epoch: int
    text_sha256: str


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a record. ``size`` in bytes; ``mtime_ns`` since 1970; ``mode`` the permission bits."""

    area: Area
    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    mtime_ns: int = 0
    size: int = 0
    target: str = ""
    doc: DocMeta | None = None

    @property
    def name(self) -> str:
        return f"{self.area}/{self.path}"


@dataclass(frozen=True, slots=True)
class Meta:
    """What a record says about itself. ``deleted`` are full names (``workspace/a``, ``docs/a``).

    ``changed``: the paths in ``workspace/`` that the record writes or deletes, with the names of the people
    whose edits are in them; at most `MAX_CHANGED` of ``changed_count``. None: the record does not say.
    """

    kind: str
    seq: int
    writer: str
    generation: int
    id: str = ""
    time: str = ""
    deleted: tuple[str, ...] = ()
    docs: dict[str, DocMeta] = field(default_factory=dict)
    changed: dict[str, tuple[str, ...]] | None = None
    changed_count: int = 0

    def to_json(self) -> bytes:
        docs = {path: {"epoch": d.epoch, "text_sha256": d.text_sha256} for path, d in self.docs.items()}
        said: dict[str, Any] = {
            "format": FORMAT,
            "kind": self.kind,
            "seq": self.seq,
            "writer": self.writer,
            "generation": self.generation,
            "id": self.id,
            "time": self.time,
            "deleted": list(self.deleted),
            "docs": docs,
        }
        if self.changed is not None:
            said |= {"changed": self.changed, "changed_count": self.changed_count}
        return json.dumps(said).encode()

    @property
    def names_all(self) -> bool:
        """Whether ``changed`` is there and complete."""
        return self.changed is not None and self.changed_count <= len(self.changed)

    @classmethod
    def from_json(cls, raw: bytes) -> Meta:
        """Parse and check. Raises `FormatError`."""
        try:
            found = json.loads(raw)
            if found["format"] != FORMAT:
                raise FormatError(f"format {found['format']!r} is not known to this version")
            deleted = tuple(found["deleted"])
            for name in deleted:
                split_name(name)
            docs = {}
            for path, d in found["docs"].items():
                check_path(path)
                docs[path] = DocMeta(int(d["epoch"]), str(d["text_sha256"]))
            changed = None
            if found.get("changed") is not None:
                changed = {check_path(p): tuple(map(str, who)) for p, who in found["changed"].items()}
            return cls(
                kind=str(found["kind"]),
                seq=int(found["seq"]),
                writer=str(found["writer"]),
                generation=int(found["generation"]),
                id=str(found["id"]),
                time=str(found["time"]),
                deleted=deleted,
                docs=docs,
                changed=changed,
                changed_count=int(found.get("changed_count", 0)) if changed is not None else 0,
            )
        except FormatError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise FormatError(f"{META}: {type(e).__name__}: {e}") from e


def now() -> str:
    """The time as the wire has it: RFC 3339, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def check_path(path: str) -> str:
    """``path`` if it is relative, without ``.``, ``..``, empty parts or NUL, and within the bounds."""
    if not isinstance(path, str):
        raise FormatError("a path is not text")
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as e:
        raise FormatError("a path is not valid text") from e
    if not raw or len(raw) > MAX_PATH or b"\0" in raw:
        raise FormatError("a path is empty, too long, or holds a NUL")
    for part in raw.split(b"/"):
        if part in (b"", b".", b"..") or len(part) > MAX_NAME:
            raise FormatError(f"the path {path!r} is absolute, climbs, or has a bad component")
    return path


def split_name(name: str) -> tuple[Area, str]:
    """``workspace/a/b`` → (workspace, ``a/b``). Raises `FormatError` for anything else."""
    top, _, path = name.partition("/") if isinstance(name, str) else ("", "", "")
    try:
        area = Area(top)
    except ValueError:
        raise FormatError(f"{name!r} is in neither workspace/ nor docs/") from None
    return area, check_path(path)


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
