"""Passwords: what is acceptable, and bcrypt off the event loop."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import bcrypt

R = TypeVar("R")
MIN_LENGTH = 8
#: Long enough for any passphrase, short enough that hashing it costs nothing.
MAX_LENGTH = 1024

#: The ones that every guessing program tries first and that are long enough to pass otherwise.
_COMMON = (
    "password password1 password12 password123 passw0rd p@ssw0rd p@ssword 12345678 123456789 "
    "1234567890 11111111 00000000 87654321 88888888 12341234 123123123 qwertyui qwertyuiop qwerty123 "
    "qwerty12 1q2w3e4r 1q2w3e4r5t 1qaz2wsx asdfghjk asdfghjkl zxcvbnm1 iloveyou sunshine princess "
    "football baseball superman trustno1 starwars whatever letmein1 welcome1 welcome123 changeme "
    "changeme1 administrator admin123 administrator1 dragon12 monkey12 abcd1234 abc12345 a1b2c3d4 "
    "aaaaaaaa computer internet michelle jennifer "
)
COMMON = frozenset(_COMMON.split())


class Busy(Exception):
    """Too many passwords wait to be checked; come back in a moment."""


def weakness(password: str, *, name: str = "", email: str = "") -> str | None:
    """Why a new password is not good enough, in words for people; None when it is."""
    if len(password) < MIN_LENGTH:
        return f"The password needs at least {MIN_LENGTH} characters."
    if len(password) > MAX_LENGTH:
        return f"The password may have at most {MAX_LENGTH} characters."
    folded = password.casefold()
    if folded in COMMON or len(set(folded)) < 3:
        return "This password is one of the first that anybody would try. Choose another."
    if folded in {name.casefold(), email.casefold(), email.partition("@")[0].casefold()}:
        return "The password must differ from the name and the e-mail address."
    return None


def _material(password: str) -> bytes:
    """bcrypt reads 72 bytes and stops at a NUL: longer ones, and those with a NUL, are hashed first."""
    raw = password.encode("utf-8", "surrogatepass")
    if len(raw) > 72 or b"\0" in raw:
        return base64.b64encode(hashlib.sha256(raw).digest())
    return raw


class Passwords:
    """bcrypt in threads of its own, so that neither the loop nor other work waits for it.

    ``rounds`` is the base-2 logarithm of the cost. At most ``waiting`` calls are queued; one more raises
    `Busy`.
    """

    def __init__(self, *, rounds: int = 12, threads: int = 2, waiting: int = 64) -> None:
        self._rounds = rounds
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bcrypt")
        self._free = waiting
        # compared against when there is no such user, so that the answer takes as long as for a real one
        self._nobody = bcrypt.hashpw(b"nobody has this password", bcrypt.gensalt(rounds))

    async def hash(self, password: str) -> str:
        """The text to store."""
        material = _material(password)
        return await self._run(lambda: bcrypt.hashpw(material, bcrypt.gensalt(self._rounds)).decode())

    async def verify(self, password: str, stored: str | None) -> bool:
        """Whether the password fits; equally slow when ``stored`` is None or empty (and then False)."""
        material = _material(password[: MAX_LENGTH + 1])
        hashed = stored.encode() if stored else self._nobody
        matches = await self._run(lambda: _check(material, hashed))
        return bool(matches and stored)

    async def _run(self, work: Callable[[], R]) -> R:
        if self._free <= 0:
            raise Busy
        self._free -= 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._free += 1

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _check(material: bytes, hashed: bytes) -> bool:
    try:
        return bcrypt.checkpw(material, hashed)
    except ValueError:  # not a bcrypt hash
        return False
