"""The ``codevo`` command."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from codevo.app import Codevo
    from codevo.objects.config import Bucket
    from codevo.store import Store

_USAGE = """\
usage: codevo [serve] [--ip IP] [--port PORT] [--data-dir DIR] [--config FILE] [--Class.trait=value …]
       codevo user add NAME [--admin] [--email E] [--password-file F]
       codevo user passwd NAME [--password-file F]
       codevo token NAME [--note TEXT] [--expires-in SECONDS]
       codevo templates list
       codevo project export ID FILE.tar.zst
       codevo gc [--dry-run]
       codevo doctor

The commands take --data-dir and --config too. codevo --help-all lists every setting of the hub.
"""


class CommandError(Exception):
    """A command failed; the text is for people."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; give its exit code: 0 done, 1 failed, 2 wrongly called."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("user", "token", "templates", "project", "gc", "doctor"):
        return _command(arguments)
    if arguments[:1] == ["serve"]:
        arguments = arguments[1:]
    elif arguments and not arguments[0].startswith("-"):
        print(f"codevo: there is no command {arguments[0]!r}\n\n{_USAGE}", end="", file=sys.stderr)
        return 2
    if arguments and arguments[0] in ("-h", "--help"):
        print(_USAGE, end="")
        return 0
    app = _application(arguments)
    return 2 if app is None else app.start()


def _application(arguments: list[str]) -> Codevo | None:
    from traitlets import TraitError
    from traitlets.config.loader import ArgumentError, ConfigError

    from codevo.app import Codevo

    app = Codevo()
    try:
        app.initialize(arguments)
    except (TraitError, ArgumentError, ConfigError) as e:
        print(f"codevo: {e}", file=sys.stderr)
        return None
    return app


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--data-dir", help="the hub's data directory")
    common.add_argument("--config", help="the hub's configuration file")
    parser = argparse.ArgumentParser(prog="codevo", description="Commands for a Codevo hub.")
    nouns = parser.add_subparsers(required=True, metavar="COMMAND")

    verbs = nouns.add_parser("user", help="people").add_subparsers(required=True, metavar="VERB")
    add = verbs.add_parser("add", parents=[common], help="add a person")
    add.add_argument("name")
    add.add_argument("--admin", action="store_true", help="make them an administrator")
    add.add_argument("--email", default="")
    add.set_defaults(run=_user_add)
    passwd = verbs.add_parser("passwd", parents=[common], help="set a password and end the sessions")
    passwd.add_argument("name")
    passwd.set_defaults(run=_user_passwd)
    for sub in (add, passwd):
        sub.add_argument("--password-file", help="read the password from this file (- for standard input)")

    token = nouns.add_parser("token", parents=[common], help="make an API token and print it")
    token.add_argument("name")
    token.add_argument("--note", default="made by codevo token")
    token.add_argument("--expires-in", type=int, metavar="SECONDS")
    token.set_defaults(run=_token)

    verbs = nouns.add_parser("templates", help="starter projects").add_subparsers(
        required=True, metavar="VERB"
    )
    listing = verbs.add_parser(
        "list", parents=[common], help="what projects can start from, and what is missing for it"
    )
    listing.set_defaults(run=_templates)

    verbs = nouns.add_parser("project", help="projects").add_subparsers(required=True, metavar="VERB")
    export = verbs.add_parser("export", parents=[common], help="write a project's files into an archive")
    export.add_argument("id")
    export.add_argument("file", help="a new file, FILE.tar.zst")
    export.set_defaults(run=_export)

    gc = nouns.add_parser("gc", parents=[common], help="delete the objects that nothing reaches")
    gc.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    gc.add_argument(
        "--force", action="store_true", help="also when the database knows fewer than half of the projects"
    )
    gc.set_defaults(run=_gc)

    nouns.add_parser(
        "doctor", parents=[common], help="what is installed, and how to get what is missing"
    ).set_defaults(run=_doctor)
    return parser


