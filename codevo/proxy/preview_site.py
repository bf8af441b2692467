"""The preview origins: every request for a host under ``preview_domain`` ends here and nowhere else."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn, TypeVar
from urllib.parse import urlencode

import aiohttp
from tornado.iostream import StreamClosedError
from tornado.web import Application, RequestHandler, stream_request_body

from codevo.auth.origins import same_origin
from codevo.hub import Hub
from codevo.proxy import pages
from codevo.proxy.headers import Headers, cookies_named, preview_request, preview_response
from codevo.proxy.http import (
    UPLOAD_TIME,
    BadAnswer,
    BodyTooLarge,
    Exchange,
    framing_is_sound,
    has_body,
    pairs,
)
from codevo.proxy.pages import PageText
from codevo.proxy.pods import PodClient, PodUnavailable
from codevo.proxy.previews import COOKIE, MAIN, PreviewName, Seal, local_path, parse_host, set_cookie
from codevo.proxy.relay import TooManySockets
from codevo.proxy.sockets import serve
from codevo.proxy.websocket import BadHandshake, Upgraded, UpgradeRefused, wants_upgrade
from codevo.proxy.workspace import GUEST, guest_subject
from codevo.servers import ServersBusy, TooManyRunning
from codevo.servers.progress import ServerStatus
from codevo.spawner.base import ServerState
from codevo.store import Project, StoreUnavailable, Visibility
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience

log = logging.getLogger(__name__)

#: Seconds for which a decision about a person or a project is remembered.
ACCESS_SECONDS = 10.0
_MAX_REMEMBERED = 10_000
#: The header by which the gateway learns the port.
PORT_HEADER = "Codevo-Port"
_OWN = "/_codevo/"
_SLACK = 1024 * 1024
_MAX_COOKIES = 4

K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who looks at a preview, as the pod is told."""

    subject: str
    name: str
    role: Role
    #: Not a member: here because the project or the port is public.
    stranger: bool = False


class Access:
    """Who may see which preview, asked of the database and remembered for `ACCESS_SECONDS`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._projects: OrderedDict[str, tuple[float, Project]] = OrderedDict()
        self._people: OrderedDict[tuple[str, str], tuple[float, Visitor | None]] = OrderedDict()

    async def project(self, project: str) -> Project | None:
        """The project's record."""
        known = self._projects.get(project)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        found = await self._hub.store.projects.get(project)
        if found is not None:
            self._remember(self._projects, project, found)
        return found

    async def person(self, project: Project, user: str) -> Visitor | None:
        """The user as a visitor; None for one who is disabled, or no member of a private project."""
        key = (project.id, user)
        known = self._people.get(key)
        if known is not None and known[0] > time.monotonic():
            return known[1]
        account = await self._hub.store.users.get(user)
        role = await self._hub.store.members.role(project.id, user)
        stranger = role is None
        if stranger and project.visibility is Visibility.PUBLIC:
            role = Role.VIEWER
        allowed = account is not None and not account.disabled and role is not None
        visitor = Visitor(user, account.name, role, stranger) if allowed and account and role else None
        self._remember(self._people, key, visitor)
        return visitor

    def forget(self, project: str, user: str) -> None:
        """A right has ended or changed."""
        self._people.pop((project, user), None)
        self._projects.pop(project, None)

    def forget_project(self, project: str) -> None:
        """Its settings or its visibility have changed, for everybody."""
        self._projects.pop(project, None)
        for key in [key for key in self._people if key[0] == project]:
            del self._people[key]

    @staticmethod
    def _remember(memory: OrderedDict[K, tuple[float, V]], key: K, value: V) -> None:
        memory[key] = (time.monotonic() + ACCESS_SECONDS, value)
        memory.move_to_end(key)
        if len(memory) > _MAX_REMEMBERED:
            memory.popitem(last=False)


class _Answered(Exception):
    """The request's answer is known without the program; ``write`` gives it."""

    def __init__(self, write: Callable[[], object]) -> None:
        self.write = write


