"""People, sessions, tokens, projects, members and invites in MongoDB. The only importer of motor."""

from __future__ import annotations

from codevo.store.client import Store
from codevo.store.errors import StoreUnavailable, Taken
from codevo.store.records import (
    ApiToken,
    Invite,
    Member,
    Page,
    PreviewCode,
    Project,
    ProjectSettings,
    Role,
    Session,
    User,
    Visibility,
    digest,
    in_seconds,
    new_id,
    new_secret,
    now,
    rfc3339,
)

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
    "Store",
    "StoreUnavailable",
    "Taken",
    "User",
    "Visibility",
    "digest",
    "in_seconds",
    "new_id",
    "new_secret",
    "now",
    "rfc3339",
]
