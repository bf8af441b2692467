"""Previews: names, cookies, who gets in, and what passes between a program and its visitors."""

from __future__ import annotations

import asyncio
import io
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codevo.proxy.previews import PreviewName, Seal, local_path, parse_host, parse_port, set_cookie
from codevo.spawner.base import ServerState
from codevo.store import User, Visibility
from pod_runtime.protocol.roles import Role
from tests.codevo.proxy_stand import PREVIEW_DOMAIN, WAIT, Stand, stand
from tests.codevo.test_proxy_http import bearer
from tests.codevo.test_proxy_websocket import dial

ID = "abcdefghijklmnop"
TAB = {"Sec-Fetch-Dest": "document", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
FRAME = {"Sec-Fetch-Dest": "iframe", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}


# pure


@pytest.mark.parametrize(
    ("host", "found"),
    [
        (f"{ID}.preview.test", PreviewName(ID)),
        (f"{ID.upper()}.Preview.Test", PreviewName(ID)),
        (f"{ID}--3000.preview.test", PreviewName(ID, "3000")),
        (f"{ID}--65535.preview.test", PreviewName(ID, "65535")),
    ],
)
def test_hosts_that_name_a_preview(host: str, found: PreviewName) -> None:
    assert parse_host(host, "preview.test") == found


@pytest.mark.parametrize(
    "host",
    [
        "",
        "preview.test",
        f"{ID}.preview.test.evil",
        f"{ID}.preview.test:80",
        f"{ID}.preview.test.",
        f"{ID}.xpreview.test",
        f"{ID}preview.test",
        f"x.{ID}.preview.test",
        f"{ID}-3000.preview.test",
        f"{ID}--0.preview.test",
        f"{ID}--03000.preview.test",
        f"{ID}--65536.preview.test",
        f"{ID}--3000--1.preview.test",
        f"{ID}--.preview.test",
        f"{ID}--３０００.preview.test",
        f"{ID[:-1]}.preview.test",
        f"{ID[:-1]}1.preview.test",
        f"{ID}\n.preview.test",
    ],
)
def test_other_hosts_name_none(host: str) -> None:
    assert parse_host(host, "preview.test") is None


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz234567", min_size=16, max_size=16), st.integers(1, 65535))
def test_names_survive_the_round_trip(project: str, port: int) -> None:
    for name in (PreviewName(project), PreviewName(project, str(port))):
        assert parse_host(name.host("localhost:8000"), "localhost:8000") == name


@given(st.text(max_size=60))
def test_any_host_is_one_canonical_name_or_none(host: str) -> None:
    found = parse_host(host, "preview.test")
    assert found is None or found.host("preview.test") == host.lower()


@given(st.text(max_size=8))
def test_ports_are_canonical(text: str) -> None:
    port = parse_port(text)
    assert port in (None, text)
    assert port in (None, "main") or 1 <= int(text) <= 65535


@pytest.mark.parametrize("good", ["/", "/a", "/a?b=//c", "/a%0d", "/a#b", "/.//x"])
def test_local_paths(good: str) -> None:
    assert local_path(good) == good


@pytest.mark.parametrize(
    "bad",
    [
        *(
            "",
            "a",
            "//evil",
            "/\\evil",
            "\\\\evil",
            "\\/evil",
            "/a\\b",
            "https://evil",
            "/\t/evil",
            "/a\nb",
            " /a",
            "/ä",
        ),
    ],
)
def test_redirects_never_leave_the_origin(bad: str) -> None:
    assert local_path(bad) is None


def test_a_seal_is_for_one_preview_one_key_and_twelve_hours() -> None:
    seal, name = Seal(b"secret"), PreviewName(ID, "3000")
    value = seal.make(name, "user", now=1000)
    assert seal.open(value, name, now=1000) == "user"
    assert seal.open(value, name, now=1000 + 12 * 3600) is None
    assert seal.open(value, PreviewName(ID), now=1000) is None
    assert seal.open(value, PreviewName("q" * 16, "3000"), now=1000) is None
    assert Seal(b"other").open(value, name, now=1000) is None


@given(st.text(max_size=80))
def test_a_forged_cookie_is_nobody(value: str) -> None:
    assert Seal(b"secret").open(value, PreviewName(ID)) is None


def test_the_cookie_works_in_frames_and_for_this_host_only() -> None:
    header = set_cookie("v")
    assert header.startswith("__Host-codevo-preview=v; Path=/;")
    for word in ("Secure", "HttpOnly", "SameSite=None", "Partitioned"):
        assert word in header
    assert "Domain" not in header


# over the wire


@pytest.fixture
async def hub(mongo_url: str, tmp_path: Path) -> AsyncIterator[Stand]:
    async with stand(mongo_url, tmp_path) as made:
        yield made


class Site:
    """A preview as a browser sees it: requests to the hub's address with the preview's Host."""

    def __init__(self, hub: Stand, project: str, port: str = "main") -> None:
        self.hub, self.project, self.port = hub, project, port
        self.host = PreviewName(project, port).host(PREVIEW_DOMAIN)
        self.cookie = ""

    def request(self, path: str, method: str = "GET", **options: Any) -> Any:
        headers = {"Host": self.host, **options.pop("headers", {})}
        if self.cookie:
            headers["Cookie"] = "; ".join(filter(None, [headers.get("Cookie"), self.cookie]))
        return self.hub.http.request(
            method, self.hub.origin + path, headers=headers, allow_redirects=False, **options
        )

    async def code(self, token: str) -> dict[str, Any]:
        url = f"{self.hub.origin}/api/projects/{self.project}/preview-codes"
        port: object = self.port if self.port == "main" else int(self.port)
        async with self.hub.http.post(url, json={"port": port}, headers=bearer(token)) as answer:
            assert answer.status == 201, await answer.read()
            return json.loads(await answer.read())  # type: ignore[no-any-return]

    async def enter(self, token: str) -> None:
        made = await self.code(token)
        parts = urlsplit(made["url"])
        assert parts.netloc == self.host
        async with self.request(f"{parts.path}?{parts.query}") as answer:
            assert (answer.status, answer.headers["Location"]) == (302, "/")
            self.cookie = answer.headers["Set-Cookie"].partition(";")[0]


async def running(hub: Stand, **options: Any) -> tuple[str, User, str]:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.EDITOR), **options)
    hub.pod(project)
    return project, user, token


