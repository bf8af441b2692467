"""What hostile code in a project may not do: each test attacks from inside the real sandbox."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from pathlib import Path

import pytest

from codevo.spawner.base import ServerState
from pod_runtime.supervisor.netlink import Netlink
from tests.codevo.local_spawner_help import SECRET, ask, sandboxes_work, shell, silent, spawner, spec, until

pytestmark = [pytest.mark.sandbox, pytest.mark.skipif(not sandboxes_work(), reason="no bubblewrap here")]
P, Q = "attacker", "victimvictim"
# Where this test may reach package registries: their access in the sandbox is then part of the suite.
REGISTRY = os.environ.get("CODEVO_TEST_REGISTRY", "")


@pytest.fixture
async def local(tmp_path: Path):
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "signing.key").write_text("the-signing-key")
    s = spawner(tmp_path, memory_limit=256 * 2**20, pids_limit=64, file_size_limit=2**20, tmpfs_limit=2**20)
    await s.open()
    yield s
    for project in await s.list():
        await s.stop(project, grace=0)
    await s.close()


@pytest.fixture
async def inside(local):
    return await local.start(spec(P), silent)


def connect_script(host: str, port: int) -> str:
    return (
        "python3 -c 'import socket\n"
        f'try: socket.create_connection(("{host}", {port}), 3); print("REACHED")\n'
        "except OSError as e: print(type(e).__name__, e)'"
    )


@pytest.fixture
def host_service():
    """A service on all of the host's addresses that must not be met from inside: (port, met)."""
    met = threading.Event()
    server = socket.create_server(("0.0.0.0", 0))

    def accept() -> None:
        try:
            while True:
                connection, _ = server.accept()
                met.set()
                connection.close()
        except OSError:
            pass

    thread = threading.Thread(target=accept)
    thread.start()
    yield server.getsockname()[1], met
    server.shutdown(socket.SHUT_RDWR)
    server.close()
    thread.join()


async def test_the_host_is_unreachable_by_any_of_its_addresses(inside, host_service) -> None:
    port, met = host_service
    netlink = Netlink()
    addresses = [a for a in netlink.addresses() if ":" not in a]
    netlink.close()
    for host in {
        *addresses,
        "127.0.0.1",
        "127.0.0.53",
        "10.0.2.2",
        "10.0.2.3",
        "0.0.0.0",
        "::1",
        "::ffff:10.0.2.2",
    }:
        done = await shell(inside, connect_script(host, port))
        assert "REACHED" not in done["out"], host
        assert done["out"], done
    assert not met.is_set()


@pytest.mark.parametrize(
    "host",
    [
        *(
            "169.254.169.254",
            "10.1.2.3",
            "10.0.2.7",
            "10.0.2.200",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.1.1",
        ),
        *("100.100.100.200", "198.18.0.1", "224.0.0.1", "255.255.255.255", "fd00::1", "fe80::1"),
    ],
)
async def test_private_and_link_local_addresses_are_refused_at_once(inside, host: str) -> None:
    done = await shell(inside, connect_script(host, 80))
    assert "REACHED" not in done["out"]
    assert "timed out" not in done["out"]
    udp = f"import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('{host}', 80))"
    if ":" not in host:
        assert "Error" in (await shell(inside, f'python3 -c "{udp}"'))["err"]


async def test_routes_cannot_be_changed_from_inside(inside) -> None:
    for script in (
        "ip route del prohibit 169.254.0.0/16",
        "ip route add 169.254.169.254 via 10.0.2.2 dev tap0",
        "ip link set tap0 down",
        "unshare -Urn true",
        "unshare -U true",
        "nsenter -t 1 -U true",
    ):
        done = await shell(inside, script)
        assert done["code"] != 0, script
    bound = await shell(
        inside,
        'python3 -c \'import socket; s=socket.socket(); s.setsockopt(1, 25, b"tap0"); '
        's.settimeout(3); s.connect(("169.254.169.254", 80)); print("REACHED")\'',
    )
    assert "REACHED" not in bound["out"]


async def test_neither_files_of_the_hub_nor_of_others_are_there(local, inside, tmp_path: Path) -> None:
    other = await local.start(spec(Q), silent)
    await shell(other, "echo victims-file > secret; chmod 644 secret; chmod 755 /workspace")
    (tmp_path / f"workspaces/{P}/state/journal").write_text("state")
    for path in (
        *(tmp_path, tmp_path / "hub/signing.key", tmp_path / f"workspaces/{Q}/workspace/secret"),
        *(tmp_path / f"workspaces/{P}/run", tmp_path / f"workspaces/{P}/state", "/state", "/etc/shadow"),
        *("/mnt/0", "/root/.ssh", "/var/run", "/sys", "/etc/hostid", Path(__file__).parents[2] / ".git"),
        *(Path(__file__).parents[2] / "codevo", Path(__file__).parents[2] / "setup.cfg"),
    ):
        assert (await shell(inside, f"ls -la '{path}' || cat '{path}'"))["code"] != 0, path
    # through /proc: every root and working directory is the sandbox's own
    for script in (
        f"cat /proc/*/root{tmp_path}/hub/signing.key",
        "cat /proc/1/root/etc/shadow",
        f"cat /proc/*/cwd/../../../{Q}/workspace/secret",
        f"for p in 1 2; do cat /proc/$p/environ /proc/$p/cmdline /proc/$p/fd/3 | grep -ao {SECRET}; done",
    ):
        done = await shell(inside, script)
        for stolen in ("the-signing-key", "victims-file", "root:"):
            assert stolen not in done["out"]
        assert not done["out"].strip()


