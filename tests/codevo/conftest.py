"""A hub, and its store alone, for the tests of the hub's parts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from motor.motor_asyncio import AsyncIOMotorClient

from codevo.embedded.s3 import S3Settings
from codevo.store import Store
from tests.codevo.hub_site import Site, running_site


@pytest.fixture
async def store(mongo_url: str) -> AsyncIterator[Store]:
    """An open store on a database of its own."""
    name = f"test-{secrets.token_hex(6)}"
    found = Store(mongo_url, name)
    await found.open()
    yield found
    await found.close()
    client: Any = AsyncIOMotorClient(mongo_url)
    await client.drop_database(name)
    client.close()


@pytest.fixture
async def site(tmp_path: Path, mongo_url: str, s3: S3Settings) -> AsyncIterator[Site]:
    """A running hub without people."""
    async with running_site(tmp_path, mongo_url, s3) as found:
        yield found
