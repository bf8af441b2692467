"""The token that a page repeats in ``X-XSRFToken``, bound to the session by an HMAC.

A sibling subdomain can plant a cookie, so a token must be worth nothing outside the session that it was
made for: it is ``nonce.HMAC(key, nonce, session)``, and a planted one does not verify.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets

#: What tokens of people without a session are bound to.
NO_SESSION = ""


def _mac(key: bytes, nonce: str, session: str) -> str:
    mac = hmac.new(key, f"{nonce}|{session}".encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def make(key: bytes, session: str) -> str:
    """A fresh token for the session with this id."""
    nonce = secrets.token_urlsafe(16)
    return f"{nonce}.{_mac(key, nonce, session)}"


def valid(key: bytes, token: str, session: str) -> bool:
    """Whether the token was made for that session by the holder of the key."""
    nonce, dot, mac = token.partition(".")
    if not dot or len(token) > 128 or not token.isascii():
        return False
    return hmac.compare_digest(mac, _mac(key, nonce, session))
