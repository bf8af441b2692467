"""The hub's web side: every route, checked, and the way of a request by its host."""

from __future__ import annotations

from typing import Any

from tornado.httputil import HTTPMessageDelegate, HTTPServerRequest
from tornado.routing import Router
from tornado.web import Application

from codevo.api import (
    admin,
    checkpoints,
    config,
    health,
    invites,
    members,
    openapi,
    pages,
    previews,
    projects,
    servers,
    sessions,
    templates,
    tokens,
    users,
)
from codevo.api.needs import Route, check_routes
from codevo.auth import forwarded
from codevo.hub import Hub
from codevo.logs import request_logger
from codevo.proxy import workspace
from codevo.proxy.preview_site import is_preview_host, preview_application

#: Tornado's pings of our own sockets, seconds; relayed ones have theirs.
_PING = 30.0


def all_routes() -> list[Route]:
    """Every route of the hub's own origin. Pages come last, since they match widely."""
    modules = (
        health,
        config,
        users,
        sessions,
        tokens,
        templates,
        projects,
        checkpoints,
        members,
        invites,
        servers,
        previews,
        admin,
        openapi,
        workspace,
        pages,
    )
    return [route for module in modules for route in module.routes()]


def hub_application(hub: Hub) -> Application:
    """The application of the hub's own origin. Raises `UnstatedNeed`."""
    routes = all_routes()
    check_routes([*routes, (r".*", pages.NotFound)])
    return Application(
        list(routes),
        default_handler_class=pages.NotFound,
        hub=hub,
        openapi=openapi.describe(routes),
        log_function=request_logger(hub),
        websocket_ping_interval=_PING,
    )


class HostRouter(Router):
    """Previews have hosts of their own, on which nothing of the hub answers, and the other way round."""

    def __init__(self, hub: Hub) -> None:
        self._domain = hub.preview_domain
        self._proxies = frozenset(hub.config.trusted_proxies)
        self._own = hub_application(hub)
        self._previews = preview_application(hub, log_function=request_logger(hub))

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> HTTPMessageDelegate | None:
        context = request.connection.context  # type: ignore[union-attr]
        request.remote_ip, request.protocol = forwarded.client(
            context.remote_ip, context.protocol, request.headers, self._proxies
        )
        preview = is_preview_host(request.host or "", self._domain)
        return (self._previews if preview else self._own).find_handler(request, **kwargs)
