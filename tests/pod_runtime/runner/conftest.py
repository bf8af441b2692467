"""A runner process for each test that asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.pod_runtime.runner.live import Live, running


@pytest.fixture
async def runner(tmp_path: Path) -> AsyncIterator[Live]:
    async with running(tmp_path) as live:
        yield live
