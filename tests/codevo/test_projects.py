"""Projects over REST: made from templates, listed, changed, forked, exported, deleted."""

from __future__ import annotations

import asyncio
import io
import re
import tarfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from codevo.embedded.s3 import S3Settings
from codevo.spawner.base import ServerState
from pod_runtime.journal import reader
from pod_runtime.journal.format import Area, Member, encode_body
from pod_runtime.journal.projects import Prefixed
from pod_runtime.journal.store import StoreError
from pod_runtime.journal.writer import Commit, LogWriter
from tests.codevo.hubs import TestHub, open_hub

GONE = "a" * 16


@pytest.fixture
async def hub(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[TestHub]:
    async with open_hub(mongo_url, s3, tmp_path) as found:
        yield found


async def keys(hub: TestHub, prefix: str) -> list[str]:
    return [i.key async for i in hub.hub.bucket.store.list(prefix)]


async def test_a_project_is_made_from_a_template(hub: TestHub) -> None:
    ann = await hub.person("ann")
    made = await ann("POST", "/api/projects", {"title": "  My project ", "template": "tiny"}, expect=201)
    p = made.json
    assert re.fullmatch(r"[a-z2-7]{16}", p["id"]) and made.headers["Location"] == f"/api/projects/{p['id']}"
    assert (p["title"], p["template"], p["visibility"], p["role"]) == (
        "My project",
        "tiny",
        "private",
        "owner",
    )
    assert p["owner"] == {"name": "ann"} and p["members"] == [{"name": "ann", "role": "owner"}]
    assert p["server"] == {"state": "stopped", "reason": "", "since": None, "percent": 0, "message": ""}
    assert p["urls"] == {
        "ide": f"{hub.base}/projects/{p['id']}",
        "preview": f"http://{p['id']}.localhost:1/",
        "base": f"{hub.base}/p/{p['id']}/",
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", p["created"])
    assert set(await keys(hub, f"projects/{p['id']}/")) >= {f"projects/{p['id']}/HEAD.json"}
    listed = (await ann("GET", "/api/projects", expect=200)).json
    assert [x["id"] for x in listed] == [p["id"]] and "members" not in listed[0]
    ben = await hub.person("ben")
    assert (await ben("GET", "/api/projects", expect=200)).json == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"title": "", "template": "tiny"}, "title"),
        ({"title": "   ", "template": "tiny"}, "title"),
        ({"title": "x" * 101, "template": "tiny"}, "title"),
        ({"title": "a\nb", "template": "tiny"}, "title"),
        ({"title": "a\u202eb", "template": "tiny"}, "title"),
        ({"title": 7, "template": "tiny"}, "title"),
        ({"template": "tiny"}, "title"),
        ({"title": "x"}, "template"),
        ({"title": "x", "template": "nope"}, "template"),
        ({"title": "x", "template": "../tiny"}, "template"),
        ({"title": "x", "template": "tiny", "id": "mine"}, "id"),
    ],
)
async def test_a_bad_creation_names_the_field(hub: TestHub, body: Any, field: str) -> None:
    ann = await hub.person("ann")
    answer = await ann("POST", "/api/projects", body, expect=400)
    assert answer.json["field"] == field
    assert (await ann("GET", "/api/projects")).json == []


async def test_what_is_not_there_yet_says_so(hub: TestHub) -> None:
    ann = await hub.person("ann")
    git = await ann("POST", "/api/projects", {"title": "x", "git_url": "https://h/r.git"}, expect=501)
    assert git.json["field"] == "git_url"


async def test_emoji_and_equal_titles_are_fine(hub: TestHub) -> None:
    ann = await hub.person("ann")
    assert await hub.project(ann, "👩‍💻 Spaß") != await hub.project(ann, "👩‍💻 Spaß")


