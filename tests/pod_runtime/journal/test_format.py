from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pod_runtime.journal.format import (
    Area,
    Decoder,
    DocMeta,
    FormatError,
    Kind,
    Member,
    Meta,
    encode_body,
    meta_frame,
    parse_mtime,
    parse_pax,
)

names = st.binary(min_size=1, max_size=120).filter(
    lambda b: b not in (b".", b"..") and b"/" not in b and b"\0" not in b
)
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))


class Collect:
    def __init__(self) -> None:
        self.found: list[tuple[Member, bytes]] = []
        self.ended = 0

    def meta(self, meta: Meta) -> None:
        pass

    def begin(self, member: Member) -> bool:
        self.found.append((member, b""))
        return True

    def data(self, chunk: bytes) -> None:
        member, before = self.found[-1]
        self.found[-1] = (member, before + chunk)

    def end(self) -> None:
        self.ended += 1


def decode(data: bytes, step: int = 2**20, **bounds: int) -> tuple[Meta, list[tuple[Member, bytes]]]:
    sink = Collect()
    decoder = Decoder(sink, **bounds)
    for start in range(0, len(data), step):
        decoder.feed(data[start : start + step])
    decoder.close()
    assert decoder.meta is not None
    assert sink.ended == len(sink.found)
    return decoder.meta, sink.found


@st.composite
def members(draw: st.DrawFn) -> tuple[Member, bytes]:
    path = draw(paths)
    mtime = draw(st.integers(0, 4 * 10**18))
    kind = draw(st.sampled_from(list(Kind)))
    if kind is Kind.SYMLINK:
        return Member(Area.WORKSPACE, path, kind, 0o777, mtime, target=draw(paths)), b""
    mode = draw(st.integers(0, 0o777))
    if kind is Kind.DIRECTORY:
        return Member(Area.WORKSPACE, path, kind, mode, mtime), b""
    data = draw(st.binary(max_size=2000))
    return Member(Area.WORKSPACE, path, kind, mode, mtime, len(data)), data


@given(st.lists(members(), max_size=5), st.lists(paths, max_size=3), st.integers(1, 5000))
def test_round_trip(given_members: list[tuple[Member, bytes]], deleted: list[str], step: int) -> None:
    meta = Meta("commit", 3, "w", 2, "i", "t", tuple(f"workspace/{p}" for p in deleted))
    found, back = decode(meta_frame(meta) + encode_body(given_members), step)
    assert found == meta
    assert back == given_members


@given(paths, st.binary(max_size=100), st.integers(0, 2**63))
def test_round_trip_of_documents(path: str, history: bytes, epoch: int) -> None:
    doc = DocMeta(epoch, "ab" * 32)
    meta = Meta("commit", 1, "w", 1, docs={path: doc})
    member = Member(Area.DOCS, path, size=len(history), doc=doc)
    assert decode(meta_frame(meta) + encode_body([(member, history)])) == (meta, [(member, history)])


@given(st.binary(max_size=3000))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        decode(data)
    with pytest.raises(FormatError):
        decode(zstandard.compress(data))


@given(st.integers(0, 10**4))
def test_a_cut_record_is_refused(cut: int) -> None:
    record = meta_frame(Meta("commit", 1, "w", 1)) + encode_body(
        [(Member(Area.WORKSPACE, "a", size=5000), os.urandom(5000))]
    )
    with pytest.raises(FormatError):
        decode(record[: min(cut, len(record) - 1)])


def archive(*infos: tarfile.TarInfo, meta: bool = True) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info in infos:
            tar.addfile(info, io.BytesIO(b"x" * info.size))
    frame = meta_frame(Meta("commit", 1, "w", 1)) if meta else b""
    return frame + zstandard.compress(out.getvalue())


