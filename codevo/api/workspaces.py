"""What the handlers about projects share: a project as JSON, and the managers' exceptions as problems."""

from __future__ import annotations

import asyncio
import contextlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from codevo.api.problems import Problem, too_many, unavailable
from codevo.hub import Hub
from codevo.objects.archive_readers import Refused
from codevo.objects.projects import NotFlushed, TooManyProjects
from codevo.objects.templates import TemplateUnavailable, UnknownTemplate
from codevo.servers import ServersBusy, ServerStatus, TooManyRunning
from codevo.spawner.base import ServerState, SpawnError
from codevo.store import Member, Project, Role, User, rfc3339
from pod_runtime.journal.store import StoreError

MAX_TITLE = 100
_UNPRINTABLE = frozenset({"Cc", "Cs", "Co", "Zl", "Zp"})
_BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What managers raise, as answers."""
    try:
        yield
    except (TooManyProjects, TooManyRunning) as e:
        raise Problem(409, str(e), code="quota") from e
    except UnknownTemplate as e:
        raise Problem(400, f"There is no such {e.args[0]}.", field="template", code="invalid") from e
    except TemplateUnavailable as e:
        raise Problem(409, str(e), field="template", code="template-unavailable") from e
    except ServersBusy as e:
        raise too_many(e.retry_after, str(e)) from e
    except (NotFlushed, SpawnError) as e:
        raise unavailable(str(e)) from e
    except Refused as e:
        status = 413 if e.too_large else 400
        raise Problem(status, str(e), field="archive", code="too-large" if e.too_large else "archive") from e
    except StoreError as e:
        raise unavailable("The object store does not answer. Nothing is lost; try again shortly.") from e


def clean_title(value: str) -> str:
    """A project's title without surrounding white space. 400 unless it is 1–100 printable characters."""
    title = value.strip()
    if not 1 <= len(title) <= MAX_TITLE:
        raise Problem(400, f"title: expected 1 to {MAX_TITLE} characters.", field="title", code="invalid")
    if any(unicodedata.category(c) in _UNPRINTABLE or c in _BIDI for c in title):
        raise Problem(400, "title: control characters are not allowed.", field="title", code="invalid")
    return title


def clean_origin(value: str, field: str) -> str:
    """``https://host[:port]`` in its one canonical form. 400 for anything else: it goes into a header."""
    with contextlib.suppress(ValueError):
        parts = urlsplit(value)
        host, port = parts.hostname or "", parts.port
        bare = f"{parts.scheme}://{parts.netloc}"
        local = host == "localhost" or host.endswith(".localhost") or host.startswith("127.")
        if (
            value.lower().rstrip("/") == bare.lower()
            and "@" not in parts.netloc
            and (parts.scheme == "https" or (parts.scheme == "http" and local))
            and _HOST.fullmatch(host)
            and port != 0
        ):
            standard = {"https": 443, "http": 80}[parts.scheme]
            return f"{parts.scheme}://{host}" + (f":{port}" if port not in (None, standard) else "")
    raise Problem(
        400,
        f"{field}: expected an origin such as https://example.org (http only for localhost).",
        field=field,
        code="invalid",
    )


def server_json(status: ServerStatus) -> dict[str, Any]:
    """A server as every answer about it has it."""
    return {
        "state": str(status.state),
        "reason": status.reason,
        "since": rfc3339(status.since),
        "percent": status.percent,
        "message": status.message,
    }


def progress_json(status: ServerStatus) -> dict[str, Any]:
    """One event of the progress stream."""
    return {
        "state": str(status.state),
        "progress": status.percent,
        "message": status.reason or status.message,
        "ready": status.state is ServerState.READY,
        "failed": status.state is ServerState.FAILED,
    }


def project_json(
    hub: Hub, project: Project, role: Role, members: Sequence[Member], users: dict[str, User]
) -> dict[str, Any]:
    """A project as in lists. ``members`` are its own, in the order of joining; ``users`` holds the owner."""
    owner = next((m.user for m in members if m.role is Role.OWNER), "")
    name = users[owner].name if owner in users else ""
    return {
        "id": project.id,
        "title": project.title,
        "template": project.template,
        "visibility": str(project.visibility),
        "role": str(role),
        "owner": {"name": name},
        "created": rfc3339(project.created),
        "updated": rfc3339(project.updated),
        "last_activity": rfc3339(project.last_activity),
        "server": server_json(hub.servers.status(project.id)),
        "urls": {
            "ide": f"{hub.origin}/projects/{project.id}",
            "preview": f"{hub.scheme}://{project.id}.{hub.preview_domain}/",
            "base": f"{hub.origin}/p/{project.id}/",
        },
    }


async def one_project(hub: Hub, project: Project, role: Role, user: User | None) -> dict[str, Any]:
    """A project as it is answered alone: for its members with the members, for owners with the settings."""
    members = await hub.store.members.of_project(project.id)
    users = await hub.store.users.get_many(m.user for m in members)
    found = project_json(hub, project, role, members, users)
    if user is not None and any(m.user == user.id for m in members):
        found["members"] = members_json(members, users)
    if role is Role.OWNER:
        found["settings"] = {
            "public_ports": list(project.settings.public_ports),
            "embed_origins": list(project.settings.embed_origins),
            "wake": project.settings.wake,
        }
    return found


def members_json(members: Sequence[Member], users: dict[str, User]) -> list[dict[str, str]]:
    """``[{name, role}]``; people whose account is gone are left out."""
    return [{"name": users[m.user].name, "role": str(m.role)} for m in members if m.user in users]


async def owner_of(hub: Hub, project: str) -> str:
    """The user id that a project counts for: its first owner. 404 when it has none (it is being deleted)."""
    members = await hub.store.members.of_project(project)
    for member in members:
        if member.role is Role.OWNER:
            return member.user
    raise Problem(404, "There is no such project.", code="project")


async def end_right(hub: Hub, project: str, subject: str) -> None:
    """Somebody's role has changed or ended: their tokens and sockets of before end now."""
    await hub.pods.end_right(project, subject)


async def end_strangers(hub: Hub, project: str) -> None:
    """A project is public no longer: whoever looks at it without being a member is sent away."""
    members = {m.user for m in await hub.store.members.of_project(project)}
    strangers = hub.pods.relays.subjects(project) - members
    await asyncio.gather(*(end_right(hub, project, s) for s in strangers))
