"""Shared terminals: terminado's, with the faults that its users meet designed out.

Each terminal has a writer of its own, an explicit environment, a replay bounded in bytes, and flow control:
its PTY is not read while its slowest client is over its high-water mark.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import json
import logging
import os
import re
import signal
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from terminado.management import NamedTermManager, PtyWithClients

from pod_runtime.runner.processes import ExitWatch, Reader, Writer, drain, session_members, signal_all
from pod_runtime.runner.replay import Tail, is_terminal_reply
from pod_runtime.runner.times import rfc3339

log = logging.getLogger(__name__)

MAX_TERMINALS = 20
MAX_INPUT = 2**20
#: How long a hung-up shell may take before it is killed, seconds.
KILL_AFTER = 2.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_BASHRC = Path(__file__).with_name("bashrc")


class TerminalError(ValueError):
    """A terminal cannot be made as asked; ``status`` is the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Client(Protocol):
    """One WebSocket at a terminal. ``size`` is (rows, columns), or two times None while unknown."""

    size: tuple[int | None, int | None]
    writable: bool

    @property
    def stalled(self) -> bool: ...
    def send(self, frame: str) -> None: ...
    def ended(self) -> None: ...


class Terminal(PtyWithClients):
    """One shell on a PTY with its clients. Editors type and count for the size; viewers only see."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: str) -> None:
        super().__init__(argv, env, cwd)
        self.cwd = cwd
        self.last_activity = time.time()
        self.tail = Tail()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._fd: int = self.ptyproc.fd
        self._writer = Writer(self._fd, MAX_INPUT)
        self._reader: Reader | None = None
        self.exit = ExitWatch(self.ptyproc.pid)
        self.dead = False

    def start(self, ended: Callable[[], None]) -> None:
        """Begin to read; ``ended`` is called once, when the shell is gone or its PTY is closed."""
        self._reader = Reader(self._fd, self._output, ended)
        self.exit.done.add_done_callback(lambda _: ended())

    def attach(self, client: Client) -> None:
        """Add a client and show it what is on the screen."""
        client.send('["setup", {}]')
        if text := self.tail.text():
            client.send(json.dumps(["stdout", text], ensure_ascii=False))
        self.clients.append(client)
        self.adjust()

    def detach(self, client: Client) -> None:
        """Remove a client; unknown ones are ignored."""
        with contextlib.suppress(ValueError):
            self.clients.remove(client)
        if not self.dead:
            self.resize_to_smallest()
            self.adjust()

    def adjust(self) -> None:
        """Read on or wait, as the slowest editor can bear: a viewer, who may be anybody, holds nobody up."""
        if self._reader is None or self.dead:
            return
        if any(c.stalled and c.writable for c in self.clients):
            self._reader.pause()
        else:
            self._reader.resume()

    def _output(self, data: bytes) -> None:
        self.tail.feed(data)
        text = self._decoder.decode(data)
        if text and self.clients:
            frame = json.dumps(["stdout", text], ensure_ascii=False)
            # a client that is dropped for slowness detaches while we send
            for client in list(self.clients):
                client.send(frame)
            self.adjust()

    async def type(self, client: Client, text: str) -> None:
        """Write what an editor typed; waits only while `MAX_INPUT` bytes are waiting already."""
        if self.dead or not client.writable:
            return
        if is_terminal_reply(text) and client is not next(c for c in self.clients if c.writable):
            # every client's screen answers a query; the program wants one answer
            return
        self.last_activity = time.time()
        if text == "\x03" and self._writer.pending:
            self._interrupt()
            return
        await self._writer.write(text.encode("utf-8", "replace"))

    def _interrupt(self) -> None:
        """Ctrl-C behind input that nobody reads: the key itself would wait for ever, so give the signal."""
        self._writer.clear()
        with contextlib.suppress(OSError, termios.error):
            if termios.tcgetattr(self._fd)[3] & termios.ISIG:
                os.killpg(os.tcgetpgrp(self._fd), signal.SIGINT)

    def resize_to_smallest(self) -> None:
        """The size of the smallest editor's screen."""
        sizes = [c.size for c in self.clients if c.writable and c.size[0] and c.size[1]]
        if sizes and not self.dead:
            wanted = (min(s[0] for s in sizes), min(s[1] for s in sizes))
            with contextlib.suppress(OSError):
                if self.ptyproc.getwinsize() != wanted:
                    self.ptyproc.setwinsize(*wanted)

    def finish(self) -> None:
        """Give the last output to the clients, close the PTY and let the clients go. Idempotent."""
        if self.dead:
            return
        if self._reader is not None:
            self._reader.close()
            data, _ = drain(self._fd, 2**20)
            if data:
                self._output(data)
        self.dead = True
        self._writer.close()
        # not ptyproc.close(): it sleeps. Closing the PTY hangs up whoever still uses it.
        self.ptyproc.closed = True
        self.ptyproc.fileobj.close()
        for client in list(self.clients):
            client.ended()
        self.clients.clear()

    async def hang_up(self) -> None:
        """HUP, then KILL after `KILL_AFTER`, to everything of the terminal's session."""
        sessions = {self.ptyproc.pid}
        members = await asyncio.to_thread(session_members, sessions)
        if self.exit.alive:
            members = [*members, self.ptyproc.pid]
        signal_all(members, signal.SIGHUP)
        signal_all(members, signal.SIGCONT)
        self.finish()
        deadline = time.monotonic() + KILL_AFTER
        while time.monotonic() < deadline:
            if not self.exit.alive and not await asyncio.to_thread(session_members, sessions):
                return
            await asyncio.sleep(0.05)
        signal_all(await asyncio.to_thread(session_members, sessions), signal.SIGKILL)
        self.exit.send(signal.SIGKILL)
        await self.exit.done


