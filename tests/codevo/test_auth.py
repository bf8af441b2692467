"""Accounts without HTTP, and the pure parts of authentication."""

from __future__ import annotations

import asyncio
import time

import pytest

from codevo.auth import xsrf
from codevo.auth.accounts import (
    AccountError,
    Accounts,
    Disabled,
    LoginLimits,
    SetupCodeNeeded,
    TooMany,
    WrongPassword,
)
from codevo.auth.names import email_problem, name_problem
from codevo.auth.origins import allowed_host, clean_host, loopback_hosts, netloc, parse_origin, same_origin
from codevo.auth.passwords import Busy, Passwords, weakness
from codevo.auth.ratelimit import RateLimit, address_key, is_loopback
from codevo.auth.scopes import Scope, allows, within
from codevo.store import Store
from tests.codevo.hub_site import Site

PASSWORD = "correct horse battery"


@pytest.fixture
def accounts(store: Store) -> Accounts:
    limits = LoginLimits(per_account=3, per_address=6)
    return Accounts(store, Passwords(rounds=4), xsrf_key=b"key", limits=limits)


@pytest.mark.parametrize("name", ["ana", "Ana", "a1", "a.b-c_d", "0x", "a" * 32])
def test_good_names(name: str) -> None:
    assert name_problem(name) is None


@pytest.mark.parametrize(
    "name",
    ["", "a", "-ab", ".ab", "a b", "a/b", "a@b", "ä1", "a" * 33, "ana\n", "Guest", "hub", "a\x00b", "аna"],
)
def test_bad_names(name: str) -> None:
    assert name_problem(name)


@pytest.mark.parametrize("email", ["", "a@b", "ana.maria+x@mail.example.org", "ä@example.org"])
def test_good_emails(email: str) -> None:
    assert email_problem(email) is None


@pytest.mark.parametrize(
    "email",
    ["a", "@b", "a@", "a@@b", "a b@c", "a@b..c", "a@b\r\nBcc: x@y", "a@-b", "<a@b>", "a" * 300 + "@b"],
)
def test_bad_emails(email: str) -> None:
    assert email_problem(email)


@pytest.mark.parametrize(
    "password", ["", "short", "password", "PassWord1", "aaaaaaaaaa", "anamaria", "x" * 1025]
)
def test_weak_passwords(password: str) -> None:
    assert weakness(password, name="AnaMaria")


def test_good_password() -> None:
    assert weakness(PASSWORD, name="ana", email="ana@example.org") is None


async def test_long_passwords_count_to_their_end() -> None:
    passwords = Passwords(rounds=4)
    base = "ü" * 60
    stored = await passwords.hash(base + "a")
    assert await passwords.verify(base + "a", stored)
    assert not await passwords.verify(base + "b", stored)
    nul = await passwords.hash("abcdefgh\0one")
    assert not await passwords.verify("abcdefgh\0two", nul)
    assert not await passwords.verify(base, "not a hash")
    passwords.close()


async def test_too_many_passwords_at_once_are_refused_not_queued() -> None:
    passwords = Passwords(rounds=4, threads=1, waiting=2)
    results = await asyncio.gather(*(passwords.hash(PASSWORD) for _ in range(5)), return_exceptions=True)
    assert sum(isinstance(r, Busy) for r in results) == 3
    assert await passwords.hash(PASSWORD)
    passwords.close()


async def test_unknown_people_take_as_long_as_known_ones(store: Store) -> None:
    accounts = Accounts(store, Passwords(rounds=9), xsrf_key=b"")
    await accounts.create("ana", PASSWORD)
    took = {}
    for name in ("ana", "nobody"):
        begin = time.perf_counter()
        with pytest.raises(WrongPassword):
            await accounts.log_in(name, "wrong password", address="192.0.2.1")
        took[name] = time.perf_counter() - begin
    # a check that skips bcrypt is ten times faster or more
    assert 0.2 < took["ana"] / took["nobody"] < 5