async def test_templates_say_why_not(hub: TestHub) -> None:
    ann = await hub.person("ann")
    found = {t["name"]: t for t in (await ann("GET", "/api/templates", expect=200)).json}
    assert found["tiny"]["available"] is True and found["tiny"]["why_not"] is None
    assert found["moon"]["available"] is False and "no-such-command" in found["moon"]["why_not"]
    made = await ann("POST", "/api/projects", {"title": "x", "template": "moon"}, expect=409)
    assert "no-such-command" in made.json["detail"]


async def test_a_template_that_vanished_from_the_bucket_is_published_again(hub: TestHub) -> None:
    ann = await hub.person("ann")
    await hub.project(ann)
    await hub.hub.bucket.store.delete(*await keys(hub, "templates/tiny/"))
    await hub.project(ann)


async def test_a_store_that_goes_away_is_said_so(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    store = type(hub.hub.bucket.store)

    async def away(*_: object, **__: object) -> None:
        raise StoreError("away")

    monkeypatch.setattr(store, "copy", away)  # one of several that are under way together
    await ann("POST", f"/api/projects/{project}/fork", {}, expect=503)
    monkeypatch.undo()
    assert len((await ann("GET", "/api/projects")).json) == 1
    client = hub.hub.bucket.store._client
    monkeypatch.setattr(client, "delete_object", away)
    await ann("DELETE", f"/api/projects/{project}", expect=204)  # the objects are collected later
    assert (await ann("GET", "/api/projects")).json == []
    monkeypatch.undo()
    assert await keys(hub, f"projects/{project}/")


async def test_one_person_owns_so_many(mongo_url: str, s3: S3Settings, tmp_path: Path) -> None:
    async with open_hub(mongo_url, s3, tmp_path, max_projects=2) as hub:
        ann = await hub.person("ann")
        first = await hub.project(ann)
        await hub.project(ann)
        answer = await ann("POST", "/api/projects", {"title": "x", "template": "tiny"}, expect=409)
        assert answer.json["code"] == "quota"
        await ann("POST", f"/api/projects/{first}/fork", {}, expect=409)
        await ann("DELETE", f"/api/projects/{first}", expect=204)
        await hub.project(ann)


async def test_other_peoples_projects_do_not_exist(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    secret = await hub.project(ann)
    for ident in (secret, GONE):
        for method, path, body in [
            ("GET", "", None),
            ("PATCH", "", {"title": "x"}),
            ("DELETE", "", None),
            ("POST", "/fork", {}),
            ("GET", "/export", None),
            ("POST", "/server", {}),
            ("DELETE", "/server", None),
            ("GET", "/server/progress", None),
            ("GET", "/members", None),
            ("PUT", "/members/ben", {"role": "owner"}),
            ("DELETE", "/members/ann", None),
            ("POST", "/invites", {"role": "editor"}),
            ("GET", "/invites", None),
        ]:
            await ben(method, f"/api/projects/{ident}{path}", body, expect=404)
            await hub.guest(method, f"/api/projects/{ident}{path}", body, expect=401)
    for bad in ("../x", "A" * 16, "a" * 17, "a%2fb", "a" * 15 + "%00"):
        await ben("GET", f"/api/projects/{bad}", expect=404)
    assert (await ann("GET", f"/api/projects/{secret}", expect=200)).json["title"] == "One"


async def test_changes(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    settings = {
        "public_ports": [8080, 3000, 3000],
        "embed_origins": ["HTTPS://Example.org:443/"],
        "wake": False,
    }
    answer = await ann(
        "PATCH",
        f"/api/projects/{ident}",
        {"title": "Two", "visibility": "public", "settings": settings},
        expect=200,
    )
    assert answer.json["title"] == "Two" and answer.json["visibility"] == "public"
    assert answer.json["settings"] == {
        "public_ports": [3000, 8080],
        "embed_origins": ["https://example.org"],
        "wake": False,
    }
    again = await ann("PATCH", f"/api/projects/{ident}", {"settings": {"wake": True}}, expect=200)
    assert again.json["settings"]["public_ports"] == [3000, 8080] and again.json["settings"]["wake"]
    assert again.json["updated"] > again.json["created"]


@pytest.mark.parametrize(
    "origin",
    [
        "*",
        "https://*.example.org",
        "example.org",
        "http://example.org",
        "https://example.org/path",
        "https://u@example.org",
        "https://example.org; script-src *",
        "https://example.org 'self'",
        "javascript:alert(1)",
        "https://ex\nample.org",
        "https://example.org:99999",
        "https://",
        "https://bücher.example",
        "https://example.org?x",
        "https://example.org#x",
        "https://.example.org",
    ],
)
async def test_embed_origins_are_origins(hub: TestHub, origin: str) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    body = {"settings": {"embed_origins": [origin]}}
    answer = await ann("PATCH", f"/api/projects/{ident}", body, expect=400)
    assert answer.json["field"].startswith("settings.embed_origins")


@pytest.mark.parametrize("ports", [[0], [65536], ["80"], [True], [1.5], list(range(1, 22)), "80"])
async def test_public_ports_are_ports(hub: TestHub, ports: Any) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    await ann("PATCH", f"/api/projects/{ident}", {"settings": {"public_ports": ports}}, expect=400)


async def test_guests_read_public_projects_only(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann, visibility="public")
    for stranger in (hub.guest, ben):
        seen = (await stranger("GET", f"/api/projects/{ident}", expect=200)).json
        assert seen["role"] == "viewer" and seen["owner"] == {"name": "ann"}
        assert "members" not in seen and "settings" not in seen
    await ben("PATCH", f"/api/projects/{ident}", {"title": "x"}, expect=403)
    await hub.guest("PATCH", f"/api/projects/{ident}", {"title": "x"}, expect=401)
    await ben("GET", f"/api/projects/{ident}/members", expect=403)
    await hub.guest("POST", f"/api/projects/{ident}/fork", {}, expect=401)
    hub.pods.connected = {"anon:1", ben.id, ann.id}
    await ann("PATCH", f"/api/projects/{ident}", {"visibility": "private"}, expect=200)
    assert set(hub.pods.ended) == {(ident, "anon:1"), (ident, ben.id)}
    await hub.guest("GET", f"/api/projects/{ident}", expect=401)


async def test_a_port_that_is_public_no_longer_ends_its_visitors_sockets(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}"
    await ann("PATCH", url, {"settings": {"public_ports": [3000, 5000]}}, expect=200)
    hub.pods.connected = {"anon:1", ann.id}
    await ann("PATCH", url, {"settings": {"public_ports": [3000, 5000, 6000]}}, expect=200)
    assert not hub.pods.ended
    await ann("PATCH", url, {"settings": {"public_ports": [3000]}}, expect=200)
    assert hub.pods.ended == [(ident, "anon:1")]


async def test_downloads_of_one_project_are_few_at_a_time(
    hub: TestHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("codevo.api.projects.MAX_EXPORTS", 0)
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    answer = await ann("GET", f"/api/projects/{ident}/export", expect=429)
    assert answer.headers["Retry-After"]


def unpack(data: bytes) -> dict[str, bytes]:
    raw = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        return {m.name: f.read() for m in tar if (f := tar.extractfile(m))}


async def test_export_of_a_stopped_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann, 'A "quoted"\\ name/😀')
    answer = await ann("GET", f"/api/projects/{ident}/export", expect=200)
    assert answer.headers["Content-Type"] == "application/zstd"
    assert 'filename="A-quoted-name.tar.zst"' in answer.headers["Content-Disposition"]
    files = unpack(answer.body)
    assert files["workspace/main.txt"] == b"hello\n"
    assert files["workspace/sub/ünï 😀.txt"] == b"deep\n"
    assert hub.pods.calls == []


async def test_fork_has_the_files_and_another_owner(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann, visibility="public")
    forked = (await ben("POST", f"/api/projects/{ident}/fork", {}, expect=201)).json
    assert forked["owner"] == {"name": "ben"} and forked["visibility"] == "private"
    assert forked["title"] == "One (fork)" and forked["id"] != ident
    export = await ben("GET", f"/api/projects/{forked['id']}/export", expect=200)
    assert unpack(export.body)["workspace/main.txt"] == b"hello\n"
    named = await ben("POST", f"/api/projects/{ident}/fork", {"title": "Mine"}, expect=201)
    assert named.json["title"] == "Mine"
    await ann("GET", f"/api/projects/{forked['id']}", expect=404)


async def test_a_strangers_fork_leaves_the_history_behind(hub: TestHub) -> None:
    """What was deleted before a project became public is not what its owner shows."""
    ann, ben, cat = await hub.person("ann"), await hub.person("ben"), await hub.person("cat")
    ident = await hub.project(ann, visibility="public")
    await ann("PUT", f"/api/projects/{ident}/members/cat", {"role": "viewer"}, expect=201)
    log = Prefixed(hub.hub.bucket.store, f"projects/{ident}/")
    writer = LogWriter(log, 1)
    await writer.position(await reader.load(log))
    await writer.open()
    for text in (b"the old secret", b"new"):
        file = Member(Area.WORKSPACE, "x", size=len(text))
        await writer.append(Commit(encode_body([(file, text)])))

    copied = []
    for one in (ben, cat):
        fork = (await one("POST", f"/api/projects/{ident}/fork", {}, expect=201)).json["id"]
        export = await one("GET", f"/api/projects/{fork}/export", expect=200)
        assert unpack(export.body)["workspace/x"] == b"new"
        copied.append({k.split("/", 2)[2] for k in await keys(hub, f"projects/{fork}/")})
    strangers, members = copied
    assert strangers == {"HEAD.json", "snapshots/0000000000000000.tar.zst"}
    assert any(k.startswith("journal/") for k in members)


async def test_a_running_project_is_flushed_before_it_is_copied(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    await ann("POST", f"/api/projects/{ident}/server", {}, expect=201)
    await ann("POST", f"/api/projects/{ident}/fork", {}, expect=201)
    assert (ident, "worker", "POST", "/_codevo/flush") in hub.pods.calls
    hub.pods.flush = ConnectionError("the store is away")
    answer = await ann("POST", f"/api/projects/{ident}/fork", {}, expect=503)
    assert "Retry-After" in answer.headers
    await ann("GET", f"/api/projects/{ident}/export", expect=503)
    assert len((await ann("GET", "/api/projects")).json) == 2


async def test_delete_takes_everything(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann)
    await ann("PUT", f"/api/projects/{ident}/members/ben", {"role": "editor"}, expect=201)
    invite = await ann("POST", f"/api/projects/{ident}/invites", {"role": "viewer"}, expect=201)
    await ann("POST", f"/api/projects/{ident}/server", {}, expect=201)
    await ben("DELETE", f"/api/projects/{ident}", expect=403)
    await ann("DELETE", f"/api/projects/{ident}", expect=204)
    assert hub.spawner.removed == [ident] and hub.spawner.running == {}
    assert hub.pods.forgotten == [ident]
    assert await keys(hub, f"projects/{ident}/") == []
    assert await hub.hub.store.members.of_project(ident) == []
    for person in (ann, ben):
        await person("GET", f"/api/projects/{ident}", expect=404)
    await hub.guest("GET", f"/api/invites/{invite.json['code']}", expect=404)


async def test_deleting_a_project_while_it_starts(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    hub.spawner.gate.clear()
    await ann("POST", f"/api/projects/{ident}/server", {}, expect=202)
    await ann("DELETE", f"/api/projects/{ident}", expect=204)
    assert hub.hub.servers.status(ident).state is ServerState.STOPPED
    assert hub.spawner.now_starting == 0


async def test_a_start_and_a_stop_over_rest(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}/server"
    both = await asyncio.gather(ann("POST", url, {}), ann("POST", url, {}))
    assert [a.status for a in both] == [201, 201] and len(hub.spawner.starts) == 1
    assert both[0].json["server"]["state"] == "ready"
    spec = hub.spawner.starts[0]
    assert spec.owner == ann.id and spec.worker.generation == 1
    assert spec.worker.store.prefix == f"projects/{ident}/" and spec.worker.store.secret_access_key
    await ann("DELETE", url, expect=204)
    await ann("DELETE", url, expect=204)
    assert (await ann("GET", f"/api/projects/{ident}")).json["server"]["state"] == "stopped"


def parse(stream: bytes) -> list[tuple[str, Any]]:
    import json

    found = []
    for block in stream.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "data" in lines:
            found.append((lines["id"], json.loads(lines["data"])))
    return found


async def test_progress_is_a_stream_that_can_be_resumed(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}/server"
    hub.spawner.gate.clear()
    await ann("POST", url, {}, expect=202)
    reading = asyncio.create_task(ann("GET", url + "/progress"))
    await asyncio.sleep(0)
    hub.spawner.gate.set()
    answer = await reading
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    seen = parse(answer.body)
    assert seen[0][1]["state"] == "starting" and seen[0][1]["ready"] is False
    assert seen[-1][1] == {
        "state": "ready",
        "progress": 100,
        "message": "Ready",
        "ready": True,
        "failed": False,
    }
    rest = await ann("GET", url + "/progress", Last_Event_ID=seen[1][0])
    assert parse(rest.body) == seen[2:]
    await ann("DELETE", url, expect=204)
    idle = parse((await ann("GET", url + "/progress")).body)
    assert [e["state"] for _, e in idle] == ["stopped"]


async def test_when_too_many_start_429_says_when(mongo_url: str, s3: S3Settings, tmp_path: Path) -> None:
    async with open_hub(mongo_url, s3, tmp_path, concurrent_starts=1, max_queue=0, max_running=1) as hub:
        ann, ben = await hub.person("ann"), await hub.person("ben")
        one, two, three = await hub.project(ann), await hub.project(ben), await hub.project(ann)
        hub.spawner.gate.clear()
        await ann("POST", f"/api/projects/{one}/server", {}, expect=202)
        full = await ben("POST", f"/api/projects/{two}/server", {}, expect=429)
        assert int(full.headers["Retry-After"]) > 0
        hub.spawner.gate.set()
        await hub.hub.servers.wait(one, 10)
        quota = await ann("POST", f"/api/projects/{three}/server", {}, expect=409)
        assert quota.json["code"] == "quota"


async def test_who_may_start_and_stop(hub: TestHub) -> None:
    ann, ben = await hub.person("ann"), await hub.person("ben")
    ident = await hub.project(ann)
    url = f"/api/projects/{ident}"
    await ann("PUT", f"{url}/members/ben", {"role": "viewer"}, expect=201)
    await ben("POST", f"{url}/server", {}, expect=403)
    await ann("PATCH", url, {"visibility": "public"}, expect=200)
    await ben("POST", f"{url}/server", {}, expect=201)
    await hub.guest("POST", f"{url}/server", {}, expect=201)
    await ben("DELETE", f"{url}/server", expect=403)
    await hub.guest("DELETE", f"{url}/server", expect=401)
    for _ in range(5):
        await ann("DELETE", f"{url}/server", expect=204)
        await hub.guest("POST", f"{url}/server", {}, expect=201)
    await ann("DELETE", f"{url}/server", expect=204)
    limited = await hub.guest("POST", f"{url}/server", {}, expect=429)
    assert "Retry-After" in limited.headers
    await ann("POST", f"{url}/server", {}, expect=201)


async def test_a_token_that_may_only_read(hub: TestHub) -> None:
    ann = await hub.person("ann")
    ident = await hub.project(ann)
    reader = await hub.person("bob", "read")
    await ann("PUT", f"/api/projects/{ident}/members/bob", {"role": "owner"}, expect=201)
    await reader("GET", f"/api/projects/{ident}", expect=200)
    await reader("POST", "/api/projects", {"title": "x", "template": "tiny"}, expect=403)
    await reader("POST", f"/api/projects/{ident}/server", {}, expect=403)
    await reader("DELETE", f"/api/projects/{ident}", expect=403)
