"""``python -m pod_runtime.runner``; the options are in docs/internals.md."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import sys

from pod_runtime.protocol.config import ConfigError, RunnerConfig, listening_socket, read_config

_USAGE = "usage: python -m pod_runtime.runner --config SRC --listen ADDR --gateway ADDR --project ID"
_PR_SET_DUMPABLE = 4
_OPTIONS = ("--config", "--listen", "--gateway", "--project")


def parse(arguments: list[str]) -> dict[str, str]:
    """The options; all are needed. Raises `ConfigError`. (argparse would cost 2 MiB of the idle budget.)"""
    if len(arguments) != 2 * len(_OPTIONS) or set(arguments[::2]) != set(_OPTIONS):
        raise ConfigError(_USAGE)
    return dict(zip(arguments[::2], arguments[1::2], strict=True))


def shut_debuggers_out() -> None:
    """Keep the user's programs, which run under the same user id, from our descriptors and memory.

    One member's program could otherwise take the listening socket (pidfd_getfd, ptrace) and answer the others
    in our place, or read their tokens. Programs that we start are debuggable again: exec undoes it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


async def serve(config: RunnerConfig, listen: str, gateway: str) -> None:
    """Run until SIGTERM or SIGINT."""
    from pod_runtime.runner.app import App

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, stopped.set)
    control, previews = listening_socket(listen), listening_socket(gateway)
    app = App(config, control, previews)
    await app.start()
    logging.getLogger("pod_runtime.runner").info(
        "serving on %s, previews on %s", control.getsockname(), previews.getsockname()
    )
    await stopped.wait()
    await app.stop()


def main() -> int:
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    try:
        shut_debuggers_out()
        options = parse(sys.argv[1:])
        config = RunnerConfig.from_json(read_config(options["--config"]))
        if config.project != options["--project"]:
            raise ConfigError("--project: the configuration is another project's")
        asyncio.run(serve(config, options["--listen"], options["--gateway"]))
    except (ConfigError, OSError, ValueError) as e:
        print(f"runner: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
