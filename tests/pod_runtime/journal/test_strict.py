"""The store's tests and a whole life of a workspace through a front that refuses what R2 refuses."""

from __future__ import annotations

import dataclasses
import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiobotocore.session import AioSession
from botocore.exceptions import ClientError

from codevo.embedded.s3 import S3Settings
from pod_runtime.journal import projects, reader
from pod_runtime.journal.s3 import PART, S3Store
from pod_runtime.journal.store import ObjectStore
from pod_runtime.protocol.config import StoreConfig
from tests.pod_runtime.journal.strict import StrictFront, strict_front
from tests.pod_runtime.journal.test_s3 import (  # noqa: F401
    config,
    test_a_stream_that_fails_leaves_nothing,
    test_conditional_puts,
    test_list_copy_delete,
    test_one_of_many_wins,
    test_put_get_and_stream,
    test_put_stream,
)
from tests.pod_runtime.worker.persistence_kit import Machine


@pytest.fixture
async def front(s3: S3Settings) -> AsyncIterator[tuple[StrictFront, str]]:
    async with strict_front(s3.endpoint_url) as found:
        yield found
        assert found[0].refused == []


def auto(s3: S3Settings, address: str, prefix: str | None = None) -> StoreConfig:
    return dataclasses.replace(config(s3, prefix, address), region="auto")


@pytest.fixture
async def store(front: tuple[StrictFront, str], s3: S3Settings) -> AsyncIterator[ObjectStore]:
    async with S3Store(auto(s3, front[1])) as real:
        yield real
    assert front[0].seen


async def test_a_whole_life(front: tuple[StrictFront, str], s3: S3Settings, tmp_path: Path) -> None:
    """Commit, a large one, snapshot, restore, fork, checkpointed compaction, delete."""
    where = auto(s3, front[1], f"projects/{secrets.token_hex(6)}/")
    large = os.urandom(PART + 12345)
    async with S3Store(where) as store, S3Store(dataclasses.replace(where, prefix="")) as bucket:
        here, there = Machine(tmp_path / "here", store), Machine(tmp_path / "there", store)
        worker = await here.opened(1)
        here.documents.edit("main.py", b"print(1)\n")
        (here.workspace / "main.py").write_bytes(b"print(1)\n")
        (here.workspace / "large").write_bytes(large)
        assert not (await worker.flush()).pending
        assert worker._writer is not None
        assert await worker._writer.snapshot() > 0
        (here.workspace / "after").write_text("the snapshot")
        await worker.close()
        await (await there.opened(2)).close()
        assert there.tree() == here.tree()
        copy = where.prefix[:-1] + "-copy/"
        await projects.fork(bucket, where.prefix, copy)
        async with S3Store(dataclasses.replace(where, prefix=copy)) as forked:
            assert (await reader.load(forked)).last > 0
        assert await projects.delete_prefix(bucket, copy) > 0
    kinds = {(line.split()[0], "uploadId" in line) for line in front[0].seen}
    assert {("PUT", True), ("POST", True), ("PUT", False), ("GET", False), ("DELETE", False)} <= kinds


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"ChecksumAlgorithm": "CRC32"}, "NotImplemented"),
        ({"ACL": "private"}, "NotImplemented"),
        ({"Tagging": "a=b"}, "NotImplemented"),
        ({"StorageClass": "STANDARD_IA"}, "NotImplemented"),
    ],
)
async def test_the_front_refuses(s3: S3Settings, extra: dict[str, str], why: str) -> None:
    async with strict_front(s3.endpoint_url) as (front, address):
        async with _plain(s3, address, "auto") as client:
            with pytest.raises(ClientError, match=why):
                await client.put_object(Bucket=s3.bucket, Key="refused", Body=b"x", **extra)
        assert len(front.refused) == 1


async def test_the_front_refuses_regions_and_parts(s3: S3Settings) -> None:
    async with strict_front(s3.endpoint_url) as (_, address):
        async with _plain(s3, address, "us-east-1") as client:
            with pytest.raises(ClientError, match="InvalidRegionName"):
                await client.get_object(Bucket=s3.bucket, Key="refused")
        for sizes in ((6, 7, 1), (4, 4, 1), (6, 7)):
            async with _plain(s3, address, "auto") as client:
                target = {"Bucket": s3.bucket, "Key": "refused"}
                upload = (await client.create_multipart_upload(**target))["UploadId"]
                parts = []
                for n, size in enumerate(sizes, 1):
                    answer = await client.upload_part(
                        **target, UploadId=upload, PartNumber=n, Body=bytes(size * 2**20)
                    )
                    parts.append({"PartNumber": n, "ETag": answer["ETag"]})
                with pytest.raises(ClientError, match="InvalidPart"):
                    await client.complete_multipart_upload(
                        **target, UploadId=upload, MultipartUpload={"Parts": parts}
                    )
                await client.abort_multipart_upload(**target, UploadId=upload)


async def test_unsigned_strangers_get_nothing(front: tuple[StrictFront, str]) -> None:
    async with aiohttp.ClientSession() as http, http.get(front[1] + "/codevo/x") as answer:
        assert answer.status == 400
    front[0].refused.clear()


def _plain(s3: S3Settings, address: str, region: str) -> object:
    from aiobotocore.config import AioConfig

    return AioSession().create_client(
        "s3",
        region_name=region,
        endpoint_url=address,
        aws_access_key_id=s3.access_key_id,
        aws_secret_access_key=s3.secret_access_key,
        config=AioConfig(
            request_checksum_calculation="when_required",
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path", "payload_signing_enabled": False},
        ),
    )