async def test_a_member_enters_with_a_code_and_the_program_never_sees_ours(hub: Stand) -> None:
    project, user, token = await running(hub)
    site = Site(hub, project, "3000")
    await site.enter(token)
    headers = {"Cookie": "theirs=1", "Codevo-Port": "22", "Codevo-Token": "x", "X-Forwarded-Host": "evil"}
    async with site.request("/a%20b/../c?x=%2F", "POST", data=b"body", headers=headers) as answer:
        assert answer.status == 200
        got = json.loads(await answer.read())
    assert got["headers"]["cookie"] == "theirs=1"
    assert got["headers"]["codevo-port"] == "3000"
    assert got["headers"]["x-forwarded-host"] == site.host
    assert got["headers"]["x-forwarded-proto"] == "http"
    assert (got["sub"], got["role"], got["body"]) == (user.id, "editor", "body")
    assert hub.servers.pods[project].seen[-1].name == "gateway"


async def test_a_code_works_once_here_and_in_time(hub: Stand) -> None:
    project, user, token = await running(hub)
    site, other_port = Site(hub, project, "3000"), Site(hub, project, "3001")
    code = (await site.code(token))["code"]
    async with other_port.request(f"/_codevo/enter?code={code}&to=/") as answer:
        assert answer.status == 403 and "Set-Cookie" not in answer.headers
    code = (await site.code(token))["code"]
    async with site.request(f"/_codevo/enter?code={code}&to=/x") as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/x")
        assert answer.headers["Cache-Control"] == "no-store"
    for bad in (code, "", "nonsense", "a" * 5000):
        async with site.request(f"/_codevo/enter?code={bad}&to=/x") as answer:
            assert answer.status == 403 and "Set-Cookie" not in answer.headers
    _, late = await hub.store.preview_codes.create(project, user.id, "3000", seconds=-1)
    async with site.request(f"/_codevo/enter?code={late}&to=/x") as answer:
        assert answer.status == 403
    for bad_to in ("//evil.test", "/%5Cevil.test", "https://evil.test", "%5C%5Cevil"):
        code = (await site.code(token))["code"]
        async with site.request(f"/_codevo/enter?code={code}&to={bad_to}") as answer:
            assert answer.status == 403 and "Location" not in answer.headers


