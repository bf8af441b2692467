"""Which ports the workspace's programs listen on, read from /proc."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pod_runtime.runner import project
from pod_runtime.runner.processes import marked, pids

log = logging.getLogger(__name__)

ACTIVE_INTERVAL = 0.3
IDLE_INTERVAL = 2.0
_LISTEN = "0A"


@dataclass(frozen=True)
class Socket:
    """One listening TCP socket."""

    address: str
    port: int
    inode: int


@dataclass
class Port:
    """A port with listeners; ``addresses`` as text, sorted."""

    port: int
    process: str = ""
    pid: int | None = None
    addresses: list[str] = field(default_factory=list)


def parse_address(text: str) -> tuple[str, int]:
    """``0100007F:0BB8`` of /proc/net/tcp, or the 32 digits of tcp6: 32-bit words in the machine's order."""
    host, _, port = text.partition(":")
    raw = bytes.fromhex(host)
    swapped = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
    return str(ipaddress.ip_address(swapped)), int(port, 16)


def parse_listening(table: str) -> list[Socket]:
    """The listening sockets of a /proc/net/tcp or tcp6; lines that are not understood are passed over."""
    found = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == _LISTEN:
            with contextlib.suppress(ValueError):
                address, port = parse_address(fields[1])
                found.append(Socket(address, port, int(fields[9])))
    return found


def listening() -> list[Socket]:
    """The listening sockets of this network namespace."""
    found: list[Socket] = []
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            found += parse_listening(Path(f"/proc/net/{name}").read_text())
    return found


def owners(inodes: set[int]) -> dict[int, int]:
    """The process that holds each socket, where it can be seen."""
    found: dict[int, int] = {}
    for pid in pids():
        try:
            for fd in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    target = os.readlink(fd.path)  # noqa: PTH115 - many, and short
                    if target.startswith("socket:[") and (inode := int(target[8:-1])) in inodes:
                        found.setdefault(inode, pid)
        except OSError:
            continue
        if len(found) == len(inodes):
            break
    return found


def process_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def grouped(sockets: Iterable[Socket], holders: dict[int, int], names: dict[int, str]) -> dict[int, Port]:
    """Sockets by port, in the ports' order."""
    ports: dict[int, Port] = {}
    for socket in sorted(sockets, key=lambda s: (s.port, s.address)):
        port = ports.setdefault(socket.port, Port(socket.port))
        if socket.address not in port.addresses:
            port.addresses.append(socket.address)
        if port.pid is None and (pid := holders.get(socket.inode)) is not None:
            port.pid, port.process = pid, names.get(pid, "")
    return ports


class Ports:
    """Watches the listening ports. ``active`` says whether to look often, ``run_marker`` names the Run."""

    def __init__(
        self,
        workspace: Path,
        *,
        own: set[int],
        active: Callable[[], bool],
        run_marker: Callable[[], str | None],
        changed: Callable[[], None],
    ) -> None:
        self._workspace = workspace
        self._own = own
        self._active = active
        self._run_marker = run_marker
        self._changed = changed
        self._sockets: frozenset[Socket] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._marker: str | None = None
        self._run_ports: list[int] = []
        self._configured: int | None = None
        self._stamp: tuple[int, int] | None = None
        self.ports: dict[int, Port] = {}

    @property
    def main(self) -> int:
        """The port of the main preview (see docs/internals.md)."""
        configured = self._configured or project.DEFAULT_PORT
        if configured in self.ports and self._configured is not None:
            return configured
        return next((p for p in self._run_ports if p in self.ports), configured)

    def event(self) -> dict[str, Any]:
        main = self.main
        ports = [
            {"port": p.port, "process": p.process, "addresses": p.addresses, "main": p.port == main}
            for p in self.ports.values()
        ]
        return {"main": main, "ports": ports}

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._poll())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _poll(self) -> None:
        while True:
            try:
                await self.refresh()
            except Exception:
                log.exception("looking for ports failed")
            for _ in range(round(IDLE_INTERVAL / ACTIVE_INTERVAL)):
                await asyncio.sleep(ACTIVE_INTERVAL)
                if self._active():
                    break

    async def refresh(self) -> None:
        """Look now."""
        sockets, configured = await asyncio.to_thread(self._look)
        marker = self._run_marker()
        if marker != self._marker:
            self._marker, self._run_ports = marker, []
        if sockets != self._sockets:
            self._sockets = sockets
            holders, names, run = await asyncio.to_thread(_identify, sockets, marker)
            self.ports = grouped(sockets, holders, names)
            fresh = [p.port for p in self.ports.values() if p.pid in run and p.port not in self._run_ports]
            self._run_ports = [p for p in self._run_ports if p in self.ports] + fresh
        elif configured == self._configured:
            return
        self._configured = configured
        self._changed()

    def _look(self) -> tuple[frozenset[Socket], int | None]:
        sockets = frozenset(s for s in listening() if s.inode not in self._own)
        return sockets, self._configured_port()

    def _configured_port(self) -> int | None:
        try:
            found = (self._workspace / "codevo.toml").stat()
        except OSError:
            self._stamp = None
            return None
        stamp = (found.st_mtime_ns, found.st_size)
        if stamp == self._stamp:
            return self._configured
        self._stamp = stamp
        try:
            return project.settings(self._workspace).port
        except project.ProjectError:
            return None


def _identify(
    sockets: Iterable[Socket], marker: str | None
) -> tuple[dict[int, int], dict[int, str], set[int]]:
    holders = owners({s.inode for s in sockets})
    names = {pid: process_name(pid) for pid in set(holders.values())}
    return holders, names, set(marked(marker)) if marker else set()
