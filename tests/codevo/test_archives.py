"""Archives from strangers, member by member, without a hub."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import time
import zipfile

import pytest
import zstandard

from codevo.objects import archives
from codevo.objects.archive_readers import TAR_ZST, ZIP, Bounds, Refused
from codevo.objects.archives import convert
from tests.codevo.archive_kit import Thing, folder, link, tar, tar_zst, untar, zipped

BOUNDS = Bounds(2**20, 50)
MAKERS = {ZIP: zipped, TAR_ZST: tar_zst}
both = pytest.mark.parametrize("kind", [ZIP, TAR_ZST])


def converted(data: bytes, kind: str, bounds: Bounds = BOUNDS) -> dict[str, tuple[object, ...]]:
    out = bytearray()
    convert(io.BytesIO(data), kind, bounds, out.extend)
    return untar(bytes(out))


def refused(data: bytes, kind: str, bounds: Bounds = BOUNDS) -> Refused:
    """It is refused, and before anything was written."""
    out = bytearray()
    with pytest.raises(Refused) as e:
        convert(io.BytesIO(data), kind, bounds, out.extend)
    assert not out
    return e.value


@both
def test_files_folders_links_and_modes(kind: str) -> None:
    data = MAKERS[kind](
        Thing("main.py", b"print()\n"),
        Thing("bin/run", b"#!/bin/sh\n", 0o755),
        Thing("locked", b"x", 0o444),
        folder("empty"),
        folder("bin"),
        link("latest", "bin/run"),
        link("out", "/etc/passwd"),
        link("up", "../../.."),
        Thing("naïve 😀\n.txt", b""),
        Thing("a" * 255, b"long"),
        Thing("block", b"b" * 512),
        Thing("large", b"l" * 300_000),
    )
    found = converted(data, kind)
    assert {p: w[1] for p, w in found.items() if w[0] == tarfile.REGTYPE} == {
        "main.py": 0o644, "bin/run": 0o755, "locked": 0o444, "naïve 😀\n.txt": 0o644, "a" * 255: 0o644,
        "block": 0o644, "large": 0o644,
    }  # fmt: skip
    assert found["large"][2] == b"l" * 300_000 and found["block"][2] == b"b" * 512
    assert found["empty"][:2] == (tarfile.DIRTYPE, 0o755) and "bin" in found
    assert [found[p][3] for p in ("latest", "out", "up")] == ["bin/run", "/etc/passwd", "../../.."]


@both
@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../x",
        "a/../../x",
        "a/..",
        "..",
        "a//b",
        "a/./b",
        "x" * 256,
        "y/" * 2100 + "z",
        "//",
        "/",
    ],
)
def test_paths_that_climb_are_refused(kind: str, name: str) -> None:
    assert "cannot be taken" in str(refused(MAKERS[kind](Thing("ok", b"1"), Thing(name, b"x")), kind))


@both
def test_a_single_folder_on_top_stays_and_dots_go(kind: str) -> None:
    found = converted(MAKERS[kind](folder("./"), Thing("./app/main.py"), folder("app")), kind)
    assert set(found) == {"app/main.py", "app"}


@both
def test_the_last_of_several_wins(kind: str) -> None:
    with pytest.warns(UserWarning) if kind == ZIP else pytest.MonkeyPatch.context():
        data = MAKERS[kind](Thing("a", b"1"), Thing("b", b"2"), Thing("a", b"3", 0o755), link("b", "a"))
    found = converted(data, kind)
    assert found["a"][1:3] == (0o755, b"3") and found["b"][3] == "a" and len(found) == 2


@both
@pytest.mark.parametrize("first", [Thing("a", b"1"), link("a", "/etc"), link("a", ".")])
@pytest.mark.parametrize("turned", [False, True])
def test_nothing_stands_beneath_a_file_or_a_link(kind: str, first: Thing, turned: bool) -> None:
    things = [first, Thing("a/b/c", b"2")]
    data = MAKERS[kind](*(things[::-1] if turned else things))
    assert "both a file and a folder" in str(refused(data, kind))


@both
def test_bounds(kind: str) -> None:
    make = MAKERS[kind]
    assert refused(make(*(Thing(f"f{n}") for n in range(51))), kind).too_large
    assert len(converted(make(*(Thing(f"f{n}") for n in range(50))), kind)) == 50
    assert refused(make(Thing("zeros", b"\0" * (2**20 + 1))), kind).too_large
    assert converted(make(Thing("zeros", b"\0" * 2**20)), kind)["zeros"][2] == b"\0" * 2**20


def test_names_have_a_bound_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_NAMES", 1000)
    assert refused(tar_zst(*(Thing(f"{n}{'n' * 90}") for n in range(20))), TAR_ZST).too_large


@both
def test_what_is_made_again_is_left_out(kind: str) -> None:
    toml = b'[persist]\nignore = ["big/", "*.log"]\n'
    data = MAKERS[kind](
        Thing("codevo.toml", toml), Thing("node_modules/x/i.js", b"1"), Thing("big/data", b"2"),
        Thing("a/x.log", b"3"), Thing("a/x.py", b"4"), Thing("a/__pycache__/x.pyc", b"5"), folder(".venv"),
    )  # fmt: skip
    assert set(converted(data, kind)) == {"codevo.toml", "a/x.py"}
    out = io.BytesIO()
    assert convert(io.BytesIO(data), kind, BOUNDS, out.write).left_out == 5
    broken = MAKERS[kind](Thing("codevo.toml", b"= ["), Thing("a", b"1"))
    assert set(converted(broken, kind)) == {"codevo.toml", "a"}


@both
def test_damage_is_noticed_wherever_it_is(kind: str) -> None:
    random.seed(4)
    data = MAKERS[kind](*(Thing(f"f{n}", random.randbytes(3000)) for n in range(5)))
    whole = converted(data, kind)
    for cut in (0, 1, 100, len(data) // 2, len(data) - 1):
        out = bytearray()
        with pytest.raises(Refused):
            convert(io.BytesIO(data[:cut]), kind, BOUNDS, out.extend)
    for _ in range(60):
        at = random.randrange(len(data))
        bad = data[:at] + bytes([data[at] ^ (1 << random.randrange(8))]) + data[at + 1 :]
        try:
            found = converted(bad, kind)
        except Refused:
            continue
        contents = [w[2] for w in whole.values()]
        assert all(w[2] in contents for w in found.values())  # a name may have changed, never a content


@both
def test_nonsense_is_refused(kind: str) -> None:
    for nonsense in (b"", b"PK\5\6" + bytes(17), b"\x28\xb5\x2f\xfd", b"hello" * 100, bytes(100_000)):
        refused(nonsense, kind)
    refused(MAKERS[ZIP if kind == TAR_ZST else TAR_ZST](Thing("a", b"1")), kind)


# -- tar.zst


@pytest.mark.parametrize(
    "thing",
    [
        Thing("x", kind=tarfile.CHRTYPE), Thing("x", kind=tarfile.BLKTYPE), Thing("x", kind=tarfile.FIFOTYPE),
        Thing("x", kind=tarfile.LNKTYPE, target="ok"), Thing("x", kind=b"Z"[:1], target="y"), link("x", ""),
        link("x", "n" * 5000),
    ],
)  # fmt: skip
def test_devices_and_hard_links_are_refused(thing: Thing) -> None:
    if thing.kind == b"Z":
        return  # tarfile takes an unknown type for a file, as POSIX asks
    assert "'x'" in str(refused(tar_zst(Thing("ok", b"1"), thing), TAR_ZST))


def test_our_exports_lose_their_folder_and_nothing_else() -> None:
    assert set(converted(tar_zst(Thing("workspace/a"), Thing("workspace/workspace/b")), TAR_ZST)) == {
        "a",
        "workspace/b",
    }
    assert set(converted(tar_zst(Thing("workspace/a"), Thing("b")), TAR_ZST)) == {"workspace/a", "b"}
    assert set(converted(zipped(Thing("workspace/a")), ZIP)) == {"workspace/a"}
    assert converted(tar_zst(), TAR_ZST) == {}
    assert converted(tar_zst(folder("workspace")), TAR_ZST) == {}
    refused(tar_zst(link("workspace", "/etc"), Thing("workspace/a")), TAR_ZST)


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_names_of_any_bytes_and_long_ones(format: int) -> None:
    odd = b"caf\xe9 \x01\xff".decode("utf-8", "surrogateescape")
    long = "/".join(["d" * 200] * 10)
    found = converted(tar_zst(Thing(odd, b"1"), Thing(long, b"2"), link("l", long), format=format), TAR_ZST)
    assert found[odd][2] == b"1" and found[long][2] == b"2" and found["l"][3] == long


def test_a_zstd_bomb_is_stopped_early() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(tar([Thing("zeros", bytes(64 * 2**20))]))
    assert len(bomb) < 20_000
    e = refused(bomb, TAR_ZST)
    assert e.too_large and "1 MiB" in str(e)
    # nothing but padding: no member says how much there is
    padding = zstandard.compress(bytes(64 * 2**20))
    assert refused(tar_zst(Thing("a", b"1")) + padding, TAR_ZST).too_large


def test_a_sparse_file_counts_in_full() -> None:
    info = tarfile.TarInfo("sparse")
    info.size = 512
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.name": "sparse",
        "GNU.sparse.size": str(2**40), "GNU.sparse.map": f"{2**40 - 512},512",
    }  # fmt: skip
    raw = info.tobuf(tarfile.PAX_FORMAT) + bytes(512) + bytes(1024)
    assert refused(zstandard.compress(raw), TAR_ZST).too_large


def test_headers_have_a_bound() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 9 * 2**20
    raw = info.tobuf(tarfile.GNU_FORMAT) + b"n" * info.size + bytes(1024)
    assert "header" in str(refused(zstandard.compress(raw), TAR_ZST, Bounds(2**30, 100)))


def test_a_huge_window_says_what_to_do() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = compressor.compress(tar([Thing("a", b"1")])) + compressor.flush()
    assert "--long=27" in str(refused(data, TAR_ZST))


def test_frames_behind_each_other_are_one_archive() -> None:
    raw = tar([Thing("a", b"1"), Thing("b", b"2")])
    data = b"".join(zstandard.compress(raw[n : n + 700]) for n in range(0, len(raw), 700))
    assert set(converted(data, TAR_ZST)) == {"a", "b"}


def test_times_to_the_nanosecond() -> None:
    info = tarfile.TarInfo("a")
    info.pax_headers = {"mtime": "1700000000.123456789"}
    out = bytearray()
    raw = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    convert(io.BytesIO(zstandard.compress(raw)), TAR_ZST, BOUNDS, out.extend)
    assert untar(bytes(out), times=True)["a"][-1] == "1700000000.123456789"


# -- zip


def test_a_zip_that_lies_about_its_sizes_is_refused() -> None:
    data = bytearray(zipped(Thing("zeros", bytes(2**19))))
    at = data.index(b"PK\1\2")
    struct.pack_into("<I", data, at + 24, 10)  # says 10 bytes, holds 512 KiB
    out = bytearray()
    with pytest.raises(Refused):
        convert(io.BytesIO(bytes(data)), ZIP, BOUNDS, out.extend)
    assert len(out) < 1000
    struct.pack_into("<I", data, at + 24, 2**20 - 1)  # says more than it holds
    with pytest.raises(Refused):
        convert(io.BytesIO(bytes(data)), ZIP, BOUNDS, out.extend)


def test_a_zip_bomb_is_refused_by_what_it_says() -> None:
    bomb = zipped(*(Thing(f"z{n}", bytes(2**19)) for n in range(3)))
    assert len(bomb) < 4000 and refused(bomb, ZIP).too_large


@pytest.mark.parametrize("claimed", [1, 50, 0xFFFF])
def test_a_huge_directory_is_not_read(claimed: int) -> None:
    entry = b"PK\1\2" + bytes(24) + struct.pack("<H", 1) + bytes(16) + b"a"
    directory = entry * 200_000
    end = b"PK\5\6" + bytes(4) + struct.pack("<HHIIH", claimed, claimed, len(directory), 0, 0)
    began = time.process_time()
    assert refused(directory + end, ZIP, Bounds(2**20, 20)).too_large
    assert time.process_time() - began < 1
    # as zip64
    large = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, claimed, claimed, len(directory), 0)
    locator = struct.pack("<4sIQI", b"PK\6\7", 0, len(directory), 1)
    end = b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)
    assert refused(directory + large + locator + end, ZIP, Bounds(2**20, 20)).too_large


def test_encrypted_fifo_and_unknown_methods() -> None:
    data = bytearray(zipped(Thing("a", b"1")))
    data[data.index(b"PK\1\2") + 8] |= 1
    assert "encrypted" in str(refused(bytes(data), ZIP))
    assert "neither" in str(refused(zipped(Thing("x", kind=tarfile.FIFOTYPE)), ZIP))
    assert "compressed" in str(refused(zipped(Thing("x", b"1"), method=zipfile.ZIP_LZMA), ZIP))
    assert converted(zipped(Thing("x", b"1" * 99), method=zipfile.ZIP_BZIP2), ZIP)["x"][2] == b"1" * 99


def test_zips_of_other_systems() -> None:
    dos = zipped(Thing("a\\b.txt", b"1"), Thing("c.txt", b"2"), system=0)
    assert {p: w[1] for p, w in converted(dos, ZIP).items()} == {"a/b.txt": 0o644, "c.txt": 0o644}
    assert "a\\b" in converted(zipped(Thing("a\\b", b"1")), ZIP)
    assert "cannot be taken" in str(refused(zipped(Thing("..\\x", b"1"), system=0), ZIP))
    mac = zipped(Thing("a", b"1"), Thing("__MACOSX/._a", b"2"))
    assert set(converted(mac, ZIP)) == {"a"}
    # UTF-8 names without the flag that says so
    data = zipped(Thing("ü.txt", b"1"))
    data = data.replace(b"\x00\x08", b"\x00\x00")
    plain = bytearray(data)
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        struct.pack_into("<H", plain, plain.index(mark) + offset, 0)
    assert set(converted(bytes(plain), ZIP)) == {"ü.txt"}


def test_a_nul_in_a_name_does_not_hide_the_rest() -> None:
    data = zipped(Thing("okXevil", b"1")).replace(b"okXevil", b"ok\0evil")
    assert "cannot be taken" in str(refused(data, ZIP))