async def test_codes_are_for_members_only(hub: Stand) -> None:
    project, _, token = await running(hub)
    _, stranger = await hub.user("bob")
    url = f"{hub.origin}/api/projects/{project}/preview-codes"
    async with hub.http.post(url, json={}, headers=bearer(stranger)) as answer:
        assert answer.status == 404
    for port in (0, 65536, "x", True, 1.5, None, [1]):
        async with hub.http.post(url, json={"port": port}, headers=bearer(token)) as answer:
            assert answer.status == 400, port


async def test_a_visitor_in_a_tab_goes_through_the_hub(hub: Stand) -> None:
    project, user, _ = await running(hub)
    site = Site(hub, project, "3000")
    async with site.request("/deep?x=1", headers=TAB) as answer:
        assert answer.status == 302
        to_hub = urlsplit(answer.headers["Location"])
    assert f"{to_hub.scheme}://{to_hub.netloc}" == hub.origin
    assert parse_qs(to_hub.query) == {"port": ["3000"], "to": ["/deep?x=1"]}
    url = f"{hub.origin}{to_hub.path}?{to_hub.query}"
    async with hub.http.get(url, allow_redirects=False) as answer:
        assert answer.status == 302 and answer.headers["Location"].startswith("/login?next=%2Fpreview")
    cookie, _ = await hub.session(user)
    async with hub.http.get(url, headers={"Cookie": cookie}, allow_redirects=False) as answer:
        back = urlsplit(answer.headers["Location"])
    assert back.netloc == site.host
    async with site.request(f"{back.path}?{back.query}") as answer:
        assert (answer.status, answer.headers["Location"]) == (302, "/deep?x=1")


async def test_frames_and_assets_without_a_cookie_get_words(hub: Stand) -> None:
    project, _, _ = await running(hub)
    site = Site(hub, project)
    for headers in (FRAME, {"Sec-Fetch-Dest": "script", "Sec-Fetch-Mode": "no-cors"}, {}):
        async with site.request("/", headers=headers) as answer:
            page = (await answer.read()).decode()
            assert answer.status == 401 and "This preview is private" in page
            assert "X-Frame-Options" not in answer.headers
            assert "script-src 'nonce-" in answer.headers["Content-Security-Policy"]
    async with site.request("/", "POST", data=b"x", headers=TAB) as answer:
        assert answer.status == 401
    assert not hub.servers.pods[project].seen


async def test_nobody_learns_which_projects_exist(hub: Stand) -> None:
    project, _, _ = await running(hub)
    answers = []
    for one in (project, "q" * 16):
        site = Site(hub, one)
        async with site.request("/", headers=FRAME) as answer:
            page = (await answer.read()).decode().replace(one, "ID")
            answers.append((answer.status, re.sub(r"nonce=\"[^\"]*\"", "", page)))
        async with site.request("/_codevo/enter?code=x", headers=FRAME) as answer:
            answers[-1] = (*answers[-1], answer.status)
    assert answers[0] == answers[1]


async def test_who_leaves_the_project_leaves_the_preview(hub: Stand) -> None:
    project, user, token = await running(hub)
    site = Site(hub, project)
    await site.enter(token)
    async with site.request("/") as answer:
        assert answer.status == 200
    await hub.store.members.remove(project, user.id)
    await hub.hub.pods.end_right(project, user.id)
    async with site.request("/") as answer:
        assert answer.status == 401


