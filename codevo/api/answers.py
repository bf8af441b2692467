"""How the hub answers: JSON, problems, the headers that stand on everything, and under which origin."""

from __future__ import annotations

import json
import logging
import re
import secrets
from typing import Any
from urllib.parse import urlsplit

from tornado.web import HTTPError, RequestHandler

from codevo.api.problems import Problem, render
from codevo.auth.origins import allowed_host, clean_host, netloc
from codevo.auth.passwords import Busy
from codevo.hub import Hub
from codevo.store import StoreUnavailable

log = logging.getLogger(__name__)


class AnsweringHandler(RequestHandler):
    """A handler of the hub's own origin, without regard to who calls."""

    request_id: str = ""
    _own_origin: str | None = None

    @property
    def hub(self) -> Hub:
        found: Hub = self.application.settings["hub"]
        return found

    @property
    def own_origin(self) -> str:
        """The origin under which the browser sees this hub in this request."""
        if self._own_origin is None:
            host = clean_host(self.request.host or "") or ""
            canonical = self.hub.origin
            same = host == netloc(canonical)
            self._own_origin = canonical if same else f"{self.request.protocol}://{host}"
        return self._own_origin

    @property
    def secure(self) -> bool:
        """Whether the browser came by TLS."""
        return self.own_origin.startswith("https://")

    def _host_is_ours(self) -> bool:
        host = clean_host(self.request.host or "")
        hub = self.hub
        return host is not None and (host == netloc(hub.origin) or allowed_host(host, hub.hosts))

    def write_json(self, value: object, status: int = 200) -> None:
        """Answer with JSON and finish."""
        self.set_status(status)
        self.set_header("Content-Type", "application/json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(value, ensure_ascii=False))

    def query_int(self, name: str, default: int, *, low: int, high: int) -> int:
        """An optional number of the query. 400 outside of ``low``–``high``."""
        text = self.get_query_argument(name, None)
        if text is None:
            return default
        if not re.fullmatch(r"-?[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise Problem(400, f"{name}: expected a number from {low} to {high}.", field=name)
        return int(text)

    def content_security_policy(self, frame_ancestors: str = "'none'") -> str:
        """The policy of our own pages and answers."""
        own = urlsplit(self.own_origin)
        sockets = f"{'wss' if own.scheme == 'https' else 'ws'}://{own.netloc}"
        previews = f"{self.hub.scheme}://*.{self.hub.preview_domain}"
        return (
            "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
            f"font-src 'self' data:; connect-src 'self' {sockets}; frame-src 'self' {previews}; "
            "object-src 'none'; base-uri 'none'; form-action 'self'; worker-src 'self' blob:; "
            f"frame-ancestors {frame_ancestors}"
        )

    def set_default_headers(self) -> None:
        if not self.request_id:
            self.request_id = secrets.token_hex(8)
        self.set_header("Server", "Codevo")
        self.set_header("X-Request-Id", self.request_id)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.set_header("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()")
        # before the host has been checked nothing of it goes into a header
        if self._host_is_ours():
            self.set_header("Content-Security-Policy", self.content_security_policy())
            if self.secure:
                self.set_header("Strict-Transport-Security", "max-age=31536000")
        else:
            self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None, None))[1]
        extra: dict[str, Any] = {}
        if isinstance(error, Problem):
            detail, extra = error.detail, error.extra
            for name, value in error.headers.items():
                self.set_header(name, value)
        elif isinstance(error, StoreUnavailable):
            status_code, detail = 503, "The database does not answer. Nothing is lost; try again shortly."
            extra = {"code": "database"}
            self.set_header("Retry-After", "2")
        elif isinstance(error, Busy):
            status_code, detail = 503, "Too many people are logging in at once. Try again in a moment."
            extra = {"code": "busy"}
            self.set_header("Retry-After", "2")
        elif isinstance(error, HTTPError):
            detail = error.reason or self._reason
        else:
            detail = "Something went wrong here. The log of the hub has more, under the request's id."
        self.set_status(status_code)
        self.set_header("Content-Type", "application/problem+json; charset=UTF-8")
        self.set_header("Cache-Control", "no-store")
        self.finish(render(status_code, detail, extra, self.request_id))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, HTTPError) and value.status_code < 500:
            return
        if isinstance(value, StoreUnavailable):
            log.warning("database unavailable: %s %s", self.request.method, self.request.path)
            return
        if isinstance(value, Problem | Busy):
            log.warning("%s %s: %s", self.request.method, self.request.path, value)
            return
        log.error(
            "%s %s failed (request %s)",
            self.request.method,
            self.request.path,
            self.request_id,
            exc_info=(typ, value, tb),
        )
