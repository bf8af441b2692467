"""Invite links over REST."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from codevo.embedded.s3 import S3Settings
from codevo.store import Role
from tests.codevo.hubs import TestHub, open_hub


@pytest.fixture
async def hub(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[TestHub]:
    async with open_hub(mongo_url, s3, tmp_path) as found:
        yield found


async def test_a_link_shows_where_it_leads_and_lets_in(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann, "Ours")
    made = (await ann("POST", f"/api/projects/{ident}/invites", {"role": "editor"}, expect=201)).json
    assert made["url"] == f"{hub.base}/invite/{made['code']}" and made["role"] == "editor"
    shown = (await hub.guest("GET", f"/api/invites/{made['code']}", expect=200)).json
    assert shown["project"] == {"id": ident, "title": "Ours"}
    assert (shown["role"], shown["inviter"]) == ("editor", "ann") and shown["expires"] == made["expires"]
    await hub.guest("POST", f"/api/invites/{made['code']}", {}, expect=401)
    joined = (await ben("POST", f"/api/invites/{made['code']}", {}, expect=200)).json
    assert joined["id"] == ident and joined["role"] == "editor"
    assert [p["id"] for p in (await ben("GET", "/api/projects")).json] == [ident]
    # the database does not know the code
    listed = (await ann("GET", f"/api/projects/{ident}/invites", expect=200)).json
    assert [(i["id"], i["uses"]) for i in listed] == [(made["id"], 1)]
    assert made["code"] not in str(listed)


async def test_a_link_raises_but_never_lowers(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}"
    viewer = (await ann("POST", f"{url}/invites", {"role": "viewer"}, expect=201)).json["code"]
    editor = (await ann("POST", f"{url}/invites", {"role": "editor"}, expect=201)).json["code"]
    assert (await ben("POST", f"/api/invites/{viewer}", {}, expect=200)).json["role"] == "viewer"
    hub.pods.ended.clear()
    assert (await ben("POST", f"/api/invites/{editor}", {}, expect=200)).json["role"] == "editor"
    assert hub.pods.ended == [(ident, ben.id)]
    for person, role in ((ben, "editor"), (ann, "owner")):
        for code in (viewer, editor):
            assert (await person("POST", f"/api/invites/{code}", {}, expect=200)).json["role"] == role
    assert len(hub.pods.ended) == 1


async def test_expired_and_unknown_links(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann)
    old = await hub.hub.store.invites.create(ident, Role.EDITOR, ann.id, seconds=-5)
    once = await hub.hub.store.invites.create(ident, Role.EDITOR, ann.id, seconds=60, max_uses=1)
    for method in ("GET", "POST"):
        body = {} if method == "POST" else None
        await ben(method, f"/api/invites/{old.code}", body, expect=410)
        await ben(method, "/api/invites/nope", body, expect=404)
        await ben(method, "/api/invites/a%2Fb", body, expect=404)
    await ben("POST", f"/api/invites/{once.code}", {}, expect=200)
    cat = await hub.person("cat")
    await cat("POST", f"/api/invites/{once.code}", {}, expect=410)
    await cat("GET", f"/api/projects/{ident}", expect=404)


async def test_a_link_can_be_ended_by_id_or_code(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    one, two = await hub.project(ann), await hub.project(ben)
    for key in ("id", "code"):
        made = (await ann("POST", f"/api/projects/{one}/invites", {"role": "viewer"}, expect=201)).json
        await ben("DELETE", f"/api/projects/{two}/invites/{made[key]}", expect=404)
        await ann("DELETE", f"/api/projects/{one}/invites/{made[key]}", expect=204)
        await ben("POST", f"/api/invites/{made['code']}", {}, expect=404)
    assert (await ann("GET", f"/api/projects/{one}/invites")).json == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "role"),
        ({"role": "owner"}, "role"),
        ({"role": "hub"}, "role"),
        ({"role": "viewer", "expires_in": 1}, "expires_in"),
        ({"role": "viewer", "expires_in": 10**9}, "expires_in"),
        ({"role": "viewer", "expires_in": "600"}, "expires_in"),
        ({"role": "viewer", "email": "x" * 300}, "email"),
        ({"role": "viewer", "code": "mine"}, "code"),
    ],
)
async def test_bad_links(hub: TestHub, body: object, field: str) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    answer = await ann("POST", f"/api/projects/{ident}/invites", body, expect=400)
    assert answer.json["field"] == field


async def test_a_link_for_an_address_is_for_that_account(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben", email="Ben@Example.org")
    cat = await hub.person("cat", email="cat@example.org")
    ident = await hub.project(ann)
    body = {"role": "viewer", "email": "ben@example.org"}
    code = (await ann("POST", f"/api/projects/{ident}/invites", body, expect=201)).json["code"]
    await cat("POST", f"/api/invites/{code}", {}, expect=403)
    await ben("POST", f"/api/invites/{code}", {}, expect=200)


async def test_links_and_members_are_bounded(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("codevo.api.invites.MAX_INVITES", 1)
    hub.hub.limits = replace(hub.hub.limits, members_per_project=2)
    ann, ben, cat = await hub.person("ann"), await hub.person("ben"), await hub.person("cat")
    ident = await hub.project(ann)
    code = (await ann("POST", f"/api/projects/{ident}/invites", {"role": "viewer"}, expect=201)).json["code"]
    await ann("POST", f"/api/projects/{ident}/invites", {"role": "viewer"}, expect=409)
    await ben("POST", f"/api/invites/{code}", {}, expect=200)
    await cat("POST", f"/api/invites/{code}", {}, expect=409)
    await ann("PUT", f"/api/projects/{ident}/members/cat", {"role": "viewer"}, expect=409)


async def test_a_link_does_not_bring_back_who_was_removed_or_lowered(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}"
    code = (await ann("POST", f"{url}/invites", {"role": "editor"}, expect=201)).json["code"]
    await ben("POST", f"/api/invites/{code}", {}, expect=200)
    await ann("PUT", f"{url}/members/ben", {"role": "viewer"}, expect=200)
    await ben("POST", f"/api/invites/{code}", {}, expect=410)
    await ann("DELETE", f"{url}/members/ben", expect=204)
    await ben("POST", f"/api/invites/{code}", {}, expect=410)
    await ben("GET", url, expect=404)
    # for everybody else it works as before
    cat = await hub.person("cat")
    assert (await cat("POST", f"/api/invites/{code}", {}, expect=200)).json["role"] == "editor"


@pytest.mark.parametrize("how", ["removed", "lowered"])
async def test_the_links_of_a_former_owner_end_with_the_role(hub: TestHub, how: str) -> None:
    ann, ben, cat = await hub.person("ann"), await hub.person("ben"), await hub.person("cat")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}"
    await ann("PUT", f"{url}/members/ben", {"role": "owner"}, expect=201)
    theirs = (await ben("POST", f"{url}/invites", {"role": "editor"}, expect=201)).json["code"]
    ours = (await ann("POST", f"{url}/invites", {"role": "editor"}, expect=201)).json["code"]
    if how == "removed":
        await ann("DELETE", f"{url}/members/ben", expect=204)
    else:
        await ann("PUT", f"{url}/members/ben", {"role": "viewer"}, expect=200)
    for person in (ben, cat):
        await person("POST", f"/api/invites/{theirs}", {}, expect=404)
    await cat("POST", f"/api/invites/{ours}", {}, expect=200)
