"""Stands in for runner and worker in tests of LocalSpawner: answers what it is asked over its socket.

One JSON request a connection: {"run": [argv], "timeout": s} runs a program, {"eval": "…"} evaluates Python.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading


def serve(sock: socket.socket, role: str, config: dict) -> None:
    while True:
        connection, _ = sock.accept()
        threading.Thread(target=answer, args=(connection, role, config), daemon=True).start()


def answer(connection: socket.socket, role: str, config: dict) -> None:
    with connection, connection.makefile("rwb") as stream:
        line = stream.readline()
        if not line:
            return
        request = json.loads(line)
        if "run" in request:
            try:
                done = subprocess.run(
                    request["run"],
                    env=config.get("environment"),
                    cwd=config["workspace"],
                    capture_output=True,
                    timeout=request.get("timeout", 20),
                    text=True,
                    errors="replace",
                )
                result = {"code": done.returncode, "out": done.stdout[-20000:], "err": done.stderr[-20000:]}
            except subprocess.TimeoutExpired:
                result = {"code": None, "out": "", "err": "timeout"}
            except OSError as e:
                result = {"code": -1, "out": "", "err": repr(e)}
        elif "eval" in request:
            try:
                result = {"value": eval(request["eval"], {"os": os, "socket": socket, "config": config})}
            except BaseException as e:
                result = {"error": f"{type(e).__name__}: {e}"}
        else:
            result = {"role": role, "pid": os.getpid(), "config": config}
        stream.write(json.dumps(result, default=repr).encode() + b"\n")


def main() -> None:
    arguments = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
    with os.fdopen(int(arguments["--config"][3:]), "rb") as f:
        config = json.loads(f.read())
    role = "runner" if "--gateway" in arguments else "worker"
    crash = os.path.join(config["workspace"], f"crash-{role}")

    def terminate(*_: object) -> None:
        with open(os.path.join(config["workspace"], "ended"), "a") as f:
            f.write(role + "\n")
        os._exit(0)

    signal.signal(signal.SIGTERM, terminate)
    if os.path.exists(os.path.join(config["workspace"], f"stubborn-{role}")):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.path.exists(crash):
        sys.exit(f"{role} crashes because it was told to")
    for name in ("--listen", "--gateway"):
        if name in arguments:
            sock = socket.socket(fileno=int(arguments[name][3:]))
            sock.setblocking(True)
            threading.Thread(target=serve, args=(sock, role, config), daemon=True).start()
    while True:
        signal.pause()


main()
