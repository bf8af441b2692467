"""What all tests share: one real MongoDB and one real S3 server for the session."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from codevo.embedded import EmbeddedServices
from codevo.embedded.s3 import S3Settings


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServices]:
    """The embedded services, on a loop of their own so that every test's loop can use them."""
    folder: Path = tmp_path_factory.mktemp("services")
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(coroutine: object) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(90)  # type: ignore[arg-type]

    found = EmbeddedServices(folder, mongo=True, s3=True, log=logging.getLogger("services"))
    run(found.__aenter__())
    yield found
    run(found.__aexit__(None, None, None))
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


@pytest.fixture(scope="session")
def mongo_url(services: EmbeddedServices) -> str:
    """URL of a real MongoDB; use a database of your own."""
    return services.mongo_url


@pytest.fixture(scope="session")
def s3(services: EmbeddedServices) -> S3Settings:
    """Address, keys and bucket of a real S3 server; use a prefix of your own."""
    return services.s3
