"""Terminals of a real runner: real bash, real WebSockets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

from pod_runtime.protocol.roles import Role
from pod_runtime.runner.terminals import Terminal
from tests.harness import within
from tests.pod_runtime.runner.live import Live, alive, close_code, frame, shown, told_pid, until


async def make(runner: Live, **body: str) -> str:
    status, model = await runner.call("POST", "/api/terminals", body)
    assert status == 200, model
    return str(model["name"])


async def type_(ws: aiohttp.ClientWebSocketResponse, text: str) -> None:
    await ws.send_str(json.dumps(["stdin", text]))


async def test_rest(runner: Live) -> None:
    assert await runner.call("GET", "/api/terminals") == (200, [])
    status, model = await runner.call("POST", "/api/terminals")
    assert status == 200
    assert model["name"] == "1"
    assert model["last_activity"].endswith("Z")
    assert await runner.call("GET", "/api/terminals") == (200, [model])
    assert await runner.call("GET", "/api/terminals/1") == (200, model)
    assert (await runner.call("GET", "/api/terminals/2"))[0] == 404
    assert await runner.call("DELETE", "/api/terminals/1") == (204, None)
    assert (await runner.call("DELETE", "/api/terminals/1"))[0] == 404
    assert await runner.call("GET", "/api/terminals") == (200, [])
    _, activity = await runner.call("GET", "/_codevo/activity", role=Role.HUB)
    assert activity["last_activity"] and not activity["busy"]


@pytest.mark.parametrize(
    "body",
    [
        {"cwd": "/etc"},
        {"cwd": "../.."},
        {"cwd": "missing"},
        {"cwd": 3},
        {"cwd": "a\0b"},
        {"cwd": "out"},
        {"name": "a/b"},
        {"name": ""},
        {"name": ".."},
        {"name": "x" * 65},
        {"name": 5},
        [],
    ],
)
async def test_bad_bodies(runner: Live, body: object) -> None:
    (runner.workspace / "out").symlink_to("/etc")
    status, problem = await runner.call("POST", "/api/terminals", body)
    assert status == 400
    assert problem["message"] and problem["reason"]
    assert await runner.call("GET", "/api/terminals") == (200, [])


async def test_the_body_cannot_choose_the_program(runner: Live) -> None:
    name = await make(runner, shell_command="/bin/cat", extra_env="x")
    async with runner.socket(f"/terminals/websocket/{name}") as ws:
        await type_(ws, "echo shell=$0 $((6*7))\r")
        assert "shell=/bin/bash 42" in await shown(ws, "42")


async def test_limit_on_number(runner: Live) -> None:
    for _ in range(20):
        await make(runner)
    assert (await runner.call("POST", "/api/terminals"))[0] == 429


async def test_conversation_environment_and_directory(runner: Live) -> None:
    (runner.workspace / "sub dir").mkdir()
    name = await make(runner, name="work", cwd="sub dir")
    assert name == "work"
    assert (await runner.call("POST", "/api/terminals", {"name": "work"}))[0] == 409
    async with runner.socket("/terminals/websocket/work") as ws:
        assert await frame(ws) == ["setup", {}]
        await type_(ws, "echo [$SECRET_OF_THE_SERVER] $TERM; pwd; echo done'!'\r")
        text = await shown(ws, "done!")
        assert "[] xterm-256color" in text
        assert str(runner.workspace / "sub dir") in text


async def test_no_descriptors_leak_into_the_shell(runner: Live) -> None:
    await make(runner)
    await make(runner)
    async with runner.socket("/terminals/websocket/2") as ws:
        await type_(ws, "ls /proc/$$/fd | tr '\\n' ,; echo end'!'\r")
        assert "0,1,2,255,end!" in await shown(ws, "end!")


async def test_unicode_split_anywhere(runner: Live) -> None:
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as ws:
        await type_(ws, "for b in '\\xf0' '\\x9f' '\\x9a' '\\x80'; do printf $b; sleep .05; done; echo '!'\r")
        assert "🚀!" in await shown(ws, "🚀!")
        await type_(ws, "echo 'grüße 日本'; printf '\\xff'; echo done'!'\r")
        text = await shown(ws, "done!")
        assert "grüße 日本\r\n" in text and "\ufffd" in text


async def test_exit_disconnects_and_removes(runner: Live) -> None:
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as ws, runner.socket("/terminals/websocket/1") as two:
        await type_(ws, "exit\r")
        for each in (ws, two):
            while (await frame(each)) != ["disconnect", 1]:
                pass
            assert await close_code(each) == 1000
    assert await runner.call("GET", "/api/terminals") == (200, [])


async def test_shell_exit_with_background_child_holding_the_pty(runner: Live) -> None:
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as ws:
        await type_(ws, "(trap '' HUP; sleep 1000) & echo pid=$!=\r")
        pid = await told_pid(ws)
        await type_(ws, "exit\r")
        while (await frame(ws)) != ["disconnect", 1]:
            pass
    await until(lambda: not alive(pid))


async def test_delete_kills_a_stubborn_shell(runner: Live) -> None:
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as ws:
        await type_(ws, "trap '' HUP TERM INT; echo pid=$$=; while :; do sleep 1; done\r")
        pid = await told_pid(ws)
        assert (await runner.call("DELETE", "/api/terminals/1"))[0] == 204
        assert await close_code(ws) == 1000
    await until(lambda: not alive(pid))


async def test_size_is_the_smallest_editors(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    async with runner.socket(path) as a, runner.socket(path, Role.VIEWER, "vic") as viewer:
        await a.send_str('["set_size", 40, 120]')
        await viewer.send_str('["set_size", 5, 10]')
        await type_(a, "stty size; echo one'!'\r")
        assert "40 120" in await shown(a, "one!")
        async with runner.socket(path, subject="bob") as b:
            await b.send_str('["set_size", 30, 200]')
            await type_(b, "stty size; echo two'!'\r")
            assert "30 120" in await shown(b, "two!")
            await shown(a, "two!")
            for bad in ('["set_size", 0, 0]', '["set_size", "x", 3]', '["set_size"]', "nonsense", "[]", "{}"):
                await b.send_str(bad)
        await until(lambda: _size_seen(a, "40 120"))


async def _size_seen(ws: aiohttp.ClientWebSocketResponse, wanted: str) -> bool:
    await type_(ws, "stty size; echo more'!'\r")
    return wanted in await shown(ws, "more!")


async def test_viewers_see_but_cannot_type(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    async with runner.socket(path, Role.VIEWER, "vic") as viewer, runner.socket(path) as editor:
        await type_(viewer, "touch viewer-was-here\r")
        await type_(editor, "echo seen'!'\r")
        text = await shown(viewer, "seen!")
        assert "touch" not in text
    assert not (runner.workspace / "viewer-was-here").exists()
    assert (await runner.call("POST", "/api/terminals", role=Role.VIEWER))[0] == 403
    assert (await runner.call("DELETE", "/api/terminals/1", role=Role.VIEWER))[0] == 403
    assert (await runner.call("GET", "/api/terminals", role=Role.VIEWER))[0] == 200


async def test_replay_shows_a_tail(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    async with runner.socket(path) as ws:
        await type_(ws, "seq 1 200000; echo done'!'\r")
        await shown(ws, "done!")
    async with runner.socket(path) as ws:
        assert await frame(ws) == ["setup", {}]
        kind, text = await frame(ws)
        assert kind == "stdout"
        assert 200_000 < len(text) <= 330_000
        assert "199999\r\n200000\r\n" in text


async def test_unread_paste_does_not_block_another_terminal(runner: Live) -> None:
    await make(runner)
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as a, runner.socket("/terminals/websocket/2") as b:
        await type_(a, "stty -echo -icanon; echo ready'!'; sleep 1000\r")
        await shown(a, "ready!")
        await type_(a, "x" * 200_000)
        await type_(b, "echo alive'!'\r")
        await shown(b, "alive!")
        # and Ctrl-C gets through in the first
        await type_(a, "\x03")
        await type_(a, "stty sane; echo back'!'\r")
        await shown(a, "back!")


async def test_input_beyond_the_bound_waits_in_its_own_socket_only(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    before = runner.rss()
    async with runner.socket(path) as a, runner.socket(path, subject="bob") as b:
        await type_(b, "stty -echo -icanon; echo ready'!'; sleep 1000\r")
        await shown(b, "ready!")

        async def flood() -> None:
            for _ in range(40):
                await type_(a, "y" * 1_000_000)

        flooding = asyncio.create_task(flood())
        await asyncio.wait({flooding}, timeout=1.0)
        assert runner.rss() - before < 40_000
        assert (await runner.call("GET", "/api/terminals"))[0] == 200
        assert (await runner.call("DELETE", "/api/terminals/1"))[0] == 204
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def test_flood_with_a_stalled_client_is_bounded_and_drops_it(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    async with runner.socket(path, subject="slow") as slow, runner.socket(path) as ws:
        await type_(ws, "yes 'some output that fills the pipe'\r")
        await shown(ws, "some output that fills the pipe\r\n")
        # `slow` reads nothing now; ours keeps reading, so that it is not dropped with it
        peak = runner.rss()
        flow = _Flow(ws)
        slow._conn.transport.pause_reading()  # type: ignore[union-attr]
        await until(flow.stood_and_went_on, 30)
        assert runner.rss() - peak < 40_000
        slow._conn.transport.resume_reading()  # type: ignore[union-attr]
        assert await close_code(slow) in (4408, 1006)
        flow.task.cancel()
        await asyncio.gather(flow.task, return_exceptions=True)
        await type_(ws, "\x03")
        await type_(ws, "echo alive'!'\r")
        await shown(ws, "alive!")


def test_a_viewer_who_does_not_read_holds_nobody_up() -> None:
    """Else a guest of a public project stops everybody's terminal again and again."""
    did: list[str] = []
    reader = SimpleNamespace(pause=lambda: did.append("pause"), resume=lambda: did.append("resume"))
    editor = SimpleNamespace(stalled=False, writable=True)
    viewer = SimpleNamespace(stalled=True, writable=False)
    terminal: Any = SimpleNamespace(_reader=reader, dead=False, clients=[editor, viewer])
    Terminal.adjust(terminal)
    editor.stalled = True
    Terminal.adjust(terminal)
    assert did == ["resume", "pause"]


