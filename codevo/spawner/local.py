"""LocalSpawner: workspaces as sandboxes on this machine, each under a supervisor that outlives the hub."""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import ipaddress
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from traitlets import Bool, Enum, Float, Int, List, Unicode, default

import pod_runtime
from codevo.spawner.base import (
    PodAddress,
    Progress,
    ServerState,
    Spawner,
    SpawnError,
    WorkspaceSpec,
    WorkspaceStatus,
)
from codevo.spawner.local_cleanup import clean_run, remove_tree
from codevo.spawner.local_client import SupervisorClient, fresh_status
from codevo.spawner.local_spec import (
    Installation,
    Limits,
    Places,
    find_tools,
    runtime_paths,
    supervisor_spec,
    within,
)
from codevo.spawner.local_uids import UidTable, own

_PROJECT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_START_SECONDS = 40.0
_STOP_EXTRA = 15.0
_EVENTS_MAX = 256
_ADOPT_AT_ONCE = 16


class LocalSpawner(Spawner):
    """Runs each project's runner and worker on this machine in bubblewrap sandboxes."""

    data_dir = Unicode(help="The hub's data directory; workspaces live in its folder `workspaces`.").tag(
        config=True
    )
    cache_dir = Unicode(help="Where `make setup` put toolbox and dependencies.").tag(config=True)
    sandbox = Enum(
        ["bubblewrap", "none"],
        "bubblewrap",
        help="`none` runs everybody's code as the hub's own user, unprotected. Only for yourself alone.",
    ).tag(config=True)
    memory_limit = Int(2 * 2**30, help="Bytes of memory for a project's programs together.").tag(config=True)
    pids_limit = Int(512, help="Processes and threads of a project.").tag(config=True)
    cpu_limit = Float(2.0, help="Cores that a project may use.").tag(config=True)
    file_size_limit = Int(2 * 2**30, help="Bytes of the largest file that a program may write.").tag(
        config=True
    )
    tmpfs_limit = Int(512 * 2**20, help="Bytes in /tmp, which count as memory.").tag(config=True)
    pass_environment = List(
        Unicode(), help="Names of variables of the hub's environment that programs and workers get when set."
    ).tag(config=True)
    extra_binds = List(
        Unicode(), help="Absolute paths of the host that the sandboxes see read-only, at the same place."
    ).tag(config=True)
    allow_networks = List(
        Unicode(),
        help="Private networks (CIDR) that programs may reach all the same, a registry's for example.",
    ).tag(config=True)
    uid_first = Int(200_000, help="As root: the first user id of the projects' own.").tag(config=True)
    uid_count = Int(65_536, help="As root: how many user ids there are for projects.").tag(config=True)
    separate_uids = Bool(help="Whether each project gets a user id of its own; needs root.").tag(config=True)
    runner_program = List(Unicode(), ["-m", "pod_runtime.runner"], help="For tests: Python's arguments.")
    worker_program = List(Unicode(), ["-m", "pod_runtime.worker"], help="For tests: Python's arguments.")

    @default("data_dir")
    def _default_data_dir(self) -> str:
        return os.environ.get("CODEVO_DATA") or str(Path.home() / ".local" / "share" / "codevo")

    @default("cache_dir")
    def _default_cache_dir(self) -> str:
        return os.environ.get("CODEVO_CACHE") or str(Path.home() / ".cache" / "codevo")

    @default("separate_uids")
    def _default_separate_uids(self) -> bool:
        return os.geteuid() == 0

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._root = Path(self.data_dir).absolute() / "workspaces"
        self._clients: dict[str, SupervisorClient] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._subscribers: set[asyncio.Queue[WorkspaceStatus]] = set()
        self._closers: set[asyncio.Task[None]] = set()
        self._uids: UidTable | None = None
        self._installation: Installation | None = None

    # -- life of the spawner ------------------------------------------------------------------------------

    async def open(self) -> None:
        self._installation = self._look_around()
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o700)
        if self.sandbox == "none":
            self.warning = (
                "Workspaces run without a sandbox (LocalSpawner.sandbox = none): "
                "everyone's code can read and change everything that the hub can."
            )
        else:
            if self.separate_uids:
                self._uids = UidTable(self._root / "uids.json", self.uid_first, self.uid_count)
            await self._probe(self._installation.tools)
            if not self._installation.tools["slirp4netns"]:
                self.warning = "Programs have no network: slirp4netns is missing (apt install slirp4netns)."
        if not sys.dont_write_bytecode:
            # of an editable install nobody else compiles it, and the sandboxes cannot: starts would be slow
            await asyncio.to_thread(compileall.compile_dir, Path(pod_runtime.__file__).parent, quiet=2)
        gate = asyncio.Semaphore(_ADOPT_AT_ONCE)

        async def adopt(project: str) -> None:
            async with gate:
                await self._adopt(project)

        found = [p.name for p in self._root.iterdir() if _PROJECT.fullmatch(p.name) and p.is_dir()]
        await asyncio.gather(*map(adopt, found))

    def _look_around(self) -> Installation:
        tools = find_tools()
        if not tools["setpriv"]:
            raise SpawnError("setpriv is missing: apt install util-linux")
        if self.sandbox != "none" and not tools["bwrap"]:
            raise SpawnError(
                "bubblewrap is missing: apt install bubblewrap slirp4netns. (Without it, "
                'c.LocalSpawner.sandbox = "none" runs workspaces unprotected.)'
            )
        for path in self.extra_binds:
            if not path.startswith("/") or ".." in Path(path).parts:
                raise SpawnError(f"LocalSpawner.extra_binds: not an absolute path: {path}")
        try:
            networks = [str(ipaddress.ip_network(n, strict=False)) for n in self.allow_networks]
        except ValueError as e:
            raise SpawnError(f"LocalSpawner.allow_networks: {e}") from e
        shown = ["/usr", *self.extra_binds, *runtime_paths(Path(self.cache_dir).absolute())]
        if self.sandbox != "none" and within(
            str(self._root.resolve()), tuple(os.path.realpath(p) for p in shown)
        ):
            raise SpawnError(
                f"The data directory {self.data_dir} lies where all sandboxes look; move it elsewhere."
            )
        limits = Limits(
            self.memory_limit, self.pids_limit, self.cpu_limit, self.file_size_limit, self.tmpfs_limit
        )
        return Installation(
            cache=Path(self.cache_dir).absolute(),
            tools=tools,
            sandbox=self.sandbox,
            limits=limits,
            passed={name: os.environ[name] for name in self.pass_environment if name in os.environ},
            extra_binds=list(self.extra_binds),
            allow_networks=networks,
            runner_program=list(self.runner_program),
            worker_program=list(self.worker_program),
        )

    async def _probe(self, tools: dict[str, str]) -> None:
        """Whether a sandbox works here at all. Raises SpawnError with what to do."""
        command = [tools["bwrap"], "--unshare-user", "--disable-userns", "--unshare-pid", "--unshare-net"]
        command += ["--ro-bind", "/", "/", "--size", "1000", "--tmpfs", "/tmp", "true"]  # noqa: S108
        if self.separate_uids:
            uid = str(self.uid_first)
            drop = [tools["setpriv"], "--reuid", uid, "--regid", uid, "--clear-groups"]
            command = [*drop, "--no-new-privs", "--bounding-set=-all", *command]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE, cwd="/"
        )
        _, said = await process.communicate()
        if process.returncode != 0:
            raise SpawnError(
                f"bubblewrap does not work here: {said.decode(errors='replace').strip()[:300]}. It must be "
                "0.8 or newer and user namespaces allowed (sysctl kernel.unprivileged_userns_clone=1, "
                "kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile for bwrap)."
            )

    async def close(self) -> None:
        clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            await client.close()
        for task in list(self._closers):
            await task

    # -- what runs ----------------------------------------------------------------------------------------

    def _places(self, project: str) -> Places:
        if not _PROJECT.fullmatch(project):
            raise SpawnError(f"not a project id: {project!r}")
        return Places(self._root / project)

    def _lock(self, project: str) -> asyncio.Lock:
        return self._locks.setdefault(project, asyncio.Lock())

    async def _adopt(self, project: str) -> SupervisorClient | None:
        """Connect to the project's supervisor if there is one; else clean up what a dead one left."""
        places = self._places(project)
        if not places.control.exists():
            return None
        try:
            client = await SupervisorClient.open(places.control)
        except TimeoutError:
            self.log.error("the supervisor of %s does not answer", project)
            return None
        except OSError:
            await asyncio.to_thread(clean_run, places)
            return None
        self._clients[project] = client
        client.watch(lambda status: self._on_change(project, client, status))
        return client

    def _on_change(self, project: str, client: SupervisorClient, status: dict[str, Any] | None) -> None:
        if status is None:
            if self._clients.get(project) is client:
                del self._clients[project]
            if not client.stopping:
                self._on_vanished(project, client)
        elif status["state"] == "failed" and not client.stopping:
            self._publish(_status(status))

    def _on_vanished(self, project: str, client: SupervisorClient) -> None:
        last = client.status
        if last["state"] == "stopping":
            gone = {**last, "state": "stopped", "reason": "the workspace was stopped from outside"}
        else:
            gone = {**last, "state": "failed", "reason": last["reason"] or "the workspace's supervisor died"}
            self.log.error("the supervisor of %s died", project)
        self._publish(_status({**gone, "address": None, "pids": {}}))

    def _publish(self, status: WorkspaceStatus) -> None:
        for queue in self._subscribers:
            if queue.full():  # the oldest goes; a hub that lags asks `list` for the truth
                queue.get_nowait()
            queue.put_nowait(status)

    def events(self) -> AsyncIterator[WorkspaceStatus]:
        queue: asyncio.Queue[WorkspaceStatus] = asyncio.Queue(_EVENTS_MAX)
        self._subscribers.add(queue)  # now, not at the first `anext`: nothing is missed

        async def follow() -> AsyncIterator[WorkspaceStatus]:
            try:
                while True:
                    yield await queue.get()
            finally:
                self._subscribers.discard(queue)

        return follow()

    async def poll(self, project: str) -> WorkspaceStatus | None:
        places = self._places(project)
        if project not in self._clients:
            return None
        try:
            return _status(await fresh_status(places.control))
        except TimeoutError:
            client = self._clients.get(project)
            return _status(client.status) if client else None
        except OSError:
            return None

    async def list(self) -> dict[str, WorkspaceStatus]:
        return {project: _status(client.status) for project, client in self._clients.items()}

    # -- starting and stopping ----------------------------------------------------------------------------

    async def start(self, spec: WorkspaceSpec, progress: Callable[[Progress], None]) -> PodAddress:
        places = self._places(spec.project)
        async with self._lock(spec.project):
            client = self._clients.get(spec.project) or await self._adopt(spec.project)
            if client is not None and client.status["state"] in ("starting", "ready"):
                return PodAddress(**places.addresses())
            if client is not None:  # failed, or on its way out
                await self._end(spec.project, client, 0.0 if client.status["state"] == "failed" else 30.0)
            progress(Progress(10, "Preparing the sandbox"))
            try:
                uid = await self._prepare(spec.project, places)
                await self._launch(spec, places, uid)
            except (OSError, ValueError) as e:
                raise SpawnError(f"The workspace could not be started: {e}") from e
            except SpawnError:
                await asyncio.to_thread(clean_run, places)
                raise
            progress(Progress(60, "Sandbox started"))
            if await self._adopt(spec.project) is None:
                raise SpawnError("The workspace ended right after its start; see supervisor.log.")
        return PodAddress(**places.addresses())

    async def _prepare(self, project: str, places: Places) -> int | None:
        uid = self._uids.get(project) if self._uids else None

        def prepare() -> None:
            for folder in (places.root, places.workspace, places.home, places.state, places.run):
                folder.mkdir(mode=0o700, exist_ok=True)
            if uid is not None:
                for folder in (places.workspace, places.home, places.state):
                    own(folder, uid)

        await asyncio.to_thread(prepare)
        return uid

    async def _launch(self, spec: WorkspaceSpec, places: Places, uid: int | None) -> None:
        """Start the supervisor and wait for its word that the sandboxes run."""
        if self._installation is None:
            raise SpawnError("LocalSpawner.open() was not called")
        document = json.dumps(supervisor_spec(spec, places, uid, self._installation)).encode()
        spec_fd = os.memfd_create("spec", os.MFD_CLOEXEC)
        ready, child_ready = os.pipe()
        log_fd = os.open(places.run / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        reader = asyncio.StreamReader(limit=2**20)
        with os.fdopen(ready, "rb", 0) as ready_file:
            transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: asyncio.StreamReaderProtocol(reader), ready_file
            )
            try:
                with os.fdopen(spec_fd, "wb", closefd=False) as f:
                    f.write(document)
                os.lseek(spec_fd, 0, os.SEEK_SET)
                folder = Path(pod_runtime.__file__).parent / "supervisor"
                process = await asyncio.create_subprocess_exec(
                    *(os.path.realpath(sys.executable), "-I", "-S", str(folder), "--project", spec.project),
                    *("--spec", f"fd:{spec_fd}", "--ready", f"fd:{child_ready}"),
                    pass_fds=(spec_fd, child_ready),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log_fd,
                    stderr=log_fd,
                    cwd="/",
                    env={"LANG": "C.UTF-8"},
                )
            finally:
                for fd in (spec_fd, child_ready, log_fd):
                    os.close(fd)
            try:
                async with asyncio.timeout(_START_SECONDS):
                    line = await reader.readline()
                    await process.wait()
            except TimeoutError as e:
                raise SpawnError("The workspace did not start in time; see supervisor.log.") from e
            finally:
                transport.close()
        answer = json.loads(line) if line else {"error": "the supervisor died; see supervisor.log"}
        if "error" in answer:
            raise SpawnError(f"The workspace could not be started: {answer['error']}")
        for warning in answer["warnings"]:
            self.log.warning("%s: %s", spec.project, warning)

    async def stop(self, project: str, *, grace: float = 30.0) -> None:
        self._places(project)
        async with self._lock(project):
            client = self._clients.get(project) or await self._adopt(project)
            if client is not None:
                await self._end(project, client, grace)

    async def _end(self, project: str, client: SupervisorClient, grace: float) -> None:
        client.ask_stop(grace)
        try:
            async with asyncio.timeout(grace + _STOP_EXTRA):
                await client.ended.wait()
        except TimeoutError:
            self.log.error("the supervisor of %s hangs; killing it", project)
            # the number is the supervisor's as long as its socket is open, and everything of it dies with it
            with contextlib.suppress(ProcessLookupError):
                os.kill(client.status["pids"]["supervisor"], signal.SIGKILL)
            await client.ended.wait()
        self._clients.pop(project, None)
        await client.close()
        await asyncio.to_thread(clean_run, self._places(project))

    async def remove(self, project: str) -> None:
        places = self._places(project)
        await self.stop(project, grace=0.0)
        async with self._lock(project):
            if places.root.exists():
                await asyncio.to_thread(remove_tree, places.root)
            if self._uids is not None:
                self._uids.release(project)


def _status(raw: dict[str, Any]) -> WorkspaceStatus:
    return WorkspaceStatus(
        project=raw["project"],
        generation=raw["generation"],
        state=ServerState(raw["state"]),
        address=PodAddress(**raw["address"]) if raw["address"] else None,
        started=datetime.fromtimestamp(raw["started"], UTC),
        reason=raw["reason"],
        pids=raw["pids"],
    )
