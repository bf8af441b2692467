"""LocalSpawner's life: start, adopt, restart, stop, remove, with real supervisors and sandboxes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from codevo.spawner.base import Progress, ServerState, SpawnError
from codevo.spawner.local_client import connect
from tests.codevo.local_spawner_help import (
    SECRET,
    alive,
    as_root,
    ask,
    sandboxes_work,
    shell,
    silent,
    spawner,
    spec,
    until,
)
from tests.harness import within

pytestmark = [pytest.mark.sandbox, pytest.mark.skipif(not sandboxes_work(), reason="no bubblewrap here")]
P = "aaaabbbbccccdddd"


@pytest.fixture
async def local(tmp_path: Path):
    s = spawner(tmp_path)
    await s.open()
    yield s
    for project in await s.list():
        await s.stop(project, grace=0)
    await s.close()


async def test_starts_once_and_tells_its_config_only_by_descriptor(local, tmp_path: Path) -> None:
    steps: list[Progress] = []
    a, b = await asyncio.gather(local.start(spec(P), steps.append), local.start(spec(P), silent))
    assert a == b
    runner, worker = await ask(a.runner), await ask(a.worker)
    assert (runner["role"], worker["role"]) == ("runner", "worker")
    assert runner["config"]["workspace"] == "/workspace"
    assert runner["config"]["environment"]["HOME"] == "/home/codevo"
    assert worker["config"]["store"]["secret_access_key"] == SECRET
    assert SECRET not in str(runner)
    assert (await ask(a.gateway))["role"] == "runner"
    status = await local.poll(P)
    assert status.state is ServerState.READY
    assert set(status.pids) >= {"supervisor", "runner", "worker"}
    for pid in status.pids.values():
        for file in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{pid}/{file}").read_bytes()
    command = Path(f"/proc/{status.pids['worker']}/cmdline").read_text()
    assert "--project" in command
    assert P in command
    assert [p.percent for p in steps] == sorted(p.percent for p in steps)
    again = await local.start(spec(P, 2), silent)
    assert again == a
    assert (await local.poll(P)).generation == 1
    for name in ("runner", "gateway", "worker", "supervisor"):
        assert (tmp_path / f"workspaces/{P}/run/{name}.sock").stat().st_mode & 0o777 == 0o600


async def test_another_hub_adopts_what_runs_and_the_supervisor_holds_nothing_of_the_first(
    tmp_path: Path,
) -> None:
    first = spawner(tmp_path)
    await first.open()
    inherited, other = os.pipe()
    os.set_inheritable(inherited, True)
    address = await first.start(spec(P), silent)
    before = await first.poll(P)
    supervisor = before.pids["supervisor"]
    target = os.readlink(f"/proc/self/fd/{inherited}")
    held = [os.readlink(p) for p in Path(f"/proc/{supervisor}/fd").iterdir() if p.is_symlink()]
    assert target not in held
    assert os.getsid(supervisor) != os.getsid(0)
    await first.close()
    os.close(inherited)
    os.close(other)
    second = spawner(tmp_path)
    await second.open()
    try:
        after = (await second.list())[P]
        assert after.pids == before.pids
        assert after.address == address
        assert after.started == before.started
        assert await second.start(spec(P, 7), silent) == address
    finally:
        await second.stop(P)
        await second.close()
    await until(lambda: not any(alive(pid) for pid in before.pids.values()))


async def test_stop_ends_the_runner_before_the_workers_flush_and_leaves_nothing(
    local, tmp_path: Path
) -> None:
    address = await local.start(spec(P), silent)
    await asyncio.gather(ask(address.runner), ask(address.worker))
    status = await local.poll(P)
    groups = [g for g in (tmp_path / f"workspaces/{P}/run/cgroups").read_text().split("\n") if g]
    assert all(Path(g).is_dir() for g in groups)
    await local.stop(P)
    assert (tmp_path / f"workspaces/{P}/workspace/ended").read_text() == "runner\nworker\n"
    await until(lambda: not any(alive(pid) for pid in status.pids.values()))
    assert not any(Path(g).exists() for g in groups)
    assert not list((tmp_path / f"workspaces/{P}/run").glob("*.sock"))
    assert await local.poll(P) is None
    await local.stop(P)
    await local.stop("unknown")


async def test_stop_does_not_wait_for_the_stubborn_beyond_its_grace(local, tmp_path: Path) -> None:
    workspace = tmp_path / f"workspaces/{P}/workspace"
    workspace.mkdir(parents=True)
    for role in ("runner", "worker"):
        (workspace / f"stubborn-{role}").touch()
    await local.start(spec(P), silent)
    status = await local.poll(P)
    await ask((status.address).worker)
    await ask((status.address).runner)
    began = time.monotonic()
    await local.stop(P, grace=1.0)
    assert 0.9 < time.monotonic() - began < 10
    await until(lambda: not any(alive(pid) for pid in status.pids.values()))


@pytest.mark.parametrize("role", ["worker", "runner"])
async def test_a_killed_member_is_back_soon_on_the_same_socket(local, role: str) -> None:
    address = await local.start(spec(P), silent)
    before = await local.poll(P)
    os.kill(before.pids[role], signal.SIGKILL)
    began = time.monotonic()
    await until(lambda: not alive(before.pids[role]))
    # connections wait in the socket's queue meanwhile: nobody is refused
    assert (await ask(getattr(address, role)))["role"] == role
    assert time.monotonic() - began < 5
    after = await local.poll(P)
    assert after.state is ServerState.READY
    assert after.pids[role] != before.pids[role]
    other = "runner" if role == "worker" else "worker"
    assert after.pids[other] == before.pids[other]
    if role == "runner" and before.pids.get("network"):
        done = await shell(address, "ip route show default || cat /proc/net/route")
        assert "tap0" in done["out"]


async def test_a_worker_that_keeps_crashing_is_a_failure_with_its_last_words(local, tmp_path: Path) -> None:
    address = await local.start(spec(P), silent)
    events = local.events()
    before = await local.poll(P)
    await ask(address.worker)
    (tmp_path / f"workspaces/{P}/workspace/crash-worker").touch()
    os.kill(before.pids["worker"], signal.SIGKILL)
    failed = await within(anext(events), 60)
    assert failed.state is ServerState.FAILED
    assert "worker crashes because it was told to" in failed.reason
    assert (await local.poll(P)).state is ServerState.FAILED
    await until(lambda: not alive(before.pids["runner"]))
    # the next start replaces it
    (tmp_path / f"workspaces/{P}/workspace/crash-worker").unlink()
    address = await local.start(spec(P, 2), silent)
    assert (await ask(address.worker))["config"]["generation"] == 2


async def test_a_fenced_worker_is_not_started_again(local, tmp_path: Path) -> None:
    address = await local.start(spec(P), silent)
    await ask(address.worker)
    events = local.events()
    with contextlib.suppress(ValueError):
        await ask(address.worker, eval="os._exit(3)")
    failed = await within(anext(events), 20)
    assert failed.state is ServerState.FAILED
    assert "somewhere else" in failed.reason
    assert (await local.poll(P)).pids.keys() == {"supervisor"}


async def test_the_supervisors_death_takes_everything_and_is_an_event(local) -> None:
    address = await local.start(spec(P), silent)
    await ask(address.worker)
    events = local.events()
    status = await local.poll(P)
    os.kill(status.pids["supervisor"], signal.SIGKILL)
    gone = await within(anext(events), 20)
    assert (gone.project, gone.state) == (P, ServerState.FAILED)
    assert await local.poll(P) is None
    await until(lambda: not any(alive(pid) for pid in status.pids.values()))
    address = await local.start(spec(P, 2), silent)
    assert (await ask(address.runner))["role"] == "runner"


async def test_what_a_dead_supervisor_left_is_cleaned_at_open(tmp_path: Path) -> None:
    first = spawner(tmp_path)
    await first.open()
    await first.start(spec(P), silent)
    status = await first.poll(P)
    await first.close()
    groups = [g for g in (tmp_path / f"workspaces/{P}/run/cgroups").read_text().split("\n") if g]
    os.kill(status.pids["supervisor"], signal.SIGKILL)
    await until(lambda: not any(alive(pid) for pid in status.pids.values()))
    second = spawner(tmp_path)
    await second.open()
    assert await second.list() == {}
    assert not list((tmp_path / f"workspaces/{P}/run").glob("*.sock"))
    assert not any(Path(g).exists() for g in groups)
    await second.close()


async def test_kill_9_of_the_hub_leaves_the_workspace_running(tmp_path: Path) -> None:
    code = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path; from tests.codevo.local_spawner_help import *\n"
        "async def main():\n"
        "    s = spawner(Path(sys.argv[2])); await s.open()\n"
        f"    await s.start(spec('{P}'), silent); print('up', flush=True); await asyncio.sleep(600)\n"
        "asyncio.run(main())"
    )
    hub = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parents[2]), str(tmp_path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert hub.stdout is not None
    with hub.stdout:
        assert await asyncio.to_thread(hub.stdout.readline) == b"up\n"
        os.killpg(hub.pid, signal.SIGKILL)
        hub.wait()
    s = spawner(tmp_path)
    await s.open()
    status = (await s.list())[P]
    assert (await ask(status.address.worker))["role"] == "worker"
    await s.stop(P)
    await s.close()


async def test_remove_deletes_everything_of_the_project(local, tmp_path: Path) -> None:
    address = await local.start(spec(P), silent)
    # folders that even their owner cannot enter, and a link out
    await shell(address, "mkdir -p a/b; ln -s / link; chmod 0 a; touch $HOME/x")
    (tmp_path / "outside").write_text("stays")
    await local.remove(P)
    assert not (tmp_path / f"workspaces/{P}").exists()
    assert (tmp_path / "outside").exists()
    await local.remove(P)


async def test_files_and_uid_stay_from_one_start_to_the_next(local, tmp_path: Path) -> None:
    address = await local.start(spec(P), silent)
    await shell(address, "echo one > kept; mkdir -p ~/.local/bin; echo two > ~/kept")
    await local.stop(P)
    address = await local.start(spec(P, 2), silent)
    assert (await shell(address, "cat kept ~/kept"))["out"] == "one\ntwo\n"
    if as_root():
        other = await local.start(spec("eeee"), silent)
        await shell(other, "touch mine")
        owners = {
            os.stat(tmp_path / f"workspaces/{p}/workspace/{f}").st_uid
            for p, f in ((P, "kept"), ("eeee", "mine"))
        }
        assert len(owners) == 2
        assert 0 not in owners


async def test_a_deep_data_directory_works(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 60)
    s = spawner(deep)
    await s.open()
    address = await s.start(spec(P), silent)
    assert len(address.worker) > 160
    assert (await ask(address.worker))["role"] == "worker"
    await s.stop(P)
    await s.close()


async def test_a_sandbox_that_cannot_start_says_why(tmp_path: Path) -> None:
    s = spawner(tmp_path)
    await s.open()
    state = tmp_path / f"workspaces/{P}/state"
    state.parent.mkdir(parents=True)
    state.write_text("in the way")
    with pytest.raises(SpawnError, match="state"):
        await s.start(spec(P), silent)
    assert await s.list() == {}
    await s.close()


@pytest.mark.parametrize("project", ["../x", "", "a/b", ".", "A" * 16, "a\n", "x" * 80])
async def test_ids_that_are_no_ids_reach_no_path(local, project: str) -> None:
    with pytest.raises(SpawnError):
        await local.start(spec(project), silent)
    with pytest.raises(SpawnError):
        await local.remove(project)


async def test_without_bubblewrap_it_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    tools = {"bwrap": "", "slirp4netns": "", "setpriv": "/usr/bin/setpriv"}
    monkeypatch.setattr("codevo.spawner.local.find_tools", lambda: tools)
    with pytest.raises(SpawnError, match="apt install bubblewrap"):
        await spawner(tmp_path).open()


async def test_sandbox_none_warns_and_runs(tmp_path: Path) -> None:
    s = spawner(tmp_path, sandbox="none")
    await s.open()
    assert "without a sandbox" in s.warning
    address = await s.start(spec(P), silent)
    assert (await ask(address.runner))["config"]["workspace"] == str(tmp_path / f"workspaces/{P}/workspace")
    status = await s.poll(P)
    await s.stop(P)
    await until(lambda: not any(alive(pid) for pid in status.pids.values()))
    await s.close()


async def test_without_slirp_there_is_no_network_but_a_warning(tmp_path: Path, monkeypatch) -> None:
    from codevo.spawner import local_spec

    tools = {**local_spec.find_tools(), "slirp4netns": ""}
    monkeypatch.setattr("codevo.spawner.local.find_tools", lambda: tools)
    s = spawner(tmp_path)
    await s.open()
    assert "no network" in s.warning
    address = await s.start(spec(P), silent)
    done = await shell(address, "cat /proc/net/dev | wc -l")
    assert done["out"].strip() == "3"  # two lines of heading, and lo
    await s.stop(P)
    await s.close()


async def test_the_network_helper_is_restarted(local) -> None:
    address = await local.start(spec(P), silent)
    before = (await local.poll(P)).pids.get("network")
    if not before:
        pytest.skip("no slirp4netns here")
    os.kill(before, signal.SIGKILL)

    async def routed() -> bool:
        return "tap0" in (await shell(address, "cat /proc/net/route"))["out"]

    await until(lambda: not alive(before))
    await until(routed)
    done = await shell(address, "python3 -c 'import socket; socket.create_connection((\"10.0.2.2\", 1), 3)'")
    assert "PermissionError" in done["err"]


async def test_the_control_socket_bears_nonsense(local, tmp_path: Path) -> None:
    await local.start(spec(P), silent)
    path = tmp_path / f"workspaces/{P}/run/supervisor.sock"
    for request in (b"\n", b"[]\n", b"{\n", b'{"command": "x"}\n', b"x" * 100_000, b'{"command": 1}\n'):
        reader, writer = await connect(path)
        writer.write(request)
        assert b"error" in await within(reader.readline(), 10)
        writer.close()
    assert (await local.poll(P)).state is ServerState.READY


async def test_what_a_start_costs(local) -> None:
    began = time.monotonic()
    await local.start(spec(P), silent)
    took = time.monotonic() - began
    assert took < 3  # 0.06 on an idle machine; shared ones are slow
    pids = (await local.poll(P)).pids
    rss = int(Path(f"/proc/{pids['supervisor']}/status").read_text().split("VmRSS:")[1].split()[0])
    assert rss < 13 * 1024


async def test_a_data_directory_that_the_sandboxes_would_see_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpawnError, match="move it elsewhere"):
        await spawner(tmp_path / "data", extra_binds=[str(tmp_path)]).open()
    link = tmp_path / "link"
    link.symlink_to("/usr/share")
    with pytest.raises(SpawnError, match="move it elsewhere"):
        await spawner(link / "codevo").open()


@pytest.mark.parametrize("traits", [{"extra_binds": ["relative"]}, {"allow_networks": ["10.0.0.0/99"]}])
async def test_nonsense_in_the_configuration_is_refused(tmp_path: Path, traits: dict) -> None:
    with pytest.raises(SpawnError, match="LocalSpawner"):
        await spawner(tmp_path, **traits).open()


async def test_two_projects_listen_on_one_port_and_do_not_meet(local) -> None:
    one, two = await asyncio.gather(local.start(spec("one"), silent), local.start(spec("two"), silent))
    serve = "echo I am %s > index.html; python3 -m http.server 3000 >/dev/null 2>&1 & sleep 0.1; "
    fetch = (
        "for i in $(seq 100); do python3 -c 'import urllib.request as u; "
        'print(u.urlopen("http://localhost:3000").read())\' 2>/dev/null && break; sleep 0.1; done; kill %1'
    )
    first, second = await asyncio.gather(shell(one, serve % "one" + fetch), shell(two, serve % "two" + fetch))
    assert "I am one" in first["out"]
    assert "I am two" in second["out"]
    lonely = await shell(
        two, "python3 -c 'import socket; socket.create_connection((\"10.0.2.100\", 3000), 3)'"
    )
    assert "refused" in lonely["err"]
