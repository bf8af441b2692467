"""The Tornado base that the runner's and the worker's handlers share: the token, the role, errors as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http.client import responses
from typing import Any, ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tornado.web import HTTPError, RequestHandler

from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import LEEWAY, MAX_TTL, TOKEN_HEADER, Audience, Claims, InvalidToken, verify

log = logging.getLogger(__name__)

READING = frozenset({"GET", "HEAD", "OPTIONS"})
#: Close code of a socket whose person has lost the right.
CLOSE_REVOKED = 4403


@dataclass
class Gatekeeper:
    """Checks tokens for one container and remembers whose sockets to close when a right ends.

    A revoked subject stays refused until the last token minted before the revocation has expired.
    """

    key: Ed25519PublicKey
    project: str
    audience: Audience
    _sockets: dict[str, set[Callable[[], None]]] = field(default_factory=dict)
    _revoked: dict[str, float] = field(default_factory=dict)

    def claims(self, token: str | None) -> Claims:
        """Raises `InvalidToken` when missing, wrong or revoked."""
        if not token:
            raise InvalidToken(f"no {TOKEN_HEADER} header")
        found = verify(self.key, token, project=self.project, audience=self.audience)
        # a token minted after the revocation says that the person was let in again
        if found.issued <= self._revoked.get(found.subject, -1.0):
            raise InvalidToken("the right of this person has ended")
        return found

    def add_socket(self, subject: str, close: Callable[[], None]) -> None:
        """Register ``close``, to be called once when ``subject``'s right ends."""
        self._sockets.setdefault(subject, set()).add(close)

    def remove_socket(self, subject: str, close: Callable[[], None]) -> None:
        """Forget what `add_socket` registered; unknown ones are ignored."""
        closers = self._sockets.get(subject, set())
        closers.discard(close)
        if not closers:
            self._sockets.pop(subject, None)

    def revoke(self, subject: str, at: float | None = None) -> int:
        """Refuse the subject's tokens minted until ``at`` (the hub's clock, epoch seconds; now when None) and
        close their sockets; give the number closed."""
        now = time.time()
        self._revoked = {s: t for s, t in self._revoked.items() if t + MAX_TTL + LEEWAY > now}
        self._revoked[subject] = now if at is None else at
        closers = list(self._sockets.pop(subject, ()))
        for close in closers:
            close()
        return len(closers)


class PodHandler(RequestHandler):
    """Base of every handler in a pod, WebSocket handlers included.

    ``reading`` and ``writing`` are the roles asked for by safe and by other methods; a subclass overrides
    them, or ``needed_role`` where the method does not decide.
    """

    reading: ClassVar[Role] = Role.VIEWER
    writing: ClassVar[Role] = Role.EDITOR
    claims: Claims

    @property
    def gatekeeper(self) -> Gatekeeper:
        found: Gatekeeper = self.application.settings["gatekeeper"]
        return found

    def needed_role(self) -> Role:
        return self.reading if self.request.method in READING else self.writing

    def prepare(self) -> None:
        try:
            self.claims = self.gatekeeper.claims(self.request.headers.get(TOKEN_HEADER))
        except InvalidToken as e:
            raise HTTPError(401, reason="Unauthorized", log_message=str(e)) from e
        if not self.claims.role.allows(self.needed_role()):
            raise HTTPError(403, reason=f"Needs the role {self.needed_role()}")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        # when the process ends, the loop cancels what a socket still has in hand: that is no error
        if not isinstance(value, asyncio.CancelledError):
            super().log_exception(typ, value, tb)

    def check_xsrf_cookie(self) -> None:
        """No cookies come here: the hub has checked the page's origin and token."""

    def json_body(self) -> dict[str, Any]:
        """The request's JSON object (``{}`` when empty). 400 on anything else."""
        if not self.request.body:
            return {}
        try:
            body = json.loads(self.request.body)
        except ValueError as e:
            raise HTTPError(400, reason="The body is not JSON") from e
        if not isinstance(body, dict):
            raise HTTPError(400, reason="The body is not a JSON object")
        return body

    def write_json(self, value: object, status: int = 200) -> None:
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.finish(json.dumps(value, ensure_ascii=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """RFC 9457, with the ``message`` and ``reason`` that Jupyter clients read."""
        reason = responses.get(status_code, "Error")
        error = kwargs.get("exc_info", (None, None, None))[1]
        detail = error.reason or reason if isinstance(error, HTTPError) else reason
        extra = getattr(error, "problem", None) or {}
        self.set_header("Content-Type", "application/problem+json; charset=UTF-8")
        self.finish(
            json.dumps(
                {
                    "type": "about:blank",
                    "title": reason,
                    "status": status_code,
                    "detail": detail,
                    "message": detail,
                    "reason": reason,
                    **extra,
                }
            )
        )


class RevokeHandler(PodHandler):
    """``POST /_codevo/revoke {"sub": id, "at"?: seconds}``: end somebody's right. 200 ``{"closed": n}``."""

    writing = Role.HUB

    def post(self) -> None:
        body = self.json_body()
        subject, at = body.get("sub"), body.get("at")
        if not isinstance(subject, str) or not subject:
            raise HTTPError(400, reason="sub: expected a user's id")
        if at is not None and (isinstance(at, bool) or not isinstance(at, int | float)):
            raise HTTPError(400, reason="at: expected seconds since the epoch")
        self.write_json({"closed": self.gatekeeper.revoke(subject, at)})


def common_routes() -> Iterable[tuple[str, type[RequestHandler]]]:
    """The routes that runner and worker have alike."""
    return [(r"/_codevo/revoke", RevokeHandler)]
