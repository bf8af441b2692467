"""ProgramKernel: the project's Run as a Jupyter kernel, in any language, with no kernel process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pod_runtime.protocol.config import RunnerConfig
from pod_runtime.runner import project
from pod_runtime.runner.dependencies import Dependencies
from pod_runtime.runner.kernel import Kernel, Mailbox, Record
from pod_runtime.runner.messages import PROTOCOL_VERSION, Request
from pod_runtime.runner.run import (
    INTERRUPT_GRACE,
    MARKER,
    TERMINATE_GRACE,
    Command,
    end_processes,
    stream_environment,
)

log = logging.getLogger(__name__)

NAME = "program"
MAX_QUEUED = 16
#: Characters of the last output kept for the page that tells of a crash.
_LAST_OUTPUT = 8000
_EOF = "\x04"
#: Lines of input taken before there is a program to take them.
_MAX_TYPED = 100


def kernelspec() -> dict[str, Any]:
    """The kernelspec of this kind, as ``api/kernelspecs`` gives it."""
    return {
        "name": NAME,
        "spec": {
            "argv": [],
            "env": {},
            "display_name": "Program",
            "language": "shell",
            "interrupt_mode": "message",
            "metadata": {},
        },
        "resources": {},
    }


@dataclass(frozen=True)
class Outcome:
    """How a run ended. ``code`` is an exit code, negative for a signal, ``None`` when it did not start."""

    code: int | None
    message: str
    duration: float

    @property
    def ok(self) -> bool:
        return self.code == 0


def _describe(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"ended by {signal.Signals(-code).name}"
    return f"ended by signal {-code}"


class ProgramKernel(Kernel):
    """Runs the project, one of its files or a shell command; one at a time, the others queue."""

    def __init__(self, config: RunnerConfig, dependencies: Dependencies, changed: Callable[[], None]) -> None:
        super().__init__(NAME, changed)
        self._config = config
        self._dependencies = dependencies
        self._count = 0
        self._queue: asyncio.Queue[tuple[Mailbox, Request]] = asyncio.Queue(MAX_QUEUED)
        self._command: Command | None = None
        self._request: Request | None = None
        self._stop = asyncio.Event()
        self._stopping: asyncio.Task[None] | None = None
        self._hasten = asyncio.Event()
        self._at_rest = asyncio.Event()
        self._at_rest.set()
        self._sessions: set[int] = set()
        self._typed: list[str] = []
        self.marker: str | None = None
        self.last_output = ""
        self.outcome: Outcome | None = None
        self.set_state("idle")
        self._task = asyncio.get_running_loop().create_task(self._serve())

    # --- requests

    async def handle(self, mailbox: Mailbox, request: Request) -> None:
        kind, content = request.msg_type, request.content
        if kind == "execute_request":
            self._enqueue(mailbox, request)
        elif kind == "input_reply":
            await self._input(content.get("value"))
        elif kind == "interrupt_request":
            await self.interrupt()
            self._answer(mailbox, request, {"status": "ok"})
        elif kind == "shutdown_request":
            restart = content.get("restart") is True
            self._answer(mailbox, request, {"status": "ok", "restart": restart})
            await self._reset()
        elif (answer := self._simple(kind, content)) is not None:
            self._answer(mailbox, request, answer)

    def _simple(self, kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
        """Answers to what clients ask of any kernel; ``None`` = not a question that we know."""
        cursor = content.get("cursor_pos", 0)
        answers: dict[str, dict[str, Any]] = {
            "kernel_info_request": {
                "status": "ok",
                "protocol_version": PROTOCOL_VERSION,
                "implementation": "codevo-program",
                "implementation_version": "1",
                "language_info": {
                    "name": "shell",
                    "version": "1",
                    "mimetype": "text/x-sh",
                    "file_extension": ".sh",
                    "codemirror_mode": "shell",
                },
                "banner": "Codevo program",
                "help_links": [],
                "debugger": False,
            },
            "comm_info_request": {"status": "ok", "comms": {}},
            "history_request": {"status": "ok", "history": []},
            "is_complete_request": {"status": "complete"},
            "inspect_request": {"status": "ok", "found": False, "data": {}, "metadata": {}},
            "complete_request": {
                "status": "ok",
                "matches": [],
                "cursor_start": cursor,
                "cursor_end": cursor,
                "metadata": {},
            },
        }
        return answers.get(kind)

    def _answer(self, mailbox: Mailbox, request: Request, content: dict[str, Any]) -> None:
        self._status("busy", request.header, record=False)
        kind = request.msg_type.removesuffix("_request") + "_reply"
        mailbox.put(self._make(request.channel, kind, content, request.header))
        self._status("idle", request.header, record=False)
        if self._request is not None:
            # clients take the last status for the kernel's: the program still runs
            self._status("busy", self._request.header, record=False)

    def _enqueue(self, mailbox: Mailbox, request: Request) -> None:
        if not isinstance(request.content.get("code"), str):
            self._reply_error(mailbox, request, "BadRequest", "code: expected text")
            return
        try:
            self._queue.put_nowait((mailbox, request))
        except asyncio.QueueFull:
            self._reply_error(mailbox, request, "QueueFull", f"{MAX_QUEUED} runs are waiting already")

    def _reply_error(self, mailbox: Mailbox, request: Request, ename: str, evalue: str) -> None:
        self._answer(
            mailbox,
            request,
            {
                "status": "error",
                "execution_count": self._count,
                "ename": ename,
                "evalue": evalue,
                "traceback": [],
            },
        )

    async def _input(self, value: object) -> None:
        if self._request is None or not isinstance(value, str):
            return
        if self._command is None:
            # typed ahead, while the run is prepared
            if len(self._typed) < _MAX_TYPED:
                self._typed.append(value)
        elif value == _EOF:
            self._command.end_input()
        else:
            await self._command.write(value.encode("utf-8", "replace") + b"\n")

    # --- running

    async def _serve(self) -> None:
        while True:
            mailbox, request = await self._queue.get()
            self._at_rest.clear()
            try:
                await self._execute(mailbox, request)
            except Exception:
                log.exception("a run failed inside the runner")
            finally:
                self._request = None
                self._command = None
                self._at_rest.set()

    def _publish(
        self,
        kind: str,
        content: dict[str, Any],
        parent: dict[str, Any],
        metadata: dict[str, Any] | None = None,
    ) -> None:
        message = self._make("iopub", kind, content, parent, metadata)
        self.record.add(message)
        self.broadcast(message)

    def _status(
        self,
        state: str,
        parent: dict[str, Any] | None,
        *,
        record: bool = True,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        message = self._make("iopub", "status", {"execution_state": state}, parent, metadata)
        if record:
            self.record.add(message)
        self.broadcast(message)

    async def _execute(self, mailbox: Mailbox, request: Request) -> None:
        parent, code = request.header, request.content["code"]
        self.record = Record()
        self._request = request
        self._stop.clear()
        self._hasten.clear()
        self.last_output = ""
        self.outcome = None
        self._count += 1
        self.set_state("busy")
        self._status("busy", parent)
        self._publish("execute_input", {"code": code, "execution_count": self._count}, parent)
        began = time.monotonic()
        self.marker = f"{MARKER}={uuid.uuid4().hex}"
        self._sessions = set()
        self._typed = []
        try:
            exit_code: int | None = await self._run(mailbox, request, code)
            message = _describe(exit_code) if exit_code is not None else "stopped"
        except (project.ProjectError, OSError) as e:
            exit_code, message = None, str(e)
        finally:
            await end_processes(self.marker, self._sessions)
            self.marker = None
            self._command = None
        self._finish(mailbox, request, Outcome(exit_code, message, round(time.monotonic() - began, 3)))

    def _finish(self, mailbox: Mailbox, request: Request, outcome: Outcome) -> None:
        parent = request.header
        self.outcome = outcome
        ename = "ExitCode" if outcome.code is not None else "NotRun"
        error = {"ename": ename, "evalue": outcome.message, "traceback": [outcome.message]}
        details = {"exit_code": outcome.code, "duration": outcome.duration}
        if not outcome.ok:
            self._publish("error", error, parent, details)
        self.last_activity = time.time()
        self._request = None
        self.set_state("idle")
        self._status("idle", parent, metadata=details)
        content: dict[str, Any] = {"execution_count": self._count, **details}
        if outcome.ok:
            content |= {"status": "ok", "payload": [], "user_expressions": {}}
        else:
            content |= {"status": "error", **error}
        mailbox.put(self._make("shell", "execute_reply", content, parent, details))
        if not outcome.ok and request.content.get("stop_on_error", True) is not False:
            self._abort_queued()

    def _abort_queued(self) -> None:
        while not self._queue.empty():
            mailbox, request = self._queue.get_nowait()
            self._answer(mailbox, request, {"status": "aborted", "execution_count": self._count})

    async def _run(self, mailbox: Mailbox, request: Request, code: str) -> int | None:
        """Run all commands of the plan; the exit code of the last one run, ``None`` when stopped before."""
        assert self.marker
        parent = request.header
        root = Path(self._config.workspace)
        base = self._config.environment
        plan = await asyncio.to_thread(project.plan, root, code, base.get("PATH"))
        commands = list(plan.commands)
        if plan.needs_dependencies:
            self._dependencies.start()  # at the runner's start the files may not have been restored yet
            if self._dependencies.working:
                self._emit(parent, "stderr", "Preparing node_modules …\n")
                await self._until_stopped(self._dependencies.wait())
            missing = not (root / "node_modules").is_dir()
            if missing and not plan.installs and not self._stop.is_set():
                commands.insert(0, "npm install --no-audit --no-fund")
        env = {**base, **stream_environment(), "PORT": str(plan.port), **plan.env}
        name, _, value = self.marker.partition("=")
        env[name] = value
        result: int | None = None
        for number, command in enumerate(commands, 1):
            if self._stop.is_set():
                return result
            if len(commands) > 1:
                self._emit(parent, "stderr", f"$ {command}\n")
            ask = (lambda: self._ask(mailbox, parent)) if request.content.get("allow_stdin") else None
            self._command = Command(
                [self._config.shell, "-c", command],
                env,
                root,
                lambda stream, text: self._emit(parent, stream, text),
                ask,
            )
            self._sessions.add(self._command.pid)
            typed, self._typed = self._typed, []
            for line in typed:
                await self._input(line)
            try:
                result = await self._command.wait()
            finally:
                self._command = None
            if result != 0:
                if number < len(commands):
                    self._emit(parent, "stderr", f"{command}: {_describe(result)}\n")
                return result
        return result

    async def _until_stopped(self, waiting: Any) -> None:
        stop = asyncio.ensure_future(self._stop.wait())
        done = asyncio.ensure_future(waiting)
        try:
            await asyncio.wait({stop, done}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            done.cancel()

    def _emit(self, parent: dict[str, Any], stream: str, text: str) -> None:
        self.last_output = (self.last_output + text)[-_LAST_OUTPUT:]
        self._publish("stream", {"name": stream, "text": text}, parent)

    def _ask(self, mailbox: Mailbox, parent: dict[str, Any]) -> None:
        mailbox.put(self._make("stdin", "input_request", {"prompt": "", "password": False}, parent))

    # --- ending

    async def interrupt(self) -> None:
        """Stop the run: INT to its group, TERM after 3 s, KILL after 3 more. Again = the next at once."""
        self.last_activity = time.time()
        if self._request is None:
            return
        self._stop.set()
        if self._stopping is not None and not self._stopping.done():
            self._hasten.set()
            return
        self._stopping = asyncio.get_running_loop().create_task(self._escalate(self._request))

    async def _escalate(self, request: Request) -> None:
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            command = self._command
            if command is None or self._request is not request:
                return
            command.interrupt(sig)
            self._hasten.clear()
            hasten = asyncio.ensure_future(self._hasten.wait())
            waiting: set[asyncio.Future[Any]] = {hasten, command.exit.done}
            await asyncio.wait(
                waiting,
                timeout=INTERRUPT_GRACE,
                return_when=asyncio.FIRST_COMPLETED,
            )
            hasten.cancel()

    async def _reset(self) -> None:
        """End the current run and those that wait."""
        self._stop.set()
        self._abort_queued()
        if self._stopping is not None:
            self._stopping.cancel()
        command = self._command
        if command is not None:
            command.interrupt(signal.SIGTERM)
            done, _ = await asyncio.wait({command.exit.done}, timeout=TERMINATE_GRACE)
            if not done:
                command.interrupt(signal.SIGKILL)
        # the run is tidied up and answered by its own task
        await self._at_rest.wait()

    async def restart(self) -> None:
        """End what runs; the kernel itself stays, and counts from the start."""
        self.last_activity = time.time()
        self.set_state("restarting")
        self._status("restarting", None, record=False)
        await self._reset()
        self._count = 0
        self.set_state("idle")
        self._status("idle", None, record=False)

    async def shutdown(self) -> None:
        await self._reset()
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self.set_state("dead")
        self._status("dead", None, record=False)
        self.close_clients()

    @property
    def busy(self) -> bool:
        return self._request is not None
