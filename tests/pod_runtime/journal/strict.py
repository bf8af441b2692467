"""An S3 front that refuses what Cloudflare R2 refuses, before a real S3 server.

By R2's table of S3 compatibility: the region is ``auto``; no checksum trailers and no flexible checksums; no
ACLs, tags, storage classes or other headers that it does not know; the parts of an upload are of one size but
for the last, and 5 MiB at least. Requests pass unchanged, so that their signatures stay good.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import AsyncIterator
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer
from yarl import URL

_HEADERS = re.compile(
    "x-amz-(content-sha256|date|security-token|copy-source|copy-source-if-.*|metadata-directive|user-agent)"
)
_QUERY = {
    "list-type", "prefix", "start-after", "continuation-token", "max-keys", "encoding-type", "delimiter",
    "uploads", "uploadId", "partNumber", "x-id",
}  # fmt: skip
LEAST_PART = 5 * 2**20


class Refusal(Exception):
    def __init__(self, status: int, code: str, words: str) -> None:
        super().__init__(words)
        self.status, self.code = status, code


class StrictFront:
    """``seen`` are the requests that passed, ``refused`` the others with the reason."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.seen: list[str] = []
        self.refused: list[str] = []
        self._parts: dict[str, dict[int, int]] = {}
        self._http: aiohttp.ClientSession

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        line = f"{request.method} {request.raw_path}"
        try:
            self.check(request, body)
        except Refusal as e:
            self.refused.append(f"{line}: {e}")
            text = f"<Error><Code>{e.code}</Code><Message>{e}</Message></Error>"
            return web.Response(status=e.status, text=text, content_type="application/xml")
        self.seen.append(line)
        headers = {k: v for k, v in request.headers.items() if k.lower() not in ("expect", "content-length")}
        url = URL(self.target + request.raw_path, encoded=True)
        # of a large body aiohttp wants a stream
        sent: bytes | io.BytesIO = io.BytesIO(body) if len(body) > 2**20 else body
        own = ("Accept-Encoding", "User-Agent", "Content-Type")
        async with self._http.request(
            request.method, url, headers=headers, data=sent, skip_auto_headers=own
        ) as answer:
            passed = {
                k: v
                for k, v in answer.headers.items()
                if k.lower() not in ("transfer-encoding", "connection", "content-encoding")
            }
            found = await answer.read()
            if request.method != "HEAD":
                passed["Content-Length"] = str(len(found))
            return web.Response(status=answer.status, body=found, headers=passed)

    def check(self, request: web.Request, body: bytes) -> None:
        """Raise `Refusal`."""
        headers = {k.lower(): v for k, v in request.headers.items()}
        if "/auto/s3/aws4_request" not in headers.get("authorization", ""):
            raise Refusal(400, "InvalidRegionName", "the region must be auto")
        if "aws-chunked" in headers.get("content-encoding", "") or headers.get(
            "x-amz-content-sha256", ""
        ).startswith("STREAMING"):
            raise Refusal(501, "NotImplemented", "streamed signatures and trailers")
        for name in headers:
            if name.startswith("x-amz-") and not _HEADERS.fullmatch(name) and "x-amz-meta-" not in name:
                raise Refusal(501, "NotImplemented", f"header {name}")
        if request.method in ("PUT", "POST") and "content-length" not in headers:
            raise Refusal(411, "MissingContentLength", "no length")
        query = parse_qs(request.query_string, keep_blank_values=True)
        if unknown := query.keys() - _QUERY:
            raise Refusal(501, "NotImplemented", f"query {unknown}")
        self._multipart(request.method, {k: v[0] for k, v in query.items()}, body)

    def _multipart(self, method: str, query: dict[str, str], body: bytes) -> None:
        upload = query.get("uploadId", "")
        if method == "PUT" and "partNumber" in query:
            self._parts.setdefault(upload, {})[int(query["partNumber"])] = len(body)
        elif method == "POST" and upload:
            numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)</PartNumber>", body)]
            sizes = [self._parts.get(upload, {}).get(n, -1) for n in numbers]
            if len(set(sizes[:-1])) > 1 or any(size < LEAST_PART for size in sizes[:-1]):
                raise Refusal(400, "InvalidPart", f"parts of {sizes} bytes")
            if len(sizes) > 1 and sizes[-1] > sizes[0]:
                raise Refusal(400, "InvalidPart", f"parts of {sizes} bytes")


@contextlib.asynccontextmanager
async def strict_front(target: str) -> AsyncIterator[tuple[StrictFront, str]]:
    """A running front and its address."""
    front = StrictFront(target)
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", front.handle)
    async with (
        TestServer(app) as server,
        aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(120)) as front._http,
    ):
        yield front, str(server.make_url("/")).rstrip("/")
