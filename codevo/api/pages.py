"""The pages and their files, as Vite built them."""

from __future__ import annotations

import asyncio
import mimetypes
from pathlib import Path

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, public
from codevo.api.problems import Problem
from codevo.auth.origins import parse_origin

_ENCODINGS = (("br", ".br"), ("gzip", ".gz"))
_UNBUILT = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Codevo</title>
<body style="font: 1rem/1.5 system-ui; max-width: 40rem; margin: 4rem auto; padding: 0 1rem">
<h1>The page has not been built yet</h1>
<p>The hub runs, but its page is missing. Run <code>make setup</code> in the checkout and reload.</p>
<p>The API works already: <a href="/api/openapi.json">its description</a>.</p>
"""
mimetypes.add_type("text/javascript", ".js")
mimetypes.add_type("font/woff2", ".woff2")
mimetypes.add_type("application/manifest+json", ".webmanifest")
mimetypes.add_type("image/svg+xml", ".svg")


def accepted_encodings(header: str) -> set[str]:
    """The codings of an ``Accept-Encoding`` header that are not refused by ``q=0``."""
    found = set()
    for part in header.lower().split(","):
        coding, _, quality = part.partition(";")
        if quality.replace(" ", "").rstrip("0") not in ("q=", "q=0."):
            found.add(coding.strip())
    return found


def find_file(root: Path, path: str) -> Path | None:
    """The file below ``root``, or None when there is none or the path leads outside."""
    if "\0" in path or "\\" in path:
        return None
    root = root.resolve()
    try:
        found = (root / path.lstrip("/")).resolve()
    except (OSError, RuntimeError):
        return None
    return found if found.is_relative_to(root) and found.is_file() else None


class _Files(ApiHandler):
    async def send_file(self, path: Path) -> None:
        """Send a file, compressed beforehand when the browser takes that; 304 when it has it."""
        kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        charset = "; charset=UTF-8" if kind.startswith("text/") or kind == "application/json" else ""
        self.set_header("Content-Type", kind + charset)
        self.set_header("Vary", "Accept-Encoding")
        accepted = accepted_encodings(self.request.headers.get("Accept-Encoding", ""))
        for coding, suffix in _ENCODINGS:
            packed = path.with_name(path.name + suffix)
            if coding in accepted and packed.is_file():
                path = packed
                self.set_header("Content-Encoding", coding)
                break
        stat = path.stat()
        self.set_header("Etag", f'"{stat.st_mtime_ns:x}-{stat.st_size:x}{path.suffix}"')
        if self.check_etag_header():
            self.set_status(304)
            await self.finish()
            return
        self.set_header("Content-Length", stat.st_size)
        if self.request.method == "HEAD":
            await self.finish()
            return
        await self.finish(await asyncio.to_thread(path.read_bytes))

    def compute_etag(self) -> None:
        """The ETag comes from the file, not from hashing what is sent."""


class PageHandler(_Files):
    """A page: one file of the build, the same for every address that it shows."""

    def initialize(self, page: str) -> None:
        self._page = page

    async def show(self) -> None:
        """Send the page and the token that its writes need."""
        self.set_xsrf_cookie()
        self.set_header("Cache-Control", "no-cache")
        path = find_file(self.hub.static_dir, self._page)
        if path is None:
            self.set_status(503)
            self.set_header("Content-Type", "text/html; charset=UTF-8")
            await self.finish(_UNBUILT)
            return
        await self.send_file(path)

    @public
    async def get(self, **_: str) -> None:
        """A page."""
        await self.show()

    head = get


class EmbedPage(PageHandler):
    """A project in somebody's page: the only thing of ours that may stand in a frame."""

    @public
    async def get(self, **named: str) -> None:
        """The embedded workspace; may be framed by the origins that the project names."""
        project = await self.hub.store.projects.get(named["project_id"])
        origins = project.settings.embed_origins if project else ()
        # each is parsed again: what goes into the header is an origin, whatever the database holds
        allowed = " ".join(o for o in origins if parse_origin(o) and not set(o) & set(";, '\"*"))
        policy = self.content_security_policy(f"'self' {allowed}".strip())
        self.set_header("Content-Security-Policy", policy)
        await self.show()

    head = get


class AssetHandler(_Files):
    """Files of the build. Those below ``assets/`` have their hash in their name and never change."""

    @public
    async def get(self, path: str) -> None:
        """A file of the page."""
        found = find_file(self.hub.static_dir, path)
        if found is None or found.suffix in (".html", ".br", ".gz", ".map"):
            raise Problem(404, "There is no such file.")
        forever = path.startswith("assets/")
        self.set_header("Cache-Control", "public, max-age=31536000, immutable" if forever else "no-cache")
        if path == "embed.js":  # other sites' pages load this one
            self.set_header("Cross-Origin-Resource-Policy", "cross-origin")
        await self.send_file(found)

    head = get


class NotFound(PageHandler):
    """What nobody answers: the page says so to people, a problem to programs."""

    def initialize(self, page: str = "index.html") -> None:
        super().initialize(page)

    @public
    async def get(self, **_: str) -> None:
        """404."""
        machine = self.request.path.startswith(("/api/", "/p/"))
        if machine or "text/html" not in self.request.headers.get("Accept", ""):
            raise Problem(404, "There is nothing here.")
        self.set_status(404)
        await self.show()

    head = get

    @public
    async def post(self, **_: str) -> None:
        """404."""
        raise Problem(404, "There is nothing here.")

    put = patch = delete = options = post


def routes() -> list[Route]:
    pages = (
        r"/",
        r"/login",
        r"/signup",
        r"/account",
        r"/projects/(?P<project_id>[^/]+)",
        r"/invite/(?P<code>[^/]+)",
    )
    return [
        *((pattern, PageHandler, {"page": "index.html"}) for pattern in pages),
        (r"/admin(?:/[^.]*)?", PageHandler, {"page": "admin.html"}),
        (r"/embed/(?P<project_id>[^/.]+)", EmbedPage, {"page": "embed.html"}),
        (r"/(?P<path>(?!api/|p/)[A-Za-z0-9_@-][A-Za-z0-9_./@-]*\.[A-Za-z0-9]+)", AssetHandler),
    ]
