"""Starting one process with exactly the descriptors, limits and cgroups that it should have."""

from __future__ import annotations

import fcntl
import os
import resource
import signal

from pod_runtime.supervisor import cgroups, linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def memory_file(name: str, data: bytes) -> int:
    """A descriptor from which ``data`` can be read, once."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Launch:
    """How to start: ``descriptors`` maps numbers in the new process to ours; all others are closed."""

    def __init__(self, command: list[str], descriptors: dict[int, int]) -> None:
        self.command = command
        self.descriptors = descriptors
        self.environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
        self.limits: dict[int, int] = {resource.RLIMIT_CORE: 0}
        self.groups: list[str] = []
        self.oom_score = 0
        self.directory = "/"

    def start(self) -> int:
        """Fork and become the command; gives the pid. What fails in the child is said on its stderr."""
        pid = os.fork()
        if pid == 0:
            try:
                self._become()
            except BaseException as e:
                os.write(2, f"{self.command[0]}: {e}\n".encode("utf-8", "replace"))
            finally:
                os._exit(127)
        return pid

    def _become(self) -> NoReturn:
        linux.die_with_parent()
        # through numbers above all targets, since a target may be another's source
        high = {
            target: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for target, fd in self.descriptors.items()
        }
        for target, fd in high.items():
            os.dup2(fd, target, inheritable=True)
        # Python ignores these, and an ignored signal stays ignored through exec
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        cgroups.enter(self.groups)
        if self.oom_score:
            with open("/proc/self/oom_score_adj", "w") as f:
                f.write(str(self.oom_score))
        for kind, value in self.limits.items():
            hard = resource.getrlimit(kind)[1]
            capped = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (capped, capped))
        os.chdir(self.directory)
        os.execve(self.command[0], self.command, self.environment)  # noqa: S606


def drop_to(setpriv: str, uid: int | None) -> list[str]:
    """The prefix that makes a command run as ``uid`` (None: as we are), to die with us either way."""
    command = [setpriv, "--pdeathsig", "KILL"]
    if uid is not None:
        command += ["--reuid", str(uid), "--regid", str(uid), "--clear-groups"]
        command += ["--no-new-privs", "--bounding-set=-all"]
    return command


def only_child(pid: int) -> int | None:
    """The first child of ``pid``, which for bubblewrap's init is the program in the sandbox."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as f:
            words = f.read().split()
        return int(words[0]) if words else None
    except FileNotFoundError:
        pass
    except OSError:
        return None
    for name in os.listdir("/proc"):  # a kernel without CONFIG_PROC_CHILDREN
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as f:
                    if int(f.read().rpartition(")")[2].split()[1]) == pid:
                        return int(name)
            except (OSError, IndexError):
                continue
    return None
