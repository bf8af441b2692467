"""The runner put together: parts, routes, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.web import Application

from pod_runtime.protocol.config import RunnerConfig
from pod_runtime.protocol.tokens import Audience, load_public_key
from pod_runtime.protocol.web import Gatekeeper, common_routes
from pod_runtime.runner import channels, handlers
from pod_runtime.runner.context import Runner, RunnerHandler
from pod_runtime.runner.dependencies import Dependencies
from pod_runtime.runner.events import Events
from pod_runtime.runner.gateway import Gateway
from pod_runtime.runner.idle_page import idle_page
from pod_runtime.runner.kernels import Kernels
from pod_runtime.runner.ports import Ports
from pod_runtime.runner.terminals import Terminals

#: Longest request body and WebSocket message, bytes.
MAX_BODY = 2**20
MAX_MESSAGE = 4 * 2**20

_ID = r"([A-Za-z0-9-]{1,64})"
_NAME = r"([A-Za-z0-9_.-]{1,64})"


def routes() -> list[tuple[str, type[RunnerHandler]]]:
    """The runner's own routes."""
    return [
        (r"/api/?", handlers.Api),
        (r"/api/status", handlers.Status),
        (r"/api/me", handlers.Me),
        (r"/api/terminals", handlers.TerminalList),
        (rf"/api/terminals/{_NAME}", handlers.TerminalItem),
        (rf"/terminals/websocket/{_NAME}", channels.TerminalSocket),
        (r"/api/kernelspecs", handlers.KernelSpecs),
        (rf"/api/kernelspecs/{_NAME}", handlers.KernelSpec),
        (r"/api/kernels", handlers.KernelList),
        (rf"/api/kernels/{_ID}", handlers.KernelItem),
        (rf"/api/kernels/{_ID}/(interrupt|restart)", handlers.KernelAction),
        (rf"/api/kernels/{_ID}/channels", channels.KernelSocket),
        (r"/api/sessions", handlers.SessionList),
        (rf"/api/sessions/{_ID}", handlers.SessionItem),
        (r"/api/ports", handlers.PortList),
        (r"/api/events", channels.EventSocket),
        (r"/_codevo/health", handlers.Health),
        (r"/_codevo/activity", handlers.Activity),
    ]


class App:
    """One runner on its listening sockets."""

    def __init__(self, config: RunnerConfig, listen: socket.socket, gateway: socket.socket) -> None:
        self.config = config
        self._listen = listen
        self.gatekeeper = Gatekeeper(load_public_key(config.public_key), config.project, Audience.RUNNER)
        workspace = Path(config.workspace)
        events = Events()
        self._dependencies = Dependencies(
            workspace, Path(config.dependencies) if config.dependencies else None
        )
        kernels = Kernels(config, self._dependencies, lambda: events.changed("kernels"))
        terminals = Terminals(
            shell=config.shell,
            environment=config.environment,
            workspace=config.workspace,
            changed=lambda: events.changed("terminals"),
        )
        ports = Ports(
            workspace,
            own={os.fstat(s.fileno()).st_ino for s in (listen, gateway)},
            active=lambda: events.listening or kernels.busy,
            run_marker=lambda: kernels.program.marker if kernels.program else None,
            changed=lambda: events.changed("ports"),
        )
        events.add_source("ports", ports.event)
        events.add_source("kernels", lambda: {"kernels": kernels.models()})
        events.add_source("terminals", lambda: {"terminals": terminals.models()})
        self.runner = Runner(config, kernels, terminals, ports, events, time.time())
        self._server: HTTPServer | None = None
        own = frozenset(s.getsockname()[1] for s in (listen, gateway) if s.family != socket.AF_UNIX)
        self._gateway = Gateway(
            gateway, self.gatekeeper, main=lambda: ports.main, refresh=ports.refresh, page=self._idle, own=own
        )

    def _idle(self, port: int) -> bytes:
        program = self.runner.kernels.program
        if program is None:
            return idle_page(port, running=False, ended=None, output="")
        outcome = program.outcome
        ended = outcome.message if outcome is not None and not outcome.ok else None
        return idle_page(port, running=program.busy, ended=ended, output=program.last_output)

    async def start(self) -> None:
        """Serve; returns when ready."""
        application = Application(
            [*common_routes(), *routes()],
            default_handler_class=handlers.NotHere,
            gatekeeper=self.gatekeeper,
            runner=self.runner,
            websocket_max_message_size=MAX_MESSAGE,
            websocket_ping_interval=30,
            log_function=lambda handler: None,
        )
        self._server = HTTPServer(application, max_body_size=MAX_BODY, max_buffer_size=MAX_MESSAGE + 65536)
        self._server.add_sockets([self._listen])
        await self._gateway.start()
        self._dependencies.start()
        self.runner.ports.start()

    async def stop(self) -> None:
        """Hang up terminals and programs, then close."""
        if self._server is not None:
            self._server.stop()
        await self.runner.ports.close()
        await self._gateway.close()
        await asyncio.gather(
            self.runner.terminals.shutdown(), self.runner.kernels.shutdown(), self._dependencies.close()
        )
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await self._server.close_all_connections()
