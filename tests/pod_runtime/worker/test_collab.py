from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest
from pycrdt import Doc, Map, Text, create_sync_message, create_update_message

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import presence
from pod_runtime.worker.collab_handlers import ViewerPace
from pod_runtime.worker.lineage import new_history
from tests.pod_runtime.worker.harness import Site

NAMES = ["plain.py", "with space.txt", "ünï cödé/☃ %20.txt", "new\nline.txt", os.fsdecode(b"bad-\xff.txt")]


@pytest.mark.parametrize("name", NAMES)
async def test_two_people_edit_one_file(site: Site, name: str) -> None:
    (site.path / name).parent.mkdir(exist_ok=True)
    (site.path / name).write_text("hello 😀\n")
    ann, bob = await site.client(name), await site.client(name, subject="bob")
    await ann.has("hello 😀\n")
    ann.text.insert(0, "A😀 ")
    bob.text += "B"
    await ann.has("A😀 hello 😀\nB")
    await bob.has("A😀 hello 😀\nB")
    await site.on_disk(name, "A😀 hello 😀\nB")
    assert name in site.persistence.touches


async def test_reopening_does_not_duplicate(site: Site) -> None:
    (site.path / "f").write_text("hello\n")
    ann = await site.client("f")
    doc = ann.doc
    await ann.close()
    again = await site.client("f", doc=doc)
    fresh = await site.client("f")
    assert str(again.text) == str(fresh.text) == "hello\n"


async def test_an_empty_file_has_a_history(site: Site) -> None:
    (site.path / "f").write_text("")
    ann = await site.client("f")
    assert ann.doc.get("codevo", type=Map)["epoch"] > 0
    ann.text += "x"
    await site.on_disk("f", "x")


async def test_another_history_is_refused_before_anything_is_applied(site: Site) -> None:
    (site.path / "f").write_text("mine\n")
    foreign: Doc = Doc()
    foreign.apply_update(new_history("foreign\n")[1])
    ann = await site.client("f")
    eve = await site.client("f", doc=foreign, sync=False)
    assert await eve.closed() == 4409
    assert str(eve.text) == "foreign\n"
    rude = await site.client("f", sync=False)
    update: Doc = Doc()
    update.get("source", type=Text).insert(0, "rude")
    eve = await site.client("f", doc=update, sync=False)
    assert await eve.closed() == 4409
    rude.send(create_update_message(update.get_update()))
    await rude.until(lambda: "rude" in str(rude.text) or "mine" in str(rude.text))
    await ann.close()


async def test_updates_before_the_check_are_not_applied(site: Site) -> None:
    (site.path / "f").write_text("mine\n")
    other: Doc = Doc()
    other.get("source", type=Text).insert(0, "rude")
    ws = await site.session.ws_connect(f"{site.url}/collab/f", headers=site.headers())
    await ws.send_bytes(create_update_message(other.get_update()))
    await ws.send_bytes(create_sync_message(other))
    message = await ws.receive(timeout=15)
    assert message.data == 4409
    assert str((await site.client("f")).text) == "mine\n"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("none", 4404),
        ("folder", 4415),
        ("binary", 4415),
        ("latin1", 4415),
        ("huge", 4413),
        ("link", 4415),
        ("fifo", 4415),
        ("..%2Fsecret", 4404),
        ("link-state/docs", 4404),
        ("", 4404),
    ],
)
async def test_what_is_not_a_document(site: Site, name: str, code: int, tmp_path: Path) -> None:
    (site.path / "folder").mkdir()
    (site.path / "binary").write_bytes(b"a\0b")
    (site.path / "latin1").write_bytes(b"\xe9")
    (site.path / "huge").write_bytes(b"x" * 100_001)
    (site.path / "link").symlink_to("/etc/passwd")
    (site.path / "link-state").symlink_to(tmp_path / "state")
    os.mkfifo(site.path / "fifo")
    ws = await site.session.ws_connect(f"{site.url}/collab/{name}", headers=site.headers())
    await ws.send_bytes(create_sync_message(Doc()))
    message = await ws.receive(timeout=15)
    assert message.data == code


async def test_viewers_see_but_cannot_edit(site: Site) -> None:
    (site.path / "f").write_text("x\n")
    ann = await site.client("f")
    vic = await site.client("f", role=Role.VIEWER, subject="vic")
    ann.text += "seen"
    await vic.has("x\nseen")
    vic.say({"user": {"name": "Vic"}})
    await ann.until(lambda: vic.doc.client_id in ann.awareness)
    vic.text += "forbidden"
    assert await vic.closed() == 4403
    ann.text += "!"
    await site.on_disk("f", "x\nseen!")
    assert str(ann.text) == "x\nseen!"


