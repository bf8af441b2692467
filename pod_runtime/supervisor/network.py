"""The sandbox's way out: slirp4netns into its network namespace, with everything private prohibited.

The namespace belongs to bubblewrap's outer user namespace, while the sandbox's processes live in one below
and without capabilities: they cannot change the routes that are set here from outside.
"""

from __future__ import annotations

import os
import select
import time

from pod_runtime.supervisor import linux
from pod_runtime.supervisor.netlink import Netlink

RESOLVER = "10.0.2.3"
_LOOPBACK_SECONDS = 10.0
_GATEWAY = "10.0.2.2"
_DEVICE = "tap0"
_MTU = 1400
# slirp's own network but for its resolver: to other addresses of it slirp would connect as if they were real
_OWN_NETWORK = ("10.0.2.0/25", "10.0.2.128/25")
# RFC 6890: private, shared, link-local (cloud metadata), benchmarking, multicast, reserved.
PROHIBITED = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24"),
    *("192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"),
    *("fc00::/7", "fe80::/10", "ff00::/8", "64:ff9b::/96", "2002::/16"),
)


def host_addresses() -> list[str]:
    """This host's own addresses, which the sandbox must not reach either."""
    netlink = Netlink()
    try:
        return [a for a in netlink.addresses() if not a.startswith("127.") and a != "::1"]
    finally:
        netlink.close()


class Namespace:
    """Descriptors of a sandbox's network namespace and of the user namespace that owns it."""

    def __init__(self, pid: int) -> None:
        self.net = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.user = linux.owner_of_namespace(self.net)
        os.set_inheritable(self.user, False)

    def close(self) -> None:
        os.close(self.net)
        os.close(self.user)

    def _inside(self, configure: object, *arguments: object) -> str:
        """Run ``configure`` in a child inside the namespaces; gives the error's text or ""."""
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                linux.setns(self.user, linux.CLONE_NEWUSER)
                linux.setns(self.net, linux.CLONE_NEWNET)
                netlink = Netlink()
                configure(netlink, *arguments)  # type: ignore[operator]
                os.write(writer, b"ok")
            except BaseException as e:
                os.write(writer, f"{type(e).__name__}: {e}".encode()[:400])
            finally:
                os._exit(0)
        os.close(writer)
        answer = os.read(reader, 512)
        os.close(reader)
        os.waitpid(pid, 0)
        return "" if answer == b"ok" else answer.decode("utf-8", "replace") or "the child died"

    def prohibit(self, own_addresses: list[str]) -> str:
        """Set the prohibit routes; to be called before there is a way out. Gives the error or ""."""
        return self._inside(_prohibit, own_addresses)

    def open_way_out(self, allowed: list[str]) -> str:
        """After the helper made its device: allow ``allowed`` networks, close the helper's own."""
        return self._inside(_open_way_out, allowed)


def _prohibit(netlink: Netlink, own_addresses: list[str]) -> None:
    # bubblewrap tells the sandbox's pid before it has set up the loopback device, and gives up when the
    # helper, which brings that up too, is faster
    if not netlink.wait_until_up("lo", _LOOPBACK_SECONDS):
        raise TimeoutError("bubblewrap did not set up the loopback device")
    for network in _OWN_NETWORK:  # left from a helper that died; in the way of the next one's gateway
        netlink.permit(network)
    for network in (*PROHIBITED, *own_addresses):
        try:
            netlink.prohibit(network)
        except OSError:
            if ":" not in network:  # IPv6 may be switched off, and slirp has none here
                raise


def _open_way_out(netlink: Netlink, allowed: list[str]) -> None:
    for network in allowed:
        if ":" not in network:
            netlink.via(network, _DEVICE, _GATEWAY)
    netlink.via(RESOLVER, _DEVICE, None)
    for network in _OWN_NETWORK:
        netlink.prohibit(network)


def helper_command(program: str, net_fd: int, user_fd: int, ready_fd: int, exit_fd: int) -> list[str]:
    """The command line of slirp4netns; the descriptors are those of the process that becomes it."""
    return [
        *(program, "--configure", f"--mtu={_MTU}", "--disable-host-loopback", "--netns-type=path"),
        *(f"--userns-path=/proc/self/fd/{user_fd}", f"--ready-fd={ready_fd}", f"--exit-fd={exit_fd}"),
        *(f"/proc/self/fd/{net_fd}", _DEVICE),
    ]


def wait_readable(fd: int, seconds: float) -> bytes:
    """What arrives on ``fd`` within the time, b"" at its end or when nothing does."""
    deadline = time.monotonic() + seconds
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return b""
        if select.select([fd], [], [], left)[0]:
            return os.read(fd, 65536)