async def test_links_lead_only_to_the_sandboxes_own_files(local, inside, tmp_path: Path) -> None:
    target = tmp_path / "hub/signing.key"
    done = await shell(
        inside, f"ln -s {target} l; ln -s / root; cat l root{target}; ln {target} h; ln /etc/passwd h"
    )
    assert "the-signing-key" not in done["out"]
    assert not (tmp_path / f"workspaces/{P}/workspace/h").exists()
    # a link in place of a folder that the next start binds: the folder is the hub's, not the sandbox's
    assert (await shell(inside, "rm -rf /workspace || mv /workspace /w"))["code"] != 0
    await local.stop(P)
    again = await local.start(spec(P, 2), silent)
    assert (await ask(again.runner))["role"] == "runner"


async def test_processes_outside_are_neither_seen_nor_signalled_nor_traced(local, inside) -> None:
    status = await local.poll(P)
    seen = (await shell(inside, "ls /proc | grep -c '^[0-9]'"))["out"]
    assert int(seen) < 10
    for name, pid in {**status.pids, "hub": os.getpid()}.items():
        done = await shell(inside, f"[ -e /proc/{pid}/exe ] || kill -9 {pid}")
        assert done["code"] != 0 or pid < 100, name
    # everything it can signal, its runner included, which therefore cannot answer
    with contextlib.suppress(ValueError, OSError):
        await shell(inside, "kill -9 -1", timeout=5)
    assert (await ask(inside.worker))["role"] == "worker"

    async def back() -> bool:
        now = await local.poll(P)
        return bool(now and now.state is ServerState.READY and "runner" in now.pids)

    await until(back)
    after = await local.poll(P)
    assert after.pids["worker"] == status.pids["worker"]
    assert after.pids["supervisor"] == status.pids["supervisor"]


async def test_descriptors_of_the_supervisor_do_not_leak_in(inside) -> None:
    links = (
        await ask(
            inside.runner,
            eval="[os.readlink(p) for n in os.listdir('/proc/self/fd')"
            " for p in [f'/proc/self/fd/{n}'] if os.path.islink(p)]",
        )
    )["value"]
    assert not [x for x in links if x.startswith("/") and x != "/dev/null" and not x.startswith("/proc/")]
    assert len([x for x in links if x.startswith("socket:")]) <= 3  # control, gateway, this connection
    assert not [x for x in links if "memfd" in x]


async def test_calls_that_no_workspace_needs_are_refused(inside) -> None:
    script = (
        "python3 - <<'X'\nimport ctypes, socket, fcntl, platform\n"
        "c = ctypes.CDLL(None, use_errno=True)\n"
        "arm = platform.machine() == 'aarch64'\n"
        "for name, x, a in (('mount',165,40),('keyctl',250,219),('bpf',321,280),('perf',298,241),"
        "('uffd',323,282),"
        "('io_uring_setup',425,425),('open_tree',428,428),('kexec',246,104),('init_module',175,105)):\n"
        "    r = c.syscall(a if arm else x, 0, 0, 0, 0, 0); print(name, r, ctypes.get_errno())\n"
        "for f in (38, 40, 17, 44):\n"
        "    try: socket.socket(f, 2); print('family', f, 'ALLOWED')\n"
        "    except OSError as e: print('family', f, -1, e.errno)\n"
        "try: fcntl.ioctl(0, 0x5412, b'x'); print('tiocsti ALLOWED')\n"
        "except OSError as e: print('tiocsti', -1, e.errno)\n"
        "try: fcntl.ioctl(0, 0x100005412, b'x'); print('tiocsti64 ALLOWED')\n"
        "except (OSError, OverflowError, ValueError) as e: print('tiocsti64 -1')\nX"
    )
    done = await shell(inside, script)
    lines = done["out"].splitlines()
    assert len(lines) == 15, done
    for line in lines:
        assert " -1" in line
        assert line.startswith(("family", "tiocsti64")) or line.endswith(" -1 1"), line


async def test_debuggers_work_on_ones_own_processes(inside) -> None:
    script = (
        "sleep 30 & python3 -c 'import ctypes, os, sys; c = ctypes.CDLL(None); "
        "print(c.ptrace(16, int(sys.argv[1]), 0, 0))' $!; kill -9 $!"
    )
    assert (await shell(inside, script))["out"].strip() == "0"


