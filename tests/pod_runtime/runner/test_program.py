"""The program kernel of a real runner, over Jupyter's protocol."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from pod_runtime.protocol.roles import Role
from pod_runtime.runner import messages
from tests.harness import within
from tests.pod_runtime.runner.live import Live, alive, close_code, frame, program, running, text_of, until


def types(found: list[Any]) -> list[str]:
    names = []
    for m in found:
        kind = m["header"]["msg_type"]
        names.append(m["content"]["execution_state"] if kind == "status" else kind)
    return names


async def test_rest_of_kernels(runner: Live) -> None:
    status, specs = await runner.call("GET", "/api/kernelspecs")
    assert status == 200 and specs["default"] == "program"
    assert specs["kernelspecs"]["program"]["spec"]["display_name"]
    assert await runner.call("GET", "/api/kernels") == (200, [])
    status, model = await runner.call("POST", "/api/kernels", {"name": "program"})
    assert status == 201
    assert model["execution_state"] == "idle" and model["connections"] == 0
    # one Run a project: a second client gets the same
    assert (await runner.call("POST", "/api/kernels"))[1]["id"] == model["id"]
    path = f"/api/kernels/{model['id']}"
    assert await runner.call("GET", path) == (200, model)
    assert await runner.call("POST", f"{path}/interrupt") == (204, None)
    status, restarted = await runner.call("POST", f"{path}/restart")
    assert (status, restarted["id"]) == (200, model["id"])
    assert await runner.call("DELETE", path) == (204, None)
    assert (await runner.call("GET", path))[0] == 404
    assert (await runner.call("POST", "/api/kernels", {"name": "nope"}))[0] == 404
    assert (await runner.call("POST", "/api/kernels", {"name": 4}))[0] == 400
    assert (await runner.call("POST", "/api/kernels", role=Role.VIEWER))[0] == 403


async def test_sessions(runner: Live) -> None:
    body = {"path": "main.py", "name": "main", "type": "file", "kernel": {"name": "program"}}
    status, one = await runner.call("POST", "/api/sessions", body)
    assert status == 201 and one["kernel"]["name"] == "program"
    assert (await runner.call("POST", "/api/sessions", body))[1]["id"] == one["id"]
    path = f"/api/sessions/{one['id']}"
    assert (await runner.call("PATCH", path, {"name": "other"}))[1]["name"] == "other"
    assert (await runner.call("PATCH", path, {"name": 7}))[0] == 400
    assert (await runner.call("GET", "/api/sessions"))[1][0]["name"] == "other"
    assert (await runner.call("POST", "/api/sessions", {"path": "x"}))[0] == 400
    status, two = await runner.call("POST", "/api/sessions", {**body, "path": "b", "type": "notebook"})
    assert two["notebook"]["path"] == "b"
    assert (await runner.call("DELETE", path))[0] == 204
    assert len((await runner.call("GET", "/api/kernels"))[1]) == 1
    assert (await runner.call("DELETE", f"/api/sessions/{two['id']}"))[0] == 204
    assert (await runner.call("GET", "/api/kernels"))[1] == []


async def test_order_of_messages_and_exit_code(runner: Live) -> None:
    async with program(runner) as kernel:
        _, reply, found = await kernel.run("echo out; echo err >&2; exit 3")
        order = [t for t in types(found) if t != "stream"]
        assert order == ["busy", "execute_input", "error", "idle", "execute_reply"]
        assert text_of(found, "stdout") == "out\n" and text_of(found, "stderr") == "err\n"
        assert reply["status"] == "error" and reply["ename"] == "ExitCode" and reply["exit_code"] == 3
        assert reply["duration"] >= 0
        _, reply, found = await kernel.run("true")
        assert types(found) == ["busy", "execute_input", "idle", "execute_reply"]
        assert reply["status"] == "ok" and reply["execution_count"] == 2


async def test_runs_the_project_of_codevo_toml(runner: Live) -> None:
    (runner.workspace / "codevo.toml").write_text(
        '[run]\nbuild = "echo building > built"\ncommand = "cat built; '
        'echo $PORT $COLOR $SECRET_OF_THE_SERVER"\n'
        'port = 4567\n[env]\nCOLOR = "grün"\n'
    )
    async with program(runner) as kernel:
        text, reply, _ = await kernel.run("")
        assert "building\n4567 grün\n" in text
        assert reply["status"] == "ok"


async def test_failed_build_ends_the_run(runner: Live) -> None:
    (runner.workspace / "codevo.toml").write_text('[run]\nbuild = "exit 2"\ncommand = "echo never"\n')
    async with program(runner) as kernel:
        text, reply, _ = await kernel.run("")
        assert "never\n" not in text.replace("$ echo never", "")
        assert reply["exit_code"] == 2


@pytest.mark.parametrize(
    "toml",
    ["[run", '[run]\nport = "x"', "[run]\nport = 70000", "[run]\ncommand = 3", "[env]\nA = [1]", "\xff"],
)
async def test_bad_codevo_toml_is_told(runner: Live, toml: str) -> None:
    (runner.workspace / "codevo.toml").write_bytes(toml.encode("latin-1"))
    async with program(runner) as kernel:
        _, reply, _ = await kernel.run("")
        assert reply["status"] == "error" and "codevo.toml" in reply["evalue"]


async def test_fifo_for_codevo_toml_does_not_hang(runner: Live) -> None:
    os.mkfifo(runner.workspace / "codevo.toml")
    (runner.workspace / "main.py").write_text("print('ran')")
    async with program(runner) as kernel:
        text, _, _ = await kernel.run("")
        assert text == "ran\n"


async def test_nothing_to_run(runner: Live) -> None:
    async with program(runner) as kernel:
        _, reply, _ = await kernel.run("")
        assert reply["ename"] == "NotRun" and "nothing to run" in reply["evalue"]


async def test_runs_a_file_by_its_name(runner: Live) -> None:
    (runner.workspace / "a b").mkdir()
    (runner.workspace / "a b" / "it's.py").write_text("print('from file')")
    async with program(runner) as kernel:
        text, reply, _ = await kernel.run("a b/it's.py")
        assert text == "from file\n" and reply["status"] == "ok"


async def test_output_is_live_and_unbuffered(runner: Live) -> None:
    (runner.workspace / "main.py").write_text("import time\nprint('early')\ntime.sleep(600)")
    async with program(runner) as kernel:
        await kernel.execute("")
        await kernel.until_text("early")
        assert (await runner.call("GET", "/api/kernels"))[1][0]["execution_state"] == "busy"
        await kernel.send("interrupt_request", channel="control")
        reply = (await kernel.until("execute_reply"))[-1]["content"]
        assert reply["status"] == "error"


async def test_input_is_asked_for_once_and_given(runner: Live) -> None:
    (runner.workspace / "main.py").write_text(
        "name = input('name? ')\nprint('hello', name)\nimport sys\nprint(len(sys.stdin.readline()))"
    )
    async with program(runner) as kernel:
        await kernel.execute("")
        found = await kernel.until("input_request")
        assert "name? " in text_of(found)
        assert found[-1]["channel"] == "stdin"
        await kernel.send("input_reply", {"value": "Jürgen"}, "stdin")
        found = await kernel.until("input_request")
        assert "hello Jürgen\n" in text_of(found)
        await kernel.send("input_reply", {"value": "12345"}, "stdin")
        found = await kernel.until("execute_reply")
        assert text_of(found) == "6\n"
        assert "input_request" not in types(found)


async def test_end_of_input(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("cat; echo end")
        await kernel.until("execute_input")
        await kernel.send("input_reply", {"value": "x"}, "stdin")
        await kernel.send("input_reply", {"value": "\x04"}, "stdin")
        assert text_of(await kernel.until("execute_reply")) == "x\nend\n"


async def test_no_input_request_when_not_allowed(runner: Live) -> None:
    async with program(runner) as kernel:
        request = await kernel.execute("head -n1", allow_stdin=False)
        await kernel.until("execute_input")
        await asyncio.sleep(1)
        await kernel.send("input_reply", {"value": "any time"}, "stdin")
        found = await kernel.until("execute_reply", request)
        assert text_of(found) == "any time\n" and "input_request" not in types(found)


async def test_flood_keeps_start_and_end(runner: Live) -> None:
    async with program(runner) as kernel:
        text, reply, found = await kernel.run("echo first; seq 1 3000000; echo last")
        assert reply["status"] == "ok"
        assert text.startswith("first\n1\n2\n") and text.endswith("3000000\nlast\n")
        assert "left out" in text
        assert len(text) < 12_000_000
        assert max(len(m["content"]["text"]) for m in found if m["header"]["msg_type"] == "stream") < 2**21


async def test_endless_flood_stays_responsive_and_stops(runner: Live) -> None:
    async with program(runner) as kernel:
        before = runner.rss()
        await kernel.execute("yes")
        await kernel.until_text("y\ny\n")
        deadline = time.monotonic() + 2
        while time.monotonic() < deadline:
            await frame(kernel.ws)
            began = time.monotonic()
            assert (await runner.call("GET", "/api/status"))[0] == 200
            assert time.monotonic() - began < 2
        assert runner.rss() - before < 40_000
        await kernel.send("interrupt_request", channel="control")
        assert (await kernel.until("execute_reply"))[-1]["content"]["status"] == "error"


async def test_stalled_client_is_dropped_and_others_go_on(runner: Live) -> None:
    async with program(runner, subject="slow") as slow, program(runner) as kernel:
        slow.ws._conn.transport.pause_reading()  # type: ignore[union-attr]
        slow.ws.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = await kernel.execute("yes some longer line of output")
        before = runner.rss()
        ended = asyncio.create_task(kernel.until("execute_reply", request, 60))
        _, model = await runner.call("GET", "/api/kernels")
        assert model[0]["connections"] == 2

        async def dropped() -> bool:
            return bool((await runner.call("GET", "/api/kernels"))[1][0]["connections"] == 1)

        await until(dropped, 40)
        assert runner.rss() - before < 40_000
        await runner.call("POST", f"/api/kernels/{model[0]['id']}/interrupt")
        await ended


async def test_interrupt_of_a_program_that_ignores_it(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("trap '' INT TERM; echo pid=$$; while :; do sleep 0.1; done")
        text = await kernel.until_text("\n")
        pid = int(text.split("=")[1])
        began = time.monotonic()
        _, [model] = await runner.call("GET", "/api/kernels")
        assert (await runner.call("POST", f"/api/kernels/{model['id']}/interrupt"))[0] == 204
        reply = (await kernel.until("execute_reply"))[-1]["content"]
        assert 5.5 < time.monotonic() - began < 14
        assert "SIGKILL" in reply["evalue"]
        assert not alive(int(pid))


async def test_second_interrupt_hastens(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("trap '' INT TERM; echo go; while :; do sleep 0.1; done")
        await kernel.until_text("go")
        began = time.monotonic()
        for _ in range(3):
            await kernel.send("interrupt_request", channel="control")
            await kernel.until("interrupt_reply")
        await kernel.until("execute_reply")
        assert time.monotonic() - began < 5


async def test_children_and_daemons_end_with_the_run(runner: Live) -> None:
    async with program(runner) as kernel:
        text, _, _ = await kernel.run(
            "sleep 1001 & echo $!; setsid sh -c 'trap \"\" TERM; echo $$; sleep 1002' & sleep 0.3; echo done"
        )
        assert text.endswith("done\n")
        for pid in text.split()[:2]:
            assert not alive(int(pid))


async def test_runs_queue_and_the_queue_is_bounded(runner: Live) -> None:
    async with program(runner) as kernel:
        first = await kernel.execute("head -n1 >/dev/null; echo one")
        await kernel.until("execute_input", first)
        queued = [await kernel.execute(f"echo queued {n}") for n in range(16)]
        refused = await kernel.execute("echo too many")
        found = await kernel.until("execute_reply", refused)
        assert found[-1]["content"]["ename"] == "QueueFull"
        await kernel.send("input_reply", {"value": ""}, "stdin")
        found = await kernel.until("execute_reply", queued[-1])
        assert text_of(found) == "one\n" + "".join(f"queued {n}\n" for n in range(16))


async def test_an_error_aborts_the_queue(runner: Live) -> None:
    async with program(runner) as kernel:
        first = await kernel.execute("head -n1; exit 1")
        await kernel.until("execute_input", first)
        second = await kernel.execute("echo never")
        await kernel.send("input_reply", {"value": ""}, "stdin")
        found = await kernel.until("execute_reply", second)
        assert found[-1]["content"]["status"] == "aborted"


async def test_questions_while_busy_leave_the_kernel_busy(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("sleep 600")
        await kernel.until("execute_input")
        asked = await kernel.send("kernel_info_request")
        found = await kernel.until("status", None)
        while found[-1]["content"].get("execution_state") != "idle":
            found += await kernel.until("status")
        assert found[-1]["parent_header"]["msg_id"] == asked
        assert any(m["header"]["msg_type"] == "kernel_info_reply" for m in found)
        assert (await kernel.until("status"))[-1]["content"]["execution_state"] == "busy"
        await kernel.send("shutdown_request", {"restart": True}, "control")
        await kernel.until("execute_reply")


async def test_restart_and_delete_end_the_program(runner: Live) -> None:
    async with program(runner) as kernel:
        _, [model] = await runner.call("GET", "/api/kernels")
        for how in ("restart", "delete"):
            request = await kernel.execute("trap '' TERM; echo pid=$$; while :; do sleep 0.1; done")
            await kernel.until("execute_input", request)
            pid = int((await kernel.until_text("\n")).split("=")[1])
            path = f"/api/kernels/{model['id']}"
            if how == "restart":
                status, after = await runner.call("POST", f"{path}/restart")
                assert (status, after["execution_state"]) == (200, "idle")
                states = types(await kernel.until("execute_reply", request))
                assert "restarting" in states
            else:
                assert (await runner.call("DELETE", path))[0] == 204
                await close_code(kernel.ws)
            assert not alive(int(pid))


async def test_a_lost_connection_gets_what_it_missed(runner: Live) -> None:
    async with program(runner, subject="bob") as other:
        async with program(runner, session="s1") as kernel:
            request = await kernel.execute("echo before; head -n1 >/dev/null; echo after")
            await kernel.until_text("before")
        await other.until_text("before")
        await other.send("input_reply", {"value": ""}, "stdin")
        await other.until_text("after")
        # a person's session is that person's only
        async with program(runner, subject="eve", session="s1") as eve:
            await eve.send("kernel_info_request")
            found = await eve.until("kernel_info_reply")
            assert text_of(found) == ""
        async with program(runner, session="s1") as kernel:
            found = await kernel.until("execute_reply", request)
            assert text_of(found) == "after\n"


async def test_replay_shows_the_run_from_its_start(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("echo begun; head -n1 >/dev/null; echo over")
        await kernel.until_text("begun")
        async with program(runner, Role.VIEWER, "vic", query="&replay=1") as late:
            found = await late.until("stream")
            assert types(found) == ["busy", "execute_input", "stream"]
            await kernel.send("input_reply", {"value": ""}, "stdin")
            await late.until_text("over")
        await kernel.until("execute_reply")
        async with program(runner, Role.VIEWER, "vic", query="&replay=1") as late:
            found = await late.until("status")
            while found[-1]["content"].get("execution_state") != "idle":
                found += await late.until("status")
            assert text_of(found) == "begun\nover\n"


async def test_replay_is_bounded(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.run("seq 1 300000; echo last")
        async with program(runner, query="&replay=1") as late:
            found = await late.until("status")
            while found[-1]["content"].get("execution_state") != "idle":
                found += await late.until("status")
            assert types(found)[:2] == ["busy", "execute_input"]
            assert text_of(found).endswith("last\n") and len(text_of(found)) < 2**21


async def test_viewers_watch_and_are_refused(runner: Live) -> None:
    async with program(runner) as kernel, program(runner, Role.VIEWER, "vic") as viewer:
        for kind, content, channel, reply in (
            ("execute_request", {"code": "touch viewer"}, "shell", "execute_reply"),
            ("interrupt_request", {}, "control", "interrupt_reply"),
            ("shutdown_request", {}, "control", "shutdown_reply"),
            ("input_reply", {"value": "x"}, "stdin", "error"),
        ):
            await viewer.send(kind, content, channel)
            answer = (await viewer.until(reply))[-1]
            assert answer["content"]["ename"] == "Forbidden" and answer["channel"] == channel
        await viewer.send("kernel_info_request")
        await viewer.until("kernel_info_reply")
        await kernel.execute("echo watched")
        await viewer.until_text("watched")
        _, [model] = await runner.call("GET", "/api/kernels")
        for action in ("interrupt", "restart"):
            path = f"/api/kernels/{model['id']}/{action}"
            assert (await runner.call("POST", path, role=Role.VIEWER))[0] == 403
    assert not (runner.workspace / "viewer").exists()


@pytest.mark.parametrize("bad", ["nonsense", "[]", "{}", '{"channel": "x"}', '{"header": {"msg_type": 1}}'])
async def test_bad_frames_close_the_socket(runner: Live, bad: str) -> None:
    async with program(runner) as kernel:
        await kernel.ws.send_str(bad)
        assert await close_code(kernel.ws) == 1007


async def test_bad_requests_are_answered(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.send("execute_request", {"code": 5})
        assert (await kernel.until("execute_reply"))[-1]["content"]["ename"] == "BadRequest"
        await kernel.send("unknown_request")
        await kernel.send("comm_info_request")
        await kernel.until("comm_info_reply")


async def test_prepared_dependencies_are_copied(tmp_path: Path) -> None:
    import hashlib

    workspace, prepared = tmp_path / "workspace", tmp_path / "prepared"
    workspace.mkdir()
    lock = json.dumps({"name": "x", "lockfileVersion": 3})
    (workspace / "package-lock.json").write_text(lock)
    (workspace / "package.json").write_text(
        '{"scripts": {"start": "cat node_modules/a/x"}, "dependencies": {"a": "1"}}'
    )
    modules = prepared / hashlib.sha256(lock.encode()).hexdigest() / "node_modules"
    (modules / "a").mkdir(parents=True)
    (modules / "a" / "x").write_text("prepared!\n")
    (workspace / "node_modules.tmp-12").mkdir()
    async with running(tmp_path, dependencies=prepared) as runner, program(runner) as kernel:
        await kernel.execute("cat node_modules/a/x")
        await until(lambda: (workspace / "node_modules" / "a" / "x").exists())
        assert not list(workspace.glob("node_modules.tmp-*"))
        text, _, _ = await kernel.run("cat node_modules/a/x")
        assert "prepared!" in text


async def test_activity_is_what_people_do(runner: Live) -> None:
    status, activity = await runner.call("GET", "/_codevo/activity", role=Role.HUB)
    assert (status, activity) == (200, {"last_activity": None, "busy": False})
    assert (await runner.call("GET", "/_codevo/activity"))[0] == 403
    async with program(runner) as kernel:
        await kernel.execute("sleep 600")
        await kernel.until("execute_input")
        _, activity = await runner.call("GET", "/_codevo/activity", role=Role.HUB)
        assert activity["busy"] is True and activity["last_activity"]
    assert (await runner.call("GET", "/_codevo/health?wait=1", role=Role.HUB))[1]["state"] == "ready"
    status, me = await runner.call("GET", "/api/me")
    assert me["identity"]["initials"] == "AL" and me["role"] == "editor"
    assert (await runner.call("GET", "/api/nothing"))[0] == 404


async def test_sigterm_ends_the_program(runner: Live) -> None:
    async with program(runner) as kernel:
        await kernel.execute("trap '' TERM; echo pid=$$; while :; do sleep 0.1; done")
        pid = int((await kernel.until_text("\n")).split("=")[1])
        os.kill(runner.process.pid, signal.SIGTERM)
        assert await within(runner.process.wait(), 15) == 0
        assert not alive(int(pid))


async def test_small_and_quick_to_start(runner: Live) -> None:
    assert runner.rss() < 48_000


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
async def test_c_program_shows_its_prompt_and_output_at_once(runner: Live) -> None:
    (runner.workspace / "main.c").write_text(
        '#include <stdio.h>\nint main(void) { char s[50]; printf("name? ");'
        ' if (scanf("%49s", s) != 1) return 2;'
        ' printf("hello %s\\n", s); if (scanf("%49s", s) != 1) return 2; return 0; }'
    )
    async with program(runner) as kernel:
        await kernel.execute("")
        assert "name? " in text_of(await kernel.until("input_request"))
        await kernel.send("input_reply", {"value": "Ada"}, "stdin")
        assert "hello Ada\n" in text_of(await kernel.until("input_request"))
        await kernel.send("input_reply", {"value": "end"}, "stdin")
        assert (await kernel.until("execute_reply"))[-1]["content"]["status"] == "ok"


async def test_both_framings_on_one_kernel(runner: Live) -> None:
    _, model = await runner.call("POST", "/api/kernels")
    path = f"/api/kernels/{model['id']}/channels?session_id=v1"
    async with runner.socket(path, protocols=(messages.V1,)) as ws, program(runner) as kernel:
        assert ws.protocol == messages.V1
        request = messages.make("shell", "execute_request", {"code": "echo hi"}, session="v1", now=0)
        await ws.send_bytes(request.v1_frame())
        seen: list[messages.Request] = []
        while not seen or seen[-1].msg_type != "execute_reply":
            seen.append(messages.parse_v1(await within(ws.receive_bytes(), 15)))
        assert [m.content["text"] for m in seen if m.msg_type == "stream"] == ["hi\n"]
        assert "hi\n" in await kernel.until_text("hi\n")
        binary = messages.make("shell", "execute_request", {"code": "echo ho"}, session="x", now=0)
        frame_ = dataclasses.replace(binary, buffers=(b"ignored",)).json_frame()
        assert isinstance(frame_, bytes)
        await kernel.ws.send_bytes(frame_)
        assert "ho\n" in await kernel.until_text("ho\n")


async def test_jupyter_kernel_client_runs_a_program(runner: Live) -> None:
    from jupyter_kernel_client import JupyterKernelClient

    def use() -> tuple[dict[str, Any], Any]:
        kernel = JupyterKernelClient(
            server_url=f"http://127.0.0.1:{runner.port}",
            token="unused",
            headers=runner.headers(),
        )
        kernel.start(name="program")
        try:
            reply = kernel.execute("echo from outside")
            kernel.restart()
            return reply, kernel.kernel_info
        finally:
            kernel.stop()

    reply, info = await asyncio.to_thread(use)
    assert reply["status"] == "ok"
    assert reply["outputs"] == [{"output_type": "stream", "name": "stdout", "text": "from outside\n"}]
    assert info["implementation"] == "codevo-program"
    assert (await runner.call("GET", "/api/kernels"))[1] == []
