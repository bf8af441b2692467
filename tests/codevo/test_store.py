"""The collections on a real MongoDB."""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta

import pytest

from codevo.store import (
    Project,
    ProjectSettings,
    Role,
    Store,
    StoreUnavailable,
    Taken,
    User,
    Visibility,
    digest,
    new_id,
    now,
    rfc3339,
)


def person(name: str, email: str = "", **more: object) -> User:
    return User(new_id(), name, email, "hash", **more)  # type: ignore[arg-type]


async def test_names_and_emails_are_unique_without_regard_to_case(store: Store) -> None:
    await store.users.create(person("Ana", "ana@example.org"))
    with pytest.raises(Taken, match="name"):
        await store.users.create(person("aNA"))
    with pytest.raises(Taken, match="email"):
        await store.users.create(person("other", "ANA@example.org"))
    # two without an e-mail do not collide
    await store.users.create(person("bo"))
    await store.users.create(person("cy"))
    found = await store.users.by_login("Ana@Example.org")
    assert found is not None and found.name == "Ana"


async def test_paging_users_visits_everybody_once_in_every_order(store: Store) -> None:
    for i in range(13):
        seen = None if i % 3 else now() - timedelta(days=i)
        await store.users.create(person(f"user{i:02}", last_seen=seen))
    for sort in ("name", "-name", "created", "-created", "last_seen", "-last_seen"):
        names: list[str] = []
        cursor = None
        while True:
            page = await store.users.page(limit=4, cursor=cursor, sort=sort)
            names += [u.name for u in page.items]
            cursor = page.cursor
            if cursor is None:
                break
        assert sorted(names) == [f"user{i:02}" for i in range(13)], sort
    assert [u.name for u in (await store.users.page(search="USER1")).items] == ["user10", "user11", "user12"]


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "W10",
        "eyIkZ3QiOiIifQ",
        "W3siJGd0IjogIiJ9LCAieCJd",
        "é",
        "W1sxXSwgMl0",
        "W3siJHJlZ2V4IjogImEiLCAiJG9wdGlvbnMiOiAiIn0sICJ4Il0",
    ],
)
async def test_a_forged_cursor_is_refused(store: Store, cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        await store.users.page(cursor=cursor)


async def test_bad_sort_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="sort"):
        await store.users.page(sort="password")


async def test_search_is_no_pattern(store: Store) -> None:
    await store.users.create(person("ana"))
    assert (await store.users.page(search=".*")).items == []


async def test_only_one_is_first(store: Store) -> None:
    claims = await asyncio.gather(*(store.users.claim_first() for _ in range(8)))
    assert claims.count(True) == 1


async def test_sessions_are_stored_hashed_and_end(store: Store) -> None:
    session, secret = await store.sessions.create("u", 60)
    assert session.id == digest(secret) and secret not in session.id
    found = await store.sessions.find(secret)
    assert found is not None and found.user == "u"
    _, other = await store.sessions.create("u", 60)
    assert await store.sessions.end_of("u", but=session.id) == 1
    assert await store.sessions.find(other) is None
    await store.sessions.end(session.id)
    assert await store.sessions.find(secret) is None
    _, late = await store.sessions.create("u", -1)
    assert await store.sessions.find(late) is None


async def test_tokens(store: Store) -> None:
    token, text = await store.tokens.create("u", note="n", scopes=("read",))
    assert token.hash == digest(text)
    found = await store.tokens.find(text)
    assert found is not None and found.id == token.id
    assert (await store.tokens.of_user("u"))[0].last_used is not None
    _, late = await store.tokens.create("u", note="", scopes=("read",), seconds=-1)
    assert await store.tokens.find(late) is None
    assert not await store.tokens.delete("somebody else", token.id)
    assert await store.tokens.delete("u", token.id)
    assert await store.tokens.find(text) is None


async def test_ttl_indexes_are_there(store: Store) -> None:
    for name in ("sessions", "tokens", "invites", "preview_codes"):
        indexes = await store._db[name].index_information()
        assert indexes["ttl"]["expireAfterSeconds"] >= 0, name


async def test_generations_only_grow(store: Store) -> None:
    project = Project(
        new_id(), "T", "python", settings=ProjectSettings((3000,), ("https://a.example",), False)
    )
    await store.projects.create(project)
    numbers = await asyncio.gather(*(store.projects.next_generation(project.id) for _ in range(10)))
    assert sorted(n for n in numbers if n is not None) == list(range(1, 11))
    assert await store.projects.next_generation("nobody") is None
    found = await store.projects.get(project.id)
    assert found is not None and found.settings == project.settings and found.generation == 10


