"""The seccomp filter of the sandbox, a classic BPF program built by hand (seccomp(2), linux/audit.h).

It refuses, with EPERM, what a workspace has no use for and the kernel has had holes in: mounts, keyrings,
bpf, perf, userfaultfd, kexec, modules, io_uring; new user namespaces; injecting terminal input; and socket
families other than Unix, IPv4, IPv6 and netlink. ptrace is allowed: debuggers are useful, and see only the
sandbox.
"""

from __future__ import annotations

import os
import struct

_LOAD, _JUMP_EQ, _JUMP_GE, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW = 0x7FFF0000
_ERRNO = 0x00050000
_EPERM, _ENOSYS, _EAFNOSUPPORT = 1, 38, 97
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets into struct seccomp_data, low words (little endian)
_CLONE_NEWUSER = 0x10000000
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
_FAMILIES = (1, 2, 10, 16)  # AF_UNIX, AF_INET, AF_INET6, AF_NETLINK

# The same on every architecture since 5.1: io_uring_*, the new mount calls, mount_setattr, quotactl_fd.
_COMMON = (425, 426, 427, 428, 429, 430, 431, 432, 433, 442, 443)
# mount umount2 pivot_root chroot swapon swapoff reboot kexec_load kexec_file_load init_module finit_module
# delete_module add_key request_key keyctl bpf perf_event_open userfaultfd open_by_handle_at acct quotactl
# settimeofday clock_settime adjtimex clock_adjtime sethostname setdomainname syslog move_pages mbind
# migrate_pages set_mempolicy name_to_handle_at kcmp vhangup nfsservctl lookup_dcookie
_X86_64 = (
    *(
        165,
        166,
        155,
        161,
        167,
        168,
        169,
        246,
        320,
        175,
        313,
        176,
        248,
        249,
        250,
        321,
        298,
        323,
        304,
        163,
        179,
    ),
    *(164, 227, 159, 305, 170, 171, 103, 279, 237, 256, 238, 303, 312, 153, 180, 212),
    *(
        134,
        136,
        139,
        154,
        156,
        172,
        173,
        174,
        177,
        178,
    ),  # uselib ustat sysfs modify_ldt _sysctl iopl ioperm …
)
_AARCH64 = (
    *(40, 39, 41, 51, 224, 225, 142, 104, 294, 105, 273, 106, 217, 218, 219, 280, 241, 282, 265, 89, 60),
    *(170, 112, 171, 266, 161, 162, 116, 239, 235, 238, 237, 264, 272, 58, 42, 18),
)
# audit architecture, refused calls, ioctl, socket, clone, unshare, clone3
_TABLES = {
    "x86_64": (0xC000003E, _X86_64, 16, 41, 56, 272, 435),
    "aarch64": (0xC00000B7, _AARCH64, 29, 198, 220, 97, 435),
}


def _op(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("HBBI", code, yes, no, value)


def _refuse(errno: int) -> bytes:
    return _op(_RETURN, _ERRNO | errno)


def build(machine: str | None = None) -> bytes | None:
    """The program for ``bwrap --seccomp``, or None for a machine (default: this one) without a table.

    Each rule is self-contained: it jumps over its own return, so no jump is longer than a few instructions.
    """
    table = _TABLES.get(machine or os.uname().machine)
    if table is None:
        return None
    arch, refused, ioctl, socket_, clone, unshare, clone3 = table
    program = [_op(_LOAD, _ARCH), _op(_JUMP_EQ, arch, 1, 0), _refuse(_EPERM), _op(_LOAD, _NR)]
    # x32 calls have numbers of their own above this bit and would slip past the list
    program += [_op(_JUMP_GE, 0x40000000, 0, 1), _refuse(_EPERM)]
    for number in (*refused, *_COMMON):
        program += [_op(_JUMP_EQ, number, 0, 1), _refuse(_EPERM)]
    # its flags lie in memory that a filter cannot read; glibc falls back to clone
    program += [_op(_JUMP_EQ, clone3, 0, 1), _refuse(_ENOSYS)]
    for number in (clone, unshare):
        program += [
            _op(_JUMP_EQ, number, 0, 4),
            _op(_LOAD, _ARG0),
            _op(_JUMP_SET, _CLONE_NEWUSER, 0, 1),
            _refuse(_EPERM),
            _op(_RETURN, _ALLOW),
        ]
    program += [
        _op(_JUMP_EQ, ioctl, 0, 5),
        _op(_LOAD, _ARG1),
        _op(_JUMP_EQ, _TIOCSTI, 1, 0),
        _op(_JUMP_EQ, _TIOCLINUX, 0, 1),
        _refuse(_EPERM),
        _op(_RETURN, _ALLOW),
    ]
    program += [_op(_JUMP_EQ, socket_, 1, 0), _op(_RETURN, _ALLOW), _op(_LOAD, _ARG0)]
    for family in _FAMILIES:
        program += [_op(_JUMP_EQ, family, 0, 1), _op(_RETURN, _ALLOW)]
    program.append(_refuse(_EAFNOSUPPORT))
    return b"".join(program)
