"""System calls that Python 3.11 does not offer: mounts, namespaces, prctl. Linux only."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096
MS_REC = 16384
MS_SLAVE = 1 << 19

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_NS_GET_USERNS = 0xB701  # _IO(0xb7, 1), linux/nsfs.h

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{what}: {os.strerror(errno)}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), "unshare")


def setns(fd: int, kind: int) -> None:
    """setns(2): enter the namespace behind ``fd``, which must be of ``kind`` (a CLONE_NEW* flag)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), data.encode()
    )
    _check(result, f"mount {target}")


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies; undone by a change of user, kept by exec."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that they can be waited for."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def owner_of_namespace(fd: int) -> int:
    """A descriptor of the user namespace that owns the namespace behind ``fd`` (ioctl_ns(2))."""
    return fcntl.ioctl(fd, _NS_GET_USERNS)