def info(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, link
    return found


@pytest.mark.parametrize(
    "bad",
    [
        info("/etc/passwd"),
        info("workspace/../../etc/passwd"),
        info("workspace//x"),
        info("workspace/./x"),
        info("elsewhere/x"),
        info("workspace"),
        info("workspace/" + "n" * 256),
        info("workspace/" + "/".join(["n" * 200] * 30)),
        info("workspace/hard", tarfile.LNKTYPE, "workspace/x"),
        info("workspace/dev", tarfile.CHRTYPE),
        info("workspace/block", tarfile.BLKTYPE),
        info("workspace/fifo", tarfile.FIFOTYPE),
        info("workspace/link", tarfile.SYMTYPE, ""),
        info("docs/link", tarfile.SYMTYPE, "x"),
        info("docs/without-epoch"),
    ],
    ids=lambda i: i.name[:40],
)
def test_bad_members_are_refused(bad: tarfile.TarInfo) -> None:
    with pytest.raises(FormatError):
        decode(archive(bad))


def test_the_first_member_must_be_the_meta_data() -> None:
    with pytest.raises(FormatError, match="first member"):
        decode(archive(info("workspace/a"), meta=False))


def test_a_bomb_is_refused_within_bounds() -> None:
    record = meta_frame(Meta("commit", 1, "w", 1)) + encode_body(
        [(Member(Area.WORKSPACE, "a", size=2**26), bytes(2**26))]
    )
    assert len(record) < 20_000
    with pytest.raises(FormatError, match="more than allowed"):
        decode(record, max_bytes=2**20)


@pytest.mark.parametrize(
    "raw", [b"{}", b"[]", b"null", b'{"format": 2}', b"\xff", b'{"format": 1, "kind": "commit"}']
)
def test_bad_meta_data_is_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        Meta.from_json(raw)


def test_meta_data_with_bad_names_is_refused() -> None:
    for name in ("workspace/../x", "x", "", "docs/"):
        with pytest.raises(FormatError):
            Meta.from_json(Meta("commit", 1, "w", 1, deleted=(name,)).to_json())


@pytest.mark.parametrize("raw", [b"x", b"5 a=", b"99 a=b\n", b"0 a=b\n", b"6 a=bc", b"4 ab\n"])
def test_bad_pax_headers_are_refused(raw: bytes) -> None:
    with pytest.raises(FormatError):
        parse_pax(raw)


def test_times_out_of_bounds_count_as_nothing() -> None:
    assert parse_mtime("1.5") == 1_500_000_000
    assert parse_mtime("-1") == parse_mtime("1e9") == parse_mtime("9" * 20) == 0


@pytest.mark.skipif(not (shutil.which("tar") and shutil.which("zstd")), reason="needs tar and zstd")
def test_ordinary_tools_read_a_record(tmp_path: Path) -> None:
    record = meta_frame(Meta("commit", 1, "w", 1)) + encode_body(
        [
            (Member(Area.WORKSPACE, "d/\u00e9\nx" + "y" * 200, mode=0o640, size=5), b"hello"),
            (Member(Area.WORKSPACE, os.fsdecode(b"not-utf8-\xff"), size=1), b"1"),
            (Member(Area.WORKSPACE, "l", Kind.SYMLINK, target="d"), b""),
        ]
    )
    (tmp_path / "r.tar.zst").write_bytes(record)
    subprocess.run("zstd -dc r.tar.zst | tar x", shell=True, cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "workspace" / ("d/\u00e9\nx" + "y" * 200)).read_text() == "hello"
    assert b"not-utf8-\xff" in os.listdir(os.fsencode(tmp_path / "workspace"))
    assert (tmp_path / "workspace" / "l").readlink() == Path("d")
    assert (tmp_path / "meta.json").exists()


def test_changed_is_optional_and_checked() -> None:
    plain = Meta("commit", 1, "w", 1)
    assert b"changed" not in plain.to_json()
    assert not Meta.from_json(plain.to_json()).names_all
    some = Meta("commit", 1, "w", 1, changed={"a\udcff": ("ana", "bo"), "b": ()}, changed_count=2)
    assert Meta.from_json(some.to_json()) == some
    assert some.names_all
    assert not Meta.from_json(replace(some, changed_count=3).to_json()).names_all
    for bad in ({"../x": []}, ["a"], {"a": 3}):
        raw = json.loads(plain.to_json()) | {"changed": bad, "changed_count": 1}
        with pytest.raises(FormatError):
            Meta.from_json(json.dumps(raw).encode())
