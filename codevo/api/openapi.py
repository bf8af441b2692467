"""The API's description of itself, made from what the routes state."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from codevo import __version__
from codevo.api.base import ApiHandler
from codevo.api.needs import Need, Route, methods, need_of, public

_GROUP = re.compile(r"\(\?P<(\w+)>(?:[^()\[\]]|\[[^\]]*\]|\([^()]*\))*\)")
_PROBLEM = {
    "description": "A problem (RFC 9457)",
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
}
_COMPONENTS = {
    "securitySchemes": {
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API token of POST /api/tokens"},
        "session": {
            "type": "apiKey",
            "in": "cookie",
            "name": "codevo-session",
            "description": "Of POST /api/login; on TLS its name is __Host-codevo-session. "
            "Writes repeat the _xsrf cookie in X-XSRFToken.",
        },
    },
    "schemas": {
        "Problem": {
            "type": "object",
            "properties": {
                "type": {"type": "string"},
                "title": {"type": "string"},
                "status": {"type": "integer"},
                "detail": {"type": "string"},
                "message": {"type": "string"},
                "reason": {"type": "string"},
                "field": {"type": "string", "description": "The field of the request that is wrong"},
                "remedy": {"type": "string", "description": "What to do"},
                "code": {"type": "string"},
            },
            "required": ["title", "status", "detail", "message", "reason"],
        }
    },
}


def template(pattern: str) -> str | None:
    """``/api/x/(?P<id>…)`` as ``/api/x/{id}``; None for a pattern that no template describes."""
    path = _GROUP.sub(r"{\1}", pattern.removesuffix("$").removesuffix("/?"))
    return None if re.search(r"[()\[\]?*+|\\]", path) else path


def _words(need: Need) -> str:
    if need.public:
        return "Needs: nothing."
    if need.admin:
        return "Needs: an administrator."
    if need.role:
        guests = ", or anybody when the project is public" if need.guests else ""
        return f"Needs: the role {need.role}{guests}."
    return "Needs: a login."


def _operation(handler: type, method: str, need: Need, path: str) -> dict[str, Any]:
    function = getattr(handler, method.lower())
    text = inspect.cleandoc(function.__doc__ or handler.__doc__ or "")
    operation: dict[str, Any] = {
        "operationId": f"{method.lower()}{handler.__name__}{_suffix(path)}",
        "summary": re.split(r"(?<=[.:])\s", " ".join(text.split()), maxsplit=1)[0].rstrip(":"),
        "description": f"{' '.join(text.split())} {_words(need)}".strip(),
        "responses": {"2XX": {"description": "Done"}, "4XX": _PROBLEM, "5XX": _PROBLEM},
    }
    names = re.findall(r"\{(\w+)\}", path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    schema = getattr(function, "__body__", None)
    if schema is not None:
        operation["requestBody"] = {"content": {"application/json": {"schema": schema}}}
    kinds, query = getattr(function, "__upload__", ({}, {}))
    for kind, description in kinds.items():
        operation.setdefault("requestBody", {"content": {}})["content"][kind] = {
            "schema": {"type": "string", "format": "binary", "description": description}
        }
    for name, found in query.items():
        operation.setdefault("parameters", []).append(
            {"name": name, "in": "query", "required": False, "schema": found}
        )
    operation["security"] = [{}] if need.public else [{"bearer": []}, {"session": []}]
    if need.guests:
        operation["security"].append({})
    return operation


def _suffix(path: str) -> str:
    return "".join(part.title() for part in re.findall(r"[a-z]+", path.removeprefix("/api")))


def describe(routes: Iterable[Route]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of the routes below ``/api/`` and the probes."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = template(route[0])
        if path is None or not path.startswith(("/api/", "/healthz", "/readyz")):
            continue
        for method in methods(route[1]):
            need = need_of(route[1], method)
            if need is not None and method not in ("HEAD", "OPTIONS"):
                paths.setdefault(path, {})[method.lower()] = _operation(route[1], method, need, path)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Codevo", "version": __version__},
        "paths": dict(sorted(paths.items())),
        "components": _COMPONENTS,
    }


class OpenApi(ApiHandler):
    """This document."""

    @public
    def get(self) -> None:
        """The description of this API (OpenAPI 3.1)."""
        self.write_json(self.application.settings["openapi"])


def routes() -> list[Route]:
    return [(r"/api/openapi.json", OpenApi)]
