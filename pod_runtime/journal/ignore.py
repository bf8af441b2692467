"""What is not made durable: `[persist] ignore` of codevo.toml and the defaults, matched as .gitignore is."""

from __future__ import annotations

import tomllib
from functools import cached_property

from pod_runtime.journal.globs import Globs

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
#: Patterns, and characters of each, that a codevo.toml may hold: every path is compared with every one.
MAX_PATTERNS = 200
MAX_PATTERN = 250


class Ignore:
    """Matches paths relative to the workspace. Give each folder before what it holds: an ignored folder's
    content is not asked about."""

    def __init__(self, patterns: tuple[str, ...] = ()) -> None:
        self.patterns = patterns

    @cached_property
    def _globs(self) -> Globs:
        # late: opening a workspace does without
        return Globs([*DEFAULTS, *self.patterns])

    def __call__(self, path: str, *, folder: bool) -> bool:
        return self._globs.match(path, folder=folder)

    def beneath(self, path: str) -> bool:
        """Whether ``path``, seen alone, is ignored by itself or by a folder above it."""
        return self._globs.beneath(path)


def patterns_of(toml: bytes) -> tuple[str, ...]:
    """``[persist] ignore`` of a codevo.toml. Raises `ValueError` with words for people when it is wrong."""
    if len(toml) > MAX_TOML:
        raise ValueError("codevo.toml is too large")
    try:
        found = tomllib.loads(toml.decode())
    except (ValueError, RecursionError) as e:
        raise ValueError(f"codevo.toml: {e}") from e
    persist = found.get("persist", {})
    patterns = persist.get("ignore", []) if isinstance(persist, dict) else None
    if not isinstance(patterns, list) or not all(isinstance(p, str) for p in patterns):
        raise ValueError("codevo.toml: [persist] ignore has to be a list of patterns")
    if len(patterns) > MAX_PATTERNS or any(len(p) > MAX_PATTERN for p in patterns):
        raise ValueError(
            f"codevo.toml: [persist] ignore holds at most {MAX_PATTERNS} patterns of {MAX_PATTERN} characters"
            " each; put what is not to be saved into fewer folders and name those"
        )
    try:
        Globs(patterns)
    except ValueError as e:
        raise ValueError(f"codevo.toml: [persist] ignore: {e}") from e
    return tuple(patterns)
