"""Which headers cross the proxy, as pure functions. Every answer of a pod may have been made by user code."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: A list of headers in order; names may repeat.
Headers = list[tuple[str, str]]

#: Headers of a request that a workspace gets to see.
_REQUEST = frozenset(
    {
        "accept",
        "accept-encoding",
        "accept-language",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "last-event-id",
        "range",
        "user-agent",
    }
)
#: Headers of a workspace's answer that go on as they are.
_RESPONSE = frozenset(
    {
        "accept-ranges",
        "content-encoding",
        "content-length",
        "content-range",
        "etag",
        "expires",
        "last-modified",
        "retry-after",
        "vary",
    }
)
#: Content types that a page on the hub's origin may be given as they are.
_INLINE = frozenset(
    {
        "application/json",
        "application/problem+json",
        "application/x-ndjson",
        "audio/mpeg",
        "audio/ogg",
        "audio/wav",
        "image/avif",
        "image/bmp",
        "image/gif",
        "image/jpeg",
        "image/png",
        "image/webp",
        "image/x-icon",
        "text/event-stream",
        "text/plain",
        "video/mp4",
        "video/webm",
    }
)
#: RFC 9110, section 7.6.1, and the older names.
_HOP_BY_HOP = frozenset(
    {
        "connection",
        "expect",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
_FORWARDED = frozenset(
    {"forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-port", "x-forwarded-proto", "x-real-ip"}
)
_SECURITY: Headers = [
    ("Content-Security-Policy", "sandbox"),
    ("X-Content-Type-Options", "nosniff"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
]
_CHARSET = re.compile(r"charset\s*=\s*\"?([A-Za-z0-9_-]{1,40})", re.I)
# What Tornado's server would refuse to write, or a client to read.
_VALUE = re.compile(r"[\x20-\x7e\x80-\xff\t]*")
_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_LOCATION = re.compile(r"/[!-~]*")
#: Names of cookies that are the hub's: no program gets to see or to set them.
_OUR_COOKIES = ("__host-codevo", "__secure-codevo", "codevo-session", "codevo-preview", "_xsrf")


def writable(name: str, value: str) -> bool:
    """Whether a header can be written without breaking the message."""
    return bool(_NAME.fullmatch(name) and _VALUE.fullmatch(value))


def workspace_request(headers: Iterable[tuple[str, str]]) -> Headers:
    """Headers of a request under ``/p/{id}/`` that go on to the pod: an allow-list."""
    return [(name, value) for name, value in headers if name.lower() in _REQUEST]


def workspace_response(headers: Iterable[tuple[str, str]], project: str) -> Headers:
    """Headers with which a pod's answer goes on to a client on the hub's own origin.

    Types that a browser could run become attachments of bytes; cookies, workers and redirects to elsewhere
    end here.
    """
    out: Headers = []
    content_type = disposition = cache = ""
    for name, value in headers:
        lower = name.lower()
        if not writable(name, value):
            continue
        if lower in _RESPONSE:
            out.append((name, value))
        elif lower == "content-type":
            content_type = value
        elif lower == "content-disposition":
            disposition = value
        elif lower == "cache-control":
            cache = value.lower()
        elif lower == "location":
            location = rewritten_location(value, project)
            if location is not None:
                out.append(("Location", location))
    kind = content_type.partition(";")[0].strip().lower()
    attachment = disposition.lower().lstrip().startswith("attachment")
    if kind in _INLINE or (kind.startswith("application/") and kind.endswith("+json")):
        found = _CHARSET.search(content_type)
        out.append(("Content-Type", f"{kind}; charset={found[1]}" if found else kind))
    elif content_type:
        out.append(("Content-Type", "application/octet-stream"))
        if not attachment:
            out.append(("Content-Disposition", "attachment"))
    if attachment:
        out.append(("Content-Disposition", disposition))
    out.append(("Cache-Control", "no-store" if "no-store" in cache else "private, no-cache"))
    return out + _SECURITY


def rewritten_location(location: str, project: str) -> str | None:
    """A pod's ``Location`` as a path of the hub below ``/p/{project}/``, or None when it leads elsewhere."""
    if not _LOCATION.fullmatch(location) or location.startswith("//") or "\\" in location:
        return None
    path = re.split(r"[?#]", location, maxsplit=1)[0].lower().replace("%2e", ".").replace("%2f", "/")
    if ".." in path.split("/"):
        return None
    base = f"/p/{project}"
    return location if location.startswith(base + "/") else base + location


def preview_request(headers: Iterable[tuple[str, str]], *, host: str, scheme: str) -> Headers:
    """Headers of a preview's request that the program gets: all but hop-by-hop ones and what is the hub's."""
    found = list(headers)
    dropped = _HOP_BY_HOP | _FORWARDED | {"host"} | _named_by_connection(found)
    out: Headers = []
    for name, value in found:
        lower = name.lower()
        if lower in dropped or lower.startswith(("codevo-", "codevo_")):
            continue
        if lower == "cookie":
            value = program_cookies(value)
            if not value:
                continue
        out.append((name, value))
    out += [("X-Forwarded-Host", host), ("X-Forwarded-Proto", scheme)]
    return out


def preview_response(headers: Iterable[tuple[str, str]]) -> Headers:
    """Headers of a program's answer on its preview origin: its own, but for what could reach beyond it."""
    found = [(name, value) for name, value in headers if writable(name, value)]
    # Clear-Site-Data takes the cookies of the whole registrable domain, so of every other preview, along
    beyond = {"clear-site-data", "codevo-token", "strict-transport-security"}
    dropped = _HOP_BY_HOP | beyond | _named_by_connection(found)
    out: Headers = []
    for name, value in found:
        lower = name.lower()
        if lower in dropped:
            continue
        if lower == "set-cookie":
            cookie = program_set_cookie(value)
            if cookie is None:
                continue
            value = cookie
        out.append((name, value))
    return out


def _named_by_connection(headers: list[tuple[str, str]]) -> frozenset[str]:
    named = {
        token.strip().lower()
        for name, value in headers
        if name.lower() == "connection"
        for token in value.split(",")
    }
    # naming these would make a proxy drop what frames or places the message
    return frozenset(named - {"content-length", "content-type", "host", "cookie", "authorization"})


def ours(cookie_name: str) -> bool:
    """Whether a cookie of that name is the hub's."""
    return cookie_name.strip().lower().startswith(_OUR_COOKIES)


def program_cookies(cookie: str) -> str:
    """A ``Cookie`` header without the hub's own cookies ("" when nothing is left)."""
    pairs = (pair.strip() for pair in cookie.split(";"))
    return "; ".join(pair for pair in pairs if pair and not ours(pair.partition("=")[0]))


def program_set_cookie(value: str) -> str | None:
    """A program's ``Set-Cookie`` without Domain, or None when it may not be set at all."""
    pair, *attributes = value.split(";")
    if ours(pair.partition("=")[0]) or "=" not in pair:
        return None
    kept = [a.strip() for a in attributes if a.partition("=")[0].strip().lower() != "domain"]
    return "; ".join([pair.strip(), *filter(None, kept)])


def cookies_named(headers: Iterable[tuple[str, str]], wanted: str) -> list[str]:
    """Every value of a cookie in the order in which they came; a planted one may stand first."""
    return [
        value.strip()
        for name, cookie in headers
        if name.lower() == "cookie"
        for key, _, value in (pair.partition("=") for pair in cookie.split(";"))
        if key.strip() == wanted
    ]
