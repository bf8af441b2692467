"""Members over REST: added, changed, removed; the right ends at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from codevo.embedded.s3 import S3Settings
from tests.codevo.hubs import TestHub, open_hub


@pytest.fixture
async def hub(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[TestHub]:
    async with open_hub(mongo_url, s3, tmp_path) as found:
        yield found


async def test_a_member_is_added_changed_and_removed(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("Ben.B")
    url = f"/api/projects/{await hub.project(ann)}"
    ident = url.rpartition("/")[2]
    added = await ann("PUT", f"{url}/members/ben.b", {"role": "viewer"}, expect=201)
    assert added.json == {"name": "Ben.B", "role": "viewer"}
    assert (await ben("GET", url, expect=200)).json["role"] == "viewer"
    assert (await ben("GET", f"{url}/members", expect=200)).json == [
        {"name": "ann", "role": "owner"},
        {"name": "Ben.B", "role": "viewer"},
    ]
    hub.pods.ended.clear()
    await ann("PUT", f"{url}/members/Ben.B", {"role": "editor"}, expect=200)
    assert hub.pods.ended == [(ident, ben.id)]
    await ann("PUT", f"{url}/members/Ben.B", {"role": "editor"}, expect=200)
    assert len(hub.pods.ended) == 1  # nothing changed, nobody is cut off
    assert (await ben("GET", f"{url}/members/Ben.B", expect=200)).json["role"] == "editor"
    await ann("DELETE", f"{url}/members/Ben.B", expect=204)
    assert len(hub.pods.ended) == 2
    await ben("GET", url, expect=404)
    await ann("DELETE", f"{url}/members/Ben.B", expect=404)


async def test_only_owners_change_members_but_everybody_may_leave(hub: TestHub) -> None:
    ann, ben, cat = await hub.person("ann"), await hub.person("ben"), await hub.person("cat")
    url = f"/api/projects/{await hub.project(ann)}"
    await ann("PUT", f"{url}/members/ben", {"role": "editor"}, expect=201)
    await ann("PUT", f"{url}/members/cat", {"role": "viewer"}, expect=201)
    for person in (ben, cat):
        await person("PUT", f"{url}/members/{person.name}", {"role": "owner"}, expect=403)
        await person("DELETE", f"{url}/members/ann", expect=403)
        await person("POST", f"{url}/invites", {"role": "editor"}, expect=403)
        await person("PATCH", url, {"title": "Mine"}, expect=403)
    await cat("DELETE", f"{url}/members/cat", expect=204)
    await cat("GET", url, expect=404)


async def test_the_last_owner_stays(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    url = f"/api/projects/{await hub.project(ann)}"
    await ann("PUT", f"{url}/members/ben", {"role": "editor"}, expect=201)
    for answer in (
        await ann("DELETE", f"{url}/members/ann"),
        await ann("PUT", f"{url}/members/ann", {"role": "editor"}),
    ):
        assert answer.status == 409 and answer.json["code"] == "last-owner"
    await ann("PUT", f"{url}/members/ben", {"role": "owner"}, expect=200)
    # both leave at once: one of them must be told to stay
    both = await asyncio.gather(ann("DELETE", f"{url}/members/ann"), ben("DELETE", f"{url}/members/ben"))
    assert sorted(a.status for a in both) == [204, 409]


@pytest.mark.parametrize(
    "body", [{}, {"role": "hub"}, {"role": "Owner"}, {"role": None}, {"role": ["owner"]}]
)
async def test_a_role_is_one_of_three(hub: TestHub, body: object) -> None:
    ann = await hub.person("ann")
    await hub.person("ben")
    url = f"/api/projects/{await hub.project(ann)}"
    answer = await ann("PUT", f"{url}/members/ben", body, expect=400)
    assert answer.json["field"] == "role"


@pytest.mark.parametrize("name", ["nobody", "%00", "..%2fann", "%ff", "a" * 200, "%24ne"])
async def test_unknown_people(hub: TestHub, name: str) -> None:
    ann = await hub.person("ann")
    url = f"/api/projects/{await hub.project(ann)}"
    answer = await ann("PUT", f"{url}/members/{name}", {"role": "viewer"})
    assert answer.status in (400, 404)
    assert (await ann("GET", f"{url}/members")).json == [{"name": "ann", "role": "owner"}]
