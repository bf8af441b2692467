"""What saving keeps of a file, byte for byte, and what it never writes."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pycrdt import Doc, create_sync_message

from tests.pod_runtime.worker.harness import Site


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(tmp_path)
    site.config = dataclasses.replace(site.config, max_documents=50)
    await site.start()
    yield site
    await site.stop()


BYTES = {
    "crlf": b"one\r\ntwo\r\nthree\r\n",
    "crlf, no final newline": b"one\r\ntwo\r\nthree",
    "one line, crlf": b"two\r\n",
    "lone cr": b"one\rtwo\rthree\r",
    "mixed": b"one\r\ntwo\nthree\r\r\nfour\n\r",
    "no final newline": b"one\ntwo\nthree",
    "many final newlines": b"one\ntwo\n\n\n",
    "bom": b"\xef\xbb\xbfone\ntwo\n",
    "bom and crlf": b"\xef\xbb\xbfone\r\ntwo\r\n",
    "other separators": "one\x0b\x0c\x1c\x85\u2028\u2029two\u2029\n".encode(),
    "trailing blanks": b"one \t\ntwo  \n \n",
    "not normalized": "e\u0301 \u00e9 two \u212b \U0001f468\u200d\U0001f469\n".encode(),
    "no characters": "\ufffe\uffff two \ud7ff\ue000\U0010ffff".encode(),
}


async def test_what_nobody_touches_stays_byte_for_byte(site: Site) -> None:
    async def test(name: str, data: bytes) -> None:
        (site.path / name).write_bytes(data)
        ann = await site.client(name)
        ann.text.insert(len(str(ann.text).partition("two")[0].encode()), "é😀 ")
        await site.on_disk(name, data.replace(b"two", "é😀 two".encode()))
        (site.path / name).write_bytes(data.replace(b"two", "é😀 TWO".encode()))
        await ann.until(lambda: "TWO" in str(ann.text))
        at = len(str(ann.text).partition("é😀")[0].encode())
        del ann.text[at : at + len("é😀 ".encode())]
        await site.on_disk(name, data.replace(b"two", b"TWO"))

    await asyncio.gather(*(test(name, data) for name, data in BYTES.items()))


async def test_what_is_not_utf_8_is_refused_and_left_alone(site: Site) -> None:
    found = {
        "latin1": b"caf\xe9\n",
        "utf16": "text\n".encode("utf-16"),
        "half": "é".encode()[:1],
        "nul": b"a\0",
    }
    found |= {"surrogate": b"\xed\xa0\x80", "overlong": b"\xc0\xaf", "beyond": b"\xf4\x90\x80\x80"}
    for name, data in found.items():
        (site.path / name).write_bytes(data)
        before = (site.path / name).stat()
        page = await site.client(name, sync=False)
        assert await page.closed() == 4415, name
        assert (site.path / name).read_bytes() == data
        assert (site.path / name).stat().st_ctime_ns == before.st_ctime_ns


async def test_opened_and_closed_at_once(site: Site) -> None:
    """However early a page leaves, the file is never written, least of all empty."""
    for n in range(10):
        (site.path / f"f{n}").write_bytes(b"text %d\r\n" % n)
    before = {n: (site.path / f"f{n}").stat() for n in range(10)}

    async def brief(n: int, how: int) -> None:
        ws = await site.session.ws_connect(f"{site.url}/collab/f{n}", headers=site.headers())
        if how:
            await ws.send_bytes(create_sync_message(Doc()))
        if how == 2:
            await ws.receive()
        await ws.close()

    for _ in range(3):
        await asyncio.gather(*(brief(n, (n + k) % 3) for n in range(10) for k in range(3)))
    await site.stop()
    for n, st in before.items():
        assert (site.path / f"f{n}").read_bytes() == b"text %d\r\n" % n
        after = (site.path / f"f{n}").stat()
        assert (after.st_ino, after.st_ctime_ns) == (st.st_ino, st.st_ctime_ns)
    await site.start()
