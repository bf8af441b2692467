"""Starting the two sandboxes and the network helper of one workspace."""

from __future__ import annotations

import os
import resource

from pod_runtime.supervisor import cgroups, network, sandbox, seccomp, staging
from pod_runtime.supervisor.logs import Log
from pod_runtime.supervisor.member import Member, read_child_pid
from pod_runtime.supervisor.process import Launch, drop_to, memory_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_START_SECONDS = 15.0
_PROGRAM_SECONDS = 2.0
_USER_OOM_SCORE = 500  # on a full machine the user's programs go before anything of ours


class Workspace:
    """Runner, worker and helper, as ``spec`` (made by LocalSpawner) says.

    ``listeners`` are the listening sockets' descriptors: runner, gateway, worker.
    """

    def __init__(self, spec: dict[str, Any], listeners: dict[str, int], log: Log) -> None:
        self.spec = spec
        self.log = log
        self.warnings: list[str] = []
        self.runner = Member("runner", log)
        self.worker = Member("worker", log)
        self.helper = Member("network", log)
        self._listeners = listeners
        self._isolated = spec["sandbox"] != "none"
        self._staged: dict[str, str] = {}
        self._namespace: network.Namespace | None = None
        self._exit_fd = -1
        self._own_addresses: list[str] = []
        self._filter = seccomp.build() if self._isolated else None
        self.groups: list[str] = []
        self._limited: list[str] = []

    def prepare(self) -> None:
        """Mount namespace and cgroups; once, before the first start."""
        spec = self.spec
        if not self._isolated:
            return
        if self._filter is None:
            self._warn("no seccomp filter for this kind of processor")
        if spec["uid"] is not None:
            try:
                self._staged = staging.stage(
                    [spec["workspace"], spec["home"], spec["state"], *spec["runtime"], *spec["extra_binds"]]
                )
            except OSError as e:
                self._warn(f"no mount namespace of our own ({e}): everything must be reachable for all users")
        limits = spec["limits"]
        self.groups, self._limited = cgroups.create(
            spec["cgroup"], limits["memory"], limits["pids"], limits["cpu"]
        )
        missing = [name for name in ("memory", "pids", "cpu") if name not in self._limited]
        if missing:
            self._warn(f"no cgroup limits {', '.join(missing)}; limits per process take their place")
        if spec["tools"]["slirp4netns"]:
            self._own_addresses = network.host_addresses()
        else:
            self._warn("slirp4netns is not installed: programs have no network (apt install slirp4netns)")

    def _warn(self, text: str) -> None:
        self.log.write("supervisor", text)
        self.warnings.append(text)

    def _stage(self, path: str) -> str:
        return self._staged.get(path, path)

    def start(self, names: list[str]) -> None:
        """Start those of runner and worker, side by side. Raises RuntimeError with words for people."""
        settle = [(name, *self._launch(name)) for name in names]
        for name, info, block in settle:
            try:
                if self._isolated:
                    self._settle(name, info, block)
            finally:
                for fd in (info, block):
                    if fd >= 0:
                        os.close(fd)

    def _launch(self, name: str) -> tuple[int, int]:
        """Start one; gives our ends of bubblewrap's info and block pipes (-1: none)."""
        spec, part = self.spec, self.spec[name]
        mine: list[int] = []  # what the child gets and we close

        def pass_on(fd: int) -> int:
            mine.append(fd)
            return fd

        output, child_output = os.pipe()
        null = pass_on(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        descriptors = {0: null, 1: pass_on(child_output), 2: child_output}
        descriptors[sandbox.CONFIG_FD] = pass_on(memory_file("config", part["config"].encode()))
        descriptors[sandbox.LISTEN_FD] = self._listeners[name]
        command = [spec["python"], "-I", *part["program"], "--config", f"fd:{sandbox.CONFIG_FD}"]
        command += ["--listen", f"fd:{sandbox.LISTEN_FD}"]
        if name == "runner":
            descriptors[sandbox.GATEWAY_FD] = self._listeners["gateway"]
            command += ["--gateway", f"fd:{sandbox.GATEWAY_FD}"]
        command += ["--project", spec["project"]]
        info = block = -1
        if self._isolated:
            launch, info, block = self._sandboxed(name, command, descriptors, pass_on)
        else:
            launch = Launch([*drop_to(spec["tools"]["setpriv"], None), *command], descriptors)
            launch.environment = part["environment"]
            launch.directory = part["directory"]
        launch.limits[resource.RLIMIT_NOFILE] = spec["limits"]["nofile"]
        if name == "runner":
            self._limit_user(launch)
        elif self._isolated:
            # what people make it hold in memory ends it, not the machine
            launch.limits[resource.RLIMIT_DATA] = self.spec["limits"]["memory"]
        member: Member = getattr(self, name)
        member.started(launch.start(), output)
        for fd in mine:
            os.close(fd)
        return info, block

    def _limit_user(self, launch: Launch) -> None:
        launch.limits[resource.RLIMIT_FSIZE] = self.spec["limits"]["file_size"]
        launch.oom_score = _USER_OOM_SCORE
        launch.groups = self.groups
        if self._isolated and "memory" not in self._limited:
            # not RLIMIT_AS: node and the JVM reserve far more address space than they use
            launch.limits[resource.RLIMIT_DATA] = self.spec["limits"]["memory"]

    def _sandboxed(
        self, name: str, command: list[str], descriptors: dict[int, int], pass_on: Any
    ) -> tuple[Launch, int, int]:
        spec = self.spec
        runner = name == "runner"
        made_up = sandbox.made_up_files(bool(spec["tools"]["slirp4netns"]), network.RESOLVER)
        if not runner:
            made_up = {path: made_up[path] for path in ("/etc/passwd", "/etc/group")}
        files = {}
        for i, (path, text) in enumerate(made_up.items()):
            if path not in spec["extra_binds"]:
                files[path] = sandbox.FILES_FD + i
                descriptors[files[path]] = pass_on(memory_file("file", text.encode()))
        build = sandbox.runner_arguments if runner else sandbox.worker_arguments
        arguments = build(spec, self._stage, files, self._filter is not None)
        descriptors[sandbox.ARGS_FD] = pass_on(
            memory_file("arguments", b"".join(a.encode() + b"\0" for a in arguments))
        )
        if self._filter is not None:
            descriptors[sandbox.SECCOMP_FD] = pass_on(memory_file("filter", self._filter))
        limited = spec["limits"]["pids"] if runner and "pids" not in self._limited else None
        script = sandbox.script(command, [sandbox.SCRIPT_FD], limited)
        descriptors[sandbox.SCRIPT_FD] = pass_on(memory_file("start", script.encode()))
        info, child_info = os.pipe()
        descriptors[sandbox.INFO_FD] = pass_on(child_info)
        block = -1
        if runner:
            child_block, block = os.pipe()
            descriptors[sandbox.BLOCK_FD] = pass_on(child_block)
        launch = Launch(
            [
                *drop_to(spec["tools"]["setpriv"], spec["uid"]),
                *(spec["tools"]["bwrap"], "--args", str(sandbox.ARGS_FD), "--"),
                *("/bin/sh", f"/proc/self/fd/{sandbox.SCRIPT_FD}"),
            ],
            descriptors,
        )
        return launch, info, block

    def _settle(self, name: str, info: int, block: int) -> None:
        member: Member = getattr(self, name)
        member.init = read_child_pid(info, _START_SECONDS)
        if not member.init:
            raise RuntimeError(f"the sandbox of the {name} did not start")
        if block >= 0:
            if self.spec["tools"]["slirp4netns"]:
                self._connect(member.init)
            os.write(block, b"1")
        member.wait_for_program(_PROGRAM_SECONDS)

    def _connect(self, init: int) -> None:
        self.disconnect()
        self._namespace = network.Namespace(init)
        self.start_helper()

    def start_helper(self) -> None:
        """Give the runner its way out. Without one it runs all the same, with a warning."""
        namespace = self._namespace
        if namespace is None:
            return
        problem = namespace.prohibit(self._own_addresses)
        if not problem:
            problem = self._launch_helper(namespace)
        if not problem:
            problem = namespace.open_way_out(self.spec["allow_networks"])
            if problem:
                self._end_helper()  # better no network than one without its limits
        if problem:
            self._warn(f"programs have no network: {problem}")

    def _launch_helper(self, namespace: network.Namespace) -> str:
        output, child_output = os.pipe()
        ready, child_ready = os.pipe()
        child_exit, self._exit_fd = os.pipe()
        null = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        command = network.helper_command(self.spec["tools"]["slirp4netns"], 3, 4, 5, 6)
        # root is needed only where /dev/net/tun is root's
        tun_for_all = os.stat("/dev/net/tun").st_mode & 0o006 == 0o006
        user = self.spec["uid"] if tun_for_all else None
        launch = Launch(
            [*drop_to(self.spec["tools"]["setpriv"], user), *command],
            {
                **{0: null, 1: child_output, 2: child_output},
                **{3: namespace.net, 4: namespace.user, 5: child_ready, 6: child_exit},
            },
        )
        self.helper.started(launch.start(), output)
        for fd in (null, child_output, child_ready, child_exit):
            os.close(fd)
        answer = network.wait_readable(ready, 5.0)
        os.close(ready)
        return "" if answer else "slirp4netns did not start (see supervisor.log)"

    def disconnect(self) -> None:
        """End the helper, if any, and let go of the namespace."""
        self._end_helper()
        if self._exit_fd >= 0:
            os.close(self._exit_fd)
            self._exit_fd = -1
        if self._namespace is not None:
            self._namespace.close()
            self._namespace = None

    def _end_helper(self) -> None:
        if self.helper.running:
            self.helper.kill()
            self.helper.reap()

    @property
    def connected(self) -> bool:
        """Whether the runner has, or should have, a helper."""
        return self._namespace is not None
