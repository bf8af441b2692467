"""Awareness (y-protocols/awareness): who is here, with whose cursor where. Pure.

A message is ``count, (client id, clock, JSON of the state)*`` in variable-length integers and strings. The
states belong to sockets: a state goes when its socket goes, and nobody speaks for somebody else's client.
(pycrdt's own class keeps states for 30 s after their socket, and broadcasts one of the server.)
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from pycrdt import Decoder, write_var_uint

#: Longest awareness message, bytes.
MAX_MESSAGE = 64 * 1024
#: Longest state of one client, bytes of JSON.
MAX_STATE = 16 * 1024
#: Most client ids that one socket may speak for.
MAX_CLIENTS = 8


class BadAwareness(ValueError):
    """The message is malformed or too large."""


@dataclass(frozen=True, slots=True)
class State:
    """One client's state; ``text`` is its JSON, ``"null"`` when it has left."""

    client: int
    clock: int
    text: str


@dataclass(slots=True)
class _Held:
    state: State
    socket: Hashable
    subject: str


def decode(update: bytes) -> list[State]:
    """The states of an awareness update. Raises `BadAwareness`."""
    if len(update) > MAX_MESSAGE:
        raise BadAwareness("awareness message is too large")
    try:
        decoder = Decoder(update)
        found = []
        for _ in range(decoder.read_var_uint()):
            client, clock = decoder.read_var_uint(), decoder.read_var_uint()
            text = decoder.read_var_string()
            if len(text) > MAX_STATE or client >= 2**53 or clock >= 2**53:
                raise BadAwareness("awareness state is too large")
            value = json.loads(text, parse_constant=_no_json)
            if value is not None and not isinstance(value, dict):
                raise BadAwareness("awareness state is not an object")
            found.append(State(client, clock, text))
    except (RuntimeError, IndexError, ValueError, RecursionError) as e:
        raise BadAwareness(str(e)) from e
    return found


def _no_json(constant: str) -> None:
    """NaN and Infinity, which Python reads, would break every browser that hears them."""
    raise BadAwareness(f"awareness state is not JSON: {constant}")


def sign(states: Iterable[State], name: str, role: str) -> list[State]:
    """The states with the person's real name and role, where they say any. Raises `BadAwareness`.

    The conventions are y-codemirror.next's (``user.name``) and Jupyter's (``display_name`` and ``username``
    too). States without ``user`` and ``role`` stay as they are.
    """
    return [_signed(state, name, role) for state in states]


def _signed(state: State, name: str, role: str) -> State:
    value = json.loads(state.text)
    if value is None or not value.keys() & {"user", "role"}:
        return state
    user = value.get("user")
    if isinstance(user, dict):
        user.update(dict.fromkeys(user.keys() & {"display_name", "username"} | {"name"}, name))
    elif user is not None:
        value["user"] = {"name": name}
    if "role" in value:
        value["role"] = role
    try:
        return State(state.client, state.clock, json.dumps(value, allow_nan=False))
    except ValueError as e:
        raise BadAwareness(str(e)) from e


def encode(states: Iterable[State]) -> bytes:
    """An awareness update of ``states``."""
    parts, count = [], 0
    for state in states:
        text = state.text.encode()
        parts += [
            write_var_uint(state.client),
            write_var_uint(state.clock),
            write_var_uint(len(text)),
            text,
        ]
        count += 1
    return b"".join([write_var_uint(count), *parts])


class Presence:
    """The present states of one room."""

    def __init__(self) -> None:
        self._held: dict[int, _Held] = {}

    def states(self) -> list[State]:
        """All that are present."""
        return [h.state for h in self._held.values()]

    def apply(self, socket: Hashable, subject: str, states: Iterable[State]) -> list[State]:
        """Take what ``socket`` of the person ``subject`` says; give what to tell everybody, it included.

        States of other sockets' clients are left out (clients echo what they hear), except when the same
        person's newer clock shows that the client has come back by a new socket.
        """
        accepted = []
        for state in states:
            held = self._held.get(state.client)
            if held is not None and held.socket != socket:
                if held.subject != subject or state.clock <= held.state.clock or state.text == "null":
                    continue
            elif held is not None and state.clock < held.state.clock:
                continue
            if state.text == "null":
                if held is None:
                    continue
                del self._held[state.client]
            elif held is None and sum(h.socket == socket for h in self._held.values()) >= MAX_CLIENTS:
                continue
            else:
                self._held[state.client] = _Held(state, socket, subject)
            accepted.append(state)
        return accepted

    def leave(self, socket: Hashable) -> list[State]:
        """Forget ``socket``'s clients; give the states (null) that say so."""
        gone = [c for c, h in self._held.items() if h.socket == socket]
        return [State(c, self._held.pop(c).state.clock + 1, "null") for c in gone]
