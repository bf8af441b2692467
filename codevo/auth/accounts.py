"""Signing up, logging in, and changing what one logs in with."""

from __future__ import annotations

import hmac
import logging
from dataclasses import dataclass

from codevo.auth.names import email_problem, name_problem
from codevo.auth.passwords import Passwords, weakness
from codevo.auth.ratelimit import RateLimit, address_key
from codevo.store import Session, Store, Taken, User, new_id

log = logging.getLogger(__name__)


class AccountError(Exception):
    """Refused; the text is for people, ``field`` names what to change."""

    def __init__(self, text: str, field: str | None = None) -> None:
        super().__init__(text)
        self.field = field


class WrongPassword(AccountError):
    """Name or password is wrong; which of them is not said."""


class Disabled(AccountError):
    """The password is right, but an administrator has switched the account off."""


class SetupCodeNeeded(AccountError):
    """The first person comes from elsewhere and did not show the setup code."""


class TooMany(AccountError):
    """Too many attempts; ``seconds`` says when to come back."""

    def __init__(self, seconds: int) -> None:
        super().__init__("Too many attempts.")
        self.seconds = seconds


@dataclass(frozen=True, slots=True)
class LoginLimits:
    """Failed logins per account and per address, sign-ups per address; ``seconds`` is the window."""

    per_account: int = 10
    per_address: int = 60
    signups: int = 60
    seconds: float = 300.0


class Accounts:
    """``xsrf_key`` signs the tokens of pages; it lives with the hub's signing key."""

    def __init__(
        self,
        store: Store,
        passwords: Passwords,
        *,
        xsrf_key: bytes,
        session_seconds: float = 30 * 24 * 3600,
        limits: LoginLimits | None = None,
    ) -> None:
        self._store = store
        self._passwords = passwords
        self._session_seconds = session_seconds
        limits = limits or LoginLimits()
        self.xsrf_key = xsrf_key
        self._by_account = RateLimit(limits.per_account, limits.seconds)
        self._by_address = RateLimit(limits.per_address, limits.seconds)
        self._signups = RateLimit(limits.signups, limits.seconds)

    async def create(self, name: str, password: str, *, email: str = "", admin: bool = False) -> User:
        """Add a person. Raises `AccountError`."""
        name, email = name.strip(), email.strip()
        for field, problem in (
            ("name", name_problem(name)),
            ("email", email_problem(email)),
            ("password", weakness(password, name=name, email=email)),
        ):
            if problem:
                raise AccountError(problem, field)
        if await self._store.users.by_name(name):
            raise AccountError("This name is taken. Choose another.", "name")
        if email and await self._store.users.by_login(email):
            raise AccountError("This e-mail address is in use already.", "email")
        user = User(new_id(), name, email, await self._passwords.hash(password), admin=admin)
        try:
            await self._store.users.create(user)
        except Taken as e:
            raise AccountError(f"This {e.field} is taken. Choose another.", e.field) from None
        log.info("user created: name=%s admin=%s", name, admin)
        return user

    async def sign_up(
        self,
        name: str,
        password: str,
        *,
        email: str,
        address: str,
        local: bool,
        setup_code: str,
        expected_code: str,
    ) -> User:
        """Add a person who came by the page; the very first is the administrator.

        ``local``: the request came from this machine. From elsewhere the first one must show the setup code.
        Raises `AccountError`.
        """
        key = address_key(address)
        if wait := self._signups.wait(key):
            raise TooMany(wait)
        self._signups.add(key)
        if await self._store.users.any():
            return await self.create(name, password, email=email)
        if not local and not (
            expected_code and hmac.compare_digest(setup_code.encode(), expected_code.encode())
        ):
            raise SetupCodeNeeded(
                "The first account needs the setup code, which the hub printed when it started.", "setup_code"
            )
        first = await self._store.users.claim_first()
        try:
            return await self.create(name, password, email=email, admin=first)
        except BaseException:
            if first:
                await self._store.users.unclaim_first()
            raise

    async def log_in(self, login: str, password: str, *, address: str) -> User:
        """The person with this name or e-mail and this password. Raises `AccountError`.

        Attempts are counted before the password is checked, so that many at once get no further.
        """
        account, place = login.strip().casefold()[:254], address_key(address)
        wait = max(self._by_account.wait(account), self._by_address.wait(place))
        if wait:
            raise TooMany(wait)
        self._by_account.add(account)
        self._by_address.add(place)
        user = await self._store.users.by_login(login.strip()[:254])
        right = await self._passwords.verify(password, user.password if user else None)
        if user is None or not right:
            log.info("login failed: address=%s", address)
            raise WrongPassword("The name or the password is wrong.")
        self._by_account.clear(account)
        if user.disabled:
            raise Disabled("This account is disabled. Ask an administrator.")
        return user

    async def open_session(self, user: User) -> tuple[Session, str]:
        """A new session and its cookie's value."""
        return await self._store.sessions.create(user.id, self._session_seconds)

    async def confirm(self, user: User, password: str, *, address: str) -> None:
        """Check the password of somebody who is logged in. Raises `WrongPassword` or `TooMany`."""
        try:
            await self.log_in(user.name, password, address=address)
        except WrongPassword:
            raise WrongPassword("The present password is wrong.", "current_password") from None

    async def set_password(self, user: User, password: str, *, keep: str | None = None) -> None:
        """Change the password and end every session but ``keep``. Raises `AccountError`."""
        if problem := weakness(password, name=user.name, email=user.email):
            raise AccountError(problem, "password")
        await self._store.users.update(user.id, password=await self._passwords.hash(password))
        await self._store.sessions.end_of(user.id, but=keep)

    async def set_email(self, user: User, email: str) -> None:
        """Raises `AccountError`."""
        email = email.strip()
        if problem := email_problem(email):
            raise AccountError(problem, "email")
        try:
            await self._store.users.update(user.id, email=email)
        except Taken:
            raise AccountError("This e-mail address is in use already.", "email") from None

    def close(self) -> None:
        self._passwords.close()
