"""Paging by the last item seen: the cost of a page does not grow with its place in the list."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from datetime import datetime
from typing import Any, TypeVar

from bson import json_util
from bson.errors import BSONError

from codevo.store.records import Page

T = TypeVar("T")
_JSON = json_util.JSONOptions(tz_aware=True)
#: The longest page that anybody gets.
MAX_LIMIT = 200


def encode_cursor(value: Any, ident: str) -> str:
    """An opaque text that names the last item of a page."""
    return base64.urlsafe_b64encode(json_util.dumps([value, ident]).encode()).decode().rstrip("=")


def decode_cursor(cursor: str) -> tuple[Any, str]:
    """Inverse of `encode_cursor`. Raises ``ValueError``."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        value, ident = json_util.loads(raw.decode(), json_options=_JSON)
    except (binascii.Error, ValueError, TypeError, AttributeError, KeyError, RecursionError, BSONError) as e:
        raise ValueError("cursor: not one that this server gave") from e
    # a cursor goes into a query: nothing but plain values may come out of it
    if not isinstance(ident, str) or not isinstance(value, str | datetime | None):
        raise ValueError("cursor: not one that this server gave")
    return value, ident


async def fetch_page(
    collection: Any,
    match: dict[str, Any],
    *,
    sort: str,
    limit: int,
    cursor: str | None,
    make: Callable[[dict[str, Any]], T],
) -> Page[T]:
    """One page ordered by ``sort`` (a field, ``-`` before it for descending), then by id.

    ``limit`` is clamped to 1–`MAX_LIMIT`. Raises ``ValueError`` for a bad cursor.
    """
    limit = max(1, min(limit, MAX_LIMIT))
    field, direction = sort.removeprefix("-"), -1 if sort.startswith("-") else 1
    conditions = [match] if match else []
    if cursor:
        value, ident = decode_cursor(cursor)
        conditions.append(_after(field, direction, value, ident))
    query = {"$and": conditions} if conditions else {}
    found = collection.find(query).sort([(field, direction), ("_id", 1)]).limit(limit + 1)
    docs = [doc async for doc in found]
    more = len(docs) > limit
    docs = docs[:limit]
    last = encode_cursor(docs[-1].get(field), docs[-1]["_id"]) if more else None
    return Page([make(doc) for doc in docs], last)


def _after(field: str, direction: int, value: Any, ident: str) -> dict[str, Any]:
    """The condition for what comes after the item with this value and id. MongoDB sorts null first,
    but its comparisons do not cross types, so null needs words of its own."""
    same = {field: value, "_id": {"$gt": ident}}
    if value is None:
        return {"$or": [same, {field: {"$ne": None}}]} if direction > 0 else same
    further: list[dict[str, Any]] = [{field: {"$gt" if direction > 0 else "$lt": value}}]
    if direction < 0:
        further.append({field: None})
    return {"$or": [same, *further]}
