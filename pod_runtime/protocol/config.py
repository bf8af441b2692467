"""What a runner and a worker are told at their start.

One JSON document, read from a descriptor or a file (``--config fd:3`` or ``--config /path``), never from
the command line or the environment: both can be read by others on the machine, and the worker's holds keys.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self


class ConfigError(ValueError):
    """The configuration is malformed; the text names the field."""


@dataclass(frozen=True, slots=True)
class _Config:
    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse; unknown and missing fields are errors that name the field."""
        try:
            raw = json.loads(text)
        except ValueError as e:
            raise ConfigError(f"{cls.__name__}: not JSON") from e
        if not isinstance(raw, dict):
            raise ConfigError(f"{cls.__name__}: expected an object")
        return cls.from_dict(raw)

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        known = {f.name: f for f in dataclasses.fields(cls)}
        for name in raw:
            if name not in known:
                raise ConfigError(f"{cls.__name__}.{name}: unknown field")
        for name, f in known.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if required and name not in raw:
                raise ConfigError(f"{cls.__name__}.{name}: missing")
        return cls(**raw)

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True)
class StoreConfig(_Config):
    """Where one project's objects live. ``prefix`` ends with a slash: ``projects/{id}/``."""

    endpoint_url: str
    bucket: str
    prefix: str
    access_key_id: str = field(repr=False)
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)
    region: str = "auto"


@dataclass(frozen=True, slots=True)
class WorkerConfig(_Config):
    """``generation`` is given by the hub for each start and only grows; it fences stale writers.

    ``workspace`` and ``state`` are absolute paths; ``state`` is the worker's own, unseen by user code.
    Times are seconds, sizes bytes.
    """

    project: str
    public_key: str
    generation: int
    store: StoreConfig
    workspace: str = "/workspace"
    state: str = "/state"
    flush_quiet: float = 1.0
    flush_max: float = 3.0
    max_document: int = 4 * 2**20
    max_documents: int = 200
    max_workspace: int = 2 * 2**30

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Self:
        # not super(): a slots dataclass is a new class, and zero-argument super() still means the old one
        if isinstance(raw.get("store"), dict):
            raw = {**raw, "store": StoreConfig.from_dict(raw["store"])}
        return _Config.from_dict.__func__(cls, raw)  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True, slots=True)
class RunnerConfig(_Config):
    """What the runner needs; nothing here is secret, since user code can read it.

    ``environment`` is the whole environment of shells and programs (PATH, HOME, LANG …): nothing is
    inherited. ``dependencies`` is a read-only folder with prepared ``node_modules`` by lock-file hash.
    """

    project: str
    public_key: str
    workspace: str = "/workspace"
    environment: dict[str, str] = field(default_factory=dict)
    shell: str = "/bin/bash"
    dependencies: str | None = None


def read_config(source: str) -> bytes:
    """Read the bytes of ``--config``: ``fd:N`` (read to its end, then closed) or a path."""
    if source.startswith("fd:"):
        with os.fdopen(int(source[3:]), "rb") as f:
            return f.read()
    return Path(source).read_bytes()


def listening_socket(address: str) -> socket.socket:
    """The socket of ``--listen``: ``fd:N`` (inherited, already listening) or ``tcp:HOST:PORT``."""
    if address.startswith("fd:"):
        sock = socket.socket(fileno=int(address[3:]))
    elif address.startswith("tcp:"):
        host, _, port = address[4:].rpartition(":")
        sock = socket.create_server((host, int(port)), backlog=128)
    else:
        raise ConfigError(f"--listen: expected fd:N or tcp:HOST:PORT, got {address!r}")
    sock.setblocking(False)
    os.set_inheritable(sock.fileno(), False)
    return sock
