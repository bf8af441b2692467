"""Reading archives that people upload, a zip or a tar.zst, one member after the other and within bounds.

Nothing in them is believed. What is not allowed in a project (`pod_runtime.journal.format`) is refused with
the member's name: absolute and climbing paths, devices, FIFOs, hard links. Symbolic links are data: nothing
follows them here.
"""

from __future__ import annotations

import calendar
import os
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

import zstandard

from pod_runtime.journal.format import MAX_PATH, Area, FormatError, Kind, Member, check_path, parse_mtime

ZIP: Final = "zip"
TAR_ZST: Final = "tar.zst"
#: Bytes that all names together may have; they are held in memory.
MAX_NAMES = 32 * 2**20
#: Largest thing in a tar that is not a file's content: an extended header.
MAX_HEADER = 8 * 2**20
#: zstd needs this much memory for the largest window that is taken (``zstd --long=27``).
MAX_WINDOW = 2**27
_MAX_MTIME = 2**33
_CHUNK = 2**20
#: Compressed bytes decoded at a time: zstd packs up to 128 KiB into 4 bytes.
_SLICE = 512
#: What tar itself may add to each member: its header, an extended one, padding.
_TAR_OVERHEAD = 4096
_COMPRESSIONS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
#: Bytes of the end of a zip's directory, and of one entry in it without the name, generously.
_ZIP_END, _ZIP_ENTRY = 22, 200
_MAC_JUNK = "__MACOSX"
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zstandard.ZstdError,
    zlib.error,
    struct.error,
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    ValueError,
)


class Refused(Exception):
    """The archive cannot become a project; the text is for people. ``too_large``: because of a bound."""

    def __init__(self, text: str, *, too_large: bool = False) -> None:
        super().__init__(text)
        self.too_large = too_large


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an archive may unpack to: bytes, and members."""

    unpacked: int
    members: int


@dataclass(slots=True)
class Item:
    """One member on its way; ``read`` gives its content once, before the next one is asked for."""

    number: int
    member: Member
    read: Callable[[], Iterator[bytes]]


@contextmanager
def damage(kind: str) -> Iterator[None]:
    """Whatever the readers raise about the archive becomes `Refused`."""
    try:
        yield
    except BrokenPipeError:
        raise
    except MemoryError as e:
        raise Refused("The archive takes too much memory to unpack.", too_large=True) from e
    except FormatError as e:
        raise Refused(f"The archive cannot be taken: {e}.") from e
    except NotImplementedError as e:
        raise Refused("The archive uses a feature that is not supported here. Make a plain one.") from e
    except zstandard.ZstdError as e:
        if "memory" in str(e):
            raise Refused("Its window is too large: make the archive with at most zstd --long=27.") from e
        raise Refused("The archive is damaged, or not a tar.zst.") from e
    except _DAMAGED as e:
        raise Refused(f"The archive is damaged, or not a {kind}.") from e


def _clean(name: str) -> str:
    """The path of a member; "" for the archive's root itself. Raises `FormatError`."""
    while name.startswith("./"):
        name = name[2:]
    name = name.removesuffix("/") if name != "/" else name
    return "" if name in ("", ".") else check_path(name)


def _target(text: str, path: str) -> str:
    if not text or "\0" in text or len(os.fsencode(text)) > MAX_PATH:
        raise Refused(f"The archive cannot be taken: the link {path!r} leads nowhere.")
    return text


def _mode(mode: int, kind: Kind) -> int:
    """The permission bits; the owner can always read a file, and work in a folder."""
    return mode & 0o777 | (0o700 if kind is Kind.DIRECTORY else 0o400)


def _no_data() -> Iterator[bytes]:
    return iter(())


def too_much(bounds: Bounds) -> Refused:
    most = _words(bounds.unpacked)
    return Refused(f"The archive unpacks to more than {most}, which is the most.", too_large=True)


def _words(n: int) -> str:
    return f"{n / 2**30:.3g} GiB" if n >= 2**30 else f"{n / 2**20:.3g} MiB"


# -- zip


