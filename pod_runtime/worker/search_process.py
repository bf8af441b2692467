"""The process that searches: ``python -I -m pod_runtime.worker.search_process WORKSPACE``.

A process of its own, since an expression can take for ever and all memory: it is limited in both, can be
killed at any time, and does not hold up the worker's loop. It has neither the worker's environment nor its
descriptors.

Standard input: one JSON object, `Query` as ``query``, the unsaved texts of open documents by path as
``open``, and ``max_file`` in bytes. Standard output: one JSON object a line. The first is ``{"ready": true}``
or ``{"error": words}``; then one for each file with matches, ``{path, matches: [{line, column, length, text,
start}]}``; the last is ``{"done": true, files, matches, truncated, skipped, stopped?}``, where ``skipped``
counts files that are too large, and ``stopped`` says in words why the search ended early.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from pod_runtime.journal.globs import Globs
from pod_runtime.journal.ignore import MAX_TOML, Ignore, patterns_of
from pod_runtime.worker.safefs import Entry, InvalidPath, Kind, Root, TooLarge, is_temporary
from pod_runtime.worker.search import MAX_PER_FILE, BadQuery, Match, Query, compiled, find

#: Processor time for one file's matching and for everything, seconds; memory, bytes.
FILE_SECONDS, ALL_SECONDS = 2.0, 40
MEMORY = 512 * 2**20
#: Most files and folders that are looked at.
MAX_ENTRIES = 200_000

Send = Callable[[dict[str, Any]], None]


class _TooLong(Exception):
    """One file took longer than `FILE_SECONDS`."""


def search(root: Root, request: dict[str, Any], send: Send) -> None:
    """Answer one request; see the module."""
    try:
        query = Query(**request["query"])
        with _Timer():
            pattern, included = compiled(query), _included(query.include)
    except _TooLong:
        send({"error": "This expression takes too long"})
        return
    except BadQuery as e:
        send({"error": str(e)})
        return
    send({"ready": True})
    files = matches = skipped = 0
    truncated, stopped = False, None
    try:
        for number, entry in enumerate(_entries(root, query.ignored)):
            if number >= MAX_ENTRIES:
                truncated, stopped = True, f"Only the first {MAX_ENTRIES} files were searched"
                break
            with _Timer():
                if entry.kind is not Kind.FILE or not included(entry.path):
                    continue
                try:
                    text = _text(root, entry, request, None if query.regex else query)
                except TooLarge:
                    skipped += 1
                    continue
                if text is None:
                    continue
                # one more than is shown, which tells whether there are more
                room = min(MAX_PER_FILE, query.limit - matches)
                found = list(islice(find(pattern, text, by_line=query.regex), room + 1))
            if found and not room:
                truncated = True
                break
            if found:
                files += 1
                matches += min(len(found), room)
                send(_of_file(entry.path, found, room))
                truncated = truncated or len(found) > room
    except _TooLong:
        truncated, stopped = True, "This expression takes too long"
    except MemoryError:
        truncated, stopped = True, "The search took too much memory"
    end: dict[str, Any] = {"files": files, "matches": matches, "truncated": truncated, "skipped": skipped}
    send({"done": True, **end, **({"stopped": stopped} if stopped else {})})


def _of_file(path: str, found: list[Match], room: int) -> dict[str, Any]:
    answer = {"path": path, "matches": [match.json() for match in found[:room]]}
    return answer if len(found) <= room else {**answer, "truncated": True}


def _text(root: Root, entry: Entry, request: dict[str, Any], literal: Query | None) -> str | None:
    """What the file holds, None when it is no text, is gone, or cannot hold the ``literal``."""
    live = request["open"].get(entry.path)
    if live is not None:
        return str(live)
    try:
        data = root.read_bytes(entry.path, request["max_file"])
    except TooLarge:
        raise
    except (OSError, InvalidPath):
        return None
    if b"\0" in data:
        return None
    if literal is not None and (literal.case or data.isascii()):
        wanted = literal.text.encode("utf-8", "surrogatepass")
        if not (wanted in data if literal.case else wanted.lower() in data.lower()):
            return None
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _entries(root: Root, ignored: bool) -> Iterator[Entry]:
    """All entries, folders before what they hold; ignored ones left out unless wanted."""
    patterns: tuple[str, ...] = ()
    with contextlib.suppress(OSError, ValueError):
        patterns = patterns_of(root.read_bytes("codevo.toml", MAX_TOML))
    ignore = Ignore((".git/", *patterns))

    def skip(entry: Entry) -> bool:
        if is_temporary(entry.path):
            return True
        return not ignored and ignore(entry.path, folder=entry.kind is Kind.DIRECTORY)

    return root.walk(skip=skip)


def _included(include: str) -> Callable[[str], bool]:
    """Whether a file's path is wanted. Raises `BadQuery`."""
    patterns = [part.strip() for part in include.split(",") if part.strip()]
    if not patterns:
        return lambda path: True
    try:
        wanted = Globs([p for p in patterns if not p.startswith("!")] or ["*"])
        unwanted = Globs([p[1:] for p in patterns if p.startswith("!")])
    except ValueError as e:
        raise BadQuery(f"include: {e}") from e
    return lambda path: wanted.beneath(path) and not unwanted.beneath(path)


class _Timer:
    """Raises `_TooLong` inside when that takes too long. Matching looks at signals every few thousand steps,
    so it can be interrupted."""

    def __enter__(self) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, FILE_SECONDS)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _expired(number: int, frame: object) -> None:
    raise _TooLong


def _limit(what: int, value: int) -> None:
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def main() -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGVTALRM, _expired)
    _limit(resource.RLIMIT_CPU, ALL_SECONDS)
    _limit(resource.RLIMIT_AS, MEMORY)
    _limit(resource.RLIMIT_CORE, 0)
    os.nice(5)
    request = json.loads(sys.stdin.buffer.read())
    out = sys.stdout.buffer

    def send(line: dict[str, Any]) -> None:
        # escaped, since names of files may hold lone surrogates
        out.write(json.dumps(line).encode() + b"\n")
        out.flush()

    search(Root(sys.argv[1]), request, send)


if __name__ == "__main__":
    main()
