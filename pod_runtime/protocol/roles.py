"""The roles of a project's members, and what the hub may do beyond them."""

from __future__ import annotations

from enum import StrEnum


class Role(StrEnum):
    """A person's right on one project. ``HUB`` is the hub itself (flush, revoke), never a person."""

    VIEWER = "viewer"
    EDITOR = "editor"
    OWNER = "owner"
    HUB = "hub"

    @property
    def rank(self) -> int:
        return _RANK[self]

    def allows(self, needed: Role) -> bool:
        """Whether a holder of this role may do what ``needed`` is asked for."""
        return self.rank >= needed.rank


_RANK = {Role.VIEWER: 0, Role.EDITOR: 1, Role.OWNER: 2, Role.HUB: 3}
