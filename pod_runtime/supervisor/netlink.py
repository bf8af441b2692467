"""Routes and addresses by rtnetlink(7), in the network namespace of the calling process."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time

_NEWROUTE, _DELROUTE, _GETADDR = 24, 25, 22
_REQUEST, _ACK, _DUMP, _CREATE, _REPLACE = 1, 4, 0x300, 0x400, 0x100
_ERROR, _DONE = 2, 3
_GET_FLAGS, _UP = 0x8913, 1  # SIOCGIFFLAGS, IFF_UP
_UNICAST, _PROHIBIT = 1, 8
_ONLINK = 4
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253


def parse_network(text: str) -> tuple[int, bytes, int]:
    """``10.0.0.0/8`` or ``fd00::/8`` (a lone address is one host) as (family, packed, prefix length)."""
    address, _, length = text.partition("/")
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    bits = int(length) if length else len(packed) * 8
    if not 0 <= bits <= len(packed) * 8:
        raise ValueError(f"not a network: {text}")
    # the kernel refuses a destination with bits set outside its mask
    number = int.from_bytes(packed, "big") >> (len(packed) * 8 - bits) << (len(packed) * 8 - bits)
    return family, number.to_bytes(len(packed), "big"), bits


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


class Netlink:
    """One routing socket; close it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._socket.settimeout(5)

    def close(self) -> None:
        self._socket.close()

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._socket.send(struct.pack("IHHII", 16 + len(body), kind, _REQUEST | flags, 1, 0) + body)

    def _route(self, kind: int, flags: int, network: str, route: tuple[int, int, int], extra: bytes) -> None:
        family, packed, bits = parse_network(network)
        route_type, scope, route_flags = route
        body = struct.pack("BBBBBBBBI", family, bits, 0, 0, 254, 4, scope, route_type, route_flags)
        self._request(kind, flags | _ACK, body + _attribute(1, packed) + extra)
        answer = self._socket.recv(65536)
        error: int = struct.unpack_from("i", answer, 16)[0]
        if error:
            raise OSError(-error, f"route {network}: {os.strerror(-error)}")

    def prohibit(self, network: str) -> None:
        """Answer "administratively prohibited" to everything sent to ``network``."""
        self._route(_NEWROUTE, _CREATE | _REPLACE, network, (_PROHIBIT, _SCOPE_UNIVERSE, 0), b"")

    def permit(self, network: str) -> None:
        """Take `prohibit` back; no error when there was none."""
        with contextlib.suppress(ProcessLookupError):
            self._route(_DELROUTE, 0, network, (_PROHIBIT, _SCOPE_UNIVERSE, 0), b"")

    def via(self, network: str, device: str, gateway: str | None) -> None:
        """Send ``network`` out of ``device``, through ``gateway`` or straight."""
        extra = _attribute(4, struct.pack("I", socket.if_nametoindex(device)))
        route = (_UNICAST, _SCOPE_LINK, 0)
        if gateway:
            extra += _attribute(5, parse_network(gateway)[1])
            route = (_UNICAST, _SCOPE_UNIVERSE, _ONLINK)
        self._route(_NEWROUTE, _CREATE | _REPLACE, network, route, extra)

    @staticmethod
    def wait_until_up(device: str, seconds: float) -> bool:
        """Wait until ``device`` is up; gives whether it is."""
        deadline = time.monotonic() + seconds
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            request = struct.pack("16s240x", device.encode())
            while not struct.unpack_from("H", fcntl.ioctl(sock, _GET_FLAGS, request), 16)[0] & _UP:
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.001)
        return True

    def addresses(self) -> list[str]:
        """The addresses of all interfaces, both families."""
        self._request(_GETADDR, _DUMP, struct.pack("BBBBI", 0, 0, 0, 0, 0))
        found: list[str] = []
        while True:
            data = self._socket.recv(262144)
            while len(data) >= 16:
                length, kind = struct.unpack_from("IH", data)
                if kind == _DONE:
                    return found
                if kind == _ERROR:
                    raise OSError("the kernel refused to list the addresses")
                family = data[16]
                rest = data[24:length]
                while len(rest) >= 4:
                    size, attribute = struct.unpack_from("HH", rest)
                    if attribute in (1, 2) and family in (socket.AF_INET, socket.AF_INET6):
                        found.append(socket.inet_ntop(family, rest[4:size]))
                    rest = rest[(size + 3) & ~3 :]
                data = data[(length + 3) & ~3 :]
