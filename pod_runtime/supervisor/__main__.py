"""``python -I -S …/pod_runtime/supervisor --project ID --spec fd:N --ready fd:M``.

Detaches itself, starts the workspace that the spec describes, and writes one JSON object to ``--ready``:
the first status, or ``{"error": text}``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
import time


def take(lock: int) -> bool:
    """Lock; with some patience, since the supervisor before this one may still be on its way out."""
    deadline = time.monotonic() + 3.0
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    spec_fd, ready_fd = (int(arguments[name].removeprefix("fd:")) for name in ("--spec", "--ready"))
    # a session of its own, and no child of the hub's
    os.setsid()
    if os.fork():
        os._exit(0)
    from pod_runtime.supervisor.control import Control, bind_listener
    from pod_runtime.supervisor.logs import Log
    from pod_runtime.supervisor.supervisor import Supervisor
    from pod_runtime.supervisor.workspace import Workspace

    os.set_inheritable(ready_fd, False)
    with os.fdopen(spec_fd, "rb") as f:
        spec = json.loads(f.read())
    run = spec["run"]
    log = Log(f"{run}/supervisor.log")

    def answer(message: dict[str, object]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the hub is gone; the workspace stays
            os.write(ready_fd, json.dumps(message).encode() + b"\n")
        os.close(ready_fd)

    lock = os.open(f"{run}/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not take(lock):
        answer({"error": "another supervisor of this workspace still runs"})
        return
    listeners = {name: bind_listener(run, f"{name}.sock") for name in ("runner", "gateway", "worker")}
    workspace = Workspace(spec, {name: s.fileno() for name, s in listeners.items()}, log)
    control = Control(bind_listener(run, "supervisor.sock"))
    supervisor = Supervisor(workspace, control, log)
    problem = supervisor.start()
    if problem:
        log.write("supervisor", f"failed to start: {problem}")
        answer({"error": problem})
        return
    with open(f"{run}/cgroups", "w") as groups:
        groups.write("\n".join(workspace.groups))
    answer(supervisor.status())
    supervisor.run()
    for name in ("runner", "gateway", "worker", "supervisor"):
        os.unlink(f"{run}/{name}.sock")


if __name__ == "__main__":
    # run by path: the first entry is this folder, whose modules must not stand before the standard library's
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    del sys.path[0]
    main()
