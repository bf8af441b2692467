"""The supervisor's own socket: newline-delimited JSON, one request a line, only for the hub's user."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATH_MAX = 107  # bytes of sun_path without its final zero
_REQUEST_MAX = 65536
_CLIENTS_MAX = 16


def bind_listener(directory: str, name: str) -> socket.socket:
    """A listening Unix socket ``directory/name`` of mode 0600, in place of what stood there.

    A path too long for a socket's address is bound through ``/proc/self/fd``.
    """
    path = f"{directory}/{name}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    mask = os.umask(0o177)
    fd = -1
    try:
        if len(os.fsencode(path)) > PATH_MAX:
            fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            path = f"/proc/self/fd/{fd}/{name}"
        listener.bind(path)
    finally:
        os.umask(mask)
        if fd >= 0:
            os.close(fd)
    listener.listen(128)
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid: int = struct.unpack("iII", credentials)[1]
    return uid


class Client:
    """One connection. A client that does not read what it is sent is dropped."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.events = False
        self.closed = False
        self._buffer = b""
        connection.setblocking(False)

    def fileno(self) -> int:
        return self.connection.fileno()

    def requests(self) -> list[dict[str, Any]]:
        """The requests that have arrived; closes itself at the end or on nonsense."""
        try:
            data = self.connection.recv(65536)
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            self.close()
            return []
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        requests = []
        try:
            if len(self._buffer) > _REQUEST_MAX:
                raise ValueError("too long")
            for line in lines:
                request = json.loads(line)
                if not isinstance(request, dict):
                    raise ValueError("not an object")
                requests.append(request)
        except ValueError:
            self.send({"error": "expected one JSON object a line"})
            self.close()
        return requests

    def send(self, message: dict[str, Any]) -> None:
        if self.closed:
            return
        data = json.dumps(message).encode() + b"\n"
        try:
            sent = self.connection.send(data)
        except OSError:
            sent = 0
        if sent < len(data):
            self.close()

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.connection.close()


class Control:
    """The listener and its clients."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.clients: list[Client] = []
        listener.setblocking(False)

    def accept(self) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        if peer_uid(connection) != os.geteuid() or len(self.clients) >= _CLIENTS_MAX:
            connection.close()
            return
        self.clients.append(Client(connection))

    def forget_closed(self) -> None:
        self.clients = [c for c in self.clients if not c.closed]

    def publish(self, message: dict[str, Any]) -> None:
        for client in self.clients:
            if client.events:
                client.send(message)
