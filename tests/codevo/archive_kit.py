"""Archives for tests: well-made, odd and hostile ones; and what an export holds."""

from __future__ import annotations

import io
import stat
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass

import zstandard


@dataclass(frozen=True)
class Thing:
    """A file, or with ``kind`` another type of tar; ``target`` makes it a symbolic link."""

    name: str
    data: bytes = b""
    mode: int = 0o644
    target: str = ""
    kind: bytes = tarfile.REGTYPE
    mtime: float = 1_700_000_000


def folder(name: str, mode: int = 0o755) -> Thing:
    return Thing(name, mode=mode, kind=tarfile.DIRTYPE)


def link(name: str, target: str) -> Thing:
    return Thing(name, target=target, mode=0o777, kind=tarfile.SYMTYPE)


def tar(things: Iterable[Thing], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format, errors="surrogateescape") as archive:
        for thing in things:
            info = tarfile.TarInfo(thing.name)
            info.type, info.mode, info.mtime = thing.kind, thing.mode, thing.mtime
            info.size, info.linkname = len(thing.data), thing.target
            archive.addfile(info, io.BytesIO(thing.data))
    return out.getvalue()


def tar_zst(*things: Thing, format: int = tarfile.PAX_FORMAT) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(tar(things, format=format))


def zipped(*things: Thing, method: int = zipfile.ZIP_DEFLATED, system: int = 3) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for thing in things:
            info = zipfile.ZipInfo(
                thing.name.rstrip("/") + "/" if thing.kind == tarfile.DIRTYPE else thing.name
            )
            bits = {
                tarfile.DIRTYPE: stat.S_IFDIR,
                tarfile.SYMTYPE: stat.S_IFLNK,
                tarfile.FIFOTYPE: stat.S_IFIFO,
            }
            info.create_system, info.compress_type = system, method
            if system == 3:
                info.external_attr = (bits.get(thing.kind, stat.S_IFREG) | thing.mode) << 16
            archive.writestr(info, thing.target.encode() if thing.target else thing.data)
    return out.getvalue()


def untar(data: bytes, *, strip: str = "workspace/", times: bool = False) -> dict[str, tuple[object, ...]]:
    """What a tar.zst holds: by path its type, mode, content and target (and time)."""
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(raw), encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            file = archive.extractfile(info) if info.isreg() else None
            what = (info.type, info.mode, file.read() if file else None, info.linkname)
            when = (info.pax_headers.get("mtime", info.mtime),) if times else ()
            found[info.name.removeprefix(strip)] = what + when
    return found