@pytest.mark.parametrize("path", ["f", ""])
async def test_presence_ends_with_the_socket(site: Site, path: str) -> None:
    (site.path / "f").write_text("")
    ann, bob = await site.client(path), await site.client(path, subject="bob")
    ann.say({"user": {"name": "Ann"}, "note": "Änn 😀"})
    await bob.until(lambda: ann.doc.client_id in bob.awareness)
    await ann.until(lambda: ann.doc.client_id in ann.awareness)
    late = await site.client(path, subject="late")
    await late.until(lambda: ann.doc.client_id in late.awareness)
    bob.say({"user": {"name": "Mallory"}}, client=ann.doc.client_id)
    bob.say({"user": {"name": "Bob"}})
    await late.until(lambda: bob.doc.client_id in late.awareness)
    assert late.awareness[ann.doc.client_id] == {"user": {"name": "Ann"}, "note": "Änn 😀"}
    await ann.close()
    await bob.until(lambda: ann.doc.client_id not in bob.awareness)


@pytest.mark.parametrize("path", ["f", ""])
async def test_nobody_appears_as_somebody_else(site: Site, path: str) -> None:
    (site.path / "f").write_text("")
    ann = await site.client(path)
    vic = await site.client(path, role=Role.VIEWER, subject="vic")
    told: list[tuple[Any, Any]] = [
        ({"user": {"name": "Ann", "color": "#123456"}}, {"user": {"name": "Vic", "color": "#123456"}}),
        (
            {"user": {"username": "ann", "display_name": "Ann", "initials": "A"}, "cursor": [1]},
            {
                "user": {"username": "Vic", "display_name": "Vic", "initials": "A", "name": "Vic"},
                "cursor": [1],
            },
        ),
        ({"user": "Ann", "role": "owner"}, {"user": {"name": "Vic"}, "role": "viewer"}),
        ({"user": ["Ann"]}, {"user": {"name": "Vic"}}),
        ({"user": None, "x": "\ud800"}, {"user": None, "x": "\ud800"}),
        # clients that do not say who they are
        ({"cursor": {"anchor": 1}}, {"cursor": {"anchor": 1}}),
        ({}, {}),
    ]
    for said, heard in told:
        vic.say(said)
        await ann.until(lambda heard=heard: ann.awareness.get(vic.doc.client_id) == heard)  # type: ignore[misc]


@pytest.mark.parametrize(
    "text", ['{"a": NaN}', '{"a": -Infinity}', '{"user": {"a": 1e999}}', "[1]", "7", "{"]
)
def test_awareness_that_browsers_cannot_read_is_refused(text: str) -> None:
    update = presence.encode([presence.State(1, 1, text)])
    with pytest.raises(presence.BadAwareness):
        presence.sign(presence.decode(update), "Ann", "editor")


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"\0",
        b"\0\2\5\xff\xff\xff\xff\xff",
        b"\1\5\1\1\1\3{{{",
        b"\0\7\0",
        b"\0\2\x7fshort",
        b"\0\0\4\2\1\1\1",
    ],
)
async def test_bad_messages_harm_their_sender_only(site: Site, bad: bytes) -> None:
    (site.path / "f").write_text("x\n")
    ann, eve = await site.client("f"), await site.client("f", subject="eve")
    eve.send(bad)
    assert await eve.closed() == 4400
    ann.text += "fine"
    await site.on_disk("f", "x\nfine")


async def test_a_document_cannot_outgrow_its_limit(site: Site) -> None:
    (site.path / "f").write_text("x" * 60_000)
    ann, eve = await site.client("f"), await site.client("f", subject="eve")
    eve.text += "y" * 50_000
    assert await eve.closed() == 4413
    with ann.doc.transaction():
        ann.text.clear()
        ann.text += "z" * 90_000
    await site.on_disk("f", "z" * 90_000)


async def test_number_of_documents_is_bounded(site: Site) -> None:
    for i in range(6):
        (site.path / f"f{i}").write_text(str(i))
    clients = [await site.client(f"f{i}") for i in range(5)]
    extra = await site.client("f5", sync=False)
    assert await extra.closed() == 1013
    clients[0].text += "!"
    await (second := await site.client("f0")).has("0!")
    await second.close()
    await clients[0].close()
    while True:
        extra = await site.client("f5", sync=False)
        await extra.until(lambda extra=extra: extra.synced.is_set() or extra.ws.closed)  # type: ignore[misc]
        if extra.synced.is_set():
            break
    assert (site.path / "f0").read_text() == "0!"


