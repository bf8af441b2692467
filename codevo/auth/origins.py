"""Hosts and origins, compared after parsing: prefixes and patterns have been got round too often."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_HOST = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_.-]{0,252})|\[[0-9a-f:.]+\])(?::([0-9]{1,5}))?")
_DEFAULT_PORTS = {"http": 80, "https": 443}

#: A parsed origin: scheme, host in lower case, port.
Origin = tuple[str, str, int]


def parse_origin(text: str) -> Origin | None:
    """Scheme, host and port; None for ``null``, anything with a path or user, and other schemes."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    host = (parts.hostname or "").lower()
    default = _DEFAULT_PORTS.get(parts.scheme)
    extra = parts.path or parts.query or parts.fragment or parts.username or parts.password
    if default is None or not host or extra or text != text.strip() or "\\" in text or "@" in text:
        return None
    return parts.scheme, host, default if port is None else port


def same_origin(a: str, b: str) -> bool:
    """Whether both are origins, and the same one."""
    parsed = parse_origin(a)
    return parsed is not None and parsed == parse_origin(b)


def clean_host(header: str) -> str | None:
    """A Host header in lower case without a trailing dot of its name; None when it is none."""
    host = header.lower()
    if not _HOST.fullmatch(host):
        return None
    name, colon, port = host.partition(":") if not host.startswith("[") else (host, "", "")
    return name.rstrip(".") + colon + port


def host_name(host: str) -> str:
    """``host`` without its port."""
    if host.startswith("["):
        return host[: host.index("]") + 1]
    return host.partition(":")[0]


def netloc(origin: str) -> str:
    """The ``host[:port]`` that browsers send for this origin."""
    return urlsplit(origin).netloc.lower()


def allowed_host(host: str, allowed: frozenset[str]) -> bool:
    """Whether a (clean) host is on the list. An entry without a port is good for every port."""
    return host in allowed or host_name(host) in allowed


def loopback_hosts(port: int) -> frozenset[str]:
    """The names under which this machine reaches itself at ``port``."""
    names = ("127.0.0.1", "localhost", "[::1]")
    return frozenset(f"{name}:{port}" for name in names) | (frozenset(names) if port == 80 else frozenset())
