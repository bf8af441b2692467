"""The base of every handler of the hub: one authentication, and the checks against forged requests."""

from __future__ import annotations

import asyncio
import json
import re
from datetime import timedelta
from typing import Any

from codevo.api.answers import AnsweringHandler
from codevo.api.needs import Need, need_of
from codevo.api.problems import Problem
from codevo.api.schema import Invalid, validate
from codevo.auth import xsrf
from codevo.auth.origins import same_origin
from codevo.auth.scopes import Scope, allows
from codevo.store import ApiToken, Project, Role, Session, User, Visibility, digest, now

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
XSRF_COOKIE = "_xsrf"
XSRF_HEADER = "X-XSRFToken"
#: Of several cookies with the session's name (one may have been planted) so many are tried.
_MAX_COOKIES = 4
_SEEN_EVERY = timedelta(minutes=5)
_BEARER = re.compile(r"(?:bearer|token)\s+(\S+)", re.IGNORECASE)


def cookie_values(header: str, name: str) -> list[str]:
    """Every value of a cookie in a ``Cookie`` header, in order, at most `_MAX_COOKIES`.

    `http.cookies` keeps the last one only, and gives up at the first thing that it does not like.
    """
    values = []
    for part in header.split(";"):
        key, equals, value = part.strip().partition("=")
        if equals and key == name:
            values.append(value.strip('"'))
    return values[:_MAX_COOKIES]


def session_cookie_name(secure: bool) -> str:
    """``__Host-`` makes browsers refuse what a sibling subdomain plants; it needs TLS."""
    return "__Host-codevo-session" if secure else "codevo-session"