async def test_a_fork_bomb_hurts_only_itself(local, inside) -> None:
    before = await local.poll(P)
    bomb = "bash -c 'b() { b | b & }; b' ; for i in $(seq 400); do sleep 20 & done; wait"
    attack = asyncio.create_task(shell(inside, bomb, timeout=3))
    await asyncio.sleep(1)
    assert (await ask(inside.worker, run=["/bin/true"]))["code"] == 0
    assert sum(1 for p in Path("/proc").iterdir() if p.name.isdigit()) < 2000
    now = await local.poll(P)
    assert now.pids["worker"] == before.pids["worker"]
    attack.cancel()
    await asyncio.gather(attack, return_exceptions=True)
    await local.stop(P, grace=2)
    assert await local.poll(P) is None
    again = await local.start(spec(P, 2), silent)
    assert (await shell(again, "echo fine"))["out"] == "fine\n"


async def test_a_memory_bomb_hurts_only_itself(local, inside) -> None:
    before = await local.poll(P)
    done = await shell(inside, "python3 -c 'x = bytearray(600 * 2**20); print(len(x))'")
    assert done["code"] != 0
    now = await local.poll(P)
    assert now.pids["worker"] == before.pids["worker"]
    assert now.pids["supervisor"] == before.pids["supervisor"]


async def test_file_tmpfs_and_root_sizes_are_limited(inside) -> None:
    big = await shell(inside, "head -c 3000000 /dev/zero > /workspace/big; stat -c %s /workspace/big")
    assert int(big["out"]) == 2**20
    for place in ("/tmp", "/dev/shm"):
        # -x: what is bound below /tmp, when the checkout stands there, is no part of it
        script = f"for i in 1 2 3; do head -c 900000 /dev/zero > {place}/$i; done; du -sbx {place} | cut -f1"
        assert int((await shell(inside, script))["out"]) <= 2**20 + 4096
    for place in ("/", "/dev", "/etc", "/usr", "/home", "/run"):
        assert (await shell(inside, f"touch {place}/x"))["code"] != 0, place


async def test_a_flood_of_log_lines_is_bounded(local, inside, tmp_path: Path) -> None:
    await ask(inside.runner, eval="[os.write(2, b'\\x1b]0;x' * 1000 + b'\\n') for _ in range(3000)] and 1")
    run = tmp_path / f"workspaces/{P}/run"
    await until(lambda: (run / "supervisor.log.1").exists())
    assert sum(f.stat().st_size for f in run.glob("supervisor.log*")) < 2_200_000
    assert b"\x1b" not in (run / "supervisor.log").read_bytes()


async def test_the_worker_is_contained_too(local, inside, tmp_path: Path) -> None:
    for path in ("/home/codevo", str(tmp_path / "hub"), str(tmp_path / f"workspaces/{P}/run"), "/etc/shadow"):
        found = await ask(inside.worker, eval=f"os.path.exists({path!r}) and os.access({path!r}, os.R_OK)")
        assert found["value"] is False, path
    assert (await ask(inside.worker, eval="os.path.isdir('/state') and os.access('/state', os.W_OK)"))[
        "value"
    ]
    assert (await ask(inside.worker, eval="len([p for p in os.listdir('/proc') if p.isdigit()])"))[
        "value"
    ] < 6
    # uploads and large answers stand in its memory, and it is in no cgroup of the user's
    limit = await ask(inside.worker, eval="__import__('resource').getrlimit(2)[0]")  # RLIMIT_DATA
    assert limit["value"] == local.memory_limit
    # a file that the user's program made for itself alone is the worker's to read all the same
    await shell(inside, "umask 077; echo x > private")
    assert (await ask(inside.worker, eval="open('/workspace/private').read()"))["value"] == "x\n"


@pytest.mark.skipif(not REGISTRY, reason="set CODEVO_TEST_REGISTRY=1 where PyPI and npm can be reached")
async def test_pip_and_npm_install(tmp_path: Path) -> None:
    names = ["SSL_CERT_FILE", "PIP_CERT", "NODE_EXTRA_CA_CERTS"]
    s = spawner(
        tmp_path,
        pass_environment=names,
        extra_binds=[p for p in ("/etc/pip.conf", "/etc/npmrc", "/etc/ssl") if os.path.exists(p)],
        allow_networks=[n for n in os.environ.get("CODEVO_TEST_NETWORKS", "").split(",") if n],
    )
    await s.open()
    inside = await s.start(spec(P), silent)
    try:
        done = await shell(
            inside, "pip install six && python3 -c 'import six; print(six.__file__)'", timeout=100
        )
        assert "six.py" in done["out"], done
        done = await shell(
            inside,
            "python3 -m venv v && v/bin/pip install six && v/bin/python -c 'import six; print(six.__file__)'",
            timeout=100,
        )
        assert "/workspace/v/" in done["out"], done
        done = await shell(inside, "npm install is-number && ls node_modules", timeout=100)
        assert "is-number" in done["out"], done
    finally:
        await s.stop(P)
        await s.close()
