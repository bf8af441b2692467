"""Checkpoints over REST: a stopped project's in its log, a running one's by its worker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from codevo.embedded.s3 import S3Settings
from codevo.objects import checkpoints
from codevo.proxy.pods import PodRefused, PodUnavailable
from codevo.spawner.base import ServerState
from pod_runtime.journal import reader
from pod_runtime.journal.format import Area, Member, encode_body
from pod_runtime.journal.projects import Prefixed
from pod_runtime.journal.writer import Commit, LogWriter
from tests.codevo.hubs import Person, TestHub, open_hub
from tests.harness import within

GONE = "a" * 16


@pytest.fixture
async def hub(mongo_url: str, s3: S3Settings, tmp_path: Path) -> AsyncIterator[TestHub]:
    async with open_hub(mongo_url, s3, tmp_path) as found:
        yield found


async def commit(hub: TestHub, project: str, **files: str) -> int:
    """A change in the log, as a worker makes it."""
    at = Prefixed(hub.hub.bucket.store, f"projects/{project}/")
    writer = LogWriter(at, 10**6)
    await writer.position(await reader.load(at))
    await writer.open()
    members = [(Member(Area.WORKSPACE, p, size=len(t)), t.encode()) for p, t in files.items()]
    return await writer.append(Commit(encode_body(members)))


async def ready(hub: TestHub, ann: Person, project: str) -> None:
    await ann("POST", f"/api/projects/{project}/server", {})
    assert (await hub.hub.servers.wait(project, 15)).state is ServerState.READY


async def test_of_a_stopped_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    assert (await ann("GET", path, expect=200)).json == []
    made = (await ann("POST", path, {"name": "  before the exam "}, expect=201)).json
    assert made == {
        "name": "before the exam", "seq": 0, "time": made["time"], "by": "ann", "auto": False,
    }  # fmt: skip
    seq = await commit(hub, project, a="1")
    later = (await ann("POST", path, {"name": "später"}, expect=201)).json
    assert later["seq"] == seq
    assert (await ann("GET", path, expect=200)).json == [later, made]
    # the same state has one name
    renamed = (await ann("POST", path, {"name": "spät"}, expect=201)).json
    assert [c["name"] for c in (await ann("GET", path)).json] == ["spät", "before the exam"]
    await ann("DELETE", f"{path}/{renamed['seq']}", expect=204)
    gone = await ann("DELETE", f"{path}/{renamed['seq']}", expect=404)
    assert gone.json["code"] == "checkpoint"
    assert (await ann("GET", path)).json == [made]
    assert not hub.pods.calls


@pytest.mark.parametrize("name", ["", "   ", "x" * 101, "a\nb", "a\u202eb", "a\0", 7, None])
async def test_names(hub: TestHub, name: Any) -> None:
    ann = await hub.person("ann")
    path = f"/api/projects/{await hub.project(ann)}/checkpoints"
    answer = await ann("POST", path, {"name": name}, expect=400)
    assert answer.json["field"] == "name"
    assert (await ann("GET", path)).json == []


async def test_a_name_is_of_one_state(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    first = (await ann("POST", path, {"name": "x" * 100}, expect=201)).json
    await commit(hub, project, a="1")
    answer = await ann("POST", path, {"name": "x" * 100}, expect=409)
    assert (answer.json["field"], answer.json["code"]) == ("name", "taken") and answer.json["remedy"]
    assert (await ann("GET", path)).json == [first]


async def test_a_store_that_says_nothing(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)

    async def silent(project_id: str) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(hub.hub.projects.checkpoints, "list", silent)
    monkeypatch.setattr("codevo.api.checkpoints.PATIENCE", 0.1)
    answer = await ann("GET", f"/api/projects/{project}/checkpoints", expect=503)
    assert "does not answer" in answer.json["message"]


async def test_so_many(hub: TestHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "MAX_NAMED", 2)
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    for n in range(2):
        await commit(hub, project, a=str(n))
        await ann("POST", path, {"name": f"n{n}"}, expect=201)
    await commit(hub, project, a="x")
    answer = await ann("POST", path, {"name": "one more"}, expect=409)
    assert answer.json["code"] == "quota" and "2" in answer.json["detail"]


async def test_roles(hub: TestHub) -> None:
    ann, ed, vic, ben = [await hub.person(n) for n in ("ann", "ed", "vic", "ben")]
    project = await hub.project(ann, visibility="public")
    for name, role in (("ed", "editor"), ("vic", "viewer")):
        await ann("PUT", f"/api/projects/{project}/members/{name}", {"role": role}, expect=201)
    path = f"/api/projects/{project}/checkpoints"
    seq = (await ed("POST", path, {"name": "by an editor"}, expect=201)).json["seq"]
    assert (await vic("GET", path, expect=200)).json[0]["by"] == "ed"
    for method, where, body in [
        ("POST", path, {"name": "x"}),
        ("POST", f"{path}/{seq}/restore", {}),
        ("DELETE", f"{path}/{seq}", None),
    ]:
        await vic(method, where, body, expect=403)
        await hub.guest(method, where, body, expect=401)
        await ben(method, where, body, expect=403)
    # names of people are for members
    await ben("GET", path, expect=403)
    await hub.guest("GET", path, expect=401)
    await ed("DELETE", f"{path}/{seq}", expect=403)
    await ben("GET", f"/api/projects/{GONE}/checkpoints", expect=404)
    await ann("DELETE", f"{path}/{seq}", expect=204)
    for bad in ("-1", "x", "1" * 16, "1/2"):
        await ann("DELETE", f"{path}/{bad}", expect=404)


async def test_of_a_running_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    await ready(hub, ann, project)
    hub.pods.checkpoint = {"name": "now", "seq": 7, "time": "2026-01-01T00:00:00.000000Z", "by": "ann"}
    made = (await ann("POST", path, {"name": "now"}, expect=201)).json
    assert made == hub.pods.checkpoint | {"auto": False}
    assert hub.pods.calls[-1] == (project, "worker", "POST", "/_codevo/checkpoint")
    assert hub.pods.told[-1] == {"name": "now", "by": "ann"}
    for answer, status in [
        (PodUnavailable("away"), 503),
        (PodRefused(503, {"detail": "The object store is away."}), 503),
        (PodRefused(409, {"detail": "200 already"}), 409),
        (PodRefused(400, {"detail": "name: no"}), 400),
        ({"name": "now"}, 503),
        ([], 503),
    ]:
        hub.pods.checkpoint = answer
        found = await ann("POST", path, {"name": "now"}, expect=status)
        assert (found.headers.get("Retry-After") is not None) == (status == 503)


async def test_restore_of_a_running_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    await ann("POST", path, {"name": "start"}, expect=201)
    await ready(hub, ann, project)
    before = {"name": "Before restoring start", "seq": 9, "time": "2026-01-01T00:00:00.000000Z", "auto": True}
    hub.pods.restore = {"restored": 3, "deleted": 1, "checkpoint": before}
    found = await ann("POST", f"{path}/0/restore", {}, expect=200)
    assert found.json == {"restored": 3, "deleted": 1, "skipped": 0, "checkpoint": before | {"by": None}}
    assert hub.pods.told[-1] == {"seq": 0, "by": "ann"}
    hub.pods.restore = {"restored": 0, "deleted": 0, "checkpoint": None}
    assert (await ann("POST", f"{path}/0/restore", expect=200)).json["checkpoint"] is None
    assert (await ann("POST", f"{path}/5/restore", {}, expect=404)).json["code"] == "checkpoint"
    for answer, status in [
        (PodUnavailable("away"), 503), (PodRefused(404, None), 404), (PodRefused(410, {"detail": "x"}), 410),
        (PodRefused(500, None), 503), (PodRefused(409, {"message": "Another restore"}), 409),
    ]:  # fmt: skip
        hub.pods.restore = answer
        await ann("POST", f"{path}/0/restore", {}, expect=status)


async def test_restore_starts_a_stopped_project(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    await ann("POST", path, {"name": "start"}, expect=201)
    hub.pods.restore = {"restored": 0, "deleted": 0, "checkpoint": None}
    hub.spawner.gate.clear()
    asked = asyncio.create_task(ann("POST", f"{path}/0/restore", {}))
    while not hub.spawner.starts:
        await asyncio.sleep(0.01)
    assert not [c for c in hub.pods.calls if c[3] == "/_codevo/restore"]
    hub.spawner.gate.set()
    assert (await within(asked, 20)).status == 200
    assert hub.hub.servers.status(project).state is ServerState.READY


async def test_restore_says_why_a_start_failed(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    await ann("POST", path, {"name": "start"}, expect=201)
    hub.pods.health["worker"] = {"state": "failed", "message": "the log is damaged"}
    answer = await ann("POST", f"{path}/0/restore", {}, expect=503)
    assert "damaged" in answer.json["detail"]


async def test_while_it_stops_the_log_is_waited_for(hub: TestHub) -> None:
    ann = await hub.person("ann")
    project = await hub.project(ann)
    path = f"/api/projects/{project}/checkpoints"
    await ready(hub, ann, project)
    hub.spawner.stop_gate.clear()
    hub.hub.servers.begin_stop(project)
    asked = asyncio.create_task(ann("POST", path, {"name": "x"}))
    done, _ = await asyncio.wait([asked], timeout=0.3)
    assert not done
    seq = await commit(hub, project, a="the last flush")
    hub.spawner.stop_gate.set()
    answer = await within(asked, 20)
    assert answer.status == 201 and answer.json["seq"] == seq
