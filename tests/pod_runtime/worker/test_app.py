from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from pod_runtime.protocol.roles import Role
from pod_runtime.worker.events import MAX_BEHIND, Listener
from pod_runtime.worker.inotify import Inotify, Overflow
from pod_runtime.worker.safefs import Root
from pod_runtime.worker.watcher import Watcher
from tests.harness import within
from tests.pod_runtime.worker.harness import Site


async def test_restoring_then_ready(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.persistence.hold = True
    await site.start()
    try:
        status, health = await site.call("GET", "/_codevo/health", role=Role.HUB)
        assert (status, health) == (200, {"state": "restoring", "percent": 40, "message": "Restoring"})
        for path in ("/api/contents/", "/files/x", "/collab/x", "/api/durability", "/api/worker/events"):
            async with site.session.get(site.url + path, headers=site.headers()) as r:
                assert r.status == 503
                assert r.headers["Retry-After"]
        waiting = asyncio.create_task(site.call("GET", "/_codevo/health?wait=20", role=Role.HUB))
        await asyncio.sleep(0)
        site.persistence.opened.set()
        assert (await waiting)[1]["state"] == "ready"
        assert (await site.call("GET", "/api/contents/"))[0] == 200
    finally:
        await site.stop()


async def test_failed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.persistence.fail = "no bucket"
    await site.start()
    try:
        _, health = await site.call("GET", "/_codevo/health", role=Role.HUB)
        assert health["state"] == "failed"
        assert "no bucket" in health["message"]
        assert (await site.call("GET", "/api/contents/"))[0] == 503
    finally:
        await site.stop()


async def test_flush_and_durability(site: Site) -> None:
    assert (await site.call("GET", "/api/durability"))[1]["pending"] is False
    assert (await site.call("POST", "/_codevo/flush", role=Role.HUB))[0] == 200
    site.persistence.error = "the store is away"
    status, problem = await site.call("POST", "/_codevo/flush", role=Role.HUB)
    assert (status, problem["message"]) == (503, "the store is away")


async def test_activity_is_what_people_do(site: Site) -> None:
    (site.path / "f").write_text("")
    ann = await site.client("f")
    ann.say({"user": {}})
    await ann.until(lambda: bool(ann.awareness))
    _, activity = await site.call("GET", "/_codevo/activity", role=Role.HUB)
    assert activity == {"last_activity": None, "busy": False}
    ann.text += "x"
    await site.on_disk("f", "x")
    _, activity = await site.call("GET", "/_codevo/activity", role=Role.HUB)
    assert activity["last_activity"].endswith("Z")


async def events(ws: aiohttp.ClientWebSocketResponse, until: Any) -> None:
    async with asyncio.timeout(15):
        async for message in ws:
            if until(json.loads(message.data)):
                return
    raise AssertionError("closed")


async def test_events(site: Site) -> None:
    ws = await site.session.ws_connect(site.url + "/api/worker/events", headers=site.headers(Role.VIEWER))
    await events(ws, lambda e: e["type"] == "durability" and e["pending"] is False)
    (site.path / "näw\n").write_text("x")
    await events(ws, lambda e: {"path": "näw\n", "kind": "created"} in e.get("changes", []))
    await site.call("PATCH", "/api/contents/n%C3%A4w%0A", json={"path": "b"})
    await events(ws, lambda e: {"path": "näw\n", "kind": "moved", "to": "b"} in e.get("changes", []))
    (site.path / os.fsdecode(b"\xff")).write_text("x")
    await events(ws, lambda e: {"path": "\udcff", "kind": "created"} in e.get("changes", []))
    await site.call("DELETE", "/api/contents/b")
    await events(ws, lambda e: {"path": "b", "kind": "deleted"} in e.get("changes", []))
    site.persistence.touches.clear()
    await site.call("POST", "/_codevo/revoke", role=Role.HUB, json={"sub": "ann"})
    async for _ in ws:
        pass
    assert ws.close_code == 4403


async def test_slow_listeners_are_dropped() -> None:
    listener = Listener()
    for i in range(MAX_BEHIND + 50):
        listener.put({"n": i})
    got = [await listener.get() for _ in range(MAX_BEHIND + 1)]
    assert got[-1] is None


class Seen:
    def __init__(self, root: Root, **options: Any) -> None:
        self.changes: dict[str, str] = {}
        self.lost = 0
        self.notices: list[str] = []
        self._more = asyncio.Event()
        self.watcher = Watcher(root, self, self._changed, **options)  # type: ignore[arg-type]

    def notice(self, level: str, message: str) -> None:
        self.notices.append(message)

    async def _changed(self, changes: Any) -> None:
        if changes is None:
            self.lost += 1
        self.changes.update({path: kind for kind, path in changes or ()})
        self._more.set()

    async def has(self, path: str, kind: str) -> None:
        async with asyncio.timeout(15):
            while self.changes.get(path) != kind:
                self._more.clear()
                await self._more.wait()


@pytest.mark.parametrize("inotify", [True, False])
async def test_watching(tmp_path: Path, inotify: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    ws = tmp_path / "ws"
    ws.mkdir()
    (ws / "link").symlink_to(outside)
    root = Root(ws)
    seen = Seen(root, inotify=inotify)
    await seen.watcher.start()
    (outside / "x").write_text("x")
    (ws / "a/b").mkdir(parents=True)
    (ws / "a/b/c").write_text("x")
    await seen.has("a/b/c", "created")
    (ws / "a/b/c").write_text("longer")
    await seen.has("a/b/c", "modified")
    (ws / "a").rename(ws / "z")
    await seen.has("z/b/c", "created")
    (ws / "z/b/c").write_text("even longer")
    await seen.has("z/b/c", "modified")
    (ws / "z/b/c").unlink()
    await seen.has("z/b/c", "deleted")
    assert not [p for p in seen.changes if p.startswith("link/")]
    assert "a/b/c" not in seen.changes or seen.changes["a/b/c"] in ("deleted", "modified")
    await seen.watcher.close()
    root.close()


async def test_without_watches_it_polls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pod_runtime.worker import inotify

    monkeypatch.setattr(inotify, "MAX_WATCHES", 2)
    root = Root(tmp_path)
    seen = Seen(root)
    await seen.watcher.start()
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    await asyncio.sleep(0)
    async with asyncio.timeout(15):
        while not seen.notices:
            await asyncio.sleep(0.02)
    for i in range(50):
        (tmp_path / "c" / f"x{i}").write_text("x")
        await asyncio.sleep(0.1)
        if seen.changes:
            break
    await seen.has("c/x0", "created") if "c/x0" in seen.changes else None
    assert seen.lost
    assert seen.changes
    await seen.watcher.close()


def test_lost_events_are_told(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip("the queue is too long to overflow here")
    root = Root(tmp_path)
    watch = Inotify(root)
    watch.add_tree()
    for i in range(limit // 2 + 10):
        (tmp_path / f"f{i % 7}").write_text("x")
    with pytest.raises(Overflow):
        watch.read()
    (tmp_path / "after").write_text("x")
    assert "after" in watch.read()
    watch.close()


@pytest.mark.parametrize("fails", [False, True])
async def test_persistence_is_closed_whenever_it_was_opened(tmp_path: Path, fails: bool) -> None:
    """Stopped, or failed, between the log's opening and the first request."""
    site = Site(tmp_path)
    site.persistence.hold = True
    await site.start()
    assert site.worker is not None
    waiting = asyncio.Event()

    async def start() -> None:
        waiting.set()
        if fails:
            raise OSError("no watches")
        await asyncio.Event().wait()

    site.worker._watcher.start = start  # type: ignore[method-assign]
    site.persistence.opened.set()
    await within(waiting.wait(), 15)
    await site.stop()
    assert site.persistence.closed


async def test_after_lost_events_clients_list_anew_and_documents_look(site: Site) -> None:
    (site.path / "f").write_text("old\n")
    ann = await site.client("f")
    ws = await site.session.ws_connect(site.url + "/api/worker/events", headers=site.headers())
    assert (await ws.receive_json(timeout=15))["type"] == "durability"
    assert site.worker is not None
    inotify_read = Inotify.read
    lost = asyncio.Event()

    def overflows(self: Inotify) -> dict[str, Any]:
        if not lost.is_set():
            inotify_read(self)
            lost.set()
            raise Overflow
        return dict(inotify_read(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Inotify, "read", overflows)
        (site.path / "f").write_text("new\n")
        await ann.has("new\n")
    assert lost.is_set()
    event = await ws.receive_json(timeout=15)
    assert (event["type"], event["truncated"], event["changes"]) == ("files", True, [])
    (site.path / "after").write_text("x")
    assert "after" in str(await ws.receive_json(timeout=15))
