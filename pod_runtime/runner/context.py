"""What the runner's handlers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from tornado.web import HTTPError

from pod_runtime.protocol.config import RunnerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.web import PodHandler
from pod_runtime.runner.events import Events
from pod_runtime.runner.kernels import KernelError, Kernels
from pod_runtime.runner.ports import Ports
from pod_runtime.runner.terminals import TerminalError, Terminals


@dataclass
class Runner:
    """The parts of one runner."""

    config: RunnerConfig
    kernels: Kernels
    terminals: Terminals
    ports: Ports
    events: Events
    started: float

    @property
    def last_activity(self) -> float | None:
        """When somebody last typed or ran something, epoch seconds."""
        times = (self.terminals.last_activity, self.kernels.last_activity)
        return max((t for t in times if t is not None), default=None)


class RunnerHandler(PodHandler):
    """Base of the runner's handlers."""

    @property
    def runner(self) -> Runner:
        return cast(Runner, self.application.settings["runner"])

    @property
    def editor(self) -> bool:
        return self.claims.role.allows(Role.EDITOR)

    def log_exception(self, *args: Any) -> None:
        if not isinstance(args[1], TerminalError | KernelError):
            super().log_exception(*args)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Our own errors say which status and which words."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, TerminalError | KernelError):
            problem = HTTPError(error.status, reason=str(error))
            kwargs["exc_info"] = (HTTPError, problem, None)
            status_code = error.status
        super().send_error(status_code, **kwargs)
