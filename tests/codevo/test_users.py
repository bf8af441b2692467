"""Sign-up, login, the account and its tokens, over HTTP."""

from __future__ import annotations

import io

import aiohttp
import pytest

from tests.codevo.hub_site import PASSWORD, Site


async def test_sign_up_log_out_log_in(site: Site) -> None:
    browser = await site.browser()
    config = (await browser("GET", "/api/config")).json
    assert config["signup"] and config["first_user"] and not config["setup_code_required"]
    made = await browser(
        "POST", "/api/signup", {"name": "Ana", "email": "a@example.org", "password": PASSWORD}
    )
    assert made.status == 201 and made.json["admin"] and "password" not in made.text
    cookies = made.headers.getall("Set-Cookie")
    session = next(c for c in cookies if c.startswith("codevo-session="))
    assert "HttpOnly" in session and "SameSite=Lax" in session and "Path=/" in session
    assert "HttpOnly" not in next(c for c in cookies if c.startswith("_xsrf="))
    assert (await browser("GET", "/api/user")).json["name"] == "Ana"
    assert (await browser("POST", "/api/logout")).status == 204
    assert (await browser("GET", "/api/user")).status == 401
    again = await browser("POST", "/api/login", {"name": "a@example.org", "password": PASSWORD})
    assert again.status == 200 and again.json["name"] == "Ana"
    second = await (await site.browser())("POST", "/api/signup", {"name": "bo", "password": PASSWORD})
    assert second.status == 201 and not second.json["admin"]


async def test_a_logged_out_cookie_is_worthless(site: Site) -> None:
    _, browser = await site.person("ana")
    cookie = f"codevo-session={browser.cookie('codevo-session')}"
    await browser("POST", "/api/logout")
    thief = await site.browser(Cookie=cookie)
    assert (await thief("GET", "/api/user")).status == 401


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "ana"}, "password"),
        ({"name": 1, "password": PASSWORD}, "name"),
        ({"name": "an a", "password": PASSWORD}, "name"),
        ({"name": "ana", "password": "short"}, "password"),
        ({"name": "ana", "password": "Password123"}, "password"),
        ({"name": "ana", "password": PASSWORD, "email": "x"}, "email"),
        ({"name": "ana", "password": PASSWORD, "admin": True}, "admin"),
        ({"name": "ana", "password": {"$gt": ""}}, "password"),
    ],
)
async def test_bad_sign_ups_name_the_field(site: Site, body: dict[str, object], field: str) -> None:
    answer = await (await site.browser())("POST", "/api/signup", body)
    assert answer.status == 400 and answer.json["field"] == field
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    assert answer.json["message"] and answer.json["reason"] == "Bad Request" and answer.json["status"] == 400


async def test_taken_names_and_emails(site: Site) -> None:
    await site.hub.accounts.create("ana", PASSWORD, email="a@example.org")
    browser = await site.browser()
    first = await browser("POST", "/api/signup", {"name": "ANA", "password": PASSWORD})
    assert (first.status, first.json["field"]) == (409, "name")
    body = {"name": "bo", "password": PASSWORD, "email": "A@example.org"}
    second = await browser("POST", "/api/signup", body)
    assert (second.status, second.json["field"]) == (409, "email")


@pytest.mark.parametrize("raw", [b"{", b"[]", b"\xff", b"[" * 100_000, b'"x"', b"null"])
async def test_bodies_that_are_no_object(site: Site, raw: bytes) -> None:
    browser = await site.browser(**{"Content-Type": "application/json"})
    answer = await browser("POST", "/api/login", data=raw)
    assert answer.status == 400


async def test_a_form_is_not_a_login(site: Site) -> None:
    answer = await (await site.browser())("POST", "/api/login", data={"name": "x", "password": "y"})
    assert answer.status == 415


async def test_a_huge_body_is_refused(site: Site) -> None:
    browser = await site.browser(**{"Content-Type": "application/json"})
    try:
        body = io.BytesIO(bytes(site.hub.limits.max_body + 1))
        status = (await browser("POST", "/api/login", data=body)).status
    except aiohttp.ClientConnectionError:  # hung up on before it was all sent
        status = 413
    assert status in (400, 413)
    assert (await browser("GET", "/healthz")).status == 200


async def test_wrong_logins_sound_the_same_and_are_limited(site: Site) -> None:
    await site.hub.accounts.create("ana", PASSWORD)
    browser = await site.browser()
    known = await browser("POST", "/api/login", {"name": "ana", "password": "wrong"})
    unknown = await browser("POST", "/api/login", {"name": "nobody-here", "password": "wrong"})
    assert known.status == unknown.status == 401
    assert known.json["detail"] == unknown.json["detail"]
    for _ in range(9):
        await browser("POST", "/api/login", {"name": "ana", "password": "wrong"})
    limited = await browser("POST", "/api/login", {"name": "ana", "password": PASSWORD})
    assert limited.status == 429 and 0 < int(limited.headers["Retry-After"]) <= 300


