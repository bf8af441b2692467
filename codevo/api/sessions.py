"""Logging in and out."""

from __future__ import annotations

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs, public
from codevo.api.users import account_problem, user_json
from codevo.auth.accounts import AccountError
from codevo.proxy.relay import SESSION

LOGIN = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 254, "description": "Name or e-mail address"},
        "password": {"type": "string", "maxLength": 1024},
    },
    "required": ["name", "password"],
    "additionalProperties": False,
}


class Login(ApiHandler):
    """A new session."""

    @public
    @body(LOGIN)
    async def post(self) -> None:
        """Log in by name or e-mail: 200 with the user and the session's cookie."""
        given = self.json_body()
        accounts = self.hub.accounts
        try:
            user = await accounts.log_in(
                given["name"], given["password"], address=self.request.remote_ip or ""
            )
        except AccountError as e:
            raise account_problem(e) from None
        self.start_session(*await accounts.open_session(user))
        self.write_json(user_json(user))


class Logout(ApiHandler):
    """The end of a session."""

    @needs(user=True)
    async def post(self) -> None:
        """End this session and its open sockets: 204."""
        if self.session is not None:
            await self.hub.store.sessions.end(self.session.id)
            self.hub.pods.relays.drop_credential(SESSION + self.session.id)
        self.clear_session()
        self.set_status(204)


def routes() -> list[Route]:
    return [(r"/api/login", Login), (r"/api/logout", Logout)]