def _command(arguments: list[str]) -> int:
    try:
        asked = _parser().parse_args(arguments)
    except SystemExit as e:  # argparse has said why
        return int(e.code or 0)
    run: Callable[[argparse.Namespace], int] = asked.run
    try:
        return run(asked)
    except CommandError as e:
        print(f"codevo: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _doctor(_: argparse.Namespace) -> int:
    from codevo import doctor

    return doctor.run()


# commands that need the database


def _offline(
    asked: argparse.Namespace,
    work: Callable[[Codevo, Store, Bucket | None], Coroutine[Any, Any, int]],
    *,
    s3: bool,
) -> int:
    from codevo.lifecycle import StartError

    arguments = ["--log-level=WARN"]
    if asked.data_dir:
        arguments.append(f"--data-dir={asked.data_dir}")
    if asked.config:
        arguments.append(f"--config={asked.config}")
    app = _application(arguments)
    if app is None:
        return 2

    async def run() -> int:
        async with _stores(app, s3=s3) as (store, bucket):
            return await work(app, store, bucket)

    try:
        return asyncio.run(run())
    except StartError as e:
        raise CommandError(str(e)) from e


@contextlib.asynccontextmanager
async def _stores(app: Codevo, *, s3: bool) -> AsyncIterator[tuple[Store, Bucket | None]]:
    """The stores of a hub: those of the one that runs, else the embedded ones for as long as this takes."""
    from codevo import datadir
    from codevo.lifecycle import StartError, open_running, open_stores

    async with contextlib.AsyncExitStack() as stack:
        try:
            data_dir = datadir.prepare(Path(app.data_dir))
            try:
                stack.enter_context(datadir.lock(data_dir))
            except datadir.InUse:
                opened = await stack.enter_async_context(open_running(app, data_dir, s3=s3))
            else:
                opened = await stack.enter_async_context(open_stores(app, data_dir, s3=s3))
        except datadir.DataDirError as e:
            raise StartError(str(e)) from e
        store, _, bucket = opened
        yield store, bucket


def _password(asked: argparse.Namespace) -> str:
    if asked.password_file == "-":
        return sys.stdin.readline().rstrip("\r\n")
    if asked.password_file:
        try:
            return Path(asked.password_file).read_text("utf-8").rstrip("\r\n")
        except OSError as e:
            raise CommandError(f"--password-file: {asked.password_file}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise CommandError(f"--password-file: {asked.password_file} is not UTF-8 text") from e
    if not sys.stdin.isatty():
        raise CommandError("There is no terminal to ask for the password: use --password-file FILE.")
    first = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != first:
        raise CommandError("The two differ.")
    return first


def _user_add(asked: argparse.Namespace) -> int:
    from codevo.auth.accounts import AccountError

    password = _password(asked)

    async def work(app: Codevo, store: Store, bucket: Bucket | None) -> int:
        accounts = _accounts(app, store)
        try:
            user = await accounts.create(asked.name, password, email=asked.email, admin=asked.admin)
        except AccountError as e:
            raise CommandError(str(e)) from e
        finally:
            accounts.close()
        print(f"Added {user.name}{', an administrator' if user.admin else ''}.")
        return 0

    return _offline(asked, work, s3=False)


def _user_passwd(asked: argparse.Namespace) -> int:
    from codevo.auth.accounts import AccountError

    password = _password(asked)

    async def work(app: Codevo, store: Store, bucket: Bucket | None) -> int:
        user = await store.users.by_name(asked.name)
        if user is None:
            raise CommandError(f"There is nobody called {asked.name}.")
        accounts = _accounts(app, store)
        try:
            await accounts.set_password(user, password)
        except AccountError as e:
            raise CommandError(str(e)) from e
        finally:
            accounts.close()
        print(f"{user.name} has a new password; all sessions are over.")
        return 0

    return _offline(asked, work, s3=False)


def _accounts(app: Codevo, store: Store) -> Any:
    from codevo.auth.accounts import Accounts
    from codevo.auth.passwords import Passwords

    return Accounts(store, Passwords(rounds=app.bcrypt_rounds), xsrf_key=b"")


def _token(asked: argparse.Namespace) -> int:
    if asked.expires_in is not None and not 0 < asked.expires_in <= 10 * 366 * 86400:
        raise CommandError("--expires-in: expected seconds, at most ten years.")

    async def work(app: Codevo, store: Store, bucket: Bucket | None) -> int:
        user = await store.users.by_name(asked.name)
        if user is None:
            raise CommandError(f"There is nobody called {asked.name}.")
        if user.disabled:
            raise CommandError(f"The account of {user.name} is disabled.")
        _, text = await store.tokens.create(
            user.id, note=asked.note, scopes=("all",), seconds=asked.expires_in
        )
        print(text)
        return 0

    return _offline(asked, work, s3=False)


def _templates(_: argparse.Namespace) -> int:
    from codevo.objects.templates import Tools, load_templates

    tools = Tools()
    found = asyncio.run(load_templates())
    width = max((len(t.name) for t in found), default=0)
    for template in found:
        why_not = tools.why_not(template)
        print(
            f"{template.name:<{width}}  {template.title}"
            + (f" (not available: {why_not})" if why_not else "")
        )
    return 0


def _export(asked: argparse.Namespace) -> int:
    target = Path(asked.file)
    if target.exists():
        raise CommandError(f"{target} is there already.")

    async def work(app: Codevo, store: Store, bucket: Bucket | None) -> int:
        from codevo.objects.config import project_prefix
        from pod_runtime.journal import projects as journal
        from pod_runtime.journal.store import StoreError

        project = await store.projects.get(asked.id)
        if project is None or bucket is None:
            raise CommandError(f"There is no project {asked.id}.")
        # written beside and renamed: half an archive never bears the name that was asked for
        part = target.with_name(target.name + ".part")
        try:
            with part.open("xb") as f:  # nothing else runs here
                async for chunk in journal.export(bucket.store, project_prefix(project.id)):
                    f.write(chunk)
            part.rename(target)
        except (OSError, StoreError) as e:
            raise CommandError(f"The export failed: {e}") from e
        finally:
            part.unlink(missing_ok=True)
        print(f"{target}: {target.stat().st_size} bytes, “{project.title}” as it was last saved.")
        return 0

    return _offline(asked, work, s3=True)


def _gc(asked: argparse.Namespace) -> int:
    async def work(app: Codevo, store: Store, bucket: Bucket | None) -> int:
        from codevo.objects.gc import Collector, Finding, Suspicious, words
        from codevo.objects.templates import load_templates
        from pod_runtime.journal.store import StoreError

        assert bucket is not None

        def tell(found: Finding) -> None:
            if found.problem:
                print(f"codevo: {found.what}: {found.why}", file=sys.stderr)
            else:
                print(f"{found.what}: {found.why}: {_objects(found.objects)}, {words(found.bytes)}")

        current = [t.snapshot for t in await load_templates()]
        collector = Collector(
            store, bucket.inventory, current, tell=tell, dry_run=asked.dry_run, force=asked.force
        )
        try:
            totals = await collector.run()
        except (StoreError, Suspicious) as e:
            raise CommandError(str(e)) from e
        done = "Would delete" if asked.dry_run else "Deleted"
        print(f"{done} {_objects(totals.objects)}, {words(totals.bytes)}.")
        return 1 if totals.problems else 0

    return _offline(asked, work, s3=True)


def _objects(n: int) -> str:
    return "1 object" if n == 1 else f"{n} objects"


if __name__ == "__main__":
    sys.exit(main())
