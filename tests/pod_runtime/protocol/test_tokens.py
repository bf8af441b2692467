"""Tokens: only what the hub signed, for this container, now, and not revoked."""

from __future__ import annotations

import base64
import json
import time

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from pod_runtime.protocol.config import ConfigError, StoreConfig, WorkerConfig
from pod_runtime.protocol.roles import Role
from pod_runtime.protocol.tokens import (
    LEEWAY,
    Audience,
    Claims,
    InvalidToken,
    load_public_key,
    mint,
    public_key_text,
    verify,
)
from pod_runtime.protocol.web import Gatekeeper

KEY = Ed25519PrivateKey.generate()
PUBLIC = load_public_key(public_key_text(KEY))


def token(**changes: object) -> str:
    fields = {
        "project": "p1",
        "audience": Audience.WORKER,
        "subject": "u1",
        "name": "Ana",
        "role": Role.EDITOR,
    }
    return mint(KEY, **(fields | changes))  # type: ignore[arg-type]


def read(text: str, **changes: object) -> Claims:
    return verify(PUBLIC, text, **({"project": "p1", "audience": Audience.WORKER} | changes))  # type: ignore[arg-type]


@given(st.text(max_size=50), st.sampled_from(list(Role)))
def test_round_trip(name: str, role: Role) -> None:
    claims = read(token(name=name, role=role))
    assert (claims.subject, claims.name, claims.role) == ("u1", name, role)


@pytest.mark.parametrize("changes", [{"project": "p2"}, {"audience": Audience.RUNNER}])
def test_another_audience_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InvalidToken, match="audience"):
        read(token(**changes))


def test_times() -> None:
    now = time.time()
    assert read(token(now=now - 60 - LEEWAY + 2), now=now)
    for at in (now - 60 - LEEWAY - 2, now + LEEWAY + 2):
        with pytest.raises(InvalidToken):
            read(token(now=at), now=now)
    with pytest.raises(ValueError, match="ttl"):
        token(ttl=3600)


def test_forgeries_are_refused() -> None:
    good = token()
    header, body, signature = good.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    evil = base64.urlsafe_b64encode(json.dumps(claims | {"role": "hub"}).encode()).rstrip(b"=").decode()
    none = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=").decode()
    other = mint(
        Ed25519PrivateKey.generate(),
        project="p1",
        audience=Audience.WORKER,
        subject="u1",
        name="",
        role=Role.HUB,
    )
    for bad in (
        f"{header}.{evil}.{signature}",
        f"{none}.{body}.",
        other,
        "",
        "a.b",
        "a.b.c",
        good + "x",
        "é.é.é",
        "x" * 9999,
    ):
        with pytest.raises(InvalidToken):
            read(bad)


@given(st.text(max_size=300))
def test_junk_is_refused_without_a_crash(text: str) -> None:
    with pytest.raises(InvalidToken):
        read(text)


def test_long_lived_token_of_our_own_key_is_refused() -> None:
    now = int(time.time())
    header = token().split(".")[0]
    claims = {
        "iss": "codevo",
        "aud": "worker:p1",
        "sub": "u",
        "name": "",
        "role": "hub",
        "iat": now,
        "exp": now + 9999,
    }
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    signature = base64.urlsafe_b64encode(KEY.sign(f"{header}.{body}".encode())).rstrip(b"=").decode()
    with pytest.raises(InvalidToken, match="plausible"):
        read(f"{header}.{body}.{signature}")


def test_revocation_closes_sockets_and_lets_a_later_token_in() -> None:
    gate = Gatekeeper(PUBLIC, "p1", Audience.WORKER)
    early = token()
    closed: list[str] = []
    gate.add_socket("u1", lambda: closed.append("a"))
    gate.add_socket("u2", lambda: closed.append("b"))
    assert gate.revoke("u1") == 1
    assert closed == ["a"]
    with pytest.raises(InvalidToken, match="ended"):
        gate.claims(early)
    assert gate.claims(token()).role is Role.EDITOR, "given again within the same second"
    assert gate.claims(token(subject="u2"))


def test_configuration_names_the_field_at_fault() -> None:
    store = {
        "endpoint_url": "http://x",
        "bucket": "b",
        "prefix": "projects/p1/",
        "access_key_id": "k",
        "secret_access_key": "s",
    }
    good = {"project": "p1", "public_key": public_key_text(KEY), "generation": 1, "store": store}
    config = WorkerConfig.from_json(json.dumps(good))
    assert isinstance(config.store, StoreConfig)
    assert WorkerConfig.from_json(config.to_json()) == config
    assert "secret" not in repr(config).replace("secret_access_key", "")
    with pytest.raises(ConfigError, match=r"WorkerConfig\.generation: missing"):
        WorkerConfig.from_json(json.dumps({k: v for k, v in good.items() if k != "generation"}))
    with pytest.raises(ConfigError, match=r"StoreConfig\.bukket: unknown"):
        WorkerConfig.from_json(json.dumps(good | {"store": store | {"bukket": "x"}}))
    with pytest.raises(ConfigError, match="not JSON"):
        WorkerConfig.from_json("{")
