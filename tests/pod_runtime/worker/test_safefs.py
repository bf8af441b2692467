from __future__ import annotations

import os
import socket
import stat
import time
from pathlib import Path

import pytest

from pod_runtime.worker import safefs
from pod_runtime.worker.safefs import DiskFull, InvalidPath, Kind, NotRegular, Root, TooLarge

NAMES = ["plain.txt", "with space", "ünï/cödé ☃", "new\nline", "dot.d/.hidden", os.fsdecode(b"bad-\xff\xfe")]


@pytest.fixture(params=[True, False], ids=["openat2", "walking"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Root:
    if request.param and not safefs.openat2_works():
        pytest.skip("no openat2 here")
    (tmp_path / "ws").mkdir()
    (tmp_path / "secret").write_text("secret")
    return Root(tmp_path / "ws", openat2=request.param)


@pytest.mark.parametrize("name", NAMES)
def test_write_read_list(root: Root, name: str) -> None:
    folder = name.rpartition("/")[0]
    root.mkdir(folder, parents=True, exist_ok=True)
    root.write_atomic(name, b"one")
    root.write_atomic(name, b"two")
    assert root.read_bytes(name, 10) == b"two"
    assert [e.path for e in root.walk() if e.kind is Kind.FILE] == [name]
    assert [e.path for e in root.listdir(folder)[0]] == [name]
    root.unlink(name)
    assert not root.exists(name)


BAD = ["/etc/passwd", "..", "../secret", "a/../../secret", "a//b", "a/", "/", "./a", "a/.", "a\0b", "x" * 256]


@pytest.mark.parametrize("path", [*BAD, "a/" * 3000 + "a", "\ud800"])
def test_bad_paths(root: Root, path: str) -> None:
    for call in (root.lstat, root.unlink, root.mkdir, root.rmtree, root.open_read, root.listdir):
        with pytest.raises(InvalidPath):
            call(path)
    with pytest.raises(InvalidPath):
        root.write_atomic(path, b"x")
    with pytest.raises(InvalidPath):
        root.rename("a", path)


def test_root_is_untouchable(root: Root) -> None:
    for call in (root.unlink, root.rmtree, root.rmdir):
        with pytest.raises(InvalidPath):
            call("")
    assert root.lstat("").st_ino == os.stat(root.path).st_ino


def test_links_are_never_followed(root: Root, tmp_path: Path) -> None:
    ws = tmp_path / "ws"
    (ws / "file").symlink_to("/etc/passwd")
    (ws / "near").symlink_to("../secret")
    (ws / "dir").symlink_to(tmp_path)
    (ws / "proc").symlink_to("/proc/self/root")
    for path in ("file", "near"):
        with pytest.raises(NotRegular):
            root.open_read(path)
        with pytest.raises(NotRegular):
            root.write_atomic(path, b"x")
        with pytest.raises(NotRegular):
            root.chmod(path, 0o777)
    for path in ("dir/secret", "proc/etc/passwd"):
        with pytest.raises((NotRegular, NotADirectoryError)):
            root.open_read(path)
        with pytest.raises((NotRegular, NotADirectoryError)):
            root.write_atomic(path, b"x")
        with pytest.raises((NotRegular, NotADirectoryError)):
            root.unlink(path)
    with pytest.raises((NotRegular, NotADirectoryError)):
        root.listdir("dir")
    assert root.readlink("file") == "/etc/passwd"
    kinds = {e.path: e.kind for e in root.walk()}
    assert kinds == dict.fromkeys(["file", "near", "dir", "proc"], Kind.SYMLINK)
    root.rmtree("dir")
    assert (tmp_path / "secret").read_text() == "secret"


def test_special_files_do_not_block(root: Root, tmp_path: Path) -> None:
    ws = tmp_path / "ws"
    os.mkfifo(ws / "fifo")
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(ws / "sock"))
    names = ["fifo", "sock"]
    if os.geteuid() == 0:
        os.mknod(ws / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        names.append("null")
    for name in names:
        with pytest.raises(NotRegular):
            root.open_read(name)
        with pytest.raises(NotRegular):
            root.write_atomic(name, b"x")
        assert Kind.OTHER is safefs.kind_of(root.lstat(name))
        root.rmtree(name)
    sock.close()


def test_limits(root: Root) -> None:
    root.write_atomic("f", b"12345")
    assert root.read_bytes("f", 5) == b"12345"
    with pytest.raises(TooLarge):
        root.read_bytes("f", 4)
    with open(Path(root.path) / "sparse", "wb") as f:
        f.truncate(1 << 40)
    with pytest.raises(TooLarge):
        root.read_bytes("sparse", 1 << 20)
    for i in range(20):
        root.write_atomic(f"n{i}", b"")
    found, more = root.listdir("", limit=7)
    assert len(found) == 7
    assert more


def test_mode_and_atomicity(root: Root, tmp_path: Path) -> None:
    root.write_atomic("x.sh", b"a", mode=0o4755)
    assert stat.S_IMODE(root.lstat("x.sh").st_mode) == 0o755
    root.write_atomic("x.sh", b"b")
    assert stat.S_IMODE(root.lstat("x.sh").st_mode) == 0o755
    root.chmod("x.sh", 0o600)
    assert stat.S_IMODE(root.lstat("x.sh").st_mode) == 0o600
    with pytest.raises(RuntimeError), root.create_atomic("x.sh") as f:
        f.write(b"half")
        assert os.listdir(tmp_path / "ws") != ["x.sh"]
        assert [e.path for e in root.walk()] == ["x.sh"]
        raise RuntimeError
    assert os.listdir(tmp_path / "ws") == ["x.sh"]
    assert root.read_bytes("x.sh", 9) == b"b"


def test_rename(root: Root) -> None:
    root.mkdir("d/e", parents=True)
    root.write_atomic("a", b"a")
    root.write_atomic("b", b"b")
    with pytest.raises(FileExistsError):
        root.rename("a", "b")
    root.rename("a", "d/e/a")
    assert root.read_bytes("d/e/a", 9) == b"a"
    root.rename("d/e/a", "b", replace=True)
    assert root.read_bytes("b", 9) == b"a"
    with pytest.raises(FileNotFoundError):
        root.rename("none", "c")


def test_mkdir(root: Root) -> None:
    root.mkdir("a/b/c", parents=True)
    root.mkdir("a/b/c", parents=True, exist_ok=True)
    with pytest.raises(FileExistsError):
        root.mkdir("a/b/c", parents=True)
    root.write_atomic("f", b"")
    with pytest.raises(FileExistsError):
        root.mkdir("f", exist_ok=True)
    with pytest.raises(FileNotFoundError):
        root.mkdir("x/y")


def test_rmtree_of_a_bottomless_folder(root: Root, tmp_path: Path) -> None:
    fd = os.open(tmp_path / "ws", os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeply", dir_fd=fd)
        inner = os.open("deeply", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.symlink("/etc", "link", dir_fd=fd)
    os.close(fd)
    skipped: list[str] = []
    assert len(list(root.walk(unreadable=lambda p, e: skipped.append(p)))) < 1000
    assert len(skipped) == 1
    root.rmtree("deeply")
    assert os.listdir(tmp_path / "ws") == []


def test_clean_temporaries(root: Root, tmp_path: Path) -> None:
    root.mkdir("d")
    for name in ("d", "."):
        (tmp_path / "ws" / name / f"{safefs.TEMP_PREFIX}abc").write_text("left over")
    assert [e.path for e in root.walk()] == ["d"]
    assert root.clean_temporaries(before=time.time() - 100) == 0
    assert root.clean_temporaries(before=time.time() + 1) == 2
    assert os.listdir(tmp_path / "ws" / "d") == []


def test_full_disk(root: Root) -> None:
    import resource
    import signal

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    root.write_atomic("f", b"precious")
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DiskFull):
            root.write_atomic("f", b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)
    assert root.read_bytes("f", 100) == b"precious"
    assert os.listdir(root.path) == ["f"]
