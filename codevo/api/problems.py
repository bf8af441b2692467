"""Errors as RFC 9457 problems, with the ``message`` and ``reason`` that Jupyter clients read."""

from __future__ import annotations

import json
from http.client import responses
from typing import Any

from tornado.web import HTTPError


class Problem(HTTPError):
    """An error with words for people. ``field`` names the wrong field of the request, ``remedy`` says what to
    do, ``code`` is for programs, ``headers`` go into the answer."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        remedy: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
        **extra: Any,
    ) -> None:
        super().__init__(status, "%s", detail, reason=responses.get(status, "Error"))
        self.detail = detail
        self.headers = headers or {}
        named = {"field": field, "remedy": remedy, "code": code}
        self.extra = {k: v for k, v in named.items() if v is not None} | extra


def too_many(seconds: int, detail: str = "Too many attempts.") -> Problem:
    """429 with ``Retry-After``."""
    wait = f"{seconds} s" if seconds < 120 else f"{-(-seconds // 60)} minutes"
    return Problem(
        429, detail, remedy=f"Try again in {wait}.", headers={"Retry-After": str(seconds)}, code="too-many"
    )


def unavailable(detail: str, *, seconds: int = 2) -> Problem:
    """503 with ``Retry-After``."""
    return Problem(503, detail, headers={"Retry-After": str(seconds)}, code="unavailable")


def render(status: int, detail: str, extra: dict[str, Any], request_id: str = "") -> str:
    """The body of a problem."""
    title = responses.get(status, "Error")
    body = {
        "type": "about:blank",
        "title": title,
        "status": status,
        "detail": detail,
        "message": detail if not extra.get("remedy") else f"{detail} {extra['remedy']}",
        "reason": title,
        **extra,
    }
    if request_id:
        body["instance"] = f"urn:request:{request_id}"
    return json.dumps(body, ensure_ascii=False)
