"""Whose request a reverse proxy passes on. Pure.

Tornado's ``xheaders`` believes everybody, and ``X-Real-Ip`` more than the proxy's ``X-Forwarded-For``. With
it a client chooses the address under which its failed logins are counted.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection

from tornado.httputil import HTTPHeaders


def client(peer: str, scheme: str, headers: HTTPHeaders, trusted: Collection[str]) -> tuple[str, str]:
    """Address and scheme of the client. ``peer`` is who connected, ``scheme`` how; headers count only when
    that is one of ``trusted``, and of ``X-Forwarded-For`` only what trusted proxies have added."""
    if peer not in trusted:
        return peer, scheme
    address = peer
    for hop in reversed(",".join(headers.get_list("X-Forwarded-For")).split(",")):
        try:
            address = str(ipaddress.ip_address(hop.strip()))
        except ValueError:
            break
        if address not in trusted:
            break
    said = headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
    return address, said if said in ("http", "https") else scheme
