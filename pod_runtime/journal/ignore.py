"""What is not made durable: `[persist] ignore` of codevo.toml and the defaults, matched as .gitignore is."""

from __future__ import annotations

import tomllib
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

DEFAULTS = (
    "node_modules/",
    "__pycache__/",
    "*.pyc",
    ".venv/",
    ".cache/",
    ".pytest_cache/",
    ".mypy_cache/",
    ".ruff_cache/",
    ".codevo-tmp-*",
)
MAX_TOML = 2**16
MAX_PATTERNS = 1000


class Ignore:
    """Matches paths relative to the workspace. Give each folder before what it holds: an ignored folder's
    content is not asked about."""

    def __init__(self, patterns: tuple[str, ...] = ()) -> None:
        self.patterns = patterns

    @cached_property
    def _spec(self) -> GitIgnoreSpec:
        # late: opening a workspace does without
        from pathspec import GitIgnoreSpec

        return GitIgnoreSpec.from_lines([*DEFAULTS, *self.patterns])

    def __call__(self, path: str, *, folder: bool) -> bool:
        return self._spec.match_file(path + "/" if folder else path)

    def beneath(self, path: str) -> bool:
        """Whether ``path``, seen alone, is ignored by itself or by a folder above it."""
        parts = path.split("/")
        above = ("/".join(parts[:n]) for n in range(1, len(parts)))
        return any(self(folder, folder=True) for folder in above) or self(path, folder=False)


def patterns_of(toml: bytes) -> tuple[str, ...]:
    """``[persist] ignore`` of a codevo.toml. Raises `ValueError` with words for people when it is wrong."""
    if len(toml) > MAX_TOML:
        raise ValueError("codevo.toml is too large")
    try:
        found = tomllib.loads(toml.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as e:
        raise ValueError(f"codevo.toml: {e}") from e
    persist = found.get("persist", {})
    patterns = persist.get("ignore", []) if isinstance(persist, dict) else None
    if not isinstance(patterns, list) or len(patterns) > MAX_PATTERNS:
        raise ValueError("codevo.toml: [persist] ignore has to be a list of patterns")
    if not all(isinstance(p, str) and len(p) < 1000 for p in patterns):
        raise ValueError("codevo.toml: [persist] ignore has to be a list of patterns")
    from pathspec import GitIgnoreSpec

    try:
        GitIgnoreSpec.from_lines(patterns)
    except ValueError as e:
        raise ValueError(f"codevo.toml: [persist] ignore: {e}") from e
    return tuple(patterns)