async def test_revoking_closes_at_once(site: Site) -> None:
    (site.path / "f").write_text("")
    ann, bob = await site.client("f"), await site.client("f", subject="bob")
    here = await site.client("", subject="bob")
    status, body = await site.call("POST", "/_codevo/revoke", role=Role.HUB, json={"sub": "bob"})
    assert (status, body) == (200, {"closed": 2})
    assert await bob.closed() == 4403
    assert await here.closed() == 4403
    ann.text += "a"
    await site.on_disk("f", "a")


async def test_outside_changes_are_merged(site: Site) -> None:
    (site.path / "f").write_text("one\ntwo\nthree\n")
    ann = await site.client("f")
    (site.path / "f").write_text("one\ntwo\nTHREE 😀\n")
    await ann.has("one\ntwo\nTHREE 😀\n")
    ann.text.insert(0, "zero\n")
    (site.path / "f").write_text("one\ntwo\nTHREE 😀\nfour\n")
    await ann.has("zero\none\ntwo\nTHREE 😀\nfour\n")
    await site.on_disk("f", "zero\none\ntwo\nTHREE 😀\nfour\n")


async def test_replaced_by_rename_is_an_edit(site: Site) -> None:
    (site.path / "f").write_text("one\n")
    ann = await site.client("f")
    (site.path / "g").write_text("one\ntwo\n")
    (site.path / "g").rename(site.path / "f")
    await ann.has("one\ntwo\n")
    ann.text += "three\n"
    await site.on_disk("f", "one\ntwo\nthree\n")


async def test_a_rename_to_where_a_document_has_just_lost_its_file(site: Site) -> None:
    (site.path / "f").write_text("one\n")
    (site.path / "g").write_text("two\n")
    ann, bob = await site.client("f"), await site.client("g")
    bob.text += "unsaved\n"
    await bob.has("two\nunsaved\n")
    (site.path / "g").unlink()
    assert (await site.call("PATCH", "/api/contents/f", json={"path": "g"}))[0] == 200
    assert await bob.closed() == 4404
    ann.text += "more\n"
    await site.on_disk("g", "one\nmore\n")
    # one document has the file, and what the other one held is not lost, if it had not been saved before
    cid = await site.client("g")
    await cid.has("one\nmore\n")
    assert site.worker is not None
    assert [d.path for d in site.worker.documents._savers] == ["g"]
    aside = [p.read_text() for p in site.path.glob("g.unsaved-*")]
    assert aside in ([], ["two\nunsaved\n"])


async def test_line_ends_are_kept(site: Site) -> None:
    (site.path / "f").write_bytes(b"a\r\nb\r\n")
    ann = await site.client("f")
    assert str(ann.text) == "a\nb\n"
    ann.text += "c\n"
    await site.on_disk("f", b"a\r\nb\r\nc\r\n")


async def test_deleted_underneath(site: Site) -> None:
    (site.path / "f").write_text("x")
    ann = await site.client("f")
    (site.path / "f").unlink()
    assert await ann.closed() == 4404
    await asyncio.sleep(0.5)
    assert not (site.path / "f").exists()
    (site.path / "f").write_text("y")
    again = await site.client("f", doc=ann.doc, sync=False)
    assert await again.closed() == 4409


async def test_deleted_with_unsaved_text_is_written_again(site: Site) -> None:
    (site.path / "d").mkdir()
    (site.path / "d/f").write_text("x")
    ann = await site.client("d/f")
    ann.text += "unsaved"
    other = await site.client("d/f")
    await other.has("xunsaved")
    (site.path / "d/f").unlink()
    (site.path / "d").rmdir()
    await site.on_disk("d/f", "xunsaved")


async def test_became_binary(site: Site) -> None:
    (site.path / "f").write_text("x")
    ann = await site.client("f")
    (site.path / "f").write_bytes(b"\0\1")
    assert await ann.closed() == 4415
    assert (site.path / "f").read_bytes() == b"\0\1"


