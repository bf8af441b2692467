"""What an API token may do. A browser's session may do everything that its person may."""

from __future__ import annotations

from enum import StrEnum


class Scope(StrEnum):
    """``read``: look at projects and account; ``write``: change and run projects; ``account``: change the
    account and its tokens; ``admin``: what administrators do; ``all``: everything that the person may."""

    ALL = "all"
    READ = "read"
    WRITE = "write"
    ACCOUNT = "account"
    ADMIN = "admin"


def allows(scopes: tuple[str, ...], needed: Scope) -> bool:
    """Whether a token with these scopes may do what ``needed`` is asked for. Who writes may read."""
    if Scope.ALL in scopes or needed in scopes:
        return True
    return needed is Scope.READ and bool(scopes)


def within(asked: tuple[str, ...], held: tuple[str, ...]) -> bool:
    """Whether a token with ``held`` may make one with ``asked``: never a stronger one."""
    return Scope.ALL in held or set(asked) <= set(held)
