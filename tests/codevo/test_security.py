"""Forged requests, foreign hosts and origins, other people's projects, and what every route needs."""

from __future__ import annotations

import aiohttp
import pytest
from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

from codevo.api.base import ApiHandler, cookie_values
from codevo.api.needs import UnstatedNeed, check_routes, methods, need_of, needs, public
from codevo.api.openapi import describe
from codevo.store import Role
from codevo.web import all_routes
from tests.codevo.hub_site import PASSWORD, Site

PATCH = {"title": "x"}


def test_every_route_states_what_it_needs() -> None:
    routes = all_routes()
    check_routes(routes)
    assert len(routes) > 30
    anybody = {
        route[0] for route in routes for m in methods(route[1]) if (n := need_of(route[1], m)) and n.public
    }
    # a new public route is a decision: put it here
    assert {p for p in anybody if p.startswith("/api/")} <= {
        "/api/config",
        "/api/signup",
        "/api/login",
        "/api/openapi.json",
        "/api/invites/(?P<code>[A-Za-z0-9_-]{1,100})",
    }


def test_a_route_that_states_nothing_is_refused() -> None:
    class Silent(ApiHandler):
        def get(self) -> None: ...

    class Half(ApiHandler):
        @public
        def get(self) -> None: ...

        def post(self) -> None: ...

    class Socket(ApiHandler, WebSocketHandler): ...

    class Roleless(ApiHandler):
        @needs(role="viewer")
        def get(self) -> None: ...

    for handler in (Silent, Half, Socket, RequestHandler, Roleless):
        if handler is RequestHandler:
            check_routes([("/x", handler)])  # has no methods, so there is nothing to state
            continue
        with pytest.raises(UnstatedNeed):
            check_routes([("/x", handler)])
    with pytest.raises(UnstatedNeed):
        needs()


