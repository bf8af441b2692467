"""The names, cookies and return paths of previews. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass
from urllib.parse import quote

#: Seconds that a preview's cookie lasts.
COOKIE_SECONDS = 12 * 3600
COOKIE = "__Host-codevo-preview"
#: The port that the program's Run decides.
MAIN = "main"

_LABEL = re.compile(r"([a-z2-7]{16})(?:--([1-9][0-9]{0,4}))?")
_LOCAL = re.compile(r"/(?![/\\])[!-\[\]-~]*")


@dataclass(frozen=True, slots=True)
class PreviewName:
    """One preview origin: a project and ``main`` or the number of a port, as text."""

    project: str
    port: str = MAIN

    def host(self, preview_domain: str) -> str:
        """Its host, with the port of the domain when that has one."""
        label = self.project if self.port == MAIN else f"{self.project}--{self.port}"
        return f"{label}.{preview_domain}"


def parse_port(text: str) -> str | None:
    """``main`` or a port number from 1 to 65535 without leading zeros, else None."""
    if text == MAIN:
        return MAIN
    return text if re.fullmatch(r"[1-9][0-9]{0,4}", text) and int(text) <= 65535 else None


def parse_host(host: str, preview_domain: str) -> PreviewName | None:
    """The preview that a ``Host`` header names: exactly ``{id}[--{port}].{preview_domain}``, else None.

    The case of letters does not matter. Where the domain says a port, the header must say the same.
    """
    host, domain = host.lower(), preview_domain.lower()
    if not host.endswith("." + domain):
        return None
    found = _LABEL.fullmatch(host[: -len(domain) - 1])
    if found is None:
        return None
    port = parse_port(found[2] or MAIN)
    return PreviewName(found[1], port) if port else None


def local_path(target: str) -> str | None:
    """``target`` when a redirect to it stays on its origin, else None."""
    return target if len(target) <= 8192 and _LOCAL.fullmatch(target) else None


def enter_url(origin: str, code: str, to: str = "/") -> str:
    """Where a browser redeems a code on a preview's origin."""
    return f"{origin}/_codevo/enter?code={quote(code, safe='')}&to={quote(to, safe='/')}"


def set_cookie(value: str) -> str:
    """The header's text. Written by hand: the cookie class of Python 3.11 does not know Partitioned."""
    return f"{COOKIE}={value}; Path=/; Max-Age={COOKIE_SECONDS}; Secure; HttpOnly; SameSite=None; Partitioned"


class Seal:
    """Makes and checks the values of preview cookies: who may see which preview until when.

    They are signed with a key that is derived from ``secret``, so a pod's token is never one of them. Whether
    the person is still let in is asked at every request; the cookie only says who it is.
    """

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, b"codevo preview cookie v1", hashlib.sha256)

    def make(self, name: PreviewName, user: str, *, now: float | None = None) -> str:
        """A cookie's value for ``user`` on one preview."""
        expires = int(time.time() if now is None else now) + COOKIE_SECONDS
        body = json.dumps([name.project, name.port, user, expires], separators=(",", ":")).encode()
        return f"{_b64(body)}.{_b64(self._sign(body))}"

    def open(self, value: str, name: PreviewName, *, now: float | None = None) -> str | None:
        """The user of a cookie that is genuine, of this preview and not expired; else None."""
        if len(value) > 1024 or not value.isascii():
            return None
        body_text, _, signature = value.partition(".")
        try:
            body = base64.urlsafe_b64decode(body_text + "=" * (-len(body_text) % 4))
            given = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
        except (binascii.Error, ValueError):
            return None
        if not hmac.compare_digest(given, self._sign(body)):
            return None
        project, port, user, expires = json.loads(body)
        if (project, port) != (name.project, name.port):
            return None
        return user if expires > (time.time() if now is None else now) else None

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, hashlib.sha256)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