async def test_changing_the_password_ends_other_sessions(site: Site) -> None:
    _, here = await site.person("ana")
    there = await site.browser()
    await there("POST", "/api/login", {"name": "ana", "password": PASSWORD})
    new = "another fine password"
    assert (await here("PATCH", "/api/user", {"password": new})).json["field"] == "current_password"
    wrong = await here("PATCH", "/api/user", {"password": new, "current_password": "wrong"})
    assert wrong.status == 403
    done = await here("PATCH", "/api/user", {"password": new, "current_password": PASSWORD})
    assert done.status == 200
    assert (await here("GET", "/api/user")).status == 200
    assert (await there("GET", "/api/user")).status == 401
    assert (await there("POST", "/api/login", {"name": "ana", "password": PASSWORD})).status == 401
    assert (await there("POST", "/api/login", {"name": "ana", "password": new})).status == 200


async def test_title_and_email(site: Site) -> None:
    _, browser = await site.person("ana")
    changed = await browser("PATCH", "/api/user", {"title": " Ana M. "})
    assert changed.json["title"] == "Ana M."
    assert (await browser("PATCH", "/api/user", {"email": "a@b.example"})).status == 400
    body = {"email": "a@b.example", "current_password": PASSWORD}
    assert (await browser("PATCH", "/api/user", body)).json["email"] == "a@b.example"


async def test_sign_up_can_be_off(site: Site) -> None:
    site.hub.signup = False
    answer = await (await site.browser())("POST", "/api/signup", {"name": "ana", "password": PASSWORD})
    assert answer.status == 403 and not await site.hub.store.users.any()


@pytest.mark.parametrize("header", ["X-Forwarded-For", "Forwarded", "Via"])
async def test_behind_a_proxy_the_first_person_needs_the_setup_code(site: Site, header: str) -> None:
    browser = await site.browser(**{header: "127.0.0.1"})
    assert (await browser("GET", "/api/config")).json["setup_code_required"]
    body = {"name": "ana", "password": PASSWORD}
    refused = await browser("POST", "/api/signup", body)
    assert refused.status == 403 and refused.json["code"] == "setup-code"
    made = await browser("POST", "/api/signup", {**body, "setup_code": site.hub.setup_code})
    assert made.status == 201 and made.json["admin"]


async def test_tokens_live_and_die(site: Site) -> None:
    _, browser = await site.person("ana")
    made = await browser("POST", "/api/tokens", {"note": "ci", "scopes": ["read"], "expires_in": 3600})
    assert made.status == 201 and made.json["scopes"] == ["read"] and made.json["expires"]
    listed = await browser("GET", "/api/tokens")
    assert [t["note"] for t in listed.json] == ["ci"] and made.json["token"] not in listed.text
    for scheme in ("Bearer", "token", "bearer"):
        program = await site.browser(Authorization=f"{scheme} {made.json['token']}")
        assert (await program("GET", "/api/user")).json["name"] == "ana"
    path = f"/api/tokens/{made.json['id']}"
    _, thief = await site.person("bo")
    assert (await thief("DELETE", path)).status == 404
    assert (await browser("DELETE", path)).status == 204
    assert (await program("GET", "/api/user")).status == 401


@pytest.mark.parametrize(
    "body",
    [{"scopes": []}, {"scopes": ["root"]}, {"expires_in": 0}, {"expires_in": True}, {"note": "x" * 201}],
)
async def test_bad_tokens(site: Site, body: dict[str, object]) -> None:
    _, browser = await site.person("ana")
    assert (await browser("POST", "/api/tokens", body)).status == 400


async def test_tokens_are_bounded(site: Site) -> None:
    user, browser = await site.person("ana")
    for _ in range(site.hub.limits.tokens_per_user):
        await site.hub.store.tokens.create(user.id, note="", scopes=("read",))
    assert (await browser("POST", "/api/tokens", {})).status == 409


async def test_a_token_does_no_more_than_its_scopes(site: Site) -> None:
    user, _ = await site.person("ana", admin=True)
    reader = await site.program(user, "read")
    assert (await reader("GET", "/api/user")).status == 200
    assert (await reader("PATCH", "/api/user", {"title": "x"})).json["code"] == "scope"
    assert (await reader("GET", "/api/tokens")).status == 403
    assert (await reader("GET", "/api/admin/users")).status == 403
    keeper = await site.program(user, "account")
    assert (await keeper("POST", "/api/tokens", {"scopes": ["all"]})).status == 403
    made = await keeper("POST", "/api/tokens", {})
    assert made.status == 201 and made.json["scopes"] == ["account"]
