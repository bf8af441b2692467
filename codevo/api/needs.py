"""What a route asks of its caller, stated on the method (or on the class, for all of its methods)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from tornado.web import RequestHandler

from codevo.api.schema import Schema
from codevo.auth.scopes import Scope
from pod_runtime.protocol.roles import Role

F = TypeVar("F", bound=Callable[..., Any])

#: A route as a module's ``routes()`` gives it: pattern, handler, and optionally the handler's arguments.
Route = tuple[str, type[RequestHandler]] | tuple[str, type[RequestHandler], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Need:
    """``public``: nobody in particular. ``role``: on the project named by the path's ``project_id``; with
    ``guests``, strangers count as viewers of public projects. ``scope``: what an API token must hold (None:
    ``read`` for safe methods, else ``write``). ``any_host``: for probes, which call by address."""

    public: bool = False
    user: bool = False
    admin: bool = False
    role: Role | None = None
    guests: bool = False
    scope: Scope | None = None
    any_host: bool = False


class UnstatedNeed(Exception):
    """A route does not say what it needs. Programming error, found at the start."""


@overload
def public(target: F) -> F: ...
@overload
def public(*, any_host: bool) -> Callable[[F], F]: ...
def public(target: Any = None, *, any_host: bool = False) -> Any:
    """Anybody may call this. Use as ``@public`` or ``@public(any_host=True)``."""
    need = Need(public=True, any_host=any_host)
    return _state(need) if target is None else _state(need)(target)


def needs(
    *,
    user: bool = False,
    admin: bool = False,
    role: str | None = None,
    guests: bool = False,
    scope: Scope | None = None,
) -> Callable[[Any], Any]:
    """The caller must be logged in (``user``), be an ``admin``, or hold ``role`` on the project."""
    if not (user or admin or role):
        raise UnstatedNeed("@needs() states nothing")
    if admin and scope is None:
        scope = Scope.ADMIN
    found = Need(user=user, admin=admin, role=Role(role) if role else None, guests=guests, scope=scope)
    return _state(found)


def body(schema: Schema) -> Callable[[F], F]:
    """The JSON object that the method takes: checked by `ApiHandler.json_body`, shown in the OpenAPI."""

    def mark(target: F) -> F:
        target.__body__ = schema  # type: ignore[attr-defined]
        return target

    return mark


def upload(kinds: dict[str, str], **query: Schema) -> Callable[[F], F]:
    """What the method takes raw instead of JSON: media types, in words; with ``query``. For the OpenAPI."""

    def mark(target: F) -> F:
        target.__upload__ = (kinds, query)  # type: ignore[attr-defined]
        return target

    return mark


def _state(need: Need) -> Callable[[Any], Any]:
    def mark(target: Any) -> Any:
        target.__need__ = need
        return target

    return mark


def methods(handler: type[RequestHandler]) -> list[str]:
    """The HTTP methods that the class implements, in upper case."""
    nothing = RequestHandler._unimplemented_method
    return [m for m in handler.SUPPORTED_METHODS if getattr(handler, m.lower(), nothing) is not nothing]


def need_of(handler: type[RequestHandler], method: str) -> Need | None:
    """What the method states, else what the class states, else None."""
    found = getattr(getattr(handler, method.lower(), None), "__need__", None)
    if found is None:
        found = getattr(handler, "__need__", None)
    return found if isinstance(found, Need) else None


def check_routes(routes: Iterable[Route]) -> None:
    """Raises `UnstatedNeed` for the first method that anybody could reach without its need being stated."""
    for route in routes:
        pattern, handler = route[0], route[1]
        for method in methods(handler):
            need = need_of(handler, method)
            if need is None:
                raise UnstatedNeed(
                    f"{method} {pattern} ({handler.__qualname__}) does not state what it needs"
                )
            if need.role is not None and "(?P<project_id>" not in pattern:
                raise UnstatedNeed(f"{method} {pattern} needs a role, but its path names no project_id")
