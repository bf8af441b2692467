"""The hub's data directory: private, used by one hub at a time, home of the signing key."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import os
from collections.abc import Iterator
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)


class DataDirError(Exception):
    """The directory cannot be used; the text is for people and says what to do."""


class InUse(DataDirError):
    """Another hub, or another command, works with this directory."""


def prepare(path: Path) -> Path:
    """Make the directory and its ``hub`` folder, both 0700; give the absolute path."""
    path = path.expanduser().resolve()
    try:
        for folder in (path, path / "hub"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.chmod(0o700)
    except OSError as e:
        raise DataDirError(
            f"The data directory {path} cannot be used ({e.strerror}). Choose another with --data-dir."
        ) from e
    return path


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the directory for this process; the kernel lets go of it however the process ends.

    Raises `InUse` when somebody else holds it.
    """
    file = path / "hub" / "lock"
    # not inherited: a workspace that outlives the hub must not hold the lock
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            owner = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            who = f" (process {owner})" if owner.isdigit() else ""
            raise InUse(
                f"Another hub{who} already uses {path}. Stop it first, or choose another --data-dir."
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(fd)


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The hub's key, made when there is none. Running workspaces trust it, so it is never replaced."""
    file = path / "hub" / "signing.key"
    try:
        text = file.read_bytes()
    except FileNotFoundError:
        key = Ed25519PrivateKey.generate()
        text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        fresh = file.with_suffix(f".{os.getpid()}")
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        fresh.replace(file)
        return key
    try:
        found = load_pem_private_key(text, password=None)
    except ValueError as e:
        raise DataDirError(f"{file} is not a private key. Restore it from a backup, or remove it.") from e
    if not isinstance(found, Ed25519PrivateKey):
        raise DataDirError(f"{file} is not an Ed25519 key. Restore it from a backup, or remove it.")
    file.chmod(0o600)
    return found


def derived_key(key: Ed25519PrivateKey, purpose: str) -> bytes:
    """32 bytes for one purpose, the same at each start."""
    return hmac.new(key.private_bytes_raw(), f"codevo {purpose}".encode(), hashlib.sha256).digest()
