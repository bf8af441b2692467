"""Both embedded services as one thing that the hub opens and closes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import TracebackType
from typing import Self

from codevo.embedded.mongo import EmbeddedMongo
from codevo.embedded.s3 import EmbeddedS3, S3Settings


class EmbeddedServices:
    """``async with EmbeddedServices(data_dir, mongo=True, s3=True, log=log) as services``.

    Starts what is asked for, side by side; raises `ServiceError` when one does not come up (the other is
    stopped again). Data lies in ``data_dir/mongo`` and ``data_dir/s3``.
    """

    def __init__(self, data_dir: Path, *, mongo: bool, s3: bool, log: logging.Logger) -> None:
        self.mongo = EmbeddedMongo(data_dir / "mongo", log) if mongo else None
        self.object_store = EmbeddedS3(data_dir / "s3", log) if s3 else None

    @property
    def mongo_url(self) -> str:
        """URL of the embedded MongoDB; only when it was asked for."""
        assert self.mongo
        return self.mongo.url

    @property
    def s3(self) -> S3Settings:
        """Address and keys of the embedded object store; only when it was asked for."""
        assert self.object_store
        return self.object_store.settings

    async def __aenter__(self) -> Self:
        parts = [part for part in (self.mongo, self.object_store) if part]
        results = await asyncio.gather(*(part.start() for part in parts), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                await self._stop()
                raise error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _stop(self) -> None:
        await asyncio.gather(*(part.stop() for part in (self.mongo, self.object_store) if part))
