"""Jupyter's Contents API as functions over the files (blocking; handlers call them in threads).

Models are those of Jupyter Server's contents service: ``name path type created last_modified content format
mimetype size writable hash hash_algorithm``.
"""

from __future__ import annotations

import base64
import binascii
import errno
import json
import mimetypes
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pod_runtime.worker.safefs import (
    DiskFull,
    Entry,
    InvalidPath,
    Kind,
    NotRegular,
    Root,
    TooLarge,
    check_path,
    is_temporary,
    join,
    kind_of,
)
from pod_runtime.worker.textfile import NotText, TextFile, sha256

Model = dict[str, Any]

#: Entries of a folder that are listed; the model says ``truncated`` when there are more.
MAX_ENTRIES = 5_000
#: Largest file that is answered inside JSON, bytes; larger ones stream at ``files/``.
MAX_CONTENT = 64 * 2**20
#: Largest file that is copied, bytes.
MAX_COPY = 2 * 2**30
CHECKPOINT_ID = "checkpoint"


class ContentsError(Exception):
    """``status`` and words for the client."""

    def __init__(self, status: int, words: str) -> None:
        super().__init__(words)
        self.status = status


@contextmanager
def errors(path: str) -> Iterator[None]:
    """Turn what goes wrong with a file into a `ContentsError` that names it."""
    try:
        yield
    except InvalidPath as e:
        raise ContentsError(400, str(e)) from e
    except DiskFull as e:
        raise ContentsError(507, f"{path}: the disk is full") from e
    except TooLarge as e:
        raise ContentsError(413, f"{path}: {e.strerror}; read it at files/") from e
    except NotRegular as e:
        raise ContentsError(403, f"{path}: {e.strerror}") from e
    except FileNotFoundError as e:
        raise ContentsError(404, f"No such file or directory: {path}") from e
    except FileExistsError as e:
        raise ContentsError(409, f"File already exists: {path}") from e
    except (NotADirectoryError, IsADirectoryError) as e:
        raise ContentsError(400, f"{path}: {e.strerror}") from e
    except PermissionError as e:
        raise ContentsError(403, f"{path}: {e.strerror}") from e
    except OSError as e:
        status = 400 if e.errno in (errno.ENAMETOOLONG, errno.EINVAL) else 500
        raise ContentsError(status, f"{path}: {e.strerror}") from e


def clean(path: str) -> str:
    """An API path (slashes around it are allowed) as a path beneath the root. Raises `ContentsError` 400."""
    stripped = path.strip("/")
    with errors(path):
        check_path(stripped)
    if is_temporary(stripped):
        raise ContentsError(404, f"No such file or directory: {path}")
    return stripped


def mimetype(path: str) -> str | None:
    """By the name alone."""
    return mimetypes.guess_type(path)[0]


