"""Whose address a request has behind reverse proxies."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tornado.httputil import HTTPHeaders

from codevo import lifecycle
from codevo.auth.forwarded import client
from codevo.embedded.s3 import S3Settings
from tests.codevo.hub_site import PASSWORD, running_site

PROXY = "10.1.1.1"


@pytest.mark.parametrize(
    ("peer", "headers", "expected"),
    [
        (PROXY, [("X-Forwarded-For", "192.0.2.7")], ("192.0.2.7", "http")),
        (PROXY, [("X-Forwarded-For", "192.0.2.7"), ("X-Forwarded-Proto", "https")], ("192.0.2.7", "https")),
        # what the client itself wrote stands before what the proxy added
        (PROXY, [("X-Forwarded-For", "127.0.0.1, 192.0.2.7")], ("192.0.2.7", "http")),
        (PROXY, [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-For", "192.0.2.7")], ("192.0.2.7", "http")),
        (PROXY, [("X-Forwarded-For", f"192.0.2.7, {PROXY}")], ("192.0.2.7", "http")),
        (PROXY, [("X-Forwarded-For", "192.0.2.7"), ("X-Real-Ip", "127.0.0.1")], ("192.0.2.7", "http")),
        (PROXY, [("X-Forwarded-For", "nonsense")], (PROXY, "http")),
        (PROXY, [("X-Forwarded-Proto", "javascript")], (PROXY, "http")),
        (PROXY, [], (PROXY, "http")),
        # not a proxy of ours: nothing counts
        ("192.0.2.9", [("X-Forwarded-For", PROXY), ("X-Forwarded-Proto", "https")], ("192.0.2.9", "http")),
    ],
)
def test_only_trusted_proxies_are_believed(
    peer: str, headers: list[tuple[str, str]], expected: tuple[str, str]
) -> None:
    found = HTTPHeaders()
    for name, value in headers:
        found.add(name, value)
    assert client(peer, "http", found, {PROXY}) == expected


async def test_failed_logins_count_for_the_client_whatever_it_writes(
    mongo_url: str, s3: S3Settings, tmp_path: Path
) -> None:
    async with running_site(tmp_path, mongo_url, s3, trusted_proxies=["127.0.0.1"], login_attempts=1) as site:
        statuses = []
        for n in range(8):
            browser = await site.browser(**{"X-Forwarded-For": "192.0.2.7", "X-Real-Ip": f"192.0.2.{n + 20}"})
            answer = await browser("POST", "/api/login", {"name": f"nobody{n}", "password": PASSWORD})
            statuses.append(answer.status)
        assert statuses == [401] * 6 + [429] * 2


@pytest.mark.parametrize(
    "settings", [{"public_url": "https://codevo.example.org"}, {"trusted_proxies": ["127.0.0.1"]}]
)
async def test_a_hub_for_visitors_from_elsewhere_asks_the_first_person_for_the_code(
    mongo_url: str, s3: S3Settings, tmp_path: Path, settings: dict[str, object]
) -> None:
    """A silent proxy on this machine sends everybody's requests from loopback, with any Host."""
    async with running_site(tmp_path, mongo_url, s3, **settings) as site:
        body = {"name": "eve", "password": PASSWORD}
        answer = await (await site.browser())("POST", "/api/signup", body)
        assert answer.status == 403 and answer.json["code"] == "setup-code"


async def test_http_1_0_is_a_proxys(mongo_url: str, s3: S3Settings, tmp_path: Path) -> None:
    async with running_site(tmp_path, mongo_url, s3) as site:
        host = site.base.partition("//")[2]
        for version, required in (("1.0", b"true"), ("1.1", b"false")):
            reader, writer = await asyncio.open_connection(*host.split(":"))
            head = f"GET /api/config HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n"
            writer.write(head.encode())
            async with asyncio.timeout(20):
                assert b'"setup_code_required": ' + required in await reader.read()
            writer.close()


async def test_a_body_that_does_not_come_ends_the_connection(
    mongo_url: str, s3: S3Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_BODY_SECONDS", 0.2)
    async with running_site(tmp_path, mongo_url, s3) as site:
        host = site.base.partition("//")[2]
        reader, writer = await asyncio.open_connection(*host.split(":"))
        writer.write(f"POST /api/login HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100\r\n\r\n{{".encode())
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
