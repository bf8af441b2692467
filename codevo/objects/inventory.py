"""What the hub's own housekeeping asks of the object store beyond the journal's port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any

from pod_runtime.journal.s3 import S3Store
from pod_runtime.journal.store import NotFound, StoreError

_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A multipart upload that was begun. ``touched``: when it was, or its newest part arrived."""

    key: str
    upload: str
    touched: datetime
    bytes: int


class Inventory(S3Store):
    """`S3Store` that also knows the store's clock, and the uploads that nobody finished."""

    async def now(self) -> datetime:
        """The time by the store's clock, to the second."""

        async def once() -> Any:
            return await self._client.list_objects_v2(
                Bucket=self._config.bucket, Prefix=self._key("/"), MaxKeys=1
            )

        answer = await self._retry(once, "/")
        try:
            return parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
        except (KeyError, ValueError) as e:
            raise StoreError("The object store does not tell the time.") from e

    async def unfinished(self, prefix: str) -> list[Unfinished]:
        """The multipart uploads below ``prefix`` that were neither completed nor aborted."""
        found = []
        marker: dict[str, str] = {}
        while True:
            arguments = {
                "Bucket": self._config.bucket,
                "Prefix": self._key(prefix),
                "MaxUploads": _PAGE,
                **marker,
            }

            async def once(arguments: dict[str, Any] = arguments) -> Any:
                return await self._client.list_multipart_uploads(**arguments)

            page = await self._retry(once, prefix)
            uploads = page.get("Uploads", ())
            found += [await self._measured(u["Key"], u["UploadId"], u["Initiated"]) for u in uploads]
            if not page.get("IsTruncated") or not uploads:
                return found
            following = {  # not every store names the next page's beginning
                "KeyMarker": page.get("NextKeyMarker") or uploads[-1]["Key"],
                "UploadIdMarker": page.get("NextUploadIdMarker") or uploads[-1]["UploadId"],
            }
            if following == marker:
                return found
            marker = following

    async def _measured(self, key: str, upload: str, began: datetime) -> Unfinished:
        size, touched = 0, began
        with suppress(NotFound):  # it came to its end meanwhile
            async for part in self._parts(key, upload):
                size += int(part["Size"])
                touched = max(touched, part["LastModified"])
        return Unfinished(key[len(self._prefix) :], upload, touched, size)

    async def _parts(self, key: str, upload: str) -> AsyncIterator[dict[str, Any]]:
        marker = 0
        while True:

            async def once(marker: int = marker) -> Any:
                return await self._client.list_parts(
                    Bucket=self._config.bucket, Key=key, UploadId=upload, PartNumberMarker=marker
                )

            page = await self._retry(once, key)
            parts = page.get("Parts", ())
            for part in parts:
                yield part
            if not page.get("IsTruncated") or not parts:
                return
            marker = int(parts[-1]["PartNumber"])

    async def abort(self, found: Unfinished) -> None:
        """Forget an unfinished upload; one that has come to its end meanwhile is no error."""

        async def once() -> None:
            await self._client.abort_multipart_upload(
                Bucket=self._config.bucket, Key=self._key(found.key), UploadId=found.upload
            )

        with suppress(NotFound):
            await self._retry(once, found.key)