async def test_a_cookie_opens_no_other_preview(hub: Stand) -> None:
    project, user, token = await running(hub)
    other = await hub.project((user, Role.OWNER))
    hub.pod(other)
    site = Site(hub, project, "3000")
    await site.enter(token)
    for stranger in (Site(hub, project), Site(hub, project, "3001"), Site(hub, other, "3000")):
        stranger.cookie = site.cookie
        async with stranger.request("/") as answer:
            assert answer.status == 401
    planted = Site(hub, project, "3000")
    planted.cookie = f"__Host-codevo-preview=planted; {site.cookie}"
    async with planted.request("/") as answer:
        assert answer.status == 200


async def test_a_public_port_needs_nothing_and_is_a_guest(hub: Stand) -> None:
    project, _, _ = await running(hub, public_ports=(8080,))
    async with Site(hub, project, "8080").request("/") as answer:
        got = json.loads(await answer.read())
    assert (got["role"], got["name"]) == ("viewer", "Guest")
    for private in ("main", "3000"):
        async with Site(hub, project, private).request("/") as answer:
            assert answer.status == 401


async def test_a_public_project_still_has_private_ports_for_guests(hub: Stand) -> None:
    project, _, _ = await running(hub, visibility=Visibility.PUBLIC)
    async with Site(hub, project).request("/") as answer:
        assert answer.status == 401


async def test_the_programs_own_headers_pass_but_not_beyond_its_origin(hub: Stand) -> None:
    project, _, _ = await running(hub, public_ports=(80,))
    async with Site(hub, project, "80").request("/cookies") as answer:
        assert answer.headers.getall("Set-Cookie") == ["mine=1; Path=/; HttpOnly"]
        assert answer.headers["Content-Security-Policy"] == "default-src 'self'"
        assert answer.headers["Access-Control-Allow-Origin"] == "https://other.test"
        assert answer.headers["Content-Type"].startswith("text/html")
        assert "X-Frame-Options" not in answer.headers


async def test_streams_ranges_and_large_bodies_pass(hub: Stand) -> None:
    project, _, _ = await running(hub, public_ports=(80,))
    site = Site(hub, project, "80")
    async with site.request("/drip") as answer, asyncio.timeout(WAIT):
        assert await answer.content.readuntil(b"\n\n") == b"data: one\n\n"
        answer.close()
    async with site.request("/etag", headers={"Range": "bytes=1-2"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"el")
    async with site.request("/etag", "HEAD") as answer:
        assert (answer.status, answer.headers["Content-Length"]) == (200, "5")
    async with site.request("/upload", "PUT", data=io.BytesIO(b"x" * 20_000_000)) as answer:
        assert json.loads(await answer.read())["bytes"] == 20_000_000


async def test_sockets_need_the_previews_own_origin(hub: Stand) -> None:
    project, _, token = await running(hub, public_ports=(80,))
    site = Site(hub, project, "3000")
    await site.enter(token)
    own = f"http://{site.host}"
    others = ("http://evil.test", own + ".evil.test", own + ":81", f"https://{site.host}")
    for origin in (None, hub.origin, *others):
        headers = {"Cookie": site.cookie} | ({"Origin": origin} if origin else {})
        wire = await dial(hub, "/ws", headers, host=site.host)
        assert b" 403 " in wire.head, origin
        wire.writer.close()
    wire = await dial(hub, "/ws", {"Origin": own}, host=site.host)
    assert b" 401 " in wire.head
    wire.writer.close()
    wire = await dial(hub, "/ws?token=mine", {"Cookie": site.cookie, "Origin": own}, host=site.host)
    assert b" 101 " in wire.head
    wire.send(0x81, b"hot reload")
    assert await wire.frame() == (0x81, b"hot reload")
    wire.writer.close()
    seen = hub.servers.pods[project].seen[-1].request
    assert seen.uri == "/ws?token=mine" and seen.headers["Codevo-Port"] == "3000"
    assert "Cookie" not in seen.headers
    wire = await dial(hub, "/ws", {"Origin": "http://other.test"}, host=Site(hub, project, "80").host)
    assert b" 101 " in wire.head
    wire.writer.close()


async def test_pages_say_what_state_the_project_is_in(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.OWNER), wake=False)
    site = Site(hub, project)
    await site.enter(token)
    for state, words in (
        (ServerState.STOPPED, "This project is stopped"),
        (ServerState.STARTING, "The project is starting"),
        (ServerState.RESTORING, "The project is starting"),
        (ServerState.FAILED, "it broke"),
    ):
        hub.servers.states[project] = state
        async with site.request("/", headers=TAB) as answer:
            page = (await answer.read()).decode()
            assert answer.status == 503 and words in page and "Retry-After" in answer.headers
            nonce = re.search(r'<script nonce="([^"]+)"', page)
            assert nonce and f"'nonce-{nonce[1]}'" in answer.headers["Content-Security-Policy"]
    pod = hub.pod(project, names=("runner",))
    async with site.request("/", headers=TAB) as answer:
        assert answer.status == 503 and b"does not answer" in await answer.read()
    assert not hub.servers.started and not pod.seen


