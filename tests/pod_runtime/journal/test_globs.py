"""Patterns as git reads them, and in bounded time whatever they are."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest

from pod_runtime.journal.globs import Globs
from pod_runtime.journal.ignore import MAX_PATTERN, MAX_PATTERNS, Ignore, patterns_of

BITS = [
    "a", "b", "ab", "*", "**", "***", "?", "/", "/", "[ab]", "[!a]", "[^b]", "[z-a]", "[]a]", "[a-]",
    "[[:alpha:]]",
    "[[:x:]]", "[!]-c]", "[\\]]", "\\*", "\\[", ".", "**/", "/**/", "/**", "!", "#", " ", "-", "]",
]  # fmt: skip
NAMES = ["a", "b", "ab", "ba", "aab", "abab", "..a", "*", "c", " ", "a ", "b.", "[", "-", "]", "#", "!", "\\"]


@pytest.mark.parametrize("seed", range(6))
def test_as_git_does(tmp_path: Path, seed: int) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    chance = random.Random(seed)
    compared = ignored = 0
    for _ in range(60):
        patterns = [
            "".join(chance.choices(BITS, k=chance.randint(1, 6))) for _ in range(chance.randint(1, 3))
        ]
        if any("//" in p for p in patterns):
            continue
        globs = Globs(patterns)
        (tmp_path / ".git/info/exclude").write_text("\n".join(patterns) + "\n")
        paths = {"/".join(chance.choices(NAMES, k=chance.randint(1, 4))) for _ in range(30)}
        said = subprocess.run(
            ["git", "-C", str(tmp_path), "check-ignore", "--no-index", "-z", "--stdin"],
            input="\0".join(paths).encode(),
            stdout=subprocess.PIPE,
        ).stdout
        expected = set(said.decode().split("\0")) - {""}
        assert {p for p in paths if globs.beneath(p)} == expected, patterns
        compared, ignored = compared + len(paths), ignored + len(expected)
    assert compared > 500 and ignored > 50


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("*a" * 120 + "b", "a" * 255),
        ("a*" * 120 + "b", "a" * 255),
        ("**/" + "*a" * 120 + "b", "a" * 255),
        ("**/a*/" * 40 + "b", "a/" * 2000 + "a"),
        ("**/" + "a/" * 120 + "b", "a/" * 2000 + "a"),
        ("**/*a*/" * 30 + "*b", ("a" * 100 + "/") * 40 + "a"),
        ("*[[]" * 60 + "x", "[" * 255),
        ("?*" * 120 + "x", "\udcff" * 255),
        ("**" * 120 + "x", "a" * 255),
        ("*/" * 120 + "x", "a/" * 2000 + "a"),
    ],
)
def test_hostile_patterns_take_no_time(pattern: str, path: str) -> None:
    toml = f"[persist]\nignore = ['{pattern}']\n".encode()
    ignore = Ignore(patterns_of(toml))
    began = time.monotonic()
    for _ in range(20):
        assert not ignore(path, folder=False)
    assert time.monotonic() - began < 10


def test_names_with_newlines_are_matched() -> None:
    ignore = Ignore(("a*",))
    assert ignore("x\ny/node_modules", folder=True)
    assert ignore("a\nb", folder=False)
    assert not ignore("x.pyc\n", folder=False)


def test_bounds_are_told_with_the_remedy() -> None:
    fine = '"' + "x" * MAX_PATTERN + '",'
    assert len(patterns_of(f"[persist]\nignore = [{fine * MAX_PATTERNS}]".encode())) == MAX_PATTERNS
    for bad in (fine * (MAX_PATTERNS + 1), '"' + "x" * (MAX_PATTERN + 1) + '"'):
        with pytest.raises(
            ValueError, match=r"^codevo.toml: \[persist\] ignore holds at most .*fewer folders"
        ):
            patterns_of(f"[persist]\nignore = [{bad}]".encode())
    for bad in ("'a\\'", "3", f"{'9' * 5000}", "[" * 5000):
        with pytest.raises(ValueError, match=r"^codevo.toml: "):
            patterns_of(f"[persist]\nignore = [{bad}]".encode())
    # what made `re` raise an error that is no ValueError, and with it ended every commit
    assert patterns_of(b'[persist]\nignore = ["[z-a]", "[[", "[a--b]", "(", "x{3}"]')
