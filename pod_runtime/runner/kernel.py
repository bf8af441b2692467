"""What every kernel has: clients, what they missed, the current run's record, and who may do what."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from pod_runtime.runner import messages
from pod_runtime.runner.messages import Message, Request
from pod_runtime.runner.times import rfc3339

#: Bounds of what is kept for one absent client, and of a run's record.
MAX_MISSED = 1000
MAX_MISSED_BYTES = 2**20
MAX_RECORD_BYTES = 512 * 1024
MAX_MAILBOXES = 50
#: How long an absent client's messages are kept, seconds.
MISSED_TTL = 600.0


class KernelClient(Protocol):
    """A WebSocket at ``channels``. ``editor`` tells whether it may do more than look."""

    @property
    def editor(self) -> bool: ...

    def deliver(self, message: Message) -> None: ...
    def replaced(self) -> None: ...
    def gone(self) -> None: ...


class Mailbox:
    """What one ``session_id`` of one person gets, whether its socket is there or for the moment not."""

    def __init__(self, keep: bool) -> None:
        self.client: KernelClient | None = None
        self.left_at = 0.0
        self.keep = keep
        self._missed: deque[Message] = deque()
        self._bytes = 0

    def put(self, message: Message) -> None:
        if self.client is not None:
            self.client.deliver(message)
            return
        if not self.keep:
            return
        self._missed.append(message)
        self._bytes += message.size
        while len(self._missed) > MAX_MISSED or self._bytes > MAX_MISSED_BYTES:
            self._bytes -= self._missed.popleft().size

    def take(self) -> list[Message]:
        missed = list(self._missed)
        self._missed.clear()
        self._bytes = 0
        return missed


class Record:
    """The current run's iopub messages: the first two for good, of the rest the newest."""

    def __init__(self) -> None:
        self._head: list[Message] = []
        self._rest: deque[Message] = deque()
        self._bytes = 0

    def add(self, message: Message) -> None:
        if len(self._head) < 2:
            self._head.append(message)
            return
        self._rest.append(message)
        self._bytes += message.size
        while self._bytes > MAX_RECORD_BYTES and len(self._rest) > 1:
            self._bytes -= self._rest.popleft().size

    def messages(self) -> list[Message]:
        return [*self._head, *self._rest]


class Kernel:
    """One kernel; subclasses say what its requests do. ``changed`` is called when its model changes."""

    spec = ""

    def __init__(self, name: str, changed: Callable[[], None]) -> None:
        self.id = str(uuid.uuid4())
        self.name = name
        self.state = "starting"
        self.last_activity = time.time()
        self.session = uuid.uuid4().hex
        self.record = Record()
        self._changed = changed
        self._mailboxes: dict[tuple[str, str], Mailbox] = {}

    @property
    def connections(self) -> int:
        return sum(1 for m in self._mailboxes.values() if m.client is not None)

    def model(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "last_activity": rfc3339(self.last_activity),
            "execution_state": self.state,
            "connections": self.connections,
        }

    def attach(self, client: KernelClient, subject: str, session_id: str, replay: bool) -> Mailbox:
        """Add a client. It gets what its session missed, or with ``replay`` the run from its start."""
        now = time.monotonic()
        for key, old in list(self._mailboxes.items()):
            if old.client is None and now - old.left_at > MISSED_TTL:
                del self._mailboxes[key]
        absent = [k for k, m in self._mailboxes.items() if m.client is None]
        for key in absent[: max(0, len(absent) - MAX_MAILBOXES)]:
            del self._mailboxes[key]
        # a session id is a client's own choice: another person's must not give access to what is kept
        key = (subject, session_id or uuid.uuid4().hex)
        mailbox = self._mailboxes.setdefault(key, Mailbox(keep=bool(session_id)))
        if mailbox.client is not None:
            stale, mailbox.client = mailbox.client, None
            stale.replaced()
        mailbox.client = client
        missed = mailbox.take()
        if replay:
            missed = [*self.record.messages(), *(m for m in missed if m.channel != "iopub")]
        for message in missed:
            client.deliver(message)
        self._changed()
        return mailbox

    def detach(self, client: KernelClient) -> None:
        """Remove a client; unknown and replaced ones are ignored."""
        for key, mailbox in list(self._mailboxes.items()):
            if mailbox.client is client:
                mailbox.client = None
                mailbox.left_at = time.monotonic()
                if not mailbox.keep:
                    del self._mailboxes[key]
                self._changed()

    def broadcast(self, message: Message) -> None:
        """Give a message to every client, present or absent."""
        for mailbox in list(self._mailboxes.values()):
            mailbox.put(message)

    def set_state(self, state: str) -> None:
        if state != self.state:
            self.state = state
            self._changed()

    def close_clients(self) -> None:
        """Let every socket go: the kernel is no more."""
        for mailbox in list(self._mailboxes.values()):
            if mailbox.client is not None:
                mailbox.client.gone()
        self._mailboxes.clear()

    def _make(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any],
        parent: dict[str, Any] | None,
        metadata: dict[str, Any] | None = None,
    ) -> Message:
        return messages.make(
            channel,
            msg_type,
            content,
            session=self.session,
            parent=parent,
            metadata=metadata,
            now=time.time(),
        )

    async def receive(self, client: KernelClient, mailbox: Mailbox, request: Request) -> None:
        """Take one message of a client; what a viewer may not send is answered with an error."""
        if not client.editor and request.msg_type != "kernel_info_request":
            kind = request.msg_type
            reply = kind.removesuffix("_request") + "_reply" if kind.endswith("_request") else "error"
            content = {
                "status": "error",
                "ename": "Forbidden",
                "evalue": "Viewers can watch this program but not control it",
                "traceback": [],
            }
            channel = request.channel if request.channel != "iopub" else "shell"
            mailbox.put(self._make(channel, reply, content, request.header))
            return
        if request.msg_type != "kernel_info_request":
            self.last_activity = time.time()
        await self.handle(mailbox, request)

    async def handle(self, mailbox: Mailbox, request: Request) -> None:
        """Do what an editor (or for ``kernel_info_request`` anybody) asks."""
        raise NotImplementedError

    async def interrupt(self) -> None:
        raise NotImplementedError

    async def restart(self) -> None:
        raise NotImplementedError

    async def shutdown(self) -> None:
        """End the kernel and what it runs; the clients hear ``dead`` and are closed."""
        raise NotImplementedError