@stream_request_body
class PreviewHandler(RequestHandler):
    """Everything on a preview origin: the entry with a code, the program's own paths, and pages in words."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "DELETE", "PATCH", "PUT", "OPTIONS")

    _exchange: Exchange | None = None
    _name: PreviewName
    _visitor: Visitor
    _address: str = ""
    _own_answer: Callable[[], object] | None = None

    def initialize(self, hub: Hub, seal: Seal, access: Access) -> None:
        self.hub = hub
        self.seal = seal
        self.access = access

    def set_default_headers(self) -> None:
        self.clear_header("Server")

    async def prepare(self) -> None:
        limit = self.hub.limits.max_upload
        self.request.connection.set_max_body_size(limit + _SLACK)  # type: ignore[union-attr]
        self.request.connection.set_body_timeout(UPLOAD_TIME)  # type: ignore[union-attr]
        try:
            await self._prepare(limit)
        except _Answered as e:
            self._write_early(e.write)
        except StoreUnavailable:
            page = pages.plain(503, "One moment", "The database does not answer. Try again shortly.")
            self._write_early(partial(self._page, page))

    def _write_early(self, write: Callable[[], object]) -> None:
        """Answer now when there is a body, which ends the connection; else in the method, which does not."""
        headers = self.request.headers
        if framing_is_sound(headers) and not has_body(headers):
            self._own_answer = write
        else:
            self.set_header("Connection", "close")
            write()

    async def _prepare(self, limit: int) -> None:
        headers = self.request.headers
        target = self.request.uri or ""
        if not framing_is_sound(headers) or not target.startswith("/"):
            raise self._end(pages.plain(400, "Bad request", "This request is not clear."))
        name = parse_host(self.request.host or "", self.hub.preview_domain)
        if name is None:
            raise self._end(pages.no_entry(self.hub.origin))
        self._name = name
        project = await self.access.project(name.project)
        if self.request.path.startswith(_OWN):
            await self._own_path(project)
        if project is None:
            raise self._ask_who()  # exactly what a stranger to a private project gets
        public = self._is_public(project)
        self._visitor = await self._who(project, public)
        if wants_upgrade(headers):
            origin = headers.get("Origin")
            if not public and (origin is None or not same_origin(origin, self._origin)):
                raise self._end(pages.plain(403, "Not allowed", "This page may not connect here."))
        if int(headers.get("Content-Length", "0")) > limit:
            raise self._end(self._too_large())
        self._address = await self._find(project)
        if not wants_upgrade(headers):
            self._exchange = Exchange(self._pods, project.id, self._address)
            self._exchange.begin(
                self.request.method or "GET", target, self._for_pod(), body=has_body(headers), limit=limit
            )

    async def data_received(self, chunk: bytes) -> None:
        if self._exchange is not None and self._exchange.upload is not None:
            await self._exchange.upload.put(chunk)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        if self._exchange is not None:
            self._exchange.cancel()

    async def get(self) -> None:
        if self._own_answer is not None:
            self._own_answer()
            return
        try:
            if self._exchange is None:
                await self._socket()
            else:
                await self._exchange.answer(self, _response_headers)
        except StreamClosedError:
            return
        except PodUnavailable:
            self._page(pages.failing("Its workspace is restarting.", self._project_url))
        except TimeoutError:
            self._page(pages.too_slow())
        except BodyTooLarge:
            self._page(self._too_large())
        except BadAnswer:
            self._page(pages.plain(502, "No valid answer", "The program's answer is not valid HTTP."))

    head = post = put = patch = delete = options = get

    def check_xsrf_cookie(self) -> None:
        """The program protects itself; nothing of the hub can be reached from here."""

    # who, and what they may see

    def _is_public(self, project: Project) -> bool:
        """Whether anybody may see this port. Owners open ports by number; ``main`` is whatever the program
        opens, so it is never public itself."""
        return self._name.port != MAIN and int(self._name.port) in project.settings.public_ports

    async def _who(self, project: Project, public: bool) -> Visitor:
        """The visitor, or an answer that says how to become one."""
        for value in cookies_named(pairs(self.request.headers), COOKIE)[:_MAX_COOKIES]:
            user = self.seal.open(value, self._name)
            visitor = await self.access.person(project, user) if user else None
            if visitor is not None:
                return visitor
        if public:
            client = f"{self.request.remote_ip} {self.request.headers.get('User-Agent', '')}"
            secret = self.hub.signing_key.private_bytes_raw()
            return Visitor(guest_subject(secret, project.id, client), GUEST, Role.VIEWER, True)
        raise self._ask_who()

    def _ask_who(self) -> _Answered:
        """Send a tab through the hub; tell a frame, or a part of a page, in words."""
        to = local_path(self.request.uri or "/") or "/"
        name = self._name
        url = f"{self.hub.origin}/preview/{name.project}?" + urlencode({"port": name.port, "to": to})
        if not self._is_visit():
            return self._end(pages.log_in(url))
        self.set_header("Cache-Control", "no-store")
        return _Answered(partial(self.redirect, url))

    def _is_visit(self) -> bool:
        """Whether somebody opens the preview in a tab of its own."""
        headers = self.request.headers
        if self.request.method != "GET" or wants_upgrade(headers):
            return False
        if "Sec-Fetch-Dest" in headers:
            return headers["Sec-Fetch-Dest"] == "document" and headers.get("Sec-Fetch-Mode") == "navigate"
        return "text/html" in headers.get("Accept", "")

    async def _own_path(self, project: Project | None) -> NoReturn:
        """``/_codevo/enter``: take the code, set the cookie, go on. Nothing else of ours is here."""
        if self.request.path != _OWN + "enter" or self.request.method != "GET":
            raise self._end(pages.plain(404, "Not found", "There is nothing here."))
        code = self.get_query_argument("code", "")
        to = local_path(self.get_query_argument("to", "/"))
        taken = None
        if project is not None and 0 < len(code) <= 200:
            taken = await self.hub.store.preview_codes.take(code, project.id)
        if project is None or taken is None or taken.port != self._name.port or to is None:
            raise self._end(pages.code_used())
        if await self.access.person(project, taken.user) is None:
            raise self._end(pages.no_entry(self.hub.origin))
        self.add_header("Set-Cookie", set_cookie(self.seal.make(self._name, taken.user)))
        self.set_header("Cache-Control", "no-store")
        self.set_header("Referrer-Policy", "no-referrer")
        raise _Answered(partial(self.redirect, to))

    # towards the pod

    @property
    def _pods(self) -> PodClient:
        found: PodClient = self.hub.pods
        return found

    @property
    def _origin(self) -> str:
        return f"{self.hub.scheme}://{self._name.host(self.hub.preview_domain)}"

    @property
    def _project_url(self) -> str:
        return f"{self.hub.origin}/projects/{self._name.project}"

    async def _find(self, project: Project) -> str:
        """The gateway's address, from memory, or a page that says why there is none."""
        try:
            return self._pods.where(project.id, Audience.RUNNER, gateway=True)
        except PodUnavailable:
            pass
        status = self.hub.servers.status(project.id)
        if status.state is ServerState.STOPPED and project.settings.wake and self._is_visit():
            status = await self._wake(project)
        if status.state is ServerState.FAILED:
            raise self._end(pages.failing(status.reason, self._project_url))
        if status.state is ServerState.STOPPED:
            raise self._end(pages.stopped(self._project_url))
        raise self._end(pages.starting(status.message))

    async def _wake(self, project: Project) -> ServerStatus:
        """Start the project on a visit. Frames and background requests never do, or a forgotten tab would
        keep the project running for ever."""
        members = await self.hub.store.members.of_project(project.id)
        owner = next((member.user for member in members if member.role is Role.OWNER), None)
        if owner is not None:
            with contextlib.suppress(ServersBusy, TooManyRunning):
                return self.hub.servers.start(project.id, owner)
        return self.hub.servers.status(project.id)

    def _for_pod(self) -> Headers:
        visitor = self._visitor
        token = self._pods.token(
            self._name.project, Audience.RUNNER, visitor.subject, visitor.name, visitor.role
        )
        host = self._name.host(self.hub.preview_domain)
        return [
            *preview_request(pairs(self.request.headers), host=host, scheme=self.hub.scheme),
            (TOKEN_HEADER, token),
            (PORT_HEADER, self._name.port),
        ]

    async def _socket(self) -> None:
        def extra(upgraded: Upgraded) -> Headers:
            return [(n, v) for n, v in preview_response(upgraded.headers) if n.lower() == "set-cookie"]

        try:
            await serve(
                self,
                self.hub,
                project=self._name.project,
                subject=self._visitor.subject,
                address=self._address,
                target=self.request.uri or "/",
                headers=self._for_pod(),
                vanished=None,
                stranger=self._visitor.stranger,
                extra=extra,
            )
        except BadHandshake as e:
            self._page(pages.plain(400, "Bad handshake", f"{e}."))
        except TooManySockets:
            self._page(pages.plain(429, "Too many connections", "Close some of this project's pages."))
        except UpgradeRefused as e:
            self._page(pages.plain(e.status, "Refused", "The program refused the connection."))

    # answers

    def _too_large(self) -> PageText:
        self.set_header("Connection", "close")
        return pages.plain(413, "Too large", f"At most {self.hub.limits.max_upload} bytes can be sent.")

    def _page(self, page: PageText) -> None:
        html, headers = pages.render(page)
        self.set_status(page.status)
        for name, value in headers:
            self.set_header(name, value)
        self.finish(html)

    def _end(self, page: PageText) -> _Answered:
        """The page as an answer; the caller raises it."""
        return _Answered(partial(self._page, page))


def _response_headers(response: aiohttp.ClientResponse) -> Headers:
    return preview_response(response.headers.items())


def _log_request(handler: RequestHandler) -> None:
    """Without the query, which may hold a code."""
    log.debug("%s %s %s", handler.get_status(), handler.request.method, handler.request.path)


def is_preview_host(host: str, preview_domain: str) -> bool:
    """Whether a request for ``host`` belongs to the preview application, well-formed or not."""
    return host.lower().rstrip(".").endswith("." + preview_domain.lower())


def preview_application(hub: Hub, **settings: Any) -> Application:
    """The application for every host under ``hub.preview_domain``. ``settings`` are Tornado's."""
    access = Access(hub)
    hub.pods.on_right_ended.append(access.forget)
    hub.pods.on_project_changed.append(access.forget_project)
    seal = Seal(hub.signing_key.private_bytes_raw())
    settings.setdefault("log_function", _log_request)
    arguments = {"hub": hub, "seal": seal, "access": access}
    return Application([(r".*", PreviewHandler, arguments)], **settings)
