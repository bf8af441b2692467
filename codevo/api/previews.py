"""Codes by which pages and visitors get into private previews."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, needs
from codevo.api.problems import Problem
from codevo.proxy.previews import MAIN, PreviewName, enter_url, local_path, parse_port
from codevo.store import rfc3339


def _port(value: object) -> str:
    port = parse_port(str(value)) if isinstance(value, int | str) and not isinstance(value, bool) else None
    if port is None:
        raise Problem(400, "port: expected main or a number from 1 to 65535.", field="port")
    return port


def _to(value: object) -> str:
    to = local_path(value) if isinstance(value, str) else None
    if to is None:
        raise Problem(400, "to: expected a path that starts with one slash.", field="to")
    return to


class _Codes(ApiHandler):
    async def make(self, project: str, port: str, to: str) -> dict[str, Any]:
        """A code for the person who calls, and the URL that redeems it."""
        record, code = await self.hub.store.preview_codes.create(project, self.user.id, port)
        origin = f"{self.hub.scheme}://{PreviewName(project, port).host(self.hub.preview_domain)}"
        return {"code": code, "url": enter_url(origin, code, to), "expires": rfc3339(record.expires)}


class PreviewCodesHandler(_Codes):
    """``POST /api/projects/{id}/preview-codes {port, to?}``: 201 ``{code, url, expires}``."""

    @needs(role="viewer")
    async def post(self, project_id: str) -> None:
        asked = self.json_body()
        port, to = _port(asked.get("port", MAIN)), _to(asked.get("to", "/"))
        self.write_json(await self.make(self.project.id, port, to), 201)


class PreviewEntryHandler(_Codes):
    """``GET /preview/{id}?port=&to=``: a visitor in a tab of its own passes here once, to say who it is.

    One who is not logged in goes on to the login page, which comes back here.
    """

    async def prepare(self) -> None:
        try:
            await super().prepare()
        except Problem as e:
            if e.status_code != 401:
                raise
            self.redirect("/login?" + urlencode({"next": self.request.uri or "/"}))

    @needs(role="viewer")
    async def get(self, project_id: str) -> None:
        port = _port(self.get_query_argument("port", MAIN))
        to = _to(self.get_query_argument("to", "/"))
        made = await self.make(self.project.id, port, to)
        self.set_header("Cache-Control", "no-store")
        self.redirect(made["url"])


def routes() -> list[Route]:
    """The routes of this module."""
    return [
        (r"/api/projects/(?P<project_id>[a-z2-7]{16})/preview-codes", PreviewCodesHandler),
        (r"/preview/(?P<project_id>[a-z2-7]{16})", PreviewEntryHandler),
    ]
