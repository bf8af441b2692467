"""The connection to MongoDB and the collections behind it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from motor.motor_asyncio import AsyncIOMotorClient

from codevo.store.invites import Invites
from codevo.store.members import Members
from codevo.store.previews import PreviewCodes
from codevo.store.projects import Projects
from codevo.store.sessions import Sessions
from codevo.store.tokens import Tokens
from codevo.store.users import Users

log = logging.getLogger(__name__)


class Store:
    """Every collection of one installation.

    Methods raise `StoreUnavailable` within a few seconds when MongoDB is away; the driver reconnects by
    itself, so the next call after it is back succeeds.
    """

    def __init__(self, url: str, database: str = "codevo", *, timeout: float = 2.0) -> None:
        """``timeout`` bounds the wait for a reachable server, in seconds."""
        milliseconds = int(timeout * 1000)
        self._client: Any = AsyncIOMotorClient(
            url,
            tz_aware=True,
            appname="codevo",
            serverSelectionTimeoutMS=milliseconds,
            connectTimeoutMS=milliseconds,
            # a read is tried twice, so a server that hangs is given up after twice this
            socketTimeoutMS=max(3000, milliseconds),
            waitQueueTimeoutMS=milliseconds,
            maxPoolSize=50,
            w="majority",
            journal=True,
        )
        self._db = self._client[database]
        self.users = Users(self._db)
        self.sessions = Sessions(self._db)
        self.tokens = Tokens(self._db)
        self.projects = Projects(self._db)
        self.members = Members(self._db)
        self.invites = Invites(self._db)
        self.preview_codes = PreviewCodes(self._db)

    async def open(self) -> None:
        """Make the indexes. Raises `StoreUnavailable`."""
        await self.ping()
        await asyncio.gather(
            *(
                collection.create_indexes()
                for collection in (
                    self.users,
                    self.sessions,
                    self.tokens,
                    self.projects,
                    self.members,
                    self.invites,
                    self.preview_codes,
                )
            )
        )

    async def ping(self) -> None:
        """Raises `StoreUnavailable` when the database does not answer."""
        await self._db.command("ping")

    async def close(self) -> None:
        """Let go of the connections."""
        self._client.close()

    async def delete_project(self, project: str) -> None:
        """Forget a project with its members, invites and codes. The project goes last, so that an
        interrupted deletion can be repeated."""
        await asyncio.gather(
            self.invites.delete_of(project),
            self.preview_codes.delete_of(project),
            self.members.delete_of(project),
        )
        await self.projects.delete(project)
