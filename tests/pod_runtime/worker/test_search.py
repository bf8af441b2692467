"""Text search: what is found and how it is told, and what hostile trees and expressions cannot do."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from pod_runtime.protocol.roles import Role
from pod_runtime.worker import search_handlers, search_process
from pod_runtime.worker.safefs import Root
from pod_runtime.worker.search import BadQuery, Query, compiled, find, utf16
from tests.harness import within
from tests.pod_runtime.worker.harness import Site


def at(query: Query, text: str) -> list[tuple[int, int, int]]:
    found = find(compiled(query), text, by_line=query.regex)
    return [(m.line, m.column, m.length) for m in found]


@pytest.mark.parametrize(
    ("query", "text", "found"),
    [
        (Query("b"), "abc\nB\n\nb", [(1, 2, 1), (2, 1, 1), (4, 1, 1)]),
        (Query("b", case=True), "abc\nB\n\nb", [(1, 2, 1), (4, 1, 1)]),
        (Query("a.c"), "abc a.c", [(1, 5, 3)]),
        (Query("a.c", regex=True), "abc a.c", [(1, 1, 3), (1, 5, 3)]),
        (Query("cat", word=True), "cat concat cat_ (cat)", [(1, 1, 3), (1, 18, 3)]),
        (Query("c.t|dog", word=True, regex=True), "cots cut dogs dog", [(1, 6, 3), (1, 15, 3)]),
        (Query("x"), "😀x\r\n😀😀 x\r\n", [(1, 3, 1), (2, 6, 1)]),
        (Query("😀"), "a😀😀", [(1, 2, 2), (1, 4, 2)]),
        (Query("ÄÖ"), "äö", [(1, 1, 2)]),
        (Query("x$", regex=True), "x\r\nx\nxy\nx", [(1, 1, 1), (2, 1, 1), (4, 1, 1)]),
        (Query("^x", regex=True), "x\nyx\nx", [(1, 1, 1), (3, 1, 1)]),
        (Query("[^y]+", regex=True), "a\nb", [(1, 1, 1), (2, 1, 1)]),
        (Query("a*", regex=True), "baab\n\n", [(1, 2, 2)]),
        (Query(r"\s+", regex=True), "a \n b", [(1, 2, 1), (2, 1, 1)]),
        # other characters that Python's splitlines takes for ends
        (Query("b"), "a\u2028\x0cb\rb", [(1, 4, 1), (1, 6, 1)]),
    ],
)
def test_matches(query: Query, text: str, found: list[tuple[int, int, int]]) -> None:
    assert at(query, text) == found


@given(st.text(alphabet="ab😀\n\r ä"), st.sampled_from(["a", "ab", "😀", "ä", "a b"]))
def test_every_way_finds_the_same(text: str, wanted: str) -> None:
    literal = at(Query(wanted, case=True), text)
    assert literal == at(Query(wanted, case=True, regex=True), text)
    lines = text.split("\n")
    for line, column, length in literal:
        units = lines[line - 1].encode("utf-16-le")
        assert units[2 * (column - 1) : 2 * (column - 1 + length)].decode("utf-16-le") == wanted


@given(st.text(alphabet="x😀-", max_size=2000), st.integers(0, 30))
def test_excerpts_show_the_match(filler: str, shift: int) -> None:
    line = filler + "needle" + filler[shift:]
    for match in find(compiled(Query("needle")), line, by_line=False):
        assert utf16(match.text) <= 480
        shown = match.text.encode("utf-16-le")[2 * match.start : 2 * (match.start + match.length)]
        assert shown.decode("utf-16-le") == "needle"


@pytest.mark.parametrize(
    "query",
    [
        {"text": ""},
        {"text": "x" * 1001},
        {"text": "a\nb"},
        {"text": "x", "limit": 0},
        {"text": "x", "limit": 10_001},
        {"text": "x", "include": "y" * 1001},
    ],
)
def test_bad_queries(query: dict[str, Any]) -> None:
    with pytest.raises(BadQuery):
        Query(**query)


@pytest.mark.parametrize("text", ["(", "[a", "*", "(?P<", "a{99999999999}", "(" * 200, "\\"])
def test_bad_expressions(text: str) -> None:
    with pytest.raises(BadQuery, match="not a regular expression"):
        compiled(Query(text, regex=True))


def test_a_minified_line_is_not_counted_again_for_each_match() -> None:
    line = "é😀" + "ab;" * 200_000
    began = time.process_time()
    found = list(find(compiled(Query("b;")), line, by_line=False))
    assert len(found) == 200_000
    assert found[-1].column == 3 + 3 * 199_999 + 2
    assert time.process_time() - began < 30


# through the worker


async def raw(site: Site, query: dict[str, Any] | str, role: Role = Role.VIEWER) -> tuple[int, bytes]:
    url = f"{site.url}/api/search?{query if isinstance(query, str) else urlencode(query)}"
    async with site.session.get(URL(url, encoded=True), headers=site.headers(role)) as answer:
        return answer.status, await answer.read()


async def ask(
    site: Site, q: str, *, role: Role = Role.VIEWER, status: int = 200, **options: object
) -> tuple[dict[str, list[Any]], Any]:
    """The matches by file, and the last line; of an error the problem."""
    code, body = await raw(site, {"q": q, **options}, role)
    assert code == status, body
    if status != 200:
        return {}, json.loads(body)
    lines = [json.loads(line) for line in body.splitlines()]
    assert lines[-1]["done"] is True and not any("done" in line for line in lines[:-1])
    found = {line["path"]: line["matches"] for line in lines[:-1]}
    assert len(found) == len(lines) - 1
    assert lines[-1]["matches"] == sum(len(matches) for matches in found.values())
    assert lines[-1]["files"] == len(found)
    return found, lines[-1]


def plant(site: Site, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = site.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


async def test_files_are_found(site: Site) -> None:
    plant(
        site,
        {
            "main.py": "import os\nprint('😀', needle)\n",
            "src/a/deep.js": "// Needle\nlet needle = 1\n",
            "node_modules/x/index.js": "needle",
            "src/__pycache__/x.py": "needle",
            ".git/config": "needle",
            "out/made.txt": "needle",
            "codevo.toml": '[persist]\nignore = ["out/"]\n',
            "binary": b"needle\0",
            "latin": "needle é".encode("latin-1"),
            ".codevo-tmp-1": "needle",
            "naïve \n.txt": "needle",
        },
    )
    odd = os.fsdecode(b"\xff\xfe")
    (site.path / odd).write_text("needle")
    found, end = await ask(site, "needle")
    assert set(found) == {"main.py", "src/a/deep.js", "naïve \n.txt", odd}
    assert found["main.py"] == [
        {"line": 2, "column": 13, "length": 6, "text": "print('😀', needle)", "start": 12}
    ]
    assert end == {"done": True, "files": 4, "matches": 5, "truncated": False, "skipped": 0}
    found, _ = await ask(site, "needle", case=1, include="*.js")
    assert [m["line"] for m in found["src/a/deep.js"]] == [2]
    assert list(found) == ["src/a/deep.js"]
    assert set((await ask(site, "needle", include="src, main.py"))[0]) == {"main.py", "src/a/deep.js"}
    assert set((await ask(site, "needle", include="!src/, !\\xff*"))[0]) == {"main.py", "naïve \n.txt", odd}
    found, _ = await ask(site, "needle", ignored=1)
    assert {"node_modules/x/index.js", ".git/config", "out/made.txt"} < set(found)
    assert ".codevo-tmp-1" not in found
    found, _ = await ask(site, r"n\w+e$", regex=1)
    assert set(found) == {"src/a/deep.js", "naïve \n.txt", odd}
    assert (await ask(site, "nothing of this kind"))[0] == {}


async def test_open_documents_are_searched_as_they_are(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(site, {"f": "one\r\ntwo\r\n"})
    ann = await site.client("f")
    assert site.worker is not None
    document = site.worker.documents._open["f"]
    # nothing is saved any more
    async with document.lock:
        ann.text.insert(0, "first\n")
        other = await site.client("f")
        await other.has("first\none\ntwo\n")
        found, _ = await ask(site, "two")
        assert [(m["line"], m["column"]) for m in found["f"]] == [(3, 1)]
        assert (site.path / "f").read_bytes() == b"one\r\ntwo\r\n"
        assert site.worker.documents.unsaved_texts(5) == {}
    await site.on_disk("f", b"first\r\none\r\ntwo\r\n")
    found, _ = await ask(site, "two$", regex=1)
    assert [(m["line"], m["column"], m["text"]) for m in found["f"]] == [(3, 1, "two")]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("", "q: expected"),
        ("q=", "q: expected"),
        ("q=a%0Ab", "span lines"),
        ("q=x&case=yes", "case: expected 0 or 1"),
        ("q=x&limit=0", "limit"),
        ("q=x&limit=-1", "limit"),
        ("q=x&limit=%C2%B2", "limit"),
        ("q=x&limit=99999999999999", "limit"),
        ("q=%28&regex=1", "not a regular expression"),
        ("q=x&include=%2A%2A%2A%5B", ""),
        ("q=" + "x" * 1001, "at most"),
    ],
)
async def test_bad_requests(site: Site, query: str, words: str) -> None:
    status, body = await site.call("GET", f"/api/search?{query}", role=Role.VIEWER)
    if words:
        assert status == 400 and words in body["detail"], body
    else:
        assert status in (200, 400)


async def test_bounds(site: Site) -> None:
    plant(site, {f"f{n:02}": "x\n" * 10 for n in range(10)})
    plant(site, {"g": "y" * 600 + "\n" + "y", "huge": "z" * (site.config.max_document + 1)})
    found, end = await ask(site, "x", limit=25)
    assert end["truncated"] and end["matches"] == 25
    assert [len(m) for m in found.values()] == [10, 10, 5]
    assert (await ask(site, "x", limit=100))[1]["truncated"] is False
    found, end = await ask(site, "y")
    assert len(found["g"]) == 500 and end["truncated"]
    assert all(len(m["text"]) <= 240 for m in found["g"])
    found, end = await ask(site, "z")
    assert not found and end["skipped"] == 1 and not end["truncated"]


HOSTILE = [
    ("(a+)+$", "a" * 60 + "b"),
    ("(a|a)*b", "a" * 60),
    (r"(.*)*\d$", "x" * 3000),
    ("(x+x+)+y", "x" * 60),
]


@pytest.mark.parametrize(("expression", "text"), HOSTILE)
async def test_a_hostile_expression_hangs_nothing(site: Site, expression: str, text: str) -> None:
    plant(site, {"victim": text, "f": "x"})
    ann = await site.client("f")
    bob = await site.client("f", subject="bob")
    searching = asyncio.create_task(ask(site, expression, regex=1))
    await asyncio.sleep(0.3)
    # meanwhile the worker is quick
    began = time.monotonic()
    ann.text += "y"
    await bob.has("xy")
    assert time.monotonic() - began < 2
    _, end = await within(searching, 60)
    assert end["truncated"] and end["stopped"] == "This expression takes too long"
    assert (await ask(site, "x", include="f"))[1]["matches"] == 1


async def test_an_expression_that_eats_memory_or_its_compiler(site: Site) -> None:
    plant(site, {"f": "ab" * 40_000})
    for expression in (
        "(?:(?:(a)|b)*)*c",
        "(?:" * 90 + "a" + "{1,50})" * 90,
        "(" + "|".join("ab" * 200) + "){9}",
    ):
        status, body = await raw(site, {"q": expression, "regex": 1})
        assert status in (200, 400), body


async def test_hostile_trees(site: Site, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_text("TOPSECRET")
    w = site.path
    (w / "out").symlink_to(secret)
    (w / "key").symlink_to(secret / "key")
    (w / "relative").symlink_to("../secret/key")
    (w / "environ").symlink_to("/proc/self/environ")
    (w / "state").symlink_to(tmp_path / "state")
    (w / "loop").symlink_to("loop")
    (w / "up").symlink_to(".")
    os.mkfifo(w / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(w / "socket"))
    with open(w / "sparse", "wb") as f:
        f.truncate(2**40)
    deep = w
    for _ in range(60):
        deep = deep / ("d" * 60)
        deep.mkdir()
    (w / ("n" * 255)).write_text("TOP, and nothing else")
    (w / "codevo.toml").symlink_to(secret / "key")
    (w / "locked").mkdir(mode=0)
    found, end = await ask(site, "TOP", case=1, ignored=1)
    assert list(found) == ["n" * 255]
    assert end["skipped"] == 1
    for q in ("SECRET", "secret_access_key", "PATH=", "HOME="):
        assert not (await ask(site, q, ignored=1))[0]


async def test_a_folder_that_becomes_a_link(site: Site, tmp_path: Path) -> None:
    """Swapped in a loop while searches run: never followed."""
    secret = tmp_path / "secret"
    secret.mkdir()
    plant(site, {f"d/f{n}": "harmless" for n in range(50)})
    for n in range(50):
        (secret / f"f{n}").write_text("harmless TOPSECRET")
    (site.path / "link").symlink_to(secret)
    stop = asyncio.Event()

    def swap() -> None:
        d, link, away = site.path / "d", site.path / "link", site.path / "away"
        while not stop.is_set():
            d.rename(away)
            link.rename(d)
            d.rename(link)
            away.rename(d)

    swapping = asyncio.create_task(asyncio.to_thread(swap))
    try:
        for _ in range(6):
            assert not (await ask(site, "TOPSECRET"))[0]
    finally:
        stop.set()
        await swapping
    assert len((await ask(site, "harmless"))[0]) == 50


def searchers() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parts = (entry / "stat").read_text().rpartition(")")[2].split()
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if int(parts[1]) == os.getpid() and b"search_process" in line:
                found.append(int(entry.name))
    return found


async def none_left() -> None:
    async with asyncio.timeout(20):
        while searchers():
            await asyncio.sleep(0.02)


SLOW = urlencode({"q": "(a+)+$", "regex": 1})


async def test_one_search_a_person(site: Site) -> None:
    plant(site, {"victim": "a" * 60 + "b"})
    older = asyncio.create_task(raw(site, SLOW))
    async with asyncio.timeout(20):
        while not searchers():
            await asyncio.sleep(0.01)
    found, _ = await ask(site, "aab", role=Role.EDITOR)
    assert list(found) == ["victim"]
    status, body = await older
    if status == 200:
        assert json.loads(body.splitlines()[-1])["stopped"] == "Another search of yours began"
    await none_left()


async def test_a_client_that_goes_ends_its_search(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_process, "FILE_SECONDS", 1000)
    plant(site, {"a": "aa", "victim": "a" * 60 + "b"})
    with pytest.raises(TimeoutError):
        await site.call("GET", f"/api/search?{SLOW}", timeout=aiohttp.ClientTimeout(total=0.8))
    await none_left()


async def test_places_are_few(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_handlers, "WAIT", 0.3)
    assert site.worker is not None
    places = site.worker.searches._places
    for _ in range(search_handlers.PLACES):
        await places.acquire()
    _, problem = await ask(site, "x", status=503)
    assert "Too many searches" in problem["detail"]
    monkeypatch.setattr(search_handlers, "WAIT", 30)
    waiting = asyncio.create_task(ask(site, "x", status=409))
    async with asyncio.timeout(10):
        while not site.worker.searches._all:
            await asyncio.sleep(0.01)
    newer = asyncio.create_task(ask(site, "x"))
    _, problem = await waiting
    assert problem["detail"] == "Another search of yours began"
    for _ in range(search_handlers.PLACES):
        places.release()
    await newer
    assert places._value == search_handlers.PLACES


async def test_a_client_that_does_not_read(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_handlers, "LONGEST", 1.0)
    plant(site, {f"f{n:03}": ("needle" + "😀" * 300 + "\n") * 75 for n in range(100)})
    async with site.session.get(
        f"{site.url}/api/search?{urlencode({'q': 'needle', 'limit': 10000})}",
        headers=site.headers(Role.VIEWER),
        read_bufsize=1024,
    ) as answer:
        assert answer.status == 200
        await none_left()
        with pytest.raises(aiohttp.ClientError):
            while await answer.content.read(65536):
                pass
    await none_left()


async def test_a_right_that_ends_and_a_worker_that_stops(site: Site) -> None:
    plant(site, {"victim": "a" * 60 + "b"})
    for end in ("revoke", "stop"):
        searching = asyncio.create_task(raw(site, SLOW))
        async with asyncio.timeout(20):
            while not searchers():
                await asyncio.sleep(0.01)
        if end == "revoke":
            await site.call("POST", "/_codevo/revoke", role=Role.HUB, json={"sub": "ann", "at": 0})
            status, body = await searching
            assert status == 200 and "no longer allowed" in json.loads(body.splitlines()[-1])["stopped"]
        else:
            assert site.worker is not None
            await site.worker.close()
            site.worker = None
            await asyncio.gather(searching, return_exceptions=True)
        assert not searchers()


def test_the_process_is_alone_with_its_workspace(tmp_path: Path) -> None:
    """Neither the environment nor a descriptor of the one that starts it."""
    (tmp_path / "f").write_text("x")
    sent: list[Any] = []
    root = Root(tmp_path)
    request = {"query": {"text": "x"}, "open": {"f": "xx", "gone": "x", "../f": "x"}, "max_file": 100}
    search_process.search(root, request, sent.append)
    root.close()
    assert [line.get("path") for line in sent] == [None, "f", None]
    assert sent[-1]["matches"] == 2
