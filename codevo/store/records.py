"""What the database holds, as the rest of the hub sees it: plain typed records, times aware and in UTC."""

from __future__ import annotations

import base64
import hashlib
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Generic, TypeVar

from pod_runtime.protocol.roles import Role

T = TypeVar("T")

__all__ = [
    "ApiToken",
    "Invite",
    "Member",
    "Page",
    "PreviewCode",
    "Project",
    "ProjectSettings",
    "Role",
    "Session",
    "User",
    "Visibility",
    "digest",
    "new_id",
    "new_secret",
    "now",
    "rfc3339",
]


def new_id() -> str:
    """16 characters of lower-case base32: 80 random bits, safe as a DNS label and as a path segment."""
    return base64.b32encode(secrets.token_bytes(10)).decode().lower()


def new_secret() -> str:
    """256 random bits as text (sessions, API tokens, preview codes)."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """The form in which a random secret is stored: SHA-256, hexadecimal."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


def now() -> datetime:
    """The present, in the millisecond resolution that the database keeps."""
    t = datetime.now(UTC)
    return t.replace(microsecond=t.microsecond // 1000 * 1000)


def rfc3339(time: datetime | None) -> str | None:
    """``2026-01-02T03:04:05.678000Z``; None stays None."""
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class User:
    """A person. ``password`` is the bcrypt hash, or "" for one who cannot log in with a password."""

    id: str
    name: str
    email: str
    password: str = field(repr=False)
    admin: bool = False
    disabled: bool = False
    created: datetime = field(default_factory=now)
    last_seen: datetime | None = None
    #: Shown instead of the name when set.
    title: str = ""


@dataclass(frozen=True, slots=True)
class Session:
    """A browser that has logged in. ``id`` is the `digest` of the cookie's value."""

    id: str
    user: str
    created: datetime
    expires: datetime


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A program's right to act for a person; ``hash`` is the `digest` of its text."""

    id: str
    user: str
    hash: str = field(repr=False)
    note: str
    scopes: tuple[str, ...]
    created: datetime
    expires: datetime | None = None
    last_used: datetime | None = None

    def expired(self, at: datetime | None = None) -> bool:
        return self.expires is not None and self.expires <= (at or now())


class Visibility(StrEnum):
    """Who may look at a project: its members, or everybody."""

    PRIVATE = "private"
    PUBLIC = "public"


@dataclass(frozen=True, slots=True)
class ProjectSettings:
    """What owners choose. ``public_ports`` are previews without a login, ``embed_origins`` the sites whose
    pages may frame the project, ``wake`` whether a visit to the preview starts a stopped project."""

    public_ports: tuple[int, ...] = ()
    embed_origins: tuple[str, ...] = ()
    wake: bool = True


@dataclass(frozen=True, slots=True)
class Project:
    """``generation`` grows by one with each start of the workspace and fences stale writers."""

    id: str
    title: str
    template: str
    visibility: Visibility = Visibility.PRIVATE
    created: datetime = field(default_factory=now)
    updated: datetime = field(default_factory=now)
    last_activity: datetime | None = None
    generation: int = 0
    settings: ProjectSettings = field(default_factory=ProjectSettings)


@dataclass(frozen=True, slots=True)
class Member:
    """One person's role on one project. The owner is the member with the role owner."""

    project: str
    user: str
    role: Role
    since: datetime = field(default_factory=now)


@dataclass(frozen=True, slots=True)
class Invite:
    """A link by which people join. ``code`` is 128 random bits or more; ``uses`` is how often it was taken,
    ``max_uses`` 0 means any number."""

    code: str
    project: str
    role: Role
    inviter: str
    created: datetime
    expires: datetime
    email: str = ""
    uses: int = 0
    max_uses: int = 0


@dataclass(frozen=True, slots=True)
class PreviewCode:
    """A single-use right to open a preview; ``hash`` is the `digest` of the code. ``user`` is the person's
    id, or ``anon:…``; ``port`` is ``main`` or a number as text."""

    hash: str = field(repr=False)
    project: str
    user: str
    port: str
    expires: datetime


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A page of a long list. ``cursor`` asks for the next page; None says that this was the last."""

    items: list[T]
    cursor: str | None


def in_seconds(seconds: float) -> datetime:
    """That many seconds from now."""
    return now() + timedelta(seconds=seconds)