async def test_restart_keeps_history(site: Site) -> None:
    (site.path / "f").write_text("one\n")
    ann = await site.client("f")
    ann.text += "two\n"
    await site.on_disk("f", "one\ntwo\n")
    doc = ann.doc
    await site.stop()
    (site.path / "f").write_text("zero\none\ntwo\n")
    await site.start()
    doc.get("source", type=Text).insert(8, "three\n")
    again = await site.client("f", doc=doc)
    await again.has("zero\none\ntwo\nthree\n")
    await site.on_disk("f", "zero\none\ntwo\nthree\n")


async def test_idle_documents_close_and_come_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    await site.start(idle_close=0.1)
    try:
        (site.path / "f").write_bytes(b"x\r\n")
        ann = await site.client("f")
        ann.text += "y"
        await (await site.client("f")).has("x\ny")
        for client in site.clients:
            await client.close()
        assert site.worker is not None
        async with asyncio.timeout(15):
            while site.worker.documents.open_paths():
                await asyncio.sleep(0.02)
        assert (site.path / "f").read_bytes() == b"x\r\ny"
        captured = list(site.worker.documents.capture({}))
        assert [(c.path, c.text) for c in captured] == [("f", b"x\r\ny")]
        again = await site.client("f", doc=ann.doc)
        assert str(again.text) == "x\ny"
    finally:
        await site.stop()


async def test_a_client_that_does_not_read_is_closed_and_harms_nobody(site: Site) -> None:
    (site.path / "f").write_text("")
    ann, bob = await site.client("f"), await site.client("f", subject="bob")
    deaf = await site.session.ws_connect(f"{site.url}/collab/f", headers=site.headers(subject="eve"))
    await deaf.send_bytes(create_sync_message(Doc()))
    assert site.worker is not None
    room = site.worker.documents._open["f"].room
    async with asyncio.timeout(15):
        while len(room.people.channels) < 3:
            await asyncio.sleep(0.01)
    for n in range(400):
        with ann.doc.transaction():
            ann.text.clear()
            ann.text += f"{n} " + "x" * 90_000
        await bob.has(f"{n} " + "x" * 90_000)
        if len(room.people.channels) == 2:
            break
    else:
        raise AssertionError("the deaf client is still there")
    await deaf.close()


async def test_two_tabs_of_one_person_and_a_return(site: Site) -> None:
    """A client that comes back by a new socket keeps its presence when the old socket is found dead."""
    (site.path / "f").write_text("")
    ann, bob = await site.client("f"), await site.client("f", subject="bob")
    ann.say({"n": 1})
    await bob.until(lambda: ann.doc.client_id in bob.awareness)
    again = await site.client("f", doc=ann.doc)
    again._clock = ann._clock
    again.say({"n": 2})
    await bob.until(lambda: bob.awareness.get(ann.doc.client_id) == {"n": 2})
    await ann.close()
    bob.say({"user": "bob"})
    await again.until(lambda: bob.doc.client_id in again.awareness)
    assert bob.awareness[ann.doc.client_id] == {"n": 2}


async def test_an_oversized_history_begins_anew(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its clients are closed with 4409 once the text is on disk; no client of the old history is let in."""
    (site.path / "f").write_text("start\n")
    ann = await site.client("f")
    ann.text += "end\n"
    await site.on_disk("f", "start\nend\n")
    assert site.worker is not None
    documents = site.worker.documents
    epoch = next(documents.capture({})).epoch
    monkeypatch.setattr("pod_runtime.worker.documents._RENEW_FACTOR", 0)
    await documents.save_all()
    monkeypatch.undo()
    assert await ann.closed() == 4409
    fresh = await site.client("f", subject="bob")
    await fresh.has("start\nend\n")
    assert next(documents.capture({})).epoch != epoch
    again = await site.client("f", doc=ann.doc, sync=False)
    assert await again.closed() == 4409
    fresh.text += "more\n"
    await site.on_disk("f", "start\nend\nmore\n")


def test_a_viewer_who_talks_without_end_is_slowed_down() -> None:
    pace = ViewerPace()
    # a cursor that moves as fast as a screen
    assert all(pace.pause(b"\x01" + bytes(300), 100 + n / 60) == 0 for n in range(3600))
    pace, now = ViewerPace(), 100.0
    for _ in range(100):
        now += pace.pause(b"\x00\x00\x01\x00", now)
    assert now - 100 == pytest.approx((100 * pace.QUESTION - pace.BURST) / pace.RATE)
    pace, now = ViewerPace(), 100.0
    for _ in range(100):
        now += pace.pause(b"\x01" + bytes(65535), now)
    assert now - 100 == pytest.approx((100 * 65536 - pace.BURST) / pace.RATE)
