"""The project's kernels and Jupyter sessions."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pod_runtime.protocol.config import RunnerConfig
from pod_runtime.runner import program
from pod_runtime.runner.dependencies import Dependencies
from pod_runtime.runner.kernel import Kernel
from pod_runtime.runner.program import ProgramKernel

MAX_SESSIONS = 100


class KernelError(ValueError):
    """A kernel or session cannot be made as asked; ``status`` is the HTTP status that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass
class Session:
    """A Jupyter session: a document's name for a kernel."""

    id: str
    path: str
    name: str
    type: str
    kernel: Kernel

    def model(self) -> dict[str, Any]:
        model = {
            "id": self.id,
            "path": self.path,
            "name": self.name,
            "type": self.type,
            "kernel": self.kernel.model(),
        }
        if self.type == "notebook":
            model["notebook"] = {"path": self.path, "name": self.name}
        return model


class Kernels:
    """Kernels by id. There is at most one ``program`` kernel: making another gives the one there is."""

    def __init__(self, config: RunnerConfig, dependencies: Dependencies, changed: Callable[[], None]) -> None:
        self._config = config
        self._dependencies = dependencies
        self._changed = changed
        self._kernels: dict[str, Kernel] = {}
        self._sessions: dict[str, Session] = {}
        self._last_removed: float | None = None

    @property
    def program(self) -> ProgramKernel | None:
        """The project's Run, if somebody has made its kernel."""
        return next((k for k in self._kernels.values() if isinstance(k, ProgramKernel)), None)

    @property
    def last_activity(self) -> float | None:
        times = [k.last_activity for k in self._kernels.values()]
        return max([*times, *([self._last_removed] if self._last_removed else [])], default=None)

    @property
    def busy(self) -> bool:
        return any(k.state == "busy" for k in self._kernels.values())

    def specs(self) -> dict[str, Any]:
        return {"default": program.NAME, "kernelspecs": {program.NAME: program.kernelspec()}}

    def create(self, name: str | None) -> Kernel:
        """Start a kernel of the spec ``name`` (default ``program``). Raises `KernelError`."""
        if name not in (None, "", program.NAME):
            raise KernelError(404, "There is no kernelspec of this name here")
        kernel: Kernel | None = self.program
        if kernel is None:
            kernel = ProgramKernel(self._config, self._dependencies, self._changed)
            self._kernels[kernel.id] = kernel
            self._changed()
        return kernel

    def get(self, kernel_id: str) -> Kernel:
        try:
            return self._kernels[kernel_id]
        except KeyError:
            raise KernelError(404, "There is no such kernel") from None

    def models(self) -> list[dict[str, Any]]:
        return [k.model() for k in self._kernels.values()]

    async def remove(self, kernel_id: str) -> None:
        """End a kernel and the sessions that use it."""
        kernel = self.get(kernel_id)
        del self._kernels[kernel_id]
        self._last_removed = time.time()
        self._sessions = {i: s for i, s in self._sessions.items() if s.kernel is not kernel}
        await kernel.shutdown()
        self._changed()

    async def shutdown(self) -> None:
        """End all kernels."""
        kernels, self._kernels = list(self._kernels.values()), {}
        self._sessions.clear()
        await asyncio.gather(*(k.shutdown() for k in kernels))

    # --- sessions

    def sessions(self) -> list[dict[str, Any]]:
        return [s.model() for s in self._sessions.values()]

    def session(self, session_id: str) -> Session:
        try:
            return self._sessions[session_id]
        except KeyError:
            raise KernelError(404, "There is no such session") from None

    def _session_kernel(self, wanted: object) -> Kernel:
        if wanted is None:
            return self.create(None)
        if not isinstance(wanted, dict):
            raise KernelError(400, "kernel: expected an object")
        if isinstance(wanted.get("id"), str):
            return self.get(wanted["id"])
        return self.create(_text(wanted, "name"))

    def create_session(self, body: dict[str, Any]) -> Session:
        """The session of ``path``, made when there is none. Raises `KernelError`."""
        path = _text(body, "path") or _text(body.get("notebook") or {}, "path")
        kind = _text(body, "type") or ("notebook" if body.get("notebook") else None)
        if path is None or kind is None:
            raise KernelError(400, "path and type are needed")
        for session in self._sessions.values():
            if session.path == path:
                return session
        if len(self._sessions) >= MAX_SESSIONS:
            raise KernelError(429, f"No more than {MAX_SESSIONS} sessions at a time")
        kernel = self._session_kernel(body.get("kernel"))
        session = Session(str(uuid.uuid4()), path, _text(body, "name") or "", kind, kernel)
        self._sessions[session.id] = session
        return session

    def change_session(self, session_id: str, body: dict[str, Any]) -> Session:
        """Change path, name, type or kernel. Raises `KernelError`."""
        session = self.session(session_id)
        path, name, kind = (_text(body, n) for n in ("path", "name", "type"))
        kernel = self._session_kernel(body["kernel"]) if body.get("kernel") is not None else session.kernel
        session.path = session.path if path is None else path
        session.name = session.name if name is None else name
        session.type = session.type if kind is None else kind
        session.kernel = kernel
        return session

    async def remove_session(self, session_id: str) -> None:
        """End a session, and its kernel unless another session uses it."""
        session = self.session(session_id)
        del self._sessions[session_id]
        if all(s.kernel is not session.kernel for s in self._sessions.values()):
            await self.remove(session.kernel.id)


def _text(body: object, name: str) -> str | None:
    if not isinstance(body, dict):
        raise KernelError(400, "expected an object")
    value = body.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 4096):
        raise KernelError(400, f"{name}: expected text")
    return value