class ApiHandler(AnsweringHandler):
    """Authenticates and authorises in `prepare`, by what the method states with `needs` or `public`.

    Afterwards a method reads `user`, `project` and `role`. WebSocket handlers derive from this class first
    and `WebSocketHandler` second; their need stands on the class.
    """

    #: The token of this request, when it came with one.
    token: ApiToken | None = None
    #: The session of this request, when it came with its cookie.
    session: Session | None = None
    #: Whether the caller sees `project` only because it is public.
    stranger: bool = False
    _user: User | None = None
    _project: Project | None = None
    _role: Role | None = None

    # what methods read

    @property
    def user(self) -> User:
        """The person who calls. 401 when nobody in particular does."""
        if self._user is None:
            raise Problem(401, "You are not logged in.", remedy="Log in and try again.", code="login")
        return self._user

    @property
    def maybe_user(self) -> User | None:
        """The person who calls, or None for a guest."""
        return self._user

    @property
    def project(self) -> Project:
        """The project of the path, on routes that need a role."""
        if self._project is None:
            raise RuntimeError("this route states no role, so it has no project")
        return self._project

    @property
    def role(self) -> Role:
        """What the caller may do with `project`."""
        if self._role is None:
            raise RuntimeError("this route states no role")
        return self._role

    @property
    def is_websocket(self) -> bool:
        """Whether this request asks to become a WebSocket."""
        return self.request.headers.get("Upgrade", "").lower() == "websocket"

    # before the method

    async def prepare(self) -> None:
        need = need_of(type(self), self.request.method or "")
        if need is None:  # no such method here: Tornado answers 405
            if not self._host_is_ours():
                raise self._wrong_host()
            return
        if not need.any_host and not self._host_is_ours():
            raise self._wrong_host()
        if need.public:
            self._check_public_write()
            return
        project_id = self.path_kwargs.get("project_id") if need.role else None
        # both look-ups at once: half the waiting on each proxied request
        if isinstance(project_id, str):
            _, project = await asyncio.gather(self.authenticate(), self.hub.store.projects.get(project_id))
        else:
            await self.authenticate()
            project = None
        self._check_forgery()
        await self._authorise(need, project)

    def _wrong_host(self) -> Problem:
        return Problem(
            421,
            "This hub does not answer to that host name.",
            remedy=f"Open {self.hub.origin}, or add the name to c.Codevo.allowed_hosts.",
            code="host",
        )

    async def authenticate(self) -> User | None:
        """Find out who calls; a wrong or expired token is 401, a wrong or expired cookie is nobody."""
        text = self._token_text()
        if text is not None:
            self.token = await self.hub.store.tokens.find(text)
            user = await self.hub.store.users.get(self.token.user) if self.token else None
            if user is None or user.disabled:
                self.token = None
                raise Problem(
                    401,
                    "The token is unknown, expired, or its account is disabled.",
                    remedy="Make a new one under Account.",
                    code="token",
                    headers={"WWW-Authenticate": 'Bearer realm="codevo", error="invalid_token"'},
                )
            self._user = user
        else:
            await self._authenticate_cookie()
        if self._user is not None:
            at = now()
            if self._user.last_seen is None or at - self._user.last_seen > _SEEN_EVERY:
                await self.hub.store.users.seen(self._user.id, at)
        return self._user

    async def _authenticate_cookie(self) -> None:
        for secret in self._session_cookies():
            session = await self.hub.store.sessions.find(secret)
            if session is None:
                continue
            user = await self.hub.store.users.get(session.user)
            if user is not None and not user.disabled:
                self.session, self._user = session, user
                return

    def _session_cookies(self) -> list[str]:
        return cookie_values(self.request.headers.get("Cookie", ""), session_cookie_name(self.secure))

    def _token_text(self) -> str | None:
        """From ``Authorization``, else for WebSockets (whose headers pages cannot set) from ``?token=``."""
        header = self.request.headers.get("Authorization")
        if header is not None:
            found = _BEARER.fullmatch(header.strip())
            return found.group(1) if found else ""
        if self.is_websocket:
            return self.get_query_argument("token", None)
        return None

    def _check_forgery(self) -> None:
        """A page elsewhere can make a browser send cookies; it cannot send our header nor hide its Origin."""
        if self.token is not None:
            return
        origin = self.request.headers.get("Origin")
        if self.is_websocket:
            if self.session is not None and (origin is None or not same_origin(origin, self.own_origin)):
                raise Problem(403, "This page may not connect here.", code="origin")
            return
        if self.request.method in SAFE_METHODS or self.session is None:
            return
        self._check_origin_header()
        given = self.request.headers.get(XSRF_HEADER, "")
        if not xsrf.valid(self.xsrf_key, given, self.session.id):
            self.set_xsrf_cookie()
            raise Problem(
                403,
                f"The {XSRF_HEADER} header is missing or belongs to another session.",
                remedy="Send the value of the _xsrf cookie, which this answer sets.",
                code="xsrf",
            )

    def _check_public_write(self) -> None:
        """Sign-up and login have no session to bind to, so a page elsewhere must not be able to post them.

        Browsers send Origin with such requests; one that lacks it must bring a token of ours if it has
        anything else that comes from a browser. A program without cookies has nothing to be abused.
        """
        if self.request.method in SAFE_METHODS:
            return
        headers = self.request.headers
        if "Origin" in headers:
            self._check_origin_header()
            return
        given = headers.get(XSRF_HEADER, "")
        sessions = [xsrf.NO_SESSION, *map(digest, self._session_cookies())]
        if any(xsrf.valid(self.xsrf_key, given, s) for s in sessions):
            return
        if given or any(name in headers for name in ("Cookie", "Referer", "Sec-Fetch-Site")):
            self.set_xsrf_cookie()
            raise Problem(
                403,
                f"The request has neither our Origin nor a valid {XSRF_HEADER}.",
                remedy="Send the value of the _xsrf cookie, which this answer sets.",
                code="xsrf",
            )

    def _check_origin_header(self) -> None:
        origin = self.request.headers.get("Origin")
        if origin is not None and not same_origin(origin, self.own_origin):
            raise Problem(403, "This page may not write here.", code="origin")

    async def _authorise(self, need: Need, project: Project | None) -> None:
        if self._user is None and not need.guests:
            raise Problem(
                401,
                "You are not logged in.",
                remedy="Log in, or send Authorization: Bearer with a token.",
                code="login",
                headers={"WWW-Authenticate": 'Bearer realm="codevo"'},
            )
        self._check_scope(need)
        if need.admin and not self.user.admin:
            raise Problem(403, "Only administrators may do this.", code="admin")
        if need.role is not None:
            await self._authorise_project(need, need.role, project)

    def _check_scope(self, need: Need) -> None:
        if self.token is None:
            return
        reading = self.request.method in SAFE_METHODS
        scope = need.scope or (Scope.READ if reading else Scope.WRITE)
        if not allows(self.token.scopes, scope):
            raise Problem(403, f"This token lacks the scope {scope}.", code="scope")

    async def _authorise_project(self, need: Need, needed: Role, project: Project | None) -> None:
        role = None
        if project is not None and self._user is not None:
            role = await self.hub.store.members.role(project.id, self._user.id)
        # who may look need not be told 404; everybody else must not learn that the project exists
        visible = role is not None or (project is not None and project.visibility is Visibility.PUBLIC)
        if project is None or not visible:
            if self._user is None:
                raise Problem(401, "You are not logged in.", remedy="Log in and try again.", code="login")
            raise Problem(404, "There is no such project.", code="project")
        if role is None and need.guests:
            role, self.stranger = Role.VIEWER, True
        if self.token is not None and role is not None and not allows(self.token.scopes, Scope.WRITE):
            role = Role.VIEWER
        if role is None or not role.allows(needed):
            if self._user is None:
                raise Problem(401, "You are not logged in.", remedy="Log in and try again.", code="login")
            raise Problem(
                403,
                f"This needs the role {needed}; yours is {role or 'none'}.",
                remedy="Ask an owner of the project.",
                code="role",
            )
        self._project, self._role = project, role

    # reading and answering

    def json_body(self) -> dict[str, Any]:
        """The request's JSON object, checked against the method's `body` schema. 400 names the field."""
        raw = self.request.body
        kind = self.request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if raw and self.token is None and kind != "application/json":
            raise Problem(415, "The body must be JSON.", remedy="Send Content-Type: application/json.")
        try:
            value = json.loads(raw) if raw else {}
        except (ValueError, RecursionError):
            raise Problem(400, "The body is not JSON.") from None
        if not isinstance(value, dict):
            raise Problem(400, "The body is not a JSON object.")
        schema = getattr(getattr(self, (self.request.method or "").lower(), None), "__body__", None)
        if schema is not None:
            try:
                validate(value, schema)
            except Invalid as e:
                raise Problem(400, str(e), field=e.field or None, code="invalid") from None
        return value

    # cookies

    @property
    def xsrf_key(self) -> bytes:
        return self.hub.accounts.xsrf_key

    def set_xsrf_cookie(self) -> None:
        """Give the page the token for its session, unless it sent one that is good already."""
        if self.session is not None:
            session = self.session.id
        else:
            cookies = self._session_cookies()
            session = digest(cookies[0]) if cookies else xsrf.NO_SESSION
        present = cookie_values(self.request.headers.get("Cookie", ""), XSRF_COOKIE)
        if len(present) == 1 and xsrf.valid(self.xsrf_key, present[0], session):
            return
        self._write_xsrf_cookie(session)

    def _write_xsrf_cookie(self, session: str) -> None:
        token = xsrf.make(self.xsrf_key, session)
        self.set_cookie(XSRF_COOKIE, token, path="/", secure=self.secure, samesite="Lax")

    def start_session(self, session: Session, secret: str) -> None:
        """Set the session's cookie, and the token that goes with it."""
        self.session = session
        self.set_cookie(
            session_cookie_name(self.secure),
            secret,
            path="/",
            expires=session.expires,
            httponly=True,
            secure=self.secure,
            samesite="Lax",
        )
        self._write_xsrf_cookie(session.id)

    def clear_session(self) -> None:
        """Take the session's cookie away."""
        self.clear_cookie(session_cookie_name(self.secure), path="/", secure=self.secure)
        self._write_xsrf_cookie(xsrf.NO_SESSION)

    def check_xsrf_cookie(self) -> None:
        """Tornado's own check is replaced by `_check_forgery`."""

    def check_origin(self, origin: str) -> bool:
        """WebSocketHandler's own check is replaced by `_check_forgery`, which has run already."""
        return True
