"""The supervisor's loop: one state, members that are restarted, a control socket, an orderly end."""

from __future__ import annotations

import os
import select
import signal
import time

from pod_runtime.supervisor import cgroups, linux
from pod_runtime.supervisor.control import Control
from pod_runtime.supervisor.logs import Log
from pod_runtime.supervisor.member import Member
from pod_runtime.supervisor.workspace import Workspace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Runner first, so that what its programs write at their end is part of the worker's last flush.
_RUNNER_GRACE = 4.0
_GRACE_DEFAULT = 30.0
_GRACE_MAX = 300.0
_DEATH_SECONDS = 10.0
# The worker's exit code for: another worker has taken over (pod_runtime.worker.persistence). Never restarted.
_FENCED = 3
# Who writes this much at once waits a moment before more is read: a flood of lines costs the host little.
_FLOOD = 32768
_FLOOD_PAUSE = 0.01


class Supervisor:
    """One workspace from start to end. ``state`` is ``starting``, ``ready``, ``stopping`` or ``failed``."""

    def __init__(self, workspace: Workspace, control: Control, log: Log) -> None:
        self._workspace = workspace
        self._control = control
        self._log = log
        self._started = time.time()
        self._state = "starting"
        self._reason = ""
        self._timers: dict[str, tuple[float, Callable[[], None]]] = {}
        linux.adopt_orphans()
        self._wakeup, writer = os.pipe()
        for fd in (self._wakeup, writer):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(writer)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def start(self) -> str:
        """Start everything; gives what went wrong, for people, or ""."""
        try:
            self._workspace.prepare()
            self._workspace.start(["worker", "runner"])
        except (OSError, RuntimeError) as e:
            self._end()
            tail = [*self._workspace.runner.lines.tail, *self._workspace.worker.lines.tail]
            return ": ".join([str(e), *tail[-3:]])
        self._state = "ready"
        return ""

    def status(self) -> dict[str, Any]:
        """What `poll` tells the hub."""
        w = self._workspace
        pids = {"supervisor": os.getpid(), "runner": w.runner.program(), "worker": w.worker.program()}
        return {
            "project": w.spec["project"],
            "generation": w.spec["generation"],
            "hash": w.spec["hash"],
            "address": w.spec["address"],
            "state": self._state,
            "reason": self._reason,
            "started": self._started,
            "pids": {name: pid for name, pid in {**pids, "network": w.helper.pid}.items() if pid},
            "restarts": {"runner": w.runner.restarts, "worker": w.worker.restarts},
            "warnings": w.warnings,
        }

    def run(self) -> None:
        """Serve until stopped; afterwards nothing of the workspace runs."""
        while self._state != "stopped":
            self._turn()
        self._end()

    def _members(self) -> list[Member]:
        return [
            m for m in (self._workspace.runner, self._workspace.worker, self._workspace.helper) if m.running
        ]

    def _turn(self) -> None:
        poll = select.poll()
        actions: dict[int, Callable[[], None]] = {}

        def watch(fd: int, action: Callable[[], None]) -> None:
            poll.register(fd, select.POLLIN)
            actions[fd] = action

        watch(self._wakeup, self._on_signal)
        watch(self._control.listener.fileno(), self._control.accept)
        for client in self._control.clients:
            watch(client.fileno(), lambda c=client: self._on_client(c))  # type: ignore[misc]
        for member in self._members():
            watch(member.pidfd, lambda m=member: self._on_exit(m))  # type: ignore[misc]
            if member.output >= 0 and not member.paused:
                watch(member.output, lambda m=member: self._on_output(m))  # type: ignore[misc]
        due = min((at for at, _ in self._timers.values()), default=None)
        timeout = None if due is None else max(0.0, due - time.monotonic()) * 1000 + 1
        for fd, _ in poll.poll(timeout):
            actions[fd]()
        now = time.monotonic()
        for name, (at, action) in list(self._timers.items()):
            # an action before may have replaced or cancelled this one
            if at <= now and self._timers.get(name) == (at, action):
                del self._timers[name]
                action()
        self._control.forget_closed()

    def _later(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._timers[name] = (time.monotonic() + seconds, action)

    def _on_output(self, member: Member) -> None:
        if member.output < 0:
            return
        size = member.read()
        if not size:
            member.close_output()
        elif size > _FLOOD:
            member.paused = True
            self._later(f"{member.name}-output", _FLOOD_PAUSE, lambda: setattr(member, "paused", False))

    def _on_signal(self) -> None:
        if os.read(self._wakeup, 64).strip(bytes([signal.SIGCHLD])):
            self._stop(_GRACE_DEFAULT)

    def _on_client(self, client: Any) -> None:
        for request in client.requests():
            command = request.get("command")
            if command in ("status", "events"):
                client.events = client.events or command == "events"
                client.send(self.status())
            elif command == "stop":
                client.events = True
                grace = request.get("grace", _GRACE_DEFAULT)
                self._stop(float(grace) if isinstance(grace, int | float) else _GRACE_DEFAULT)
            else:
                client.send({"error": "unknown command"})

    def _change(self, state: str, reason: str = "") -> None:
        self._state, self._reason = state, reason
        self._log.write("supervisor", f"{state} {reason}".strip())
        self._control.publish(self.status())

    def _on_exit(self, member: Member) -> None:
        if not member.running:
            return
        how = member.reap()
        self._log.write("supervisor", f"{member.name} ended: {how}")
        w = self._workspace
        if member is w.runner:
            w.disconnect()
        if self._state == "stopping":
            self._stop_next()
        elif self._state == "ready":
            self._restart_later(member, how)

    def _restart_later(self, member: Member, how: str) -> None:
        if member is self._workspace.worker and member.exit_code == _FENCED:
            self._kill_all()
            self._change("failed", "the workspace was started somewhere else, and this copy of it has ended")
            return
        delay = member.crashed(time.monotonic())
        if member is self._workspace.helper:
            if self._workspace.connected and delay is not None:
                self._later("network", delay, self._workspace.start_helper)
            return
        if delay is None:
            self._fail(member, how)
        else:
            self._later(member.name, delay, lambda: self._restart(member))
            self._control.publish(self.status())

    def _restart(self, member: Member) -> None:
        if self._state != "ready" or member.running:
            return
        try:
            self._workspace.start([member.name])
        except (OSError, RuntimeError) as e:
            self._log.write("supervisor", str(e))
            if not member.running:
                self._restart_later(member, str(e))
            return
        self._control.publish(self.status())

    def _fail(self, member: Member, how: str) -> None:
        self._kill_all()
        lines = " | ".join(member.lines.tail)
        self._change("failed", f"the {member.name} keeps ending ({how}). {lines}".strip())

    def _stop(self, grace: float) -> None:
        """SIGTERM to the runner, then to the worker; SIGKILL when ``grace`` seconds are over. Repeatable."""
        grace = min(max(grace, 0.0), _GRACE_MAX)
        first = self._state != "stopping"
        if first or grace == 0:
            self._later("grace", grace, self._kill_all_and_stop)
        if first:
            self._timers.pop("runner", None)
            self._timers.pop("worker", None)
            self._change("stopping")
            if grace and self._workspace.runner.running:
                self._later("runner-grace", min(_RUNNER_GRACE, grace), self._workspace.runner.kill)
                self._workspace.runner.terminate()
            elif grace:
                self._stop_next()

    def _stop_next(self) -> None:
        w = self._workspace
        if w.runner.running:
            return
        if not w.worker.running:
            self._state = "stopped"
        elif "worker-asked" not in self._timers:
            self._later("worker-asked", _GRACE_MAX, lambda: None)
            w.worker.terminate()

    def _kill_all_and_stop(self) -> None:
        self._kill_all()
        self._state = "stopped"

    def _kill_all(self) -> None:
        w = self._workspace
        for member in (w.runner, w.worker):
            if member.running:
                member.kill()
                if select.select([member.pidfd], [], [], _DEATH_SECONDS)[0]:
                    member.reap()
        w.disconnect()

    def _end(self) -> None:
        self._kill_all()
        cgroups.remove(self._workspace.groups)
        self._log.write("supervisor", "stopped")
        for client in self._control.clients:
            client.send({"stopped": True})
