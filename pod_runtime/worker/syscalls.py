"""System calls that Python does not offer: openat2(2) and renameat2(2)."""

from __future__ import annotations

import ctypes
import errno
import os

#: Flags that open a directory as a mere place, following no link.
DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class _OpenHow(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE = 0x08 | 0x04 | 0x02  # BENEATH | NO_SYMLINKS | NO_MAGICLINKS
_libc = ctypes.CDLL(None, use_errno=True)


def openat2(root: int, path: bytes, flags: int) -> int:
    """Open ``path`` beneath the descriptor ``root``, following no link. ``OSError`` as open(2)."""
    how = _OpenHow(flags, 0, _RESOLVE)
    while True:
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2), ctypes.c_int(root), path, ctypes.byref(how), ctypes.sizeof(how)
        )
        if fd >= 0:
            return fd
        code = ctypes.get_errno()
        if code not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))


def openat2_works() -> bool:
    """Whether the kernel (and its seccomp filter) has openat2."""
    try:
        root = os.open("/", DIRECTORY)
    except OSError:
        return False
    try:
        os.close(openat2(root, b".", DIRECTORY))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


_RENAME_NOREPLACE = 1


def rename_noreplace(old_fd: int, old: str, new_fd: int, new: str) -> None:
    """Rename between two folders unless ``new`` exists (``FileExistsError``)."""
    renameat2 = getattr(_libc, "renameat2", None)
    code = errno.ENOSYS
    if renameat2 is not None:
        if renameat2(old_fd, os.fsencode(old), new_fd, os.fsencode(new), _RENAME_NOREPLACE) == 0:
            return
        code = ctypes.get_errno()
    if code not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(code, os.strerror(code), new)
    # a file system without the flag: look first; the race that is left loses no more than mv(1) would
    try:
        os.stat(new, dir_fd=new_fd, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), new)
