"""Starter projects."""

from __future__ import annotations

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, needs


class TemplatesHandler(ApiHandler):
    """``/api/templates``"""

    @needs(user=True)
    async def get(self) -> None:
        """Every template, with the reason when its tools are missing here."""
        self.write_json(
            [
                {
                    "name": t.name,
                    "title": t.title,
                    "language": t.language,
                    "description": t.description,
                    "available": not why_not,
                    "why_not": why_not or None,
                }
                for t, why_not in self.hub.projects.templates()
            ]
        )


def routes() -> list[Route]:
    return [(r"/api/templates", TemplatesHandler)]