async def test_openapi_names_every_api_route(site: Site) -> None:
    answer = await (await site.browser())("GET", "/api/openapi.json")
    paths = answer.json["paths"]
    assert answer.json["openapi"].startswith("3.1")
    for route in all_routes():
        if route[0].startswith("/api/"):
            assert any(p.split("{")[0].rstrip("/") in route[0] for p in paths), route[0]
    assert paths["/api/projects/{project_id}"]["get"]["parameters"][0]["name"] == "project_id"
    schema = paths["/api/signup"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert "password" in schema["required"]
    operations = [o["operationId"] for p in paths.values() for o in p.values()]
    assert len(operations) == len(set(operations))
    assert describe([])["paths"] == {}


async def test_writes_with_a_cookie_need_the_token_of_their_session(site: Site) -> None:
    _, ana = await site.person("ana")
    _, bo = await site.person("bo")
    anonymous = await site.browser()
    await anonymous("GET", "/login")
    for token in (None, "", "x", "x.y", bo.cookie("_xsrf"), anonymous.cookie("_xsrf")):
        answer = await ana("PATCH", "/api/user", PATCH, headers={"X-XSRFToken": token})
        assert answer.status == 403 and answer.json["code"] == "xsrf", token
    # the refusal brings a good one along
    assert (await ana("PATCH", "/api/user", PATCH)).status == 200
    without_origin = await ana("PATCH", "/api/user", PATCH, headers={"Origin": None})
    assert without_origin.status == 200


async def test_a_planted_cookie_helps_nobody(site: Site) -> None:
    _, ana = await site.person("ana")
    _, bo = await site.person("bo")
    planted, own = bo.cookie("_xsrf"), ana.cookie("_xsrf")
    session = ana.cookie("codevo-session")
    raw = await site.browser(
        Cookie=f"_xsrf={planted}; codevo-session=planted; codevo-session={session}; _xsrf={own}"
    )
    # the session is found behind the planted one; the token counts by its value, not by its place
    assert (await raw("PATCH", "/api/user", PATCH, headers={"X-XSRFToken": planted})).status == 403
    assert (await raw("PATCH", "/api/user", PATCH, headers={"X-XSRFToken": own})).status == 200


def test_cookie_values() -> None:
    assert cookie_values('a=1; b=2; a="3";a=', "a") == ["1", "3", ""]
    assert cookie_values("; ;=;a;{bad}=x; a=1", "a") == ["1"]
    assert len(cookie_values("; ".join(["a=1"] * 50), "a")) == 4
    assert cookie_values("", "a") == []


@pytest.mark.parametrize(
    "origin", ["null", "http://evil.example", "{base}.evil.example", "{base}0", "https://{rest}"]
)
async def test_writes_from_other_origins_are_refused(site: Site, origin: str) -> None:
    _, ana = await site.person("ana")
    value = origin.format(base=site.base, rest=site.base.partition("//")[2])
    answer = await ana("PATCH", "/api/user", PATCH, headers={"Origin": value})
    assert answer.status == 403 and answer.json["code"] == "origin"
    login = {"name": "ana", "password": PASSWORD}
    stranger = await site.browser()
    assert (await stranger("POST", "/api/login", login, headers={"Origin": value})).status == 403


async def test_login_from_a_browser_without_origin_needs_a_token(site: Site) -> None:
    await site.hub.accounts.create("ana", PASSWORD)
    login = {"name": "ana", "password": PASSWORD}
    for hint in ({"Cookie": "a=b"}, {"Referer": "http://evil.example/"}, {"Sec-Fetch-Site": "cross-site"}):
        browser = await site.browser(**hint)
        assert (await browser("POST", "/api/login", login, headers={"Origin": None})).status == 403
    page = await site.browser()
    await page("GET", "/login")
    assert (await page("POST", "/api/login", login, headers={"Origin": None})).status == 200


async def test_bearer_requests_need_neither(site: Site) -> None:
    user, _ = await site.person("ana")
    program = await site.program(user)
    sent = {"Origin": "http://elsewhere.example", "X-XSRFToken": None}
    assert (await program("PATCH", "/api/user", PATCH, headers=sent)).status == 200


async def test_a_bad_token_does_not_fall_back_to_the_cookie(site: Site) -> None:
    _, ana = await site.person("ana")
    for value in ("Bearer x", "Bearer", "Basic YTpi", ""):
        assert (await ana("GET", "/api/user", headers={"Authorization": value})).status == 401
    assert (await ana("GET", "/api/user?token=x")).status == 200  # only sockets read the query


async def test_a_token_in_the_query_is_not_for_ordinary_requests(site: Site) -> None:
    user, _ = await site.person("ana")
    _, text = await site.hub.store.tokens.create(user.id, note="", scopes=("all",))
    stranger = await site.browser()
    assert (await stranger("GET", f"/api/user?token={text}")).status == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "127.0.0.1:1", "a b"]
)
async def test_other_hosts_are_refused(site: Site, host: str) -> None:
    browser = await site.browser(Host=host)
    for path in ("/", "/api/config", "/nothing"):
        answer = await browser("GET", path)
        assert answer.status in (400, 421), (path, answer.status)
        assert "evil" not in str(answer.headers)
    assert (await browser("GET", "/healthz")).status in (200, 400)


async def test_localhost_is_ours_too_and_an_origin_of_its_own(site: Site) -> None:
    port = site.base.rpartition(":")[2]
    browser = await site.browser(Host=f"localhost:{port}")
    body = {"name": "ana", "password": PASSWORD}
    crossed = await browser("POST", "/api/signup", body, headers={"Origin": site.base})
    assert crossed.status == 403
    made = await browser("POST", "/api/signup", body, headers={"Origin": f"http://localhost:{port}"})
    assert made.status == 201


async def test_preview_hosts_never_reach_the_hub(site: Site) -> None:
    domain = site.hub.preview_domain
    user, _ = await site.person("ana")
    _, text = await site.hub.store.tokens.create(user.id, note="", scopes=("all",))
    for host in (f"x.{domain}", f"aaaaaaaaaaaaaaaa.{domain}", f"aaaaaaaaaaaaaaaa--3000.{domain.upper()}"):
        browser = await site.browser(Host=host, Authorization=f"Bearer {text}")
        answer = await browser("GET", "/api/user")
        assert answer.status != 200 and user.id not in answer.text


async def test_every_answer_has_the_security_headers(site: Site) -> None:
    browser = await site.browser()
    for path in ("/", "/api/config", "/api/user", "/nothing/here", "/healthz", "/api/openapi.json"):
        headers = (await browser("GET", path)).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy, path
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["X-Request-Id"]
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"


