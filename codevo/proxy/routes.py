"""Which container of a workspace serves which path below ``/p/{id}/``. Pure; the table is docs/wire.md's."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from pod_runtime.protocol.tokens import Audience

#: Longest path that is forwarded, bytes as they came.
MAX_PATH = 8192

# A prefix stands for itself and for everything below it. Both containers serve `api/`, hence whole segments.
_TABLE: tuple[tuple[tuple[str, ...], Audience], ...] = tuple(
    (tuple(prefix.split("/")), audience)
    for audience, prefixes in (
        (
            Audience.RUNNER,
            (
                "api/kernelspecs",
                "kernelspecs",
                "api/kernels",
                "api/sessions",
                "api/status",
                "api/me",
                "api/terminals",
                "terminals/websocket",
                "api/ports",
                "api/events",
                "lsp",
            ),
        ),
        (
            Audience.WORKER,
            (
                "api/contents",
                "files",
                "api/search",
                "api/history",
                "collab",
                "presence",
                "api/durability",
                "api/worker",
            ),
        ),
    )
    for prefix in prefixes
)


#: What a project once held is its members': it may have been deleted for a reason.
_MEMBERS = ("api", "history")


@dataclass(frozen=True, slots=True)
class Route:
    """``path`` is what the container is asked for: it starts with ``/`` and keeps its percent-encoding.
    ``members``: not for strangers, who may see a public project as it is now."""

    audience: Audience
    path: str
    members: bool = False


def resolve(rest: str) -> Route | None:
    """The container for ``rest``, the raw path after ``/p/{id}`` (it starts with ``/``); None: no such route.

    None as well for what must never be forwarded: ``..`` in any spelling, the hub's own ``/_codevo/``, NUL,
    bare control characters (names may hold encoded ones: they are forwarded as they came), and anything
    longer than `MAX_PATH`. Several leading slashes count as one: some clients join a base URL that ends with
    one and a path that begins with one.
    """
    rest = "/" + rest.lstrip("/") if rest.startswith("/") else rest
    if not rest.startswith("/") or len(rest) > MAX_PATH or not (rest.isascii() and rest.isprintable()):
        return None
    decoded = unquote_to_bytes(rest)
    if b"\0" in decoded:
        return None
    if b".." in decoded.replace(b"\\", b"/").split(b"/") or decoded.lstrip(b"/").startswith(b"_codevo"):
        return None
    segments = tuple(rest[1:].split("/"))
    for prefix, audience in _TABLE:
        if segments[: len(prefix)] == prefix:
            return Route(audience, rest, prefix == _MEMBERS)
    return None