async def test_a_visit_wakes_a_project_when_its_owner_allows(hub: Stand) -> None:
    user, token = await hub.user("ann")
    project = await hub.project((user, Role.OWNER))
    site = Site(hub, project)
    for headers in (TAB, FRAME):
        async with site.request("/", headers=headers):
            assert not hub.servers.started  # strangers wake nothing
    await site.enter(token)
    async with site.request("/", headers=FRAME) as answer:
        assert answer.status == 503 and not hub.servers.started  # nor does a forgotten frame
    async with site.request("/", headers=TAB) as answer:
        assert b"The project is starting" in await answer.read()
    assert hub.servers.started == [(project, user.id)]


async def test_the_hub_cannot_be_reached_from_a_preview_host(hub: Stand) -> None:
    project, user, token = await running(hub, public_ports=(80,))
    cookie, _ = await hub.session(user)
    site = Site(hub, project, "80")
    codes = f"/api/projects/{project}/preview-codes"
    for path in (f"/p/{project}/api/status", "/api/user", "/healthz", codes):
        async with site.request(path, headers={**bearer(token), "Cookie": cookie}) as answer:
            got = json.loads(await answer.read())
        assert got["uri"] == path and got["sub"].startswith("anon:")  # it is the program that answers
        assert "cookie" not in got["headers"]
    for path in ("/_codevo/health", "/_codevo/revoke", "/_codevo/"):
        async with site.request(path, headers=bearer(token)) as answer:
            assert answer.status == 404
    async with hub.http.get(f"{hub.origin}/api/user", headers={"Host": f"x.{PREVIEW_DOMAIN}"}) as answer:
        assert answer.status == 404


async def test_smuggled_and_absolute_requests_are_refused(hub: Stand) -> None:
    project, _, _ = await running(hub, public_ports=(80,))
    host = Site(hub, project, "80").host
    for message in (
        f"POST / HTTP/1.1\r\nHost: {host}\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        "\r\n",
        f"GET http://127.0.0.1/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: {host}\r\nHost: other\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
        writer.write(message.encode())
        async with asyncio.timeout(WAIT):
            status = (await reader.readline()).split(b" ")[1]
        assert status in (b"400", b"404", b"421"), message
        writer.close()
    assert not hub.servers.pods[project].seen


async def test_refusals_keep_the_connection(hub: Stand) -> None:
    project, _, _ = await running(hub)
    reader, writer = await asyncio.open_connection("127.0.0.1", hub.port)
    for _ in range(3):
        writer.write(f"GET / HTTP/1.1\r\nHost: {Site(hub, project).host}\r\n\r\n".encode())
        async with asyncio.timeout(WAIT):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b" 401 " in head
            found = re.search(rb"Content-Length: (\d+)", head)
            assert found
            await reader.readexactly(int(found[1]))
    writer.close()
