"""The hub as a configurable application: ``codevo serve``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import signal
from pathlib import Path
from typing import Any

from tornado.netutil import bind_sockets
from traitlets import Bool, Enum, Int, List, TraitError, Type, Unicode, default, observe, validate
from traitlets.config import Application
from traitlets.config.application import ClassesType

from codevo import __version__, logs
from codevo.auth.origins import parse_origin
from codevo.objects.config import ObjectStore
from codevo.objects.projects import ProjectManager
from codevo.servers import ServerManager

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent


class Codevo(Application):
    """The hub: people, projects, and the way to their workspaces."""

    name = "codevo"
    version = __version__
    description = "The Codevo hub. Every setting below is also c.Class.name = value in --config FILE."

    config_file = Unicode("", help="A configuration file (Python or JSON).").tag(config=True)
    ip = Unicode("127.0.0.1", help="Address to listen on; 0.0.0.0 or :: for every one.").tag(config=True)
    port = Int(8000, min=0, max=65535, help="Port to listen on; 0 for any free one.").tag(config=True)
    data_dir = Unicode(
        "~/.local/share/codevo", help="Where keys, workspaces and the embedded services' data are."
    ).tag(config=True)
    mongo_url = Unicode("", help="MongoDB's URL. Empty: the embedded MongoDB is started.").tag(config=True)
    db_name = Unicode("codevo", help="Name of the database.").tag(config=True)
    signup = Bool(True, help="Whether people may make accounts by themselves.").tag(config=True)
    setup_code = Unicode(
        "",
        help="""What the first person who signs up from another machine must show.
        Empty: a random one, printed at the start.""",
    ).tag(config=True)
    public_url = Unicode(
        "",
        help="""The origin under which people reach the hub, such as https://codevo.example.org.
        Empty: http and the address that the hub listens on.""",
    ).tag(config=True)
    allowed_hosts = List(
        Unicode(),
        help="""More host names (name or name:port) that the hub answers to. The public URL's and, for
        visitors on this machine, loopback's are always allowed.""",
    ).tag(config=True)
    trusted_proxies = List(
        Unicode(),
        help="""Addresses of reverse proxies in front of the hub whose X-Forwarded-For and
        X-Forwarded-Proto are believed.""",
    ).tag(config=True)
    preview_domain = Unicode(
        "",
        help="""Domain under which every project's preview has its own name (host or host:port). In
        production another registrable domain than the hub's. Empty: localhost and the hub's port.""",
    ).tag(config=True)
    spawner_class = Type(
        "codevo.spawner.local.LocalSpawner",
        klass="codevo.spawner.base.Spawner",
        help="What runs workspaces: a subclass of codevo.spawner.base.Spawner.",
    ).tag(config=True)
    stop_workspaces_on_exit = Bool(
        help="""Whether an orderly stop of the hub saves and stops every workspace. Default: yes when they
        run on the hub's own machine."""
    ).tag(config=True)
    static_dir = Unicode(help="Where the built page is.").tag(config=True)
    bcrypt_rounds = Int(12, min=4, max=16, help="Cost of password hashes: 2 to this power.").tag(config=True)
    session_days = Int(30, min=1, max=366, help="How long a login lasts, days.").tag(config=True)
    login_attempts = Int(
        10, min=1, help="Failed logins per account in five minutes; six times as many per address."
    ).tag(config=True)
    max_upload = Int(512 * 2**20, min=2**20, help="Bytes of the largest upload.").tag(config=True)
    members_per_project = Int(100, min=1, help="How many members a project may have.").tag(config=True)
    tokens_per_user = Int(100, min=1, help="How many API tokens a person may have.").tag(config=True)
    log_json = Bool(False, help="Log one JSON object a line instead of words.").tag(config=True)
    log_level = Enum(
        ("DEBUG", "INFO", "WARN", "ERROR", "CRITICAL", 10, 20, 30, 40, 50),
        default_value="INFO",
        help="What is logged.",
    ).tag(config=True)

    aliases = {  # noqa: RUF012
        "ip": "Codevo.ip",
        "port": "Codevo.port",
        "data-dir": "Codevo.data_dir",
        "config": "Codevo.config_file",
        "log-level": "Codevo.log_level",
    }
    flags = {  # noqa: RUF012
        "debug": ({"Codevo": {"log_level": "DEBUG"}}, "Log everything."),
        "no-signup": ({"Codevo": {"signup": False}}, "Accounts are made by administrators only."),
    }
    classes: ClassesType = [ObjectStore, ServerManager, ProjectManager]  # noqa: RUF012

    @default("static_dir")
    def _default_static_dir(self) -> str:
        built = _HERE.parent / "static" / "dist"
        return str(built if (built / "index.html").is_file() else _HERE / "static")

    @default("stop_workspaces_on_exit")
    def _default_stop_workspaces(self) -> bool:
        return self.spawner_class.__module__ == "codevo.spawner.local"

    @validate("public_url")
    def _valid_public_url(self, proposal: Any) -> str:
        url = str(proposal["value"]).rstrip("/")
        if url and parse_origin(url) is None:
            raise TraitError("Codevo.public_url: expected an origin such as https://codevo.example.org")
        return url.lower()

    @validate("preview_domain")
    def _valid_preview_domain(self, proposal: Any) -> str:
        domain = str(proposal["value"]).lower()
        if domain and not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?", domain):
            raise TraitError("Codevo.preview_domain: expected a host name, optionally with :port")
        return domain

    @validate("db_name")
    def _valid_db_name(self, proposal: Any) -> str:
        name = str(proposal["value"])
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,60}", name):
            raise TraitError("Codevo.db_name: expected letters, digits, - and _")
        return name

    @observe("log_level", "log_json")
    def _set_up_logging(self, _: Any = None) -> None:
        logs.set_up(
            str(logging.getLevelName(self.log_level))
            if isinstance(self.log_level, int)
            else str(self.log_level),
            as_json=self.log_json,
        )

    @default("log")
    def _default_log(self) -> logging.Logger:
        return logging.getLogger("codevo")

    def _configure_logging(self) -> None:
        """Ours (`codevo.logs`), not traitlets' own."""
        self._set_up_logging()

    def initialize(self, argv: list[str] | None = None) -> None:
        """Read the command line, then the configuration file; the command line wins."""
        self.parse_command_line(argv)
        if self.config_file:
            path = Path(self.config_file).expanduser().resolve()
            if not path.is_file():
                raise TraitError(f"--config: there is no file {path}")
            self.load_config_file(path.stem, path=str(path.parent))
            self.update_config(self.cli_config)
        self._set_up_logging()

    def print_help(self, classes: bool = False) -> None:
        """Show the spawner's settings too (its module is read only now)."""
        if classes and self.spawner_class not in self.classes:
            self.classes = [*self.classes, self.spawner_class]
        super().print_help(classes)

    def start(self) -> int:  # type: ignore[override]
        """Serve until told to stop; give the exit code."""
        from codevo.lifecycle import StartError

        try:
            asyncio.run(self.serve())
        except StartError as e:
            log.critical("%s", e)
            return 1
        return 0

    async def serve(self) -> None:
        """Run the hub until SIGTERM or SIGINT. Raises `StartError`."""
        from codevo.lifecycle import StartError, open_hub, serve_hub

        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            sockets = bind_sockets(self.port, self.ip, backlog=256)
        except OSError as e:
            raise StartError(
                f"Cannot listen on {self.ip}:{self.port} ({e.strerror or e}). Choose another --port or --ip."
            ) from e
        port = sockets[0].getsockname()[1]
        address = f"[{self.ip}]" if ":" in self.ip else self.ip
        async with contextlib.AsyncExitStack() as stack:
            for sock in sockets:
                stack.callback(sock.close)
            opening = asyncio.ensure_future(stack.enter_async_context(open_hub(self, port)))
            stopping = asyncio.ensure_future(stop.wait())
            stack.callback(stopping.cancel)
            await asyncio.wait([opening, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():  # told to stop while starting
                opening.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await opening
                return
            hub = await opening
            async with serve_hub(hub, sockets):
                print(f"Codevo is ready at http://{address}:{port}", flush=True)
                await stopping
                log.info("stopping")
