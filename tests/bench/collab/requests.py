"""What an hour of typing asks of the bucket: requests are counted in front of the store."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
from aiohttp import web

from codevo.embedded.s3 import S3Settings

#: Dollars for a million requests of R2's standard storage, as its pricing page has them
#: (developers.cloudflare.com/r2/pricing): class A changes or lists, class B reads, deleting is free.
CLASS_A, CLASS_B = 4.50, 0.36


class Front:
    """Passes requests on to the store; ``seen`` counts them by method and kind."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        self.seen: Counter[str] = Counter()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.seen[_kind(request)] += 1
        # the signature covers the host, so that stays what the worker wrote
        http: aiohttp.ClientSession = request.app["http"]
        body = await request.read()
        async with http.request(
            request.method, self._endpoint + request.raw_path, headers=request.headers, data=body,
            allow_redirects=False, skip_auto_headers=("User-Agent", "Accept", "Content-Type"),
        ) as answer:  # fmt: skip
            headers = {k: v for k, v in answer.headers.items() if k not in ("Transfer-Encoding",)}
            return web.Response(status=answer.status, headers=headers, body=await answer.read())


def _kind(request: web.Request) -> str:
    if request.method == "GET" and "list-type" in request.query:
        return "LIST"
    return request.method


@contextlib.asynccontextmanager
async def counted(s3: S3Settings) -> AsyncIterator[tuple[S3Settings, Counter[str]]]:
    """The store's settings with a front that counts, and its counter."""
    front = Front(s3.endpoint_url)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", front.handle)
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        app["http"] = http
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        assert site._server is not None
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
        try:
            yield dataclasses.replace(s3, endpoint_url=f"http://127.0.0.1:{port}"), front.seen
        finally:
            await runner.cleanup()


def hourly(seen: Counter[str], seconds: float) -> dict[str, Any]:
    """Requests of an hour at this rate, and their price in dollars."""
    scale = 3600 / seconds
    a = sum(seen[k] for k in ("PUT", "POST", "LIST")) * scale
    b = sum(seen[k] for k in ("GET", "HEAD")) * scale
    return {
        "class_a_per_hour": a,
        "class_b_per_hour": b,
        "dollars_per_1000_hours": (a * CLASS_A + b * CLASS_B) / 1e3,
        "seen": dict(seen),
        "seconds": seconds,
    }
