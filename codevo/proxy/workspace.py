"""``/p/{id}/…``: a workspace's routes on the hub's origin."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import unquote_plus

import aiohttp
from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from codevo.api.base import SAFE_METHODS, ApiHandler
from codevo.api.needs import Route as HubRoute
from codevo.api.needs import needs
from codevo.api.problems import Problem, too_many, unavailable
from codevo.proxy.headers import Headers, workspace_request, workspace_response
from codevo.proxy.http import (
    UPLOAD_TIME,
    BadAnswer,
    BodyTooLarge,
    Exchange,
    framing_is_sound,
    has_body,
    pairs,
)
from codevo.proxy.pods import PodClient, PodUnavailable
from codevo.proxy.relay import GOING_AWAY, SESSION, TOKEN, Ending, TooManySockets
from codevo.proxy.routes import Route, resolve
from codevo.proxy.sockets import serve
from codevo.proxy.websocket import BadHandshake, UpgradeRefused, wants_upgrade
from codevo.spawner.base import ServerState
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import TOKEN_HEADER, Audience

#: Name that the collaborators of a guest see.
GUEST = "Guest"

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
# More than the limit by this much is read and dropped, so that the client gets to read its 413.
_SLACK = 1024 * 1024


def without_token(query: str) -> str:
    """A raw query without its ``token`` parameters; the others keep their spelling."""
    return "&".join(p for p in query.split("&") if unquote_plus(p.partition("=")[0]) != "token")


def guest_subject(secret: bytes, project: str, client: str) -> str:
    """A guest's ``sub``: unguessable, the same for one client on one project, so that limits count."""
    return "anon:" + hmac.new(secret, f"{project} {client}".encode(), hashlib.sha256).hexdigest()[:24]


