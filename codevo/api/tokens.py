"""API tokens of the person who calls."""

from __future__ import annotations

from typing import Any

from codevo.api.base import ApiHandler
from codevo.api.needs import Route, body, needs
from codevo.api.problems import Problem
from codevo.auth.scopes import Scope, within
from codevo.proxy.relay import TOKEN
from codevo.store import ApiToken, rfc3339

NEW = {
    "type": "object",
    "properties": {
        "note": {"type": "string", "maxLength": 200},
        "expires_in": {
            "type": ["integer", "null"],
            "minimum": 1,
            "maximum": 10 * 366 * 86400,
            "description": "Seconds; null: never",
        },
        "scopes": {
            "type": "array",
            "items": {"type": "string", "enum": [str(s) for s in Scope]},
            "minItems": 1,
            "maxItems": 5,
        },
    },
    "additionalProperties": False,
}


def token_json(token: ApiToken) -> dict[str, Any]:
    """A token without its text."""
    return {
        "id": token.id,
        "note": token.note,
        "scopes": list(token.scopes),
        "created": rfc3339(token.created),
        "expires": rfc3339(token.expires),
        "last_used": rfc3339(token.last_used),
    }


class TokenList(ApiHandler):
    """All tokens."""

    @needs(user=True, scope=Scope.ACCOUNT)
    async def get(self) -> None:
        """Your tokens, newest first; their texts are not known any more."""
        self.write_json([token_json(t) for t in await self.hub.store.tokens.of_user(self.user.id)])

    @needs(user=True, scope=Scope.ACCOUNT)
    @body(NEW)
    async def post(self) -> None:
        """Make a token: 201; its text is in this answer and never again."""
        given = self.json_body()
        held = self.token.scopes if self.token else (str(Scope.ALL),)
        scopes = tuple(dict.fromkeys(given.get("scopes") or held))
        if not within(scopes, held):
            raise Problem(403, "A token cannot make a stronger one.", field="scopes", code="scope")
        if await self.hub.store.tokens.count_of(self.user.id) >= self.hub.limits.tokens_per_user:
            raise Problem(
                409, "You have as many tokens as one may have.", remedy="Delete one first.", code="full"
            )
        token, text = await self.hub.store.tokens.create(
            self.user.id, note=given.get("note", "").strip(), scopes=scopes, seconds=given.get("expires_in")
        )
        self.set_header("Location", f"/api/tokens/{token.id}")
        self.write_json({**token_json(token), "token": text}, 201)


class OneToken(ApiHandler):
    """One token."""

    @needs(user=True, scope=Scope.ACCOUNT)
    async def delete(self, token_id: str) -> None:
        """End a token at once: 204."""
        if not await self.hub.store.tokens.delete(self.user.id, token_id):
            raise Problem(404, "You have no such token.")
        self.hub.pods.relays.drop_credential(TOKEN + token_id)
        self.set_status(204)


def routes() -> list[Route]:
    return [(r"/api/tokens", TokenList), (r"/api/tokens/(?P<token_id>[^/]+)", OneToken)]
