"""The account of the person who calls, and how one gets one."""

from __future__ import annotations

from typing import Any

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs, public
from codevo.api.problems import Problem, too_many
from codevo.auth.accounts import AccountError, Disabled, SetupCodeNeeded, TooMany, WrongPassword
from codevo.auth.origins import clean_host, host_name, netloc
from codevo.auth.ratelimit import is_loopback
from codevo.auth.scopes import Scope
from codevo.proxy.relay import SESSION
from codevo.store import User, rfc3339

TEXT = {"type": "string", "maxLength": 1024}
SIGNUP = {
    "type": "object",
    "properties": {
        "name": TEXT,  # the accounts say what a name may be
        "email": {"type": "string", "maxLength": 254},
        "password": {"type": "string", "maxLength": 1024},
        "setup_code": TEXT,
    },
    "required": ["name", "password"],
    "additionalProperties": False,
}
PATCH = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 64},
        "email": {"type": "string", "maxLength": 254},
        "password": {"type": "string", "maxLength": 1024},
        "current_password": TEXT,
    },
    "additionalProperties": False,
}


def user_json(user: User) -> dict[str, Any]:
    """A person as they see themselves, and as administrators do."""
    return {
        "id": user.id,
        "name": user.name,
        "title": user.title,
        "email": user.email,
        "admin": user.admin,
        "created": rfc3339(user.created),
    }


def account_problem(error: AccountError) -> Problem:
    """The answer for what `codevo.auth.accounts` refused."""
    if isinstance(error, TooMany):
        return too_many(error.seconds)
    if isinstance(error, WrongPassword):
        return Problem(401 if error.field is None else 403, str(error), field=error.field, code="password")
    if isinstance(error, SetupCodeNeeded):
        return Problem(
            403,
            str(error),
            field=error.field,
            remedy="Copy it from the hub's log, or run: codevo user add NAME --admin",
            code="setup-code",
        )
    if isinstance(error, Disabled):
        return Problem(403, str(error), code="disabled")
    return Problem(
        409 if "taken" in str(error) or "in use" in str(error) else 400, str(error), field=error.field
    )


def is_local(handler: ApiHandler) -> bool:
    """Whether the request was made on this machine, not passed on by a proxy that runs on it.

    Not every proxy says that it is one: HAProxy sends the client's Host and no header of its own, nginx names
    us as Host and speaks HTTP/1.0. So nobody is local at a hub for visitors from elsewhere.
    """
    request, hub = handler.request, handler.hub
    forwarded = any(
        name.lower().startswith("x-forwarded-") or name.lower() in ("x-real-ip", "forwarded", "via")
        for name in request.headers
    )
    hosts = {host_name(clean_host(request.host or "") or ""), host_name(netloc(hub.origin))}
    return (
        is_loopback(request.remote_ip or "")
        and not forwarded
        and request.version != "HTTP/1.0"
        and not hub.config.trusted_proxies
        and hosts <= {"127.0.0.1", "localhost", "[::1]"}
    )


class SignUp(ApiHandler):
    """New people."""

    @public
    @body(SIGNUP)
    async def post(self) -> None:
        """Make an account and log in: 201 with the user and the session's cookie."""
        given = self.json_body()
        hub = self.hub
        if not hub.signup:
            raise Problem(
                403,
                "Sign-up is switched off here.",
                remedy="Ask an administrator for an account.",
                code="signup",
            )
        try:
            user = await hub.accounts.sign_up(
                given["name"],
                given["password"],
                email=given.get("email", ""),
                address=self.request.remote_ip or "",
                local=is_local(self),
                setup_code=given.get("setup_code", ""),
                expected_code=hub.setup_code,
            )
        except AccountError as e:
            raise account_problem(e) from None
        self.start_session(*await hub.accounts.open_session(user))
        self.write_json(user_json(user), 201)


class CurrentUser(ApiHandler):
    """The person who calls."""

    @needs(user=True)
    def get(self) -> None:
        """Your account."""
        self.set_xsrf_cookie()
        self.write_json(user_json(self.user))

    @needs(user=True, scope=Scope.ACCOUNT)
    @body(PATCH)
    async def patch(self) -> None:
        """Change your title, e-mail or password. E-mail and password need ``current_password``; a new
        password ends your other sessions."""
        given = self.json_body()
        user, accounts = self.user, self.hub.accounts
        try:
            if "email" in given or "password" in given:
                if "current_password" not in given:
                    raise Problem(
                        400,
                        "Changing e-mail or password needs the present password.",
                        field="current_password",
                    )
                await accounts.confirm(user, given["current_password"], address=self.request.remote_ip or "")
            if "email" in given:
                await accounts.set_email(user, given["email"])
            if "password" in given:
                keep = self.session.id if self.session else None
                await accounts.set_password(user, given["password"], keep=keep)
                self.hub.pods.relays.drop_sessions(user.id, but=SESSION + keep if keep else "")
        except AccountError as e:
            raise account_problem(e) from None
        if "title" in given:
            await self.hub.store.users.update(user.id, title=given["title"].strip())
        changed = await self.hub.store.users.get(user.id)
        self.write_json(user_json(changed or user))


def routes() -> list[Route]:
    return [(r"/api/signup", SignUp), (r"/api/user", CurrentUser)]
