"""One client's WebSocket from the handshake to its end, the same for workspaces and previews."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from tornado.web import RequestHandler

from codevo.hub import Hub
from codevo.proxy.headers import Headers
from codevo.proxy.pods import PodClient
from codevo.proxy.relay import Ending, Relay
from codevo.proxy.websocket import BadHandshake, Upgraded, accept, dial, offer


async def serve(
    handler: RequestHandler,
    hub: Hub,
    *,
    project: str,
    subject: str,
    address: str,
    target: str,
    headers: Headers,
    vanished: Ending | None,
    credential: str = "",
    stranger: bool = False,
    extra: Callable[[Upgraded], Headers] = lambda _: [],
) -> None:
    """Dial the pod, then accept the client, then relay until the end.

    Raises, while the client can still be given a status: `BadHandshake`, `TooManySockets`,
    `PodUnavailable`, `UpgradeRefused`, ``TimeoutError``.
    """
    if handler.request.method != "GET":
        raise BadHandshake("a WebSocket begins with GET")
    offered = offer(handler.request.headers)
    pods: PodClient = hub.pods
    relays = pods.relays
    with relays.place(project, subject, stranger=stranger):
        dialling = asyncio.create_task(dial(pods, address, target, headers, offered))
        handler.request.connection.set_close_callback(dialling.cancel)  # type: ignore[union-attr]
        try:
            upgraded = await dialling
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            return  # the client has gone
        accept(handler, offered, upgraded, extra(upgraded))
        stream = handler.detach()
        stream.set_nodelay(True)
        relay = Relay(stream, upgraded.reader, upgraded.writer, vanished=vanished)
        hub.sockets.add(relay.close)
        try:
            with relays.listed(relay, project, subject, credential):
                await relay.run()
        finally:
            hub.sockets.discard(relay.close)
