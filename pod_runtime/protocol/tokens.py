"""The short-lived tokens by which the hub vouches for a person to one container of one project.

A token is a JSON Web Token (RFC 7519) in compact form, signed with Ed25519 (``alg`` EdDSA, RFC 8037).
Pods hold the public key only. PyJWT would do the same at 13 MiB more resident memory a process, which
the budget of an idle workspace does not have; the subset here accepts one algorithm and one key.
"""

from __future__ import annotations

import base64
import binascii
import json
import time
from dataclasses import dataclass
from enum import StrEnum

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from pod_runtime.protocol.roles import Role

#: The request header in which the hub puts the token. The hub strips it from what clients send.
TOKEN_HEADER = "Codevo-Token"
#: Longest life of a token, seconds.
MAX_TTL = 60
#: Tolerated difference of clocks, seconds.
LEEWAY = 30
#: ``sub`` of the hub's own calls.
HUB_SUBJECT = "hub"

_MAX_TOKEN_BYTES = 4096


class Audience(StrEnum):
    """Which container a token is for."""

    RUNNER = "runner"
    WORKER = "worker"


class InvalidToken(Exception):
    """The token is malformed, forged, expired, or meant for somebody else. The text says which."""


@dataclass(frozen=True, slots=True)
class Claims:
    """Who calls. ``subject`` is the user's id (``anon:…`` for strangers); times by the hub's clock."""

    project: str
    audience: Audience
    subject: str
    name: str
    role: Role
    issued: float
    expires: float


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)


_HEADER = _b64(b'{"alg":"EdDSA","typ":"JWT"}')


def public_key_text(key: Ed25519PrivateKey) -> str:
    """The public half as base64url of its 32 raw bytes, the form in which configuration carries it."""
    return _b64(key.public_key().public_bytes_raw())


def load_public_key(text: str) -> Ed25519PublicKey:
    """Inverse of `public_key_text`. Raises ``ValueError`` on anything but 32 bytes."""
    try:
        return Ed25519PublicKey.from_public_bytes(_unb64(text))
    except (binascii.Error, ValueError) as e:
        raise ValueError("public_key: expected base64url of 32 bytes") from e


def mint(
    key: Ed25519PrivateKey,
    *,
    project: str,
    audience: Audience,
    subject: str,
    name: str,
    role: Role,
    ttl: int = MAX_TTL,
    now: float | None = None,
) -> str:
    """Sign a token that is valid for ``ttl`` seconds (at most `MAX_TTL`)."""
    if not 0 < ttl <= MAX_TTL:
        raise ValueError(f"ttl: expected 1 to {MAX_TTL} seconds, got {ttl}")
    # NumericDate may have a fraction; a revocation and the next token are often of the same second
    issued = round(time.time() if now is None else now, 6)
    claims = {
        "iss": "codevo",
        "aud": f"{audience}:{project}",
        "sub": subject,
        "name": name,
        "role": str(role),
        "iat": issued,
        "exp": issued + ttl,
    }
    signed = f"{_HEADER}.{_b64(json.dumps(claims, separators=(',', ':')).encode())}"
    return f"{signed}.{_b64(key.sign(signed.encode()))}"


def verify(
    key: Ed25519PublicKey, token: str, *, project: str, audience: Audience, now: float | None = None
) -> Claims:
    """Check signature, audience and times; return the claims. Raises `InvalidToken`."""
    if len(token) > _MAX_TOKEN_BYTES:
        raise InvalidToken("token is too long")
    try:
        header, body, signature = token.split(".")
        key.verify(_unb64(signature), f"{header}.{body}".encode("ascii"))
        if header != _HEADER:
            raise InvalidToken("token has another algorithm")
        claims = json.loads(_unb64(body))
        expires, issued = float(claims["exp"]), float(claims["iat"])
        found = Claims(
            project=project,
            audience=audience,
            subject=str(claims["sub"]),
            name=str(claims["name"]),
            role=Role(claims["role"]),
            issued=issued,
            expires=expires,
        )
    except (ValueError, KeyError, TypeError, InvalidSignature) as e:
        raise InvalidToken("token is malformed or not signed by this hub") from e
    clock = time.time() if now is None else now
    if claims.get("iss") != "codevo" or claims.get("aud") != f"{audience}:{project}":
        raise InvalidToken("token is for another audience")
    if not expires - issued <= MAX_TTL + 1 or issued > clock + LEEWAY:
        raise InvalidToken("token's times are not plausible")
    if expires + LEEWAY < clock:
        raise InvalidToken("token has expired")
    return found