def read_zip(file: BinaryIO, bounds: Bounds) -> Iterator[Item]:
    _check_directory(file, bounds)
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        if len(archive.infolist()) > bounds.members:
            raise Refused(f"The archive holds more than {bounds.members} files and folders.", too_large=True)
        for number, info in enumerate(archive.infolist()):
            name = _zip_name(info)
            if name.partition("/")[0] == _MAC_JUNK:
                continue
            path = _clean(name)
            if path:
                yield _zip_item(archive, number, info, path)


def _check_directory(file: BinaryIO, bounds: Bounds) -> None:
    """Before `zipfile` reads all of the directory into memory: its end says how much that is.

    APPNOTE.TXT 4.3.14 to 4.3.16. Where the end is not found, `zipfile` says so.
    """
    start = max(file.seek(0, os.SEEK_END) - _ZIP_END - 2**16, 0)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if not 0 <= at <= len(tail) - _ZIP_END:
        return
    count, size = struct.unpack_from("<HI", tail, at + 10)
    if at >= 20 and tail[at - 20 : at - 16] == b"PK\6\7":  # zip64
        file.seek(min(struct.unpack_from("<Q", tail, at - 12)[0], start + at))
        end = file.read(56)
        if len(end) == 56 and end.startswith(b"PK\6\6"):
            count, size = struct.unpack_from("<QQ", end, 32)
    if count > bounds.members or size > MAX_NAMES + bounds.members * _ZIP_ENTRY or size > count * 2**17:
        raise Refused(f"The archive holds more than {bounds.members} files and folders.", too_large=True)


def _zip_name(info: zipfile.ZipInfo) -> str:
    """Names without the UTF-8 flag are UTF-8 all the same when they can be (macOS, many programs)."""
    name = info.orig_filename
    if not info.flag_bits & 0x800:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    if info.create_system == 0 and "/" not in name:
        name = name.replace("\\", "/")  # old programs on Windows
    return name


def _zip_item(archive: zipfile.ZipFile, number: int, info: zipfile.ZipInfo, path: str) -> Item:
    bits = info.external_attr >> 16 if info.create_system == 3 else 0
    kind = Kind.FILE
    if info.orig_filename.endswith(("/", "\\" if info.create_system == 0 else "/")) or stat.S_ISDIR(bits):
        kind = Kind.DIRECTORY
    elif stat.S_ISLNK(bits):
        kind = Kind.SYMLINK
    elif stat.S_IFMT(bits) not in (0, stat.S_IFREG):
        raise Refused(f"The archive cannot be taken: {path!r} is neither file, folder nor link.")
    if info.flag_bits & 1:
        raise Refused("The archive is encrypted. Make one without a password.")
    if info.compress_type not in _COMPRESSIONS:
        raise Refused(f"The archive cannot be taken: {path!r} is compressed in a way that is not supported.")
    mode = _mode(stat.S_IMODE(bits) or (0o755 if kind is Kind.DIRECTORY else 0o644), kind)

    def read() -> Iterator[bytes]:
        with archive.open(info) as f:
            while chunk := f.read(_CHUNK):
                yield chunk

    if kind is Kind.SYMLINK:
        if info.file_size > MAX_PATH:
            raise Refused(f"The archive cannot be taken: the link {path!r} leads nowhere.")
        target = _target(os.fsdecode(b"".join(read())), path)
        return Item(number, Member(Area.WORKSPACE, path, kind, 0o777, _zip_time(info), 0, target), _no_data)
    size = info.file_size if kind is Kind.FILE else 0
    return Item(number, Member(Area.WORKSPACE, path, kind, mode, _zip_time(info), size), read)


def _zip_time(info: zipfile.ZipInfo) -> int:
    """The extended timestamp when there is one; else the local time of nobody knows where, taken as UTC."""
    extra = info.extra
    while len(extra) >= 4:
        tag, length = struct.unpack_from("<HH", extra)
        if tag == 0x5455 and length >= 5 and len(extra) >= 9 and extra[4] & 1:
            return int(max(struct.unpack_from("<i", extra, 5)[0], 0)) * 10**9
        extra = extra[4 + length :]
    try:
        return max(calendar.timegm((*info.date_time, 0, 0, 0)), 0) * 10**9
    except (ValueError, OverflowError):
        return 0