class Terminals(NamedTermManager):
    """The project's terminals by name. ``changed`` is called when one comes or goes."""

    terminals: dict[str, Terminal]  # type: ignore[assignment]

    def __init__(
        self, *, shell: str, environment: dict[str, str], workspace: str, changed: Callable[[], None]
    ) -> None:
        argv = [shell, "--rcfile", str(_BASHRC), "-i"] if Path(shell).name == "bash" else [shell, "-i"]
        super().__init__(shell_command=argv, max_terminals=MAX_TERMINALS)
        self._environment = environment
        self._workspace = workspace
        self._changed = changed
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_ended: float | None = None

    def make_term_env(self, *args: Any, **kwargs: Any) -> dict[str, str]:
        """Only what the configuration says, and what the terminal is."""
        return {**self._environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"}

    def create(self, name: str | None, cwd: str | None) -> Terminal:
        """Start a shell. ``cwd`` is beneath the workspace, absolute or relative. Raises `TerminalError`."""
        if len(self.terminals) >= MAX_TERMINALS:
            raise TerminalError(429, f"No more than {MAX_TERMINALS} terminals at a time")
        if name is None:
            name = self._next_available_name() or "1"
        elif not _NAME.fullmatch(name):
            raise TerminalError(400, "name: expected 1 to 64 letters, digits, '.', '_' or '-'")
        elif name in self.terminals:
            raise TerminalError(409, "There is a terminal of this name")
        try:
            terminal = Terminal(list(self.shell_command), self.make_term_env(), self._directory(cwd))
        except OSError as e:
            raise TerminalError(503, f"The shell does not start: {e.strerror or e}") from e
        terminal.term_name = name
        self.terminals[name] = terminal
        terminal.start(lambda: self._ended(terminal))
        self._changed()
        return terminal

    def _directory(self, cwd: str | None) -> str:
        root = Path(self._workspace).resolve()
        if cwd is None:
            return str(root)
        try:
            # Jupyter's paths start with a slash that means the root of the contents
            path = Path(cwd) if Path(cwd).is_relative_to(root) else root / cwd.lstrip("/")
            path = path.resolve()
            if not path.is_relative_to(root) or not path.is_dir():
                raise TerminalError(400, "cwd: expected a folder of the workspace")
        except (OSError, ValueError, RuntimeError) as e:
            if isinstance(e, TerminalError):
                raise
            raise TerminalError(400, "cwd: expected a folder of the workspace") from e
        return str(path)

    def _ended(self, terminal: Terminal) -> None:
        name = terminal.term_name or ""
        if self.terminals.get(name) is not terminal:
            return
        del self.terminals[name]
        self._last_ended = max(self._last_ended or 0.0, terminal.last_activity)
        # what the shell left behind in its session goes with it
        task = asyncio.get_running_loop().create_task(terminal.hang_up())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        terminal.finish()
        self._changed()

    async def remove(self, name: str) -> None:
        """Hang up and forget a terminal. ``KeyError`` when unknown."""
        self._ended(self.terminals[name])

    async def shutdown(self) -> None:
        """Hang up all, and wait until they are gone."""
        for terminal in list(self.terminals.values()):
            self._ended(terminal)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await super().shutdown()

    @property
    def last_activity(self) -> float | None:
        """When somebody last typed or opened one, epoch seconds."""
        times = [t.last_activity for t in self.terminals.values()]
        return max([*times, *([self._last_ended] if self._last_ended else [])], default=None)

    def model(self, terminal: Terminal) -> dict[str, Any]:
        return {"name": terminal.term_name, "last_activity": rfc3339(terminal.last_activity)}

    def models(self) -> list[dict[str, Any]]:
        return [self.model(t) for t in self.terminals.values()]