async def test_embeds_may_be_framed_by_the_project_s_origins_alone(site: Site) -> None:
    from codevo.store import ProjectSettings

    user, _ = await site.person("ana")
    project = await site.project(user, public=True)
    origins = (
        "https://blog.example",
        "https://x.example; script-src *",
        "https://y.example 'unsafe-inline'",
        "*",
    )
    await site.hub.store.projects.update(project.id, settings=ProjectSettings((), origins))
    browser = await site.browser()
    policy = (await browser("GET", f"/embed/{project.id}")).headers["Content-Security-Policy"]
    assert policy.endswith("frame-ancestors 'self' https://blog.example")
    other = (await browser("GET", "/embed/aaaaaaaaaaaaaaaa")).headers["Content-Security-Policy"]
    assert other.endswith("frame-ancestors 'self'")


async def test_other_people_s_projects_do_not_exist(site: Site) -> None:
    owner, ana = await site.person("ana")
    guest, bo = await site.person("bo")
    private, public = await site.project(owner), await site.project(owner, public=True)
    stranger = await site.browser()
    path = f"/api/projects/{private.id}"
    unknown = "/api/projects/aaaaaaaaaaaaaaaa"
    assert (await ana("GET", path)).status == 200
    hidden, nothing = await bo("GET", path), await bo("GET", unknown)
    assert hidden.status == nothing.status == 404 and hidden.json["detail"] == nothing.json["detail"]
    assert (await bo("DELETE", path)).status == 404
    assert (await stranger("GET", path)).status == (await stranger("GET", unknown)).status == 401
    assert (await stranger("GET", f"/api/projects/{public.id}")).json["role"] == "viewer"
    assert (await bo("PATCH", f"/api/projects/{public.id}", {"title": "x"})).status == 403
    await site.hub.store.members.set(private.id, guest.id, Role.VIEWER)
    assert (await bo("GET", path)).json["role"] == "viewer"
    assert (await bo("PATCH", path, {"title": "x"})).status == 403
    await site.hub.store.members.remove(private.id, guest.id)
    assert (await bo("GET", path)).status == 404


async def test_a_reading_token_is_a_viewer_even_of_an_owner(site: Site) -> None:
    owner, _ = await site.person("ana")
    project = await site.project(owner)
    program = await site.program(owner, "read")
    assert (await program("GET", f"/api/projects/{project.id}")).json["role"] == "viewer"


async def socket(site: Site, path: str, **headers: str) -> int:
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(site.base + path, headers=headers):
                return 101
        except aiohttp.WSServerHandshakeError as e:
            return e.status


async def test_sockets_with_a_cookie_need_our_exact_origin(site: Site) -> None:
    user, ana = await site.person("ana")
    project = await site.project(user)
    path = f"/p/{project.id}/api/events"
    cookie = f"codevo-session={ana.cookie('codevo-session')}"
    assert await socket(site, path) == 401
    for origin in ("", "null", "http://evil.example", site.base + ".evil.example", site.base + "0"):
        sent = {"Cookie": cookie} | ({"Origin": origin} if origin else {})
        assert await socket(site, path, **sent) == 403, origin
    # it gets through to the workspace, which does not run
    assert await socket(site, path, Cookie=cookie, Origin=site.base) == 503
    _, text = await site.hub.store.tokens.create(user.id, note="", scopes=("all",))
    assert await socket(site, f"{path}?token={text}", Origin="http://elsewhere.example") == 503
    assert await socket(site, f"{path}?token=wrong", Cookie=cookie, Origin=site.base) == 401


@pytest.mark.parametrize(
    "path",
    [
        "/..%2f..%2fetc%2fpasswd.txt", "/assets/..%2f..%2fsecret.txt", "/assets/../../secret.txt",
        "/assets/%2e%2e/%2e%2e/secret.txt", "/assets/link.txt", "/assets//etc/passwd.txt", "/assets/a%00.txt",
        "/assets/..%5c..%5csecret.txt", "/index.html.br",
    ],
)  # fmt: skip
async def test_files_outside_of_the_page_are_not_served(site: Site, path: str) -> None:
    from yarl import URL

    page = site.hub.static_dir
    (page / "assets").mkdir(parents=True)
    (page.parent / "secret.txt").write_text("secret")
    (page / "assets" / "link.txt").symlink_to(page.parent / "secret.txt")
    (page / "index.html.br").write_text("x")
    async with aiohttp.ClientSession() as session, session.get(URL(site.base + path, encoded=True)) as r:
        assert r.status in (400, 404)
        assert "secret" not in await r.text()
