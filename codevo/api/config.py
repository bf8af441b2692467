"""What the page must know before anybody has logged in."""

from __future__ import annotations

from codevo import __version__
from codevo.api.base import ApiHandler
from codevo.api.needs import Route, public
from codevo.api.users import is_local, user_json


class ConfigHandler(ApiHandler):
    """The hub, as the page sees it."""

    @public
    async def get(self) -> None:
        """Version, who calls (or null), whether people may sign up, the previews' domain, how many bytes
        an imported archive may have, and warnings that every page shows."""
        hub = self.hub
        user = await self.authenticate()
        first = hub.signup and not await hub.store.users.any()
        self.set_xsrf_cookie()
        self.write_json(
            {
                "version": __version__,
                "user": user_json(user) if user else None,
                "signup": hub.signup,
                "first_user": first,
                "setup_code_required": first and not is_local(self),
                "preview_domain": hub.preview_domain,
                "max_import": hub.projects.max_import,
                "warnings": hub.warnings,
            }
        )


def routes() -> list[Route]:
    return [(r"/api/config", ConfigHandler)]
