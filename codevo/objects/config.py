"""Which object store holds the projects, and the hub's one connection to it."""

from __future__ import annotations

import contextlib
import logging
from types import TracebackType
from typing import Any, Self

from traitlets import TraitError, Unicode, validate
from traitlets.config import LoggingConfigurable

from codevo.objects.inventory import Inventory
from pod_runtime.journal.store import NotFound, StoreError
from pod_runtime.journal.store import ObjectStore as Objects
from pod_runtime.protocol.config import StoreConfig

log = logging.getLogger(__name__)


class ObjectStore(LoggingConfigurable):
    """Address and keys of an S3-compatible object store (R2, S3, MinIO, SeaweedFS)."""

    endpoint_url = Unicode(
        "",
        help="""Address of the S3 API, such as https://ACCOUNT.r2.cloudflarestorage.com.
        Empty: the embedded S3 server is started.""",
    ).tag(config=True)
    bucket = Unicode("codevo", help="Name of the bucket. It is made when it is not there.").tag(config=True)
    region = Unicode("auto", help="Region of the bucket; R2 wants auto, AWS its own name.").tag(config=True)
    access_key_id = Unicode("", help="Access key of the bucket.").tag(config=True)
    secret_access_key = Unicode(
        "", help="Secret of the access key. Better in the environment of the configuration file than in it."
    ).tag(config=True)

    @validate("endpoint_url")
    def _valid_endpoint(self, proposal: Any) -> str:
        url = str(proposal["value"]).rstrip("/")
        if url and not url.startswith(("http://", "https://")):
            raise TraitError("ObjectStore.endpoint_url: expected http:// or https://")
        return url

    def store_config(self, prefix: str) -> StoreConfig:
        """What a journal store below ``prefix`` needs ("" or ending with a slash)."""
        return StoreConfig(
            endpoint_url=self.endpoint_url,
            bucket=self.bucket,
            prefix=prefix,
            access_key_id=self.access_key_id,
            secret_access_key=self.secret_access_key,
            region=self.region,
        )


def project_prefix(project: str) -> str:
    """Where a project's objects are."""
    return f"projects/{project}/"


class Bucket:
    """The whole bucket: ``async with Bucket(objects) as bucket``. Raises `StoreError` when it is away."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._stack = contextlib.AsyncExitStack()
        self._store: Inventory | None = None

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            self._store = await stack.enter_async_context(Inventory(self._objects.store_config("")))
            try:
                await self.check()
            except NotFound:
                await self._create()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._store = None
        await self._stack.aclose()

    @property
    def store(self) -> Objects:
        """The bucket from its root."""
        return self.inventory

    @property
    def inventory(self) -> Inventory:
        """`store` with what housekeeping needs beside."""
        if self._store is None:
            raise StoreError("The object store is not open.")
        return self._store

    def store_config(self, project: str) -> StoreConfig:
        """What the project's worker is told."""
        return self._objects.store_config(project_prefix(project))

    async def check(self) -> None:
        """Raises `StoreError` when the store does not answer, `NotFound` when the bucket is missing."""
        # "/" sorts before all our keys and none of them begins with it: the answer is short
        async for _ in self.store.list("/"):
            break

    async def _create(self) -> None:
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession
        from botocore.exceptions import BotoCoreError, ClientError

        c = self._objects.store_config("")
        log.info("making the bucket %s", c.bucket)
        try:
            async with AioSession().create_client(
                "s3",
                region_name=c.region,
                endpoint_url=c.endpoint_url,
                aws_access_key_id=c.access_key_id,
                aws_secret_access_key=c.secret_access_key,
                config=AioConfig(connect_timeout=5, read_timeout=30, s3={"addressing_style": "path"}),
            ) as client:
                await client.create_bucket(Bucket=c.bucket)
        except ClientError as e:
            code = e.response.get("Error", {}).get("Code", "")
            if code not in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists"):
                raise StoreError(
                    f"The bucket {c.bucket} does not exist and could not be made ({code}). Make it, or "
                    "set c.ObjectStore.bucket and the keys."
                ) from e
        except (BotoCoreError, OSError) as e:
            raise StoreError(f"The object store cannot be reached ({type(e).__name__}).") from e
