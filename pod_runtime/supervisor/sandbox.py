"""What the sandboxes of runner and worker look like, as arguments of bubblewrap."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

# Descriptors inside the sandbox. The scripts close what the program itself does not need.
CONFIG_FD, LISTEN_FD, GATEWAY_FD, SCRIPT_FD, ARGS_FD, SECCOMP_FD, INFO_FD = 3, 4, 5, 6, 7, 8, 9
BLOCK_FD, FILES_FD = 10, 11  # FILES_FD and up: made-up files

_UID = 1000
_ETC = (
    *("alternatives", "ssl", "ca-certificates", "ca-certificates.conf", "pki", "ld.so.cache", "ld.so.conf"),
    *("ld.so.conf.d", "localtime", "timezone", "mime.types", "magic", "magic.mime", "services", "protocols"),
    *(
        "bash.bashrc",
        "inputrc",
        "terminfo",
        "locale.alias",
        "fonts",
        "gitconfig",
        "java-17-openjdk",
        "java-21-openjdk",
    ),
    *("perl", "python3", "python3.11", "python3.12", "python3.13", "os-release", "debian_version", "vim"),
)
_NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n"


def made_up_files(network: bool, resolver: str) -> dict[str, str]:
    """Files of /etc whose host versions would tell about the host, or be wrong."""
    return {
        "/etc/passwd": (
            f"root:x:0:0:root:/:/usr/sbin/nologin\ncodevo:x:{_UID}:{_UID}:codevo:/home/codevo:/bin/bash\n"
            "nobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
        ),
        "/etc/group": f"root:x:0:\ncodevo:x:{_UID}:\nnogroup:x:65534:\n",
        "/etc/hosts": "127.0.0.1 localhost codevo\n::1 localhost\n",
        "/etc/hostname": "codevo\n",
        "/etc/nsswitch.conf": _NSSWITCH,
        **({"/etc/resolv.conf": f"nameserver {resolver}\noptions timeout:3\n"} if network else {}),
    }


def _common(spec: dict[str, Any], stage: Callable[[str], str]) -> list[str]:
    args = ["--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    args += ["--die-with-parent", "--new-session", "--cap-drop", "ALL", "--clearenv"]
    args += ["--uid", str(_UID), "--gid", str(_UID), "--hostname", "codevo"]
    args += ["--disable-userns", "--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        if os.path.islink(f"/{name}"):
            args += ["--symlink", os.readlink(f"/{name}"), f"/{name}"]
        elif os.path.isdir(f"/{name}"):
            args += ["--ro-bind", f"/{name}", f"/{name}"]
    for name in _ETC:
        args += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    args += ["--proc", "/proc", "--dev", "/dev"]
    args += ["--perms", "1777", "--size", str(spec["limits"]["tmpfs"]), "--tmpfs", "/tmp"]  # noqa: S108
    args += ["--perms", "1777", "--size", str(spec["limits"]["tmpfs"]), "--tmpfs", "/dev/shm"]  # noqa: S108
    args += ["--perms", "1777", "--size", "16777216", "--tmpfs", "/var/tmp", "--dir", "/run"]  # noqa: S108
    for path in (*spec["runtime"], *spec["extra_binds"]):
        args += ["--ro-bind-try", stage(path), path]
    return args


def _finish(environment: dict[str, str], chdir: str, files: dict[str, int], seccomp: bool) -> list[str]:
    args = []
    for path, fd in files.items():
        args += ["--perms", "0444", "--ro-bind-data", str(fd), path]
    for name, value in environment.items():
        args += ["--setenv", name, value]
    if seccomp:
        args += ["--seccomp", str(SECCOMP_FD)]
    # Both are tmpfs, which would otherwise take the user's files without a size limit.
    return [*args, "--remount-ro", "/", "--remount-ro", "/dev", "--info-fd", str(INFO_FD), "--chdir", chdir]


def runner_arguments(
    spec: dict[str, Any], stage: Callable[[str], str], files: dict[str, int], seccomp: bool
) -> list[str]:
    """User code's sandbox: its own network namespace; waits on BLOCK_FD until that is configured."""
    args = ["--unshare-net", *_common(spec, stage)]
    args += ["--bind", stage(spec["home"]), "/home/codevo"]
    args += ["--bind", stage(spec["workspace"]), "/workspace"]
    args += _finish(spec["runner"]["environment"], "/workspace", files, seccomp)
    return [*args, "--block-fd", str(BLOCK_FD)]


def worker_arguments(
    spec: dict[str, Any], stage: Callable[[str], str], files: dict[str, int], seccomp: bool
) -> list[str]:
    """The worker's sandbox: the host's network, which leads to the object store; never the user's home."""
    args = _common(spec, stage)
    for path in ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf"):
        # bubblewrap binds what a link (systemd-resolved's) leads to
        args += ["--ro-bind-try", path, path]
    args += ["--bind", stage(spec["workspace"]), "/workspace", "--bind", stage(spec["state"]), "/state"]
    return args + _finish(spec["worker"]["environment"], "/state", files, seccomp)


def _quote(word: str) -> str:
    return "'" + word.replace("'", "'\\''") + "'"


def script(command: list[str], close: list[int], processes: int | None) -> str:
    """A shell script that becomes ``command``.

    bubblewrap gets it by descriptor, so that only the program itself shows the program's command line.
    ``processes`` limits the user's processes where no cgroup does: set inside the sandbox's user namespace,
    in which the kernel counts on its own.
    """
    lines = ["exec " + " ".join(f"{fd}<&-" for fd in close)]
    if processes is not None:
        lines.append(f"ulimit -p {processes} 2>/dev/null || ulimit -u {processes}")
    return "\n".join([*lines, "exec " + " ".join(map(_quote, command))]) + "\n"
