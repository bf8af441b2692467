"""Archives that people upload, converted into the body of a snapshot. Nothing in them is believed.

Pure but for reading the file that is given: `codevo.objects.unpack` runs this in a process of its own.
`codevo.objects.archive_readers` checks each member; here is what concerns them together: bounds, members of
one path, what stands beneath what, what is left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from codevo.objects.archive_readers import (
    MAX_NAMES,
    TAR_ZST,
    ZIP,
    Bounds,
    Item,
    Refused,
    damage,
    read_tar,
    read_zip,
    too_much,
)
from pod_runtime.journal.format import BodyWriter, Kind
from pod_runtime.journal.ignore import MAX_TOML, Ignore, patterns_of

#: The folder in which `pod_runtime.journal.projects.export` writes the files.
EXPORTED = "workspace"


@dataclass(slots=True)
class Survey:
    """What stands in an archive: for each path the number of its last member, and what it is."""

    last: dict[str, int] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    #: codevo.toml at the root, and at the root of an export.
    settings: dict[str, bytes] = field(default_factory=dict)
    strip: str = ""
    #: bytes of the different names
    names: int = 0
    left_out: int = 0
    files: int = 0
    bytes: int = 0


def convert(file: BinaryIO, kind: str, bounds: Bounds, write: Callable[[bytes], object]) -> Survey:
    """Write the archive's files as the body of a snapshot. Raises `Refused`, mostly before the first write.

    ``file`` is a regular file; ``kind`` is `ZIP` or `TAR_ZST`. A later member replaces an earlier one of the
    same path. What projects never keep (``node_modules`` and such) is left out. A tar.zst in which all
    stands in ``workspace/`` is an export of ours: its files come to where they were.
    """
    read = {ZIP: read_zip, TAR_ZST: read_tar}[kind]
    survey = Survey()
    with damage(kind):
        for item in read(file, bounds):
            _survey(survey, item, bounds)
    _decide(survey, kind)
    out = BodyWriter(write)
    with damage(kind):
        for item in read(file, bounds):
            path = item.member.path
            if survey.last.get(path) == item.number:
                _emit(out, survey, item)
    out.close()
    return survey


def _emit(out: BodyWriter, survey: Survey, item: Item) -> None:
    member = replace(item.member, path=item.member.path.removeprefix(survey.strip))
    out.begin(member)
    if member.kind is not Kind.FILE:
        return
    left = member.size
    for chunk in item.read():
        left -= len(chunk)
        out.data(chunk)
    if left:
        raise EOFError
    survey.files += 1
    survey.bytes += member.size


# -- what stands in it


def _survey(survey: Survey, item: Item, bounds: Bounds) -> None:
    member = item.member
    path = member.path
    survey.bytes += member.size
    if survey.bytes > bounds.unpacked:
        raise too_much(bounds)
    if path not in survey.last:
        survey.names += len(os.fsencode(path))
    if item.number >= bounds.members or survey.names > MAX_NAMES:
        raise Refused(
            f"The archive holds more than {bounds.members} files and folders, or very long names.",
            too_large=True,
        )
    survey.last[path] = item.number
    if member.kind is Kind.DIRECTORY:
        survey.folders.add(path)
    else:
        survey.folders.discard(path)
    if path in ("codevo.toml", f"{EXPORTED}/codevo.toml"):
        survey.settings.pop(path, None)
        if member.kind is Kind.FILE and member.size <= MAX_TOML:
            survey.settings[path] = b"".join(item.read())


def _decide(survey: Survey, kind: str) -> None:
    """Find what is left out, and refuse what cannot be made."""
    paths = survey.last
    survey.bytes = 0  # from here on: of what is kept
    if kind == TAR_ZST and paths and all(p == EXPORTED or p.startswith(EXPORTED + "/") for p in paths):
        if EXPORTED in paths and EXPORTED not in survey.folders:
            raise Refused(f"The archive cannot be taken: {EXPORTED} is no folder.")
        survey.strip = EXPORTED + "/"
        paths.pop(EXPORTED, None)
    ignore = Ignore()
    with suppress(ValueError):  # the workspace says so when it is opened
        ignore = Ignore(patterns_of(survey.settings.get(survey.strip + "codevo.toml", b"")))
    verdicts: dict[str, bool] = {"": False}

    def left_out(folder: str) -> bool:
        if folder not in verdicts:
            verdicts[folder] = left_out(folder.rpartition("/")[0]) or ignore(folder, folder=True)
        return verdicts[folder]

    kept: dict[str, int] = {}
    for path, number in paths.items():
        short = path.removeprefix(survey.strip)
        folder = path in survey.folders
        above = short.rpartition("/")[0]
        _check_parents(survey, path)
        if left_out(short) if folder else left_out(above) or ignore(short, folder=False):
            survey.left_out += 1
        else:
            kept[path] = number
    survey.last = kept


def _check_parents(survey: Survey, path: str) -> None:
    """What holds something is a folder: never a file, and never a link that leads elsewhere."""
    parent = path.rpartition("/")[0]
    while parent:
        if parent in survey.folders:
            return  # it was or will be checked itself
        if parent in survey.last:
            raise Refused(f"The archive cannot be taken: {parent!r} is both a file and a folder.")
        parent = parent.rpartition("/")[0]