class _Flow:
    """Reads a terminal without end, and tells whether its flow stood still and then went on."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self._count = 0
        self._stood = False
        self.task = asyncio.create_task(self._read(ws))

    async def _read(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        while True:
            self._count += len(str(await frame(ws, 60)))

    async def stood_and_went_on(self) -> bool:
        seen = self._count
        await asyncio.sleep(0.5)
        self._stood = self._stood or self._count == seen
        return self._stood and self._count > seen


async def test_revoked_person_is_cut_off(runner: Live) -> None:
    await make(runner)
    path = "/terminals/websocket/1"
    old = runner.headers(subject="eve")
    async with runner.socket(path, subject="eve") as eve, runner.socket(path) as ann:
        status, answer = await runner.call("POST", "/_codevo/revoke", {"sub": "eve"}, Role.HUB, "hub")
        assert (status, answer) == (200, {"closed": 1})
        assert await close_code(eve) == 4403
        await type_(ann, "echo alive'!'\r")
        await shown(ann, "alive!")
    # a token from before the end of the right is refused
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await runner.http.ws_connect(f"http://127.0.0.1:{runner.port}{path}", headers=old)
    assert refused.value.status == 401


@pytest.mark.parametrize("path", ["/terminals/websocket/1", "/api/events", "/api/kernels/x/channels"])
async def test_sockets_need_a_token_before_the_upgrade(runner: Live, path: str) -> None:
    await make(runner)
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await runner.http.ws_connect(f"http://127.0.0.1:{runner.port}{path}")
    assert refused.value.status == 401


async def test_sigterm_ends_what_shells_started(runner: Live) -> None:
    await make(runner)
    async with runner.socket("/terminals/websocket/1") as ws:
        await type_(ws, "(trap '' HUP TERM; sleep 1000) & echo pid=$!=\r")
        pid = await told_pid(ws)
        assert alive(pid)
        os.kill(runner.process.pid, signal.SIGTERM)
        assert await within(runner.process.wait(), 15) == 0
    assert not alive(pid)