def _time(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _base(path: str, st: os.stat_result, kind: str) -> Model:
    return {
        "name": path.rpartition("/")[2],
        "path": path,
        "last_modified": _time(st.st_mtime),
        "created": _time(st.st_ctime),
        "content": None,
        "format": None,
        "mimetype": None,
        "size": None if kind == "directory" else st.st_size,
        "writable": bool(st.st_mode & 0o200),
        "hash": None,
        "hash_algorithm": None,
        "type": kind,
    }


def _api_type(path: str, kind: Kind) -> str:
    if kind is Kind.DIRECTORY:
        return "directory"
    return "notebook" if path.endswith(".ipynb") else "file"


def _entry(entry: Entry) -> Model:
    model = _base(entry.path, entry.stat, _api_type(entry.path, entry.kind))
    if entry.kind is Kind.FILE:
        model["mimetype"] = mimetype(entry.path)
    elif entry.kind is not Kind.DIRECTORY:
        # shown, so that nobody wonders, but nothing reads or follows it
        model |= {"writable": False, "special": str(entry.kind)}
    return model


def get(
    root: Root,
    path: str,
    *,
    content: bool = True,
    type: str | None = None,
    format: str | None = None,
    hash: bool = False,
) -> Model:
    """The model of a file or folder."""
    with errors(path):
        st = root.lstat(path)
        kind = kind_of(st)
        if kind is Kind.DIRECTORY:
            if type not in (None, "directory"):
                raise ContentsError(400, f"{path} is a directory, not a {type}")
            return _get_directory(root, path, st, content)
        if type == "directory":
            raise ContentsError(400, f"{path} is not a directory")
        if kind is not Kind.FILE:
            raise ContentsError(403, f"{path}: this is not a regular file")
        # a notebook is one only when it is not asked for as a file
        model = _base(path, st, type or _api_type(path, kind))
        model["mimetype"] = mimetype(path)
        if content or hash:
            data, st = root.read_with_stat(path, MAX_CONTENT)
            if hash:
                model |= {"hash": sha256(data), "hash_algorithm": "sha256"}
            model |= {"size": st.st_size, "last_modified": _time(st.st_mtime)}
            if content:
                _fill(model, data, format)
        return model


def _get_directory(root: Root, path: str, st: os.stat_result, content: bool) -> Model:
    model = _base(path, st, "directory")
    if content:
        entries, more = root.listdir(path, limit=MAX_ENTRIES)
        model["content"] = [_entry(e) for e in sorted(entries, key=lambda e: e.path)]
        model["format"] = "json"
        if more:
            model |= {"truncated": True, "message": f"Only {MAX_ENTRIES} entries are shown"}
    return model


def _fill(model: Model, data: bytes, format: str | None) -> None:
    if model["type"] == "notebook":
        try:
            model |= {"content": json.loads(data), "format": "json", "mimetype": None}
        except ValueError as e:
            raise ContentsError(400, f"Unreadable notebook: {model['path']}") from e
        return
    if format != "base64":
        try:
            TextFile.decode(data)
        except NotText as e:
            if format == "text":
                raise ContentsError(400, f"{model['path']}: {e}") from e
        else:
            model |= {"content": data.decode(), "format": "text"}
            model["mimetype"] = model["mimetype"] or "text/plain"
            return
    model |= {"content": base64.encodebytes(data).decode("ascii"), "format": "base64"}
    model["mimetype"] = model["mimetype"] or "application/octet-stream"


def body_bytes(model: Model) -> bytes:
    """The bytes of a PUT model's content. Raises `ContentsError` 400."""
    content, format = model.get("content"), model.get("format")
    if model.get("type") == "notebook":
        if not isinstance(content, dict):
            raise ContentsError(400, "content: expected a notebook as an object")
        return (json.dumps(content, ensure_ascii=False, indent=1, sort_keys=True) + "\n").encode()
    if not isinstance(content, str):
        raise ContentsError(400, "content: expected text")
    try:
        if format == "base64":
            # broken into lines is well-formed, anything else that is no base64 would be lost without a word
            return base64.b64decode("".join(content.split()).encode("ascii"), validate=True)
        if format in (None, "text"):
            return content.encode()
    except (binascii.Error, UnicodeError) as e:
        raise ContentsError(400, f"content: {e}") from e
    raise ContentsError(400, f"format: expected text or base64, got {format!r}")


def save(root: Root, path: str, model: Model) -> tuple[Model, bool]:
    """PUT: write a file or make a folder; the new model without content, and whether it was created."""
    kind = model.get("type") or "file"
    if kind not in ("file", "directory", "notebook"):
        raise ContentsError(400, f"type: unknown type {kind!r}")
    chunk = model.get("chunk")
    with errors(path):
        existed = root.exists(path)
        if kind == "directory":
            if not existed:
                root.mkdir(path)
            elif kind_of(root.lstat(path)) is not Kind.DIRECTORY:
                raise ContentsError(400, f"Not a directory: {path}")
            return get(root, path, content=False), not existed
        data = body_bytes(model)
        if chunk is not None and chunk != 1:
            with root.create_atomic(path) as f:
                # chunks after the first are appended; each request leaves a whole file
                for piece in _pieces(root, path):
                    f.write(piece)
                f.write(data)
                f.commit()
        else:
            root.write_atomic(path, data)
        return get(root, path, content=False, type=kind), not existed


def _pieces(root: Root, path: str) -> Iterator[bytes]:
    fd = root.open_read(path)
    with os.fdopen(fd, "rb") as f:
        while piece := f.read(1 << 20):
            yield piece


_COPY_SUFFIX = re.compile(r"-Copy\d*$")


def free_name(root: Root, folder: str, stem: str, ext: str, insert: str = "") -> str:
    """The first of ``stem.ext``, ``stem{insert}1.ext`` … that does not exist in ``folder``."""
    for n in range(10_000):
        name = join(folder, f"{stem}{insert if n else ''}{n or ''}{ext}")
        if not root.exists(name):
            return name
    raise ContentsError(409, f"{folder}: no free name is left")


def create(root: Root, folder: str, model: Model) -> Model:
    """POST on a folder: ``{copy_from}``, or ``{type, ext}`` for a new untitled one."""
    with errors(folder):
        if kind_of(root.lstat(folder)) is not Kind.DIRECTORY:
            raise ContentsError(400, f"Not a directory: {folder}")
        source = model.get("copy_from")
        if source is not None:
            if not isinstance(source, str):
                raise ContentsError(400, "copy_from: expected a path")
            return _copy(root, clean(source), folder)
        kind, ext = model.get("type") or "file", model.get("ext") or ""
        if not isinstance(ext, str) or "/" in ext:
            raise ContentsError(400, "ext: expected a suffix such as .txt")
        if ext and not ext.startswith("."):
            ext = "." + ext
        if kind == "directory":
            path = free_name(root, folder, "Untitled Folder", "", " ")
            root.mkdir(path)
        elif kind == "notebook":
            path = free_name(root, folder, "Untitled", ".ipynb")
            root.write_atomic(path, b'{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}\n')
        elif kind == "file":
            path = free_name(root, folder, "untitled", ext)
            root.write_atomic(path, b"")
        else:
            raise ContentsError(400, f"type: unknown type {kind!r}")
        return get(root, path, content=False)


def _copy(root: Root, source: str, folder: str) -> Model:
    with errors(source):
        st = root.lstat(source)
        if kind_of(st) is Kind.DIRECTORY:
            raise ContentsError(400, f"Can't copy a directory: {source}")
        if st.st_size > MAX_COPY:
            raise ContentsError(413, f"{source} is too large to be copied")
        stem, dot, ext = source.rpartition("/")[2].partition(".")
        stem = _COPY_SUFFIX.sub("", stem)
        target = free_name(root, folder, stem, dot + ext, "-Copy")
        with root.create_atomic(target, mode=st.st_mode & 0o777) as f:
            for piece in _pieces(root, source):
                f.write(piece)
            f.commit()
        return get(root, target, content=False)


def rename(root: Root, old: str, new: str) -> Model:
    """PATCH: move; 409 when something is there."""
    with errors(old):
        if not old or not new:
            raise ContentsError(400, "The root folder itself cannot be moved")
        if old != new:
            if new.startswith(old + "/"):
                raise ContentsError(400, f"{old} cannot be moved into itself")
            root.lstat(old)
            with errors(new):
                root.rename(old, new)
        st = root.lstat(new)
        if kind_of(st) in (Kind.FILE, Kind.DIRECTORY):
            return get(root, new, content=False)
        # what nothing reads can be moved all the same, and has been
        return _entry(Entry(new, st))


def delete(root: Root, path: str) -> None:
    """DELETE: a file, or a folder with all it holds."""
    with errors(path):
        root.rmtree(path)


@dataclass(frozen=True, slots=True)
class Checkpoints:
    """One checkpoint a file, in the worker's own /state: what Jupyter's clients make on each save."""

    folder: Path

    def _file(self, path: str) -> Path:
        return self.folder / sha256(os.fsencode(path))[:40]

    def create(self, root: Root, path: str) -> Model:
        """Keep the present content."""
        with errors(path):
            data = root.read_bytes(path, MAX_CONTENT)
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh = self._file(path).with_suffix(".new")
            fresh.write_bytes(data)
            fresh.replace(self._file(path))
        return self.list(path)[0]

    def list(self, path: str) -> list[Model]:
        try:
            st = self._file(path).stat()
        except FileNotFoundError:
            return []
        return [{"id": CHECKPOINT_ID, "last_modified": _time(st.st_mtime)}]

    def restore(self, root: Root, path: str) -> None:
        """Write the kept content back."""
        try:
            data = self._file(path).read_bytes()
        except FileNotFoundError as e:
            raise ContentsError(404, f"No checkpoint of {path}") from e
        with errors(path):
            root.write_atomic(path, data)

    def delete(self, path: str) -> None:
        try:
            self._file(path).unlink()
        except FileNotFoundError as e:
            raise ContentsError(404, f"No checkpoint of {path}") from e
