"""Times as they appear in JSON."""

from __future__ import annotations

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """Epoch seconds as UTC with microseconds and ``Z``, the form of Jupyter's models."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
