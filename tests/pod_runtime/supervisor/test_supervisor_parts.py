"""The supervisor's parts that need no sandbox."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import pod_runtime
from pod_runtime.supervisor import sandbox, seccomp
from pod_runtime.supervisor.control import Client, bind_listener
from pod_runtime.supervisor.logs import Lines, Log
from pod_runtime.supervisor.member import Member
from pod_runtime.supervisor.netlink import Netlink, parse_network

EPERM, ENOSYS, EAFNOSUPPORT = 0x50001, 0x50000 | 38, 0x50000 | 97
ALLOW = 0x7FFF0000


def evaluate(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """Run a seccomp program as the kernel would; gives its verdict."""
    padded = [*arguments, *([0] * (6 - len(arguments)))]
    data = struct.pack("<IIQ6Q", number, arch, 0, *padded)
    code = [struct.unpack_from("HBBI", program, i) for i in range(0, len(program), 8)]
    at = accumulator = 0
    while True:
        op, yes, no, value = code[at]
        at += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", data, value)[0]
        elif op == 0x06:
            return value
        else:
            jump = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}
            at += yes if jump[op] else no


@pytest.mark.parametrize(
    ("machine", "arch", "calls"),
    [
        (
            "x86_64",
            0xC000003E,
            {"mount": 165, "read": 0, "ioctl": 16, "socket": 41, "clone": 56, "ptrace": 101},
        ),
        (
            "aarch64",
            0xC00000B7,
            {"mount": 40, "read": 63, "ioctl": 29, "socket": 198, "clone": 220, "ptrace": 117},
        ),
    ],
)
def test_the_filter(machine: str, arch: int, calls: dict[str, int]) -> None:
    program = seccomp.build(machine)
    assert program is not None

    def verdict(name: str, *arguments: int) -> int:
        return evaluate(program, arch, calls[name], *arguments)

    assert verdict("mount") == EPERM
    assert verdict("read") == ALLOW
    assert verdict("ptrace") == ALLOW
    assert verdict("ioctl", 0, 0x5401) == ALLOW
    assert verdict("ioctl", 0, 0x5412) == EPERM
    assert verdict("ioctl", 0, 0x5412 | 1 << 32) == EPERM  # the kernel looks at the low half only
    assert verdict("socket", 2) == ALLOW
    assert verdict("socket", 40) == EAFNOSUPPORT
    assert verdict("clone", 0x11) == ALLOW
    assert verdict("clone", 0x11 | 0x10000000) == EPERM
    assert evaluate(program, arch, 435) == ENOSYS
    assert evaluate(program, arch, 425) == EPERM
    assert evaluate(program, arch, 0x40000000 + calls["read"]) == EPERM
    assert evaluate(program, 0x40000003, calls["read"]) == EPERM  # i386


def test_no_filter_for_an_unknown_machine() -> None:
    assert seccomp.build("riscv64") is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.1.2.3/8", (socket.AF_INET, b"\x0a\0\0\0", 8)),
        ("192.0.2.1", (socket.AF_INET, b"\xc0\0\x02\x01", 32)),
        ("0.0.0.0/0", (socket.AF_INET, b"\0\0\0\0", 0)),
        ("fc00::1/7", (socket.AF_INET6, b"\xfc" + bytes(15), 7)),
    ],
)
def test_networks(text: str, expected: tuple[int, bytes, int]) -> None:
    assert parse_network(text) == expected


@pytest.mark.parametrize("text", ["10.0.0.0/33", "x", "", "10.0.0/8", "10.0.0.0/-1"])
def test_no_networks(text: str) -> None:
    with pytest.raises((ValueError, OSError)):
        parse_network(text)


def test_addresses_include_loopback() -> None:
    netlink = Netlink()
    assert "127.0.0.1" in netlink.addresses()
    netlink.close()


def test_the_log_is_bounded_and_plain(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), limit=2000)
    lines = Lines(log, "runner", keep=2)
    for i in range(200):
        lines.feed(b"line \x1b[31m%d\nhalf" % i)
    lines.feed(b"x" * 5000)
    lines.finish()
    assert (tmp_path / "log").stat().st_size <= 4100
    assert (tmp_path / "log.1").stat().st_size <= 2000
    assert not list(tmp_path.glob("log.2"))
    assert b"\x1b" not in (tmp_path / "log.1").read_bytes()
    assert len(lines.tail) == 2
    assert all(len(line) <= 400 for line in lines.tail)


def test_the_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "log").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match=r".*"):
        Log(str(tmp_path / "log"))
    assert not (tmp_path / "elsewhere").exists()


def test_restarts_are_quick_then_slower_then_given_up(tmp_path: Path) -> None:
    member = Member("worker", Log(str(tmp_path / "log")))
    delays = [member.crashed(100.0 + i) for i in range(10)]
    assert delays[0] is not None
    assert delays[0] <= 0.1
    assert delays[:9] == sorted(d for d in delays if d is not None)
    assert max(d for d in delays if d is not None) <= 2
    assert delays[9] is None
    assert member.crashed(1000.0) == delays[0]


def test_scripts_quote() -> None:
    text = sandbox.script(["/bin/echo", "a'b", "$(false)", "c d"], [], None)
    assert (
        subprocess.run(["/bin/sh", "-c", text], capture_output=True, text=True).stdout == "a'b $(false) c d\n"
    )


def test_sockets_with_long_paths(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    bind_listener(str(deep), "x.sock").close()
    listener = bind_listener(str(deep), "x.sock")
    assert (deep / "x.sock").stat().st_mode & 0o777 == 0o600
    listener.close()


def test_a_client_that_reads_nothing_is_dropped() -> None:
    ours, theirs = socket.socketpair()
    client = Client(ours)
    for _ in range(100_000):
        client.send({"x": "y" * 1000})
        if client.closed:
            break
    assert client.closed
    theirs.close()


def test_the_supervisor_needs_only_the_standard_library() -> None:
    folder = Path(pod_runtime.__file__).parent
    code = (
        f"import sys; sys.path.append({str(folder.parent)!r})\n"
        "import pod_runtime.supervisor.supervisor, pod_runtime.supervisor.workspace\n"
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('tornado', 'cryptography', 'codevo', 'traitlets', 'asyncio', 'dataclasses', 'typing', 'subprocess')"
        " or m.startswith('pod_runtime.') and not m.startswith('pod_runtime.supervisor')])"
    )
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr


def test_cgroup_folders_that_are_gone_are_no_error(tmp_path: Path) -> None:
    from pod_runtime.supervisor import cgroups

    cgroups.remove([str(tmp_path / "no")])
    group = tmp_path / "group"
    group.mkdir()
    (group / "held").touch()
    cgroups.remove([str(group)], patience=0.1)
    assert group.exists()
    os.unlink(group / "held")
    cgroups.remove([str(group)])
    assert not group.exists()


def test_the_v2_parent_is_the_nearest_that_hands_memory_and_pids_down(tmp_path: Path, monkeypatch) -> None:
    from pod_runtime.supervisor import cgroups

    monkeypatch.setattr(cgroups, "_ROOT", str(tmp_path))
    for folder, handed in (
        ("", "cpu memory pids"),
        ("user", "memory pids"),
        ("user/app", ""),
        ("other", "cpu"),
    ):
        path = tmp_path / folder
        path.mkdir(exist_ok=True)
        (path / "cgroup.procs").touch()
        (path / "cgroup.subtree_control").write_text(handed + "\n")
    (tmp_path / "cgroup.controllers").touch()
    assert cgroups._v2_parent("/user/app") == str(tmp_path / "user")
    assert cgroups._v2_parent("/other") == str(tmp_path)
    assert cgroups._v2_parent("/") == str(tmp_path)
    assert cgroups._v2_parent("/gone") is None
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    assert cgroups._v2_parent("/other") is None


def test_a_machine_without_cgroups_has_no_limits_but_no_error(tmp_path: Path, monkeypatch) -> None:
    from pod_runtime.supervisor import cgroups

    monkeypatch.setattr(cgroups, "_ROOT", str(tmp_path))
    assert cgroups.create("codevo-test", 2**30, 10, 1.0) == ([], [])
