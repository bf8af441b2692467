"""The runner's WebSockets: terminals, kernel channels, events."""

from __future__ import annotations

import json
import logging

from tornado.web import HTTPError

from pod_runtime.runner import messages
from pod_runtime.runner.context import RunnerHandler
from pod_runtime.runner.kernel import Kernel, Mailbox
from pod_runtime.runner.messages import BadFrame, Message, Request
from pod_runtime.runner.sockets import BoundedSocket
from pod_runtime.runner.terminals import Terminal

log = logging.getLogger(__name__)

CLOSE_NORMAL = 1000
CLOSE_REPLACED = 4000
CLOSE_BAD_FRAME = 1007
_MAX_SIDE = 1000


class TerminalSocket(BoundedSocket, RunnerHandler):
    """``terminals/websocket/{name}``: the frames of jupyter_server_terminals."""

    terminal: Terminal

    def initialize(self) -> None:
        super().initialize()
        self.size: tuple[int | None, int | None] = (None, None)
        self.writable = False

    async def get(self, *args: str, **kwargs: str) -> None:
        name = args[0]
        terminal = self.runner.terminals.terminals.get(name)
        if terminal is None:
            raise HTTPError(404, reason="There is no such terminal")
        self.terminal = terminal
        self.writable = self.editor
        await super().get(*args, **kwargs)

    def opened(self) -> None:
        if self.terminal.dead:
            self.ended()
        else:
            self.terminal.attach(self)

    async def received(self, message: str | bytes) -> None:
        try:
            frame = json.loads(message)
        except (ValueError, RecursionError):
            return
        match frame:
            case ["stdin", str(text)]:
                await self.terminal.type(self, text)
            case ["set_size", int(rows), int(columns), *_] if rows > 0 and columns > 0:
                self.size = (min(rows, _MAX_SIDE), min(columns, _MAX_SIDE))
                self.terminal.resize_to_smallest()

    def drained(self) -> None:
        self.terminal.adjust()

    def closed(self) -> None:
        self.terminal.detach(self)

    def ended(self) -> None:
        """The shell is gone."""
        self.send('["disconnect", 1]')
        self.cut(CLOSE_NORMAL, "The terminal has ended")


class KernelSocket(BoundedSocket, RunnerHandler):
    """``api/kernels/{id}/channels``: Jupyter's protocol in both framings."""

    kernel: Kernel
    mailbox: Mailbox | None

    def initialize(self) -> None:
        super().initialize()
        self.mailbox = None

    async def get(self, *args: str, **kwargs: str) -> None:
        self.kernel = self.runner.kernels.get(args[0])
        await super().get(*args, **kwargs)

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return messages.V1 if messages.V1 in subprotocols else None

    def opened(self) -> None:
        session_id = self.get_query_argument("session_id", "")[:200]
        replay = self.get_query_argument("replay", "") == "1"
        if self.kernel.state == "dead":
            self.gone()
            return
        self.mailbox = self.kernel.attach(self, self.claims.subject, session_id, replay)

    def _parse(self, frame: str | bytes) -> Request:
        if isinstance(frame, str):
            return messages.parse_json(frame)
        if self.selected_subprotocol == messages.V1:
            return messages.parse_v1(frame)
        return messages.parse_binary(frame)

    async def received(self, message: str | bytes) -> None:
        if self.mailbox is None:
            return
        try:
            request = self._parse(message)
        except BadFrame as e:
            self.cut(CLOSE_BAD_FRAME, f"Not a Jupyter message: {e}")
            return
        await self.kernel.receive(self, self.mailbox, request)

    def deliver(self, message: Message) -> None:
        if self.selected_subprotocol == messages.V1:
            self.send(message.v1_frame(), binary=True)
        else:
            frame = message.json_frame()
            self.send(frame, binary=isinstance(frame, bytes))

    def replaced(self) -> None:
        """Another socket of this person has the same session id."""
        self.cut(CLOSE_REPLACED, "Another connection has taken over this session")

    def gone(self) -> None:
        """The kernel is no more."""
        self.cut(CLOSE_NORMAL, "The kernel has ended")

    def closed(self) -> None:
        self.kernel.detach(self)


class EventSocket(BoundedSocket, RunnerHandler):
    """``api/events``: ports, kernels and terminals, on connect and on each change."""

    def opened(self) -> None:
        self.runner.events.attach(self)

    def closed(self) -> None:
        self.runner.events.detach(self)
