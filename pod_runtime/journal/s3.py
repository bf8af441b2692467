"""The object store port over S3 (R2, AWS, SeaweedFS, MinIO) with aiobotocore.

What differs between stores is settled here: checksums only where required and path-style addressing (R2
and small servers), equal-sized multipart parts (R2), 409 ConditionalRequestConflict (AWS; the put was not
done, try again), 404 for ``If-Match`` on a missing key (AWS; others say 412).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from pod_runtime.journal.store import NotFound, ObjectInfo, PreconditionFailed, StoreError, one_error
from pod_runtime.protocol.config import StoreConfig

PART = 8 * 2**20
"""Size of multipart parts; S3's limit of 10,000 parts then bounds a streamed object at 78 GiB."""
CHUNK = 2**20
ATTEMPTS = 4
CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
PARALLEL_DELETES = 16

T = TypeVar("T")


class _Conflict(StoreError):
    """409: another conditional request was under way; this one was not done."""


class S3Store:
    """`ObjectStore` on one bucket below ``config.prefix``. Use as ``async with S3Store(config) as store``.

    ``prefix`` may be empty (the bucket's root). Reads, copies, deletes and unconditional puts are repeated up
    to four times with backoff and jitter (at most about 3 s of waiting); conditional puts only after a 409,
    since after any other failure the caller must look whose object stands there.
    """

    def __init__(self, config: StoreConfig) -> None:
        self._config = config
        self._prefix = config.prefix
        self._stack = contextlib.AsyncExitStack()
        self._client: Any = None

    async def __aenter__(self) -> Self:
        # late: botocore costs memory and 0.3 s, which importing this module alone must not
        from aiobotocore.config import AioConfig
        from aiobotocore.session import AioSession

        c = self._config
        settings = AioConfig(
            connect_timeout=CONNECT_TIMEOUT,
            read_timeout=READ_TIMEOUT,
            max_pool_connections=32,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            retries={"total_max_attempts": 1},
            signature_version="s3v4",
            parameter_validation=False,
            s3={"addressing_style": "path", "payload_signing_enabled": False},
        )
        session = AioSession()
        session.register_component("data_loader", _loader())
        # botocore would otherwise read ~/.aws and ask the metadata service
        session.set_config_variable("config_file", "/dev/null")
        session.set_config_variable("credentials_file", "/dev/null")
        self._client = await self._stack.enter_async_context(
            session.create_client(
                "s3",
                region_name=c.region,
                endpoint_url=c.endpoint_url,
                # without TLS there is nothing to verify, and loading the authorities takes 25 ms and 2 MiB
                verify=None if c.endpoint_url.startswith("https:") else False,
                aws_access_key_id=c.access_key_id,
                aws_secret_access_key=c.secret_access_key,
                aws_session_token=c.session_token,
                config=settings,
            )
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()
        self._client = None

    async def close(self) -> None:
        await self.__aexit__(None, None, None)

    def _key(self, key: str) -> str:
        return self._prefix + key

    async def get(self, key: str) -> tuple[bytes, str]:
        async def once() -> tuple[bytes, str]:
            answer = await self._client.get_object(Bucket=self._config.bucket, Key=self._key(key))
            async with answer["Body"] as body:
                return await body.read(), answer["ETag"]

        return await self._retry(once, key)

    async def first(self, key: str, size: int) -> bytes:
        async def once() -> bytes:
            answer = await self._client.get_object(
                Bucket=self._config.bucket, Key=self._key(key), Range=f"bytes=0-{size - 1}"
            )
            async with answer["Body"] as body:
                data: bytes = await body.read(size)
                return data

        try:
            return await self._retry(once, key)
        except _OutOfRange:
            return b""  # an empty object has no first byte

    async def stream(self, key: str) -> AsyncIterator[bytes]:
        """See the port. A broken stream goes on where it broke, on the same version of the object."""
        offset, etag, failures = 0, "", 0
        while True:
            extra: dict[str, str] = {"Range": f"bytes={offset}-", "IfMatch": etag} if offset else {}
            try:
                answer = await self._call("get_object", key, **extra)
                size = offset + int(answer["ContentLength"])
                etag = answer["ETag"]
                async with answer["Body"] as body:
                    while chunk := await self._read(body, key):
                        offset += len(chunk)
                        failures = 0
                        yield chunk
                if offset >= size:
                    return
                raise StoreError(f"{key}: the answer ended early")
            except (NotFound, PreconditionFailed):
                raise
            except StoreError:
                failures += 1
                if failures >= ATTEMPTS:
                    raise
                await asyncio.sleep(_backoff(failures))

    async def put(
        self, key: str, data: bytes | Path, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        extra: dict[str, str] = {}
        if if_none_match:
            extra["IfNoneMatch"] = "*"
        if if_match is not None:
            extra["IfMatch"] = if_match
        sent = {**extra, "ContentMD5": await _md5(data)}

        async def once() -> str:
            if isinstance(data, Path):
                with data.open("rb") as f:  # aiohttp reads it in a thread
                    answer = await self._client.put_object(
                        Bucket=self._config.bucket, Key=self._key(key), Body=f, **sent
                    )
            else:
                answer = await self._client.put_object(
                    Bucket=self._config.bucket, Key=self._key(key), Body=data, **sent
                )
            etag: str = answer["ETag"]
            return etag

        try:
            return await self._retry(once, key, only=_Conflict if extra else StoreError)
        except NotFound as e:
            if if_match is not None:
                raise PreconditionFailed(str(e)) from e
            raise

    async def put_stream(self, key: str, chunks: AsyncIterator[bytes]) -> None:
        buffer = bytearray()
        upload = ""
        parts: list[dict[str, Any]] = []

        async def send(data: bytes) -> None:
            number = len(parts) + 1
            digest = await _md5(data)

            async def once() -> str:
                answer = await self._client.upload_part(
                    Bucket=self._config.bucket,
                    Key=self._key(key),
                    UploadId=upload,
                    PartNumber=number,
                    Body=data,
                    ContentMD5=digest,
                )
                etag: str = answer["ETag"]
                return etag

            parts.append({"PartNumber": number, "ETag": await self._retry(once, key)})

        try:
            async for chunk in chunks:
                buffer += chunk
                while len(buffer) > PART:
                    if not upload:
                        upload = (await self._call("create_multipart_upload", key))["UploadId"]
                    with memoryview(buffer) as view:
                        part = bytes(view[:PART])
                    del buffer[:PART]
                    await send(part)
            if not upload:
                await self.put(key, bytes(buffer))
                return
            await send(bytes(buffer))
            await self._call(
                "complete_multipart_upload", key, UploadId=upload, MultipartUpload={"Parts": parts}
            )
        except BaseException:
            if upload:
                with contextlib.suppress(StoreError):
                    await asyncio.shield(self._call("abort_multipart_upload", key, UploadId=upload))
            raise

    async def list(self, prefix: str, *, start_after: str = "") -> AsyncIterator[ObjectInfo]:
        token: dict[str, str] = {"StartAfter": self._key(start_after)} if start_after else {}
        while True:
            arguments = {"Bucket": self._config.bucket, "Prefix": self._key(prefix), **token}

            async def once(arguments: dict[str, str] = arguments) -> Any:
                return await self._client.list_objects_v2(**arguments)

            page = await self._retry(once, prefix)
            for item in page.get("Contents", ()):
                modified: datetime = item["LastModified"]
                name: str = item["Key"]
                yield ObjectInfo(name[len(self._prefix) :], item["Size"], item["ETag"], modified)
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    async def copy(self, source: str, target: str) -> None:
        origin = {"Bucket": self._config.bucket, "Key": self._key(source)}

        async def once() -> None:
            await self._client.copy_object(
                Bucket=self._config.bucket, Key=self._key(target), CopySource=origin
            )

        await self._retry(once, source)

    async def delete(self, *keys: str) -> None:
        # one request a key: the bulk call needs checksums, which not every store takes in the same dialect
        gate = asyncio.Semaphore(PARALLEL_DELETES)

        async def one(key: str) -> None:
            async def once() -> None:
                await self._client.delete_object(Bucket=self._config.bucket, Key=self._key(key))

            async with gate:
                with contextlib.suppress(NotFound):
                    await self._retry(once, key)

        with one_error():
            async with asyncio.TaskGroup() as group:
                for key in keys:
                    group.create_task(one(key))

    async def _call(self, name: str, key: str, **arguments: Any) -> Any:
        with _mapped(key):
            return await getattr(self._client, name)(
                Bucket=self._config.bucket, Key=self._key(key), **arguments
            )

    async def _read(self, body: Any, key: str) -> bytes:
        with _mapped(key):
            chunk: bytes = await body.read(CHUNK)
            return chunk

    async def _retry(
        self, once: Callable[[], Awaitable[T]], key: str, only: type[StoreError] = StoreError
    ) -> T:
        failures = 0
        while True:
            try:
                with _mapped(key):
                    return await once()
            except (NotFound, PreconditionFailed):
                raise
            except StoreError as e:
                failures += 1
                if failures >= ATTEMPTS or not isinstance(e, only) or isinstance(e, _Refused):
                    raise
            await asyncio.sleep(_backoff(failures))


def _loader() -> Any:
    """botocore's loader without what an explicit endpoint has no use for, at 30 ms and 7 MiB: the list of all
    AWS services and the table of their endpoints."""
    from botocore.loaders import Loader

    class OnlyS3(Loader):  # type: ignore[misc]
        def list_available_services(self, type_name: str) -> list[str]:
            return ["s3"]

        def load_data_with_path(self, name: str) -> tuple[Any, str]:
            found: tuple[Any, str] = (
                (_ENDPOINTS, "") if name == "endpoints" else super().load_data_with_path(name)
            )
            return found

    return OnlyS3(extra_search_paths=[Loader.BUILTIN_DATA_PATH], include_default_search_paths=False)


#: The table of endpoints for botocore: whatever the region, the configured endpoint is called.
_ENDPOINTS = {
    "version": 3,
    "partitions": [
        {
            "partition": "aws",
            "partitionName": "AWS",
            "dnsSuffix": "amazonaws.com",
            "regionRegex": "^[a-z0-9-]+$",
            "regions": {},
            "services": {
                "s3": {
                    "isRegionalized": True,
                    "partitionEndpoint": "aws-global",
                    "defaults": {"protocols": ["http", "https"], "signatureVersions": ["s3v4"]},
                    "endpoints": {
                        "aws-global": {
                            "hostname": "s3.amazonaws.com",
                            "credentialScope": {"region": "us-east-1"},
                        }
                    },
                }
            },
            "defaults": {
                "hostname": "{service}.{region}.{dnsSuffix}",
                "protocols": ["https"],
                "signatureVersions": ["v4"],
            },
        }
    ],
}


class _Refused(StoreError):
    """4xx: asking again will not help."""


class _OutOfRange(_Refused):
    """416: the object ends before the range begins."""


async def _md5(data: bytes | Path) -> str:
    """Content-MD5. SeaweedFS keeps an empty object when a connection breaks between head and body, unless
    this header lets it see that the body is not the one that was meant."""

    def digest() -> str:
        found = hashlib.md5(usedforsecurity=False)
        if isinstance(data, Path):
            with data.open("rb") as f:
                while chunk := f.read(CHUNK):
                    found.update(chunk)
        else:
            found.update(data)
        return base64.b64encode(found.digest()).decode()

    if isinstance(data, bytes) and len(data) < CHUNK:
        return digest()
    return await asyncio.to_thread(digest)


def _backoff(failures: int) -> float:
    """0.1, 0.4, 1.6 s …, times a random factor between 0.5 and 1."""
    return float(min(0.1 * 4 ** (failures - 1), 5.0) * random.uniform(0.5, 1.0))  # noqa: S311


@contextlib.contextmanager
def _mapped(key: str) -> Any:
    """Turn what botocore and aiohttp raise into the port's exceptions; texts hold no credentials."""
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as e:
        code = str(e.response.get("Error", {}).get("Code", ""))
        status = int(e.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        text = f"{key}: the object store answered {status} {code}"
        if status == 412 or code == "PreconditionFailed":
            raise PreconditionFailed(text) from e
        if status == 404 or code in ("NoSuchKey", "NotFound"):
            raise NotFound(text) from e
        if status == 409:
            raise _Conflict(text) from e
        if status == 416:
            raise _OutOfRange(text) from e
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise _Refused(text) from e
        raise StoreError(text) from e
    except (BotoCoreError, aiohttp.ClientError, TimeoutError, OSError) as e:
        raise StoreError(f"{key}: the object store cannot be reached ({type(e).__name__})") from e