async def test_log_in_by_name_or_email(accounts: Accounts) -> None:
    user = await accounts.create("Ana", PASSWORD, email="ana@example.org")
    for login in ("Ana", "ana", " ana ", "ANA@example.org"):
        assert (await accounts.log_in(login, PASSWORD, address="::1")).id == user.id


async def test_failed_logins_are_limited_per_account(accounts: Accounts) -> None:
    await accounts.create("ana", PASSWORD)
    for i in range(3):
        with pytest.raises(WrongPassword):
            await accounts.log_in("ana", "wrong", address=f"192.0.2.{i}")
    with pytest.raises(TooMany) as e:
        await accounts.log_in("ANA", PASSWORD, address="192.0.2.99")
    assert 0 < e.value.seconds <= 300


async def test_failed_logins_are_limited_per_address(accounts: Accounts) -> None:
    for i in range(6):
        with pytest.raises(WrongPassword):
            await accounts.log_in(f"name{i}", "wrong", address="2001:db8::1")
    with pytest.raises(TooMany):
        await accounts.log_in("another", "wrong", address="2001:db8::2")


async def test_attempts_at_once_are_counted_too(accounts: Accounts) -> None:
    await accounts.create("ana", PASSWORD)
    results = await asyncio.gather(
        *(accounts.log_in("ana", "wrong", address="192.0.2.1") for _ in range(10)), return_exceptions=True
    )
    assert sum(isinstance(r, WrongPassword) for r in results) == 3
    assert sum(isinstance(r, TooMany) for r in results) == 7


async def test_success_clears_the_account(accounts: Accounts) -> None:
    await accounts.create("ana", PASSWORD)
    for _ in range(2):
        for _ in range(2):
            with pytest.raises(WrongPassword):
                await accounts.log_in("ana", "wrong", address="192.0.2.1")
        await accounts.log_in("ana", PASSWORD, address="192.0.2.2")


async def test_disabled_people_are_told_only_with_the_right_password(
    accounts: Accounts, store: Store
) -> None:
    user = await accounts.create("ana", PASSWORD)
    await store.users.update(user.id, disabled=True)
    with pytest.raises(WrongPassword):
        await accounts.log_in("ana", "wrong", address="::1")
    with pytest.raises(Disabled):
        await accounts.log_in("ana", PASSWORD, address="::1")


async def sign_up(accounts: Accounts, name: str, *, local: bool = True, code: str = "") -> bool:
    user = await accounts.sign_up(
        name, PASSWORD, email="", address="192.0.2.1", local=local, setup_code=code, expected_code="s3cret"
    )
    return user.admin


async def test_the_first_person_from_this_machine_is_administrator(accounts: Accounts) -> None:
    with pytest.raises(AccountError):  # a refused sign-up does not use up being the first
        await sign_up(accounts, "!")
    assert await sign_up(accounts, "ana")
    assert not await sign_up(accounts, "bo", local=False)


async def test_the_first_person_from_elsewhere_needs_the_code(accounts: Accounts) -> None:
    for code in ("", "wrong", "s3cret "):
        with pytest.raises(SetupCodeNeeded):
            await sign_up(accounts, "ana", local=False, code=code)
    assert await sign_up(accounts, "ana", local=False, code="s3cret")


async def test_of_many_first_people_one_is_administrator(accounts: Accounts) -> None:
    admins = await asyncio.gather(*(sign_up(accounts, f"user{i}") for i in range(6)))
    assert admins.count(True) == 1