async def test_activity_never_goes_back(store: Store) -> None:
    project = Project(new_id(), "T", "python")
    await store.projects.create(project)
    late = now()
    await store.projects.touch(project.id, late)
    await store.projects.touch(project.id, late - timedelta(hours=1))
    found = await store.projects.get(project.id)
    assert found is not None and found.last_activity == late


async def test_project_changes(store: Store) -> None:
    project = Project(new_id(), "T", "python")
    await store.projects.create(project)
    changed = await store.projects.update(project.id, title="New", visibility=Visibility.PUBLIC)
    assert changed is not None
    assert (changed.title, changed.visibility) == ("New", Visibility.PUBLIC)
    assert (await store.projects.page(search="ne")).items == [changed]
    assert await store.projects.update("nobody", title="x") is None


async def test_members(store: Store) -> None:
    await store.members.set("p", "u", Role.OWNER)
    await store.members.set("p", "v", Role.VIEWER)
    await store.members.set("q", "u", Role.EDITOR)
    assert await store.members.of_user("u") == {"p": Role.OWNER, "q": Role.EDITOR}
    assert await store.members.count_owned("u") == 1
    assert await store.members.raise_to("p", "u", Role.VIEWER) is Role.OWNER
    assert await store.members.raise_to("p", "v", Role.EDITOR) is Role.EDITOR
    assert [m.user for m in await store.members.of_project("p")] == ["u", "v"]
    assert set(await store.members.of_projects(["p", "none"])) == {"p", "none"}
    assert await store.members.remove("p", "v")
    assert not await store.members.remove("p", "v")


async def test_concurrent_joins_make_one_member(store: Store) -> None:
    await asyncio.gather(
        *(store.members.set("p", "u", Role.EDITOR) for _ in range(10)), return_exceptions=True
    )
    assert len(await store.members.of_project("p")) == 1


async def test_invites(store: Store) -> None:
    invite = await store.invites.create("p", Role.EDITOR, "u", seconds=60, max_uses=2)
    assert len(invite.code) >= 22
    uses = await asyncio.gather(*(store.invites.use(invite.code, str(n)) for n in range(5)))
    assert sum(u is not None for u in uses) == 2
    assert await store.invites.find(invite.code) is None
    late = await store.invites.create("p", Role.EDITOR, "u", seconds=-1)
    assert await store.invites.find(late.code) is None


async def test_a_preview_code_works_once_and_for_its_project(store: Store) -> None:
    _, code = await store.preview_codes.create("p", "u", "3000")
    assert await store.preview_codes.take(code, "q") is None
    takes = await asyncio.gather(*(store.preview_codes.take(code, "p") for _ in range(5)))
    assert [t.user for t in takes if t] == ["u"]
    _, late = await store.preview_codes.create("p", "u", seconds=-1)
    assert await store.preview_codes.take(late, "p") is None


async def test_deleting_a_project_takes_everything_along(store: Store) -> None:
    project = Project(new_id(), "T", "python")
    await store.projects.create(project)
    await store.members.set(project.id, "u", Role.OWNER)
    invite = await store.invites.create(project.id, Role.EDITOR, "u", seconds=60)
    _, code = await store.preview_codes.create(project.id, "u")
    await store.delete_project(project.id)
    assert await store.projects.get(project.id) is None
    assert await store.members.of_user("u") == {}
    assert await store.invites.find(invite.code) is None
    assert await store.preview_codes.take(code, project.id) is None


async def test_a_database_that_is_away_is_told_quickly() -> None:
    store = Store("mongodb://127.0.0.1:1", timeout=0.3)
    begin = asyncio.get_running_loop().time()
    with pytest.raises(StoreUnavailable):
        await store.ping()
    assert asyncio.get_running_loop().time() - begin < 5
    await store.close()


def test_times_and_ids() -> None:
    text = rfc3339(now())
    assert text is not None and text.endswith("Z") and len(text) == len("2026-01-02T03:04:05.678000Z")
    assert rfc3339(None) is None
    assert len({new_id() for _ in range(1000)}) == 1000
    assert re.fullmatch("[a-z2-7]{16}", new_id())