# -- tar.zst


class _Unzstd:
    """A zstd file decompressed, for `tarfile`: forward only, bounded, and complete or an error."""

    def __init__(self, file: BinaryIO, bounds: Bounds) -> None:
        file.seek(0)
        self._file = file
        self._bounds = bounds
        self._limit = bounds.unpacked + bounds.members * _TAR_OVERHEAD
        self._zstd: zstandard.ZstdDecompressionObj | None = None
        self._input = memoryview(b"")
        self._buffer = bytearray()
        self._at = 0
        #: what was read last: at the end of a sound archive, a block of zeros
        self.last = b""

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at:
            raise EOFError
        while position > self._at and self.read(min(position - self._at, _CHUNK)):
            pass
        return self._at

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise Refused("The archive cannot be taken: one of its headers is too large.", too_large=True)
        while len(self._buffer) < size and self._more():
            pass
        self.last = bytes(self._buffer[:size])
        del self._buffer[:size]
        self._at += len(self.last)
        return self.last

    def drain(self) -> None:
        """Read what is left, so that a cut or damaged end is noticed."""
        while self.read(_CHUNK):
            pass

    def _more(self) -> bool:
        if not self._input:
            self._input = memoryview(self._file.read(_CHUNK))
            if not self._input:
                if self._zstd is not None:
                    raise EOFError
                return False
        piece, self._input = bytes(self._input[:_SLICE]), self._input[_SLICE:]
        while piece:
            if self._zstd is None:
                self._zstd = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).decompressobj()
            out = self._zstd.decompress(piece)
            piece = b""
            if self._zstd.eof:
                piece, self._zstd = self._zstd.unused_data, None
            self._buffer += out
            self._limit -= len(out)
            if self._limit < 0:
                raise too_much(self._bounds)
        return True


def read_tar(file: BinaryIO, bounds: Bounds) -> Iterator[Item]:
    stream = _Unzstd(file, bounds)
    archive = tarfile.TarFile(
        fileobj=stream,  # type: ignore[arg-type]  # all that reading in order needs
        encoding="utf-8",
        errors="surrogateescape",
    )
    number = 0
    while (info := archive.next()) is not None:
        archive.members.clear()  # type: ignore[attr-defined]  # it would keep each one
        path = _clean(info.name)
        if path:
            yield _tar_item(archive, number, info, path)
            number += 1
    # tarfile takes a damaged header for the end
    if len(stream.last) != tarfile.BLOCKSIZE or any(stream.last):
        raise EOFError
    stream.drain()


def _tar_item(archive: tarfile.TarFile, number: int, info: tarfile.TarInfo, path: str) -> Item:
    if info.islnk():
        raise Refused(
            f"The archive cannot be taken: {path!r} is a hard link. Make it with tar's --hard-dereference."
        )
    kind = None
    if info.isreg() or info.isdir():
        kind = Kind.FILE if info.isreg() else Kind.DIRECTORY
    elif info.issym():
        kind = Kind.SYMLINK
    if kind is None:
        raise Refused(f"The archive cannot be taken: {path!r} is neither file, folder nor link.")
    if info.size < 0:
        raise EOFError
    text = info.pax_headers.get("mtime")
    mtime = parse_mtime(text) if text else int(min(max(info.mtime, 0), _MAX_MTIME)) * 10**9
    if kind is Kind.SYMLINK:
        target = _target(info.linkname, path)
        link = Member(Area.WORKSPACE, path, kind, info.mode & 0o777, mtime, 0, target)
        return Item(number, link, _no_data)

    def read() -> Iterator[bytes]:
        f = archive.extractfile(info)
        if f is not None:
            with f:
                while chunk := f.read(_CHUNK):
                    yield chunk

    size = info.size if kind is Kind.FILE else 0
    return Item(number, Member(Area.WORKSPACE, path, kind, _mode(info.mode, kind), mtime, size), read)