async def test_one_name_for_one_of_many(accounts: Accounts) -> None:
    results = await asyncio.gather(
        *(accounts.create("ana", PASSWORD) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(r, AccountError) for r in results) == 4


def test_xsrf_tokens_are_bound_to_key_and_session() -> None:
    token = xsrf.make(b"k", "session")
    assert xsrf.valid(b"k", token, "session")
    assert not xsrf.valid(b"k", token, "other")
    assert not xsrf.valid(b"other", token, "session")
    for bad in ("", ".", "a.b", token[:-1], token + "x", "é." + token, "x" * 200):
        assert not xsrf.valid(b"k", bad, "session")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("http://localhost:8000", "http://localhost:8000"),
        ("https://codevo.example", "https://codevo.example:443"),
        ("HTTP://Localhost", "http://localhost:80"),
    ],
)
def test_same_origins(a: str, b: str) -> None:
    assert same_origin(a, b)


@pytest.mark.parametrize(
    "other",
    [
        "null", "", "http://localhost:8000.evil.example", "http://localhost:80001", "http://localhost:8000@evil",
        "https://localhost:8000", "http://x.localhost:8000", "http://localhost:8000/", "http://localhost",
        "http://localhost:8000\\.evil", " http://localhost:8000", "http://localhost:8000?x", "http://[::1", "file://",
        "http://evil/http://localhost:8000", "http://localhost:abc",
    ],
)  # fmt: skip
def test_other_origins(other: str) -> None:
    assert not same_origin(other, "http://localhost:8000")


def test_hosts() -> None:
    assert clean_host("LocalHost:8000") == "localhost:8000"
    assert clean_host("localhost.:8000") == "localhost:8000"
    assert clean_host("[::1]:80") == "[::1]:80"
    for bad in ("", "a b", "a/b", "a@b", "a:b", "a,b", "[::1", "a:1:2", "-x", "a\r\nb"):
        assert clean_host(bad) is None
    assert allowed_host("localhost:8000", loopback_hosts(8000))
    assert not allowed_host("localhost:8001", loopback_hosts(8000))
    assert not allowed_host("evil.example:8000", loopback_hosts(8000))
    assert allowed_host("codevo.example:9", frozenset({"codevo.example"}))
    assert not allowed_host("xcodevo.example", frozenset({"codevo.example"}))
    assert allowed_host("localhost", loopback_hosts(80))
    assert netloc("https://Codevo.Example") == "codevo.example"
    assert parse_origin("https://user@host") is None


def test_rate_limit_window_and_bound() -> None:
    at = 0.0
    limit = RateLimit(2, 10, keys=3, clock=lambda: at)
    limit.add("a")
    at = 4.0
    limit.add("a")
    assert limit.wait("a") == 6
    at = 10.0
    assert limit.wait("a") == 0
    limit.add("a")
    assert limit.wait("a") == 4
    for key in "bcdefg":
        limit.add(key)
    assert len(limit) == 3
    limit.clear("g")
    assert len(limit) == 2


def test_addresses() -> None:
    assert address_key("2001:db8::1") == address_key("2001:db8::ffff:1")
    assert address_key("2001:db8::1") != address_key("2001:db8:0:1::1")
    assert address_key("::ffff:192.0.2.1") == "192.0.2.1"
    assert address_key("nonsense") == "nonsense"
    assert is_loopback("127.0.0.2") and is_loopback("::1") and is_loopback("::ffff:127.0.0.1")
    assert not is_loopback("192.0.2.1") and not is_loopback("")


def test_scopes() -> None:
    assert allows(("all",), Scope.ADMIN) and allows(("write",), Scope.READ)
    assert not allows(("read",), Scope.WRITE) and not allows((), Scope.READ)
    assert not allows(("read", "write"), Scope.ACCOUNT)
    assert within(("read",), ("read", "account")) and within(("admin",), ("all",))
    assert not within(("all",), ("read", "write", "account", "admin"))


async def test_the_page_learns_who_is_logged_in_without_an_error(site: Site) -> None:
    _, browser = await site.person("ana")
    stranger = await site.browser()
    assert (await browser("GET", "/api/config")).json["user"]["name"] == "ana"
    answer = await stranger("GET", "/api/config")
    assert answer.status == 200 and answer.json["user"] is None
