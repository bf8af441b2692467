"""One hub for the module's tests, each test with people and projects of its own."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.harness import Client, HubProcess

_names = itertools.count(1)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    found = HubProcess(tmp_path_factory.mktemp("hub") / "data")
    found.start()
    yield found
    found.cleanup()


@pytest.fixture(autouse=True)
def _show_log(request: pytest.FixtureRequest, hub: HubProcess) -> Iterator[None]:
    """A failing test shows the end of the hub's log."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(hub.log())


@pytest.fixture
async def ana(hub: HubProcess) -> AsyncIterator[Client]:
    async with Client(hub.url) as client:
        await client.sign_up(f"ana{next(_names)}")
        yield client


@pytest.fixture
async def ben(hub: HubProcess) -> AsyncIterator[Client]:
    async with Client(hub.url) as client:
        await client.sign_up(f"ben{next(_names)}")
        yield client