@stream_request_body
@needs(role="viewer", guests=True)
class WorkspaceHandler(ApiHandler):
    """Forwards to the container that owns the route. What a role may do there, the container decides."""

    _exchange: Exchange | None = None
    _route: Route
    _address: str = ""
    _refusal: Exception | None = None
    _last_answer = False
    _leave: Callable[[], None] | None = None

    async def prepare(self) -> None:
        # What is answered before the body was read ends the connection, which clients take for an accident.
        # Without a body, `get` may as well say it.
        try:
            await self._prepare()
        except Exception as e:
            headers = self.request.headers
            if self.request.method in _METHODS and framing_is_sound(headers) and not has_body(headers):
                self._refusal = e
                return
            self._last_answer = True
            raise

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        if self._last_answer:
            self.set_header("Connection", "close")
        super().write_error(status_code, **kwargs)

    async def _prepare(self) -> None:
        headers = self.request.headers
        limit = self.hub.limits.max_upload
        if not framing_is_sound(headers):
            raise Problem(400, "The length of the request's body is not clear.", code="framing")
        self.request.connection.set_max_body_size(limit + _SLACK)  # type: ignore[union-attr]
        self.request.connection.set_body_timeout(UPLOAD_TIME)  # type: ignore[union-attr]
        await ApiHandler.prepare(self)
        if self.request.method not in _METHODS:
            raise Problem(
                405, "There is no such method here.", headers={"Allow": ", ".join(sorted(_METHODS))}
            )
        if int(headers.get("Content-Length", "0")) > limit:
            raise self._too_large()
        # The containers would say so too, but after the body, and who sends one slowly holds a connection.
        if not self.role.allows(Role.EDITOR) and (
            self.request.method not in SAFE_METHODS or has_body(headers)
        ):
            raise Problem(403, f"This needs the role editor; yours is {self.role}.", code="role")
        path, _, query = self._target().partition("?")
        route = resolve(path)
        if route is None:
            raise Problem(404, "There is no such route in a workspace.", code="route")
        if route.members and self.stranger:
            raise Problem(
                403,
                "Only members see a project's history.",
                remedy="Ask an owner for an invitation.",
                code="role",
            )
        query = without_token(query)
        self._route = Route(route.audience, f"{route.path}?{query}" if query else route.path)
        self._address = self._find()
        if not wants_upgrade(headers):
            self._take_place()
            self._exchange = Exchange(self._pods, self.project.id, self._address)
            self._exchange.begin(
                self.request.method,
                self._route.path,
                self._headers_for_pod(),
                body=has_body(headers),
                limit=limit,
            )

    def _take_place(self) -> None:
        if self.stranger and self._pods.visits.enter(self.project.id):
            self._leave = partial(self._pods.visits.leave, self.project.id)
        elif self.stranger:
            raise too_many(5, "There are too many visitors at this project just now.")

    def on_finish(self) -> None:
        self._leave_place()

    def _leave_place(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    async def data_received(self, chunk: bytes) -> None:
        if self._exchange is not None and self._exchange.upload is not None:
            await self._exchange.upload.put(chunk)

    def on_connection_close(self) -> None:
        super().on_connection_close()
        self._leave_place()
        if self._exchange is not None:
            self._exchange.cancel()

    async def get(self, project_id: str) -> None:
        if self._refusal is not None:
            raise self._refusal
        if self._exchange is None:
            await self._socket()
        else:
            await self._answer(self._exchange)

    head = post = put = patch = delete = get

    @property
    def _pods(self) -> PodClient:
        found: PodClient = self.hub.pods
        return found

    def _target(self) -> str:
        return (self.request.uri or "").removeprefix(f"/p/{self.project.id}")

    def _find(self) -> str:
        """The container's address, from memory. 503 says why there is none."""
        try:
            return self._pods.where(self.project.id, self._route.audience)
        except PodUnavailable:
            raise not_running(self.hub.servers.status(self.project.id).state) from None

    def _headers_for_pod(self) -> Headers:
        user = self.maybe_user
        token = self._pods.token(
            self.project.id, self._route.audience, self._subject, user.name if user else GUEST, self.role
        )
        return [*workspace_request(pairs(self.request.headers)), (TOKEN_HEADER, token)]

    @property
    def _subject(self) -> str:
        user = self.maybe_user
        if user is not None:
            return user.id
        client = f"{self.request.remote_ip} {self.request.headers.get('User-Agent', '')}"
        return guest_subject(self.xsrf_key, self.project.id, client)

    @property
    def _credential(self) -> str:
        """What the request came with; a guest's nothing never ends."""
        if self.token is not None:
            return TOKEN + self.token.id
        return SESSION + self.session.id if self.session is not None else ""

    async def _answer(self, exchange: Exchange) -> None:
        project = self.project.id

        def headers(response: aiohttp.ClientResponse) -> Headers:
            return workspace_response(response.headers.items(), project)

        try:
            await exchange.answer(self, headers)
        except StreamClosedError:
            return
        except PodUnavailable:
            raise self._gone() from None
        except TimeoutError:
            raise Problem(
                504, f"The {self._route.audience} did not answer in time.", code="timeout"
            ) from None
        except BodyTooLarge:
            raise self._too_large() from None
        except BadAnswer:
            raise Problem(502, f"The {self._route.audience} gave no valid answer.", code="answer") from None

    async def _socket(self) -> None:
        try:
            await serve(
                self,
                self.hub,
                project=self.project.id,
                subject=self._subject,
                address=self._address,
                target=self._route.path,
                headers=self._headers_for_pod(),
                credential=self._credential,
                stranger=self.stranger,
                vanished=Ending(GOING_AWAY, f"The {self._route.audience} has stopped"),
            )
        except BadHandshake as e:
            raise Problem(400, f"{e}.", code="handshake") from None
        except TooManySockets:
            raise too_many(10, "There are too many open connections to this project.") from None
        except UpgradeRefused as e:
            # 401 is the pod's refusal of the hub's token, which the client cannot cure by logging in
            status = 403 if e.status == 401 else e.status
            raise Problem(status, "The workspace refused the connection.", code="refused") from None
        except PodUnavailable:
            raise self._gone() from None
        except TimeoutError:
            raise Problem(
                504, f"The {self._route.audience} did not answer in time.", code="timeout"
            ) from None

    def _gone(self) -> Problem:
        state = self.hub.servers.status(self.project.id).state
        if state in (ServerState.READY, ServerState.RESTORING):
            what = "worker" if self._route.audience is Audience.WORKER else "runner"
            return unavailable(f"The project's {what} is restarting.", seconds=1)
        return not_running(state)

    def _too_large(self) -> Problem:
        limit = self.hub.limits.max_upload
        self._last_answer = True
        return Problem(413, f"The body is larger than {limit} bytes.", code="too-large")


def not_running(state: ServerState) -> Problem:
    """503 for a project without an address, from what the hub remembers."""
    words: dict[ServerState, tuple[str, int]] = {
        ServerState.STOPPED: ("The project is stopped. Start it first.", 5),
        ServerState.STOPPING: ("The project is stopping.", 2),
        ServerState.FAILED: ("The project could not be started.", 5),
    }
    detail, seconds = words.get(state, ("The project is starting.", 1))
    return Problem(503, detail, code=str(state), headers={"Retry-After": str(seconds)}, state=str(state))


def routes() -> list[HubRoute]:
    """The workspaces' route."""
    arguments: dict[str, Any] = {}
    return [(r"/p/(?P<project_id>[a-z2-7]{16})/.*", WorkspaceHandler, arguments)]
