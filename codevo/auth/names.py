"""What a person may be called."""

from __future__ import annotations

import re

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,31}")
# One @, no spaces or control characters, a dot in the domain or a bare host name; delivery proves the rest.
_EMAIL = re.compile(
    r"[^\s@\x00-\x1f\x7f<>()\[\],;:\\\"]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?"
)
#: Names that would be taken for somebody else's.
RESERVED = frozenset({"guest", "hub", "codevo", "system", "anonymous", "nobody"})


def name_problem(name: str) -> str | None:
    """Why this name is refused, in words for people; None when it is fine."""
    if not _NAME.fullmatch(name):
        return (
            "A name has 2 to 32 letters, digits, dots, hyphens and underscores, "
            "and begins with a letter or a digit."
        )
    if name.casefold() in RESERVED:
        return "This name is reserved. Choose another."
    return None


def email_problem(email: str) -> str | None:
    """Why this e-mail address is refused; None when it is fine, or empty (people may do without)."""
    if email and (len(email) > 254 or not _EMAIL.fullmatch(email) or ".." in email):
        return "This is not an e-mail address."
    return None
