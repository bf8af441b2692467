"""What administrators see and do."""

from __future__ import annotations

import asyncio

from codevo.spawner.base import ServerState
from tests.codevo.hub_site import PASSWORD, Site


async def test_only_administrators_come_in(site: Site) -> None:
    _, browser = await site.person("ana")
    stranger = await site.browser()
    for path in ("/api/admin/users", "/api/admin/servers"):
        assert (await browser("GET", path)).status == 403
        assert (await stranger("GET", path)).status == 401
    assert (await browser("PATCH", "/api/admin/users/ana", {"admin": True})).status == 403


async def test_people_are_paged_searched_sorted(site: Site) -> None:
    _, admin = await site.person("root1", admin=True)
    for i in range(5):
        await site.hub.accounts.create(f"user{i}", PASSWORD, email=f"u{i}@example.org")
    first = (await admin("GET", "/api/admin/users?limit=4&sort=-name")).json
    assert [u["name"] for u in first["items"]] == ["user4", "user3", "user2", "user1"]
    rest = (await admin("GET", f"/api/admin/users?limit=4&sort=-name&cursor={first['cursor']}")).json
    assert [u["name"] for u in rest["items"]] == ["user0", "root1"] and rest["cursor"] is None
    found = await admin("GET", "/api/admin/users?search=u3@")
    assert [u["name"] for u in found.json["items"]] == ["user3"]
    assert "password" not in found.text and "$2b$" not in found.text
    for query in ("limit=0", "limit=x", "limit=201", "sort=password", "cursor=x"):
        assert (await admin("GET", f"/api/admin/users?{query}")).status == 400


async def test_disabling_ends_sessions_and_tokens_at_once(site: Site) -> None:
    _, admin = await site.person("root1", admin=True)
    user, browser = await site.person("ana")
    program = await site.program(user)
    assert (await admin("PATCH", "/api/admin/users/ana", {"disabled": True})).json["disabled"]
    assert (await browser("GET", "/api/user")).status == 401
    assert (await program("GET", "/api/user")).status == 401
    assert (await browser("POST", "/api/login", {"name": "ana", "password": PASSWORD})).status == 403
    await admin("PATCH", f"/api/admin/users/{user.id}", {"disabled": False})
    assert (await program("GET", "/api/user")).status == 200


async def test_the_last_administrator_stays(site: Site) -> None:
    _, one = await site.person("root1", admin=True)
    for change in ({"admin": False}, {"disabled": True}):
        assert (await one("PATCH", "/api/admin/users/root1", change)).status == 409
    _, two = await site.person("root2", admin=True)
    answers = await asyncio.gather(
        one("PATCH", "/api/admin/users/root2", {"admin": False}),
        two("PATCH", "/api/admin/users/root1", {"admin": False}),
    )
    assert sorted(a.status for a in answers) in ([200, 403], [200, 409])
    assert await site.hub.store.users.count_active_admins() == 1


async def test_unknown_people_and_fields(site: Site) -> None:
    _, admin = await site.person("root1", admin=True)
    assert (await admin("PATCH", "/api/admin/users/nobody", {"admin": True})).status == 404
    assert (await admin("PATCH", "/api/admin/users/root1", {"name": "x"})).status == 400
    assert (await admin("PATCH", "/api/admin/users/root1", {"admin": "yes"})).status == 400


async def test_servers_are_listed_and_stopped(site: Site) -> None:
    user, admin = await site.person("root1", admin=True)
    projects = [await site.project(user) for _ in range(3)]
    for project in projects:
        site.hub.servers.start(project.id, user.id)
    # sorted by their last change, so they have to be where they stay
    while {site.hub.servers.status(p.id).state for p in projects} != {ServerState.RESTORING}:
        await asyncio.sleep(0.01)
    first = (await admin("GET", "/api/admin/servers?limit=2")).json
    assert len(first["items"]) == 2 and first["total"] == 3
    rest = (await admin("GET", f"/api/admin/servers?limit=2&cursor={first['cursor']}")).json
    seen = [i["project"]["id"] for i in first["items"] + rest["items"]]
    assert sorted(seen) == sorted(p.id for p in projects) and rest["cursor"] is None
    assert first["items"][0]["owner"] == {"name": "root1"} and first["items"][0]["since"]
    assert (await admin("GET", "/api/admin/servers?search=ROOT")).json["total"] == 3
    assert (await admin("GET", "/api/admin/servers?search=nothing")).json["total"] == 0
    assert (await admin("GET", "/api/admin/servers?cursor=zz!")).status == 400
    stopped = await admin("DELETE", f"/api/admin/servers/{projects[0].id}")
    assert stopped.status == 204
    assert site.hub.servers.status(projects[0].id).state is ServerState.STOPPED
    started = await admin("POST", f"/api/admin/servers/{projects[0].id}")
    assert started.status == 202 and started.json["state"] == "starting"
    assert (await admin("POST", "/api/admin/servers/aaaaaaaaaaaaaaaa")).status == 404


async def test_an_administrator_joins_visibly_or_deletes(site: Site) -> None:
    _, admin = await site.person("root1", admin=True)
    ana, browser = await site.person("ana")
    project = await site.project(ana)
    path = f"/api/admin/projects/{project.id}"
    assert (await admin("GET", f"/api/projects/{project.id}")).status == 404, "no silent access"
    assert (await browser("POST", path, {})).status == 403
    assert (await admin("POST", path, {})).json == {"role": "owner"}
    members = (await browser("GET", f"/api/projects/{project.id}")).json["members"]
    assert {m["name"] for m in members} == {"ana", "root1"}
    assert (await browser("DELETE", path)).status == 403
    assert (await admin("DELETE", path)).status == 204
    assert (await browser("GET", f"/api/projects/{project.id}")).status == 404
    for method in ("POST", "DELETE"):
        assert (await admin(method, "/api/admin/projects/aaaaaaaaaaaaaaaa")).status == 404
