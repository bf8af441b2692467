"""Programs that change files beneath open documents: what people see, and what the disk holds afterwards."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from pycrdt import TextEvent

from pod_runtime.worker import app, document, watcher
from tests.harness import within
from tests.pod_runtime.worker.harness import Site
from tests.pod_runtime.worker.ycl import YClient

PACKAGES = Path(__file__).parents[3] / "static" / "package.json"
ENV = os.environ | {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    **{f"GIT_{who}_{what}": "a@b.c" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
TEXT = "".join(f"line {n} alpha beta gamma é😀\n" for n in range(60))
#: Each applies the sed expression $E to the file f; $X is a file elsewhere.
PROGRAMS = {
    "sed -i": 'sed -i "$E" f',
    "rewritten in place": 'x=$(sed "$E" f; echo .); printf %s "${x%.}" > f',
    "written beside and renamed": 'sed "$E" f > .f.tmp~; chmod --reference=f .f.tmp~; mv .f.tmp~ f',
    "backup by rename": 'mv f f~; sed "$E" f~ > f; chmod --reference=f~ f; rm f~',
    "vim, backup by rename": "vim -Nes -u NONE -i NONE -c 'set backup bkc=no' -c \"%$E\" -c wq f",
    "vim, in place": "vim -Nes -u NONE -i NONE -c 'set bkc=yes' -c \"%$E\" -c wq f",
    "rm and back": 'sed "$E" f > $X; chmod --reference=f $X; rm f; sleep 0.2; cp -p $X f',
    "truncated, back in pieces": (
        'x=$(sed "$E" f); : > f; sleep 0.15; echo "$x" | head -20 >> f; sleep 0.1;'
        ' echo "$x" | tail -n +21 | head -20 >> f; sleep 0.1; echo "$x" | tail -n +41 >> f'
    ),
    "same size, same mtime": ('touch -r f $X; x=$(sed "$E" f); printf \'%s\\n\' "$x" 1<>f; touch -r $X f'),
    "mtime in the past": 'sed "$E" f > $X; cat $X > f; touch -d 2001-01-01 f',
    "git checkout -- f": "$STAGE; git checkout -q -- f",
    "git stash": "$STAGE; git commit -qm x; git stash -q",
}
STAGE = 'git update-index --add --cacheinfo "$(stat -c 100%a f),$(sed "$E" f | git hash-object -w --stdin),f"'


async def shell(site: Site, script: str, folder: str = "", expression: str = "") -> None:
    more = {"E": expression, "X": f"{site.path}-{folder}"}
    process = await asyncio.create_subprocess_exec(
        *("sh", "-ec", script.replace("$STAGE", STAGE)),
        cwd=site.path / folder, env=ENV | more, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, err = await within(process.communicate(), 60)
    assert process.returncode == 0, err.decode()


async def until(condition: Callable[[], bool], what: str = "") -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture(params=["inotify", "polling"])
async def site(request: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Site]:
    if request.param == "polling":
        monkeypatch.setattr(app, "Watcher", functools.partial(watcher.Watcher, inotify=False))
        monkeypatch.setattr(watcher, "_POLL", 0.1)
        monkeypatch.setattr(watcher, "_POLL_FACTOR", 2)
    site = Site(tmp_path)
    site.config = dataclasses.replace(site.config, max_documents=50)
    await site.start(idle_close=30.0 if request.param == "inotify" else 1.0)
    yield site
    await site.stop()


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is typed waits in the worker until somebody changes the file."""
    monkeypatch.setattr(document, "SAVE_QUIET", 3600)
    monkeypatch.setattr(document, "SAVE_MAX", 3600)


class Observed:
    """What arrives at a client: number of transactions, deleted characters, and where its cursors go."""

    def __init__(self, client: YClient) -> None:
        self.client = client
        self.transactions = self.deleted = 0
        self._cursors: list[int] = []
        client.text.observe(self._seen)

    def _seen(self, event: TextEvent) -> None:
        """As an editor maps its cursors through a change; all offsets are of UTF-8."""
        self.transactions += 1
        at = 0
        for part in event.delta:
            at += part.get("retain", 0)
            gone, more = part.get("delete", 0), len(part.get("insert", "").encode())
            self.deleted += gone
            moved = [c - min(gone, c - at) + more if c > at else c for c in self._cursors]
            self._cursors, at = moved, at + more

    def cursor(self, before: str) -> None:
        """Put one in front of ``before``."""
        self._cursors.append(len(str(self.client.text).partition(before)[0].encode()))

    def after(self) -> list[str]:
        """The 9 characters behind each cursor."""
        return [str(self.client.text).encode()[c:].decode()[:9] for c in self._cursors]


async def agree(
    site: Site, clients: Iterable[YClient], wanted: Callable[[str], bool], name: str = "f"
) -> None:
    """Wait until all clients and the disk hold the same text, one that is ``wanted``."""

    def same() -> bool:
        try:
            disk = (site.path / name).read_text()
        except FileNotFoundError:
            return False
        return wanted(disk) and all(str(c.text) == disk for c in clients)

    try:
        await until(same)
    except TimeoutError:
        disk = (site.path / name).read_text() if (site.path / name).exists() else None
        raise AssertionError(f"disk {disk!r}, pages {[str(c.text) for c in clients]!r}") from None


async def two_people(site: Site, folder: str = "") -> tuple[YClient, YClient]:
    (site.path / folder).mkdir(exist_ok=True)
    (site.path / folder / "f").write_text(TEXT)
    (site.path / folder / "f").chmod(0o755)
    await shell(site, "git init -q; git add f; git commit -qm start", folder)
    name = os.path.join(folder, "f")
    return await site.client(name), await site.client(name, subject="bob")


async def each_program(test: Callable[[str, str], Awaitable[None]]) -> None:
    """Await ``test(folder, program)`` for all of them at once, and tell which fail."""

    async def one(n: int, name: str) -> None:
        try:
            await test(f"p{n}", PROGRAMS[name])
        except BaseException as e:
            e.add_note(f"the program: {name}")
            raise

    found = [name for name in PROGRAMS if "vim" not in name or shutil.which("vim")]
    done = await asyncio.gather(*(one(n, name) for n, name in enumerate(found)), return_exceptions=True)
    if failed := [e for e in done if isinstance(e, Exception)]:
        raise ExceptionGroup("programs", failed)


async def test_a_program_changes_a_word(site: Site) -> None:
    """All pages have it, by a transaction so small that cursors elsewhere stay where they are."""

    async def test(folder: str, program: str) -> None:
        ann, bob = await two_people(site, folder)
        name = f"{folder}/f"
        seen = Observed(bob)
        for place in ("line 5 ", "gamma é😀\nline 11", "line 50 "):
            seen.cursor(place)
        await shell(site, program, folder, "s/line 10 alpha/line 10 ALPHA/")
        wanted = TEXT.replace("line 10 alpha", "line 10 ALPHA")
        assert (site.path / name).read_text() == wanted
        await agree(site, [ann, bob], lambda disk: disk == wanted, name)
        assert seen.after() == ["line 5 al", "gamma é😀\n", "line 50 a"]
        assert (seen.transactions, seen.deleted) == (1, 5)
        # the next save keeps what the program has made of the mode
        assert (site.path / name).stat().st_mode & 0o777 == 0o755
        ann.text.insert(0, "typed\n")
        await agree(site, [ann, bob], lambda disk: disk == "typed\n" + wanted, name)
        assert (site.path / name).stat().st_mode & 0o777 == 0o755

    await each_program(test)


@pytest.mark.usefixtures("unsaved")
async def test_a_program_changes_what_somebody_types_in(site: Site) -> None:
    """What is typed in other lines stays; where both change the same word, both are there, once."""

    async def test(folder: str, program: str) -> None:
        ann, bob = await two_people(site, folder)
        ann.text.insert(len(TEXT.partition("line 30 ")[0].encode()), "typed ")
        at = len(str(ann.text).partition("beta gamma é😀\nline 21")[0].encode())
        with ann.doc.transaction():
            del ann.text[at : at + 4]
            ann.text.insert(at, "ANN")
        await bob.has(str(ann.text))
        await shell(site, program, folder, "s/line \\([12]0\\) alpha beta/line \\1 alpha DISK/")
        both = "line 20 alpha ANN gamma é😀\nline 20 alpha DISK gamma é😀\n"
        text = (
            TEXT.replace("line 30 ", "typed line 30 ")
            .replace("line 10 alpha beta", "line 10 alpha DISK")
            .replace("line 20 alpha beta gamma é😀\n", both)
        )
        await agree(site, [ann, bob], lambda disk: disk == text, f"{folder}/f")

    await each_program(test)


async def test_only_contents_count(site: Site) -> None:
    """touch and chmod are nobody's edit; a save keeps them, as far as they can be kept."""
    ann, bob = await two_people(site)
    seen = Observed(bob)
    updates: list[bytes] = []
    bob.doc.observe(lambda event: updates.append(event.update))
    for script in ("touch f", "touch -d 2001-01-01 f", "touch -d 2040-01-01 f", "chmod 600 f", "chmod 711 f"):
        site.persistence.touches.clear()
        await shell(site, script)
        await until(lambda: "f" in site.persistence.touches)
    inode = (site.path / "f").stat().st_ino
    await shell(site, "echo more >> f")
    await agree(site, [ann, bob], lambda disk: disk == TEXT + "more\n")
    assert (len(updates), seen.transactions, seen.deleted) == (1, 1, 0)
    assert (site.path / "f").stat().st_ino == inode
    ann.text += "typed\n"
    await agree(site, [ann, bob], lambda disk: disk == TEXT + "more\ntyped\n")
    assert (site.path / "f").stat().st_mode & 0o777 == 0o711
    assert len(updates) == 2


async def test_writes_within_one_tick(site: Site) -> None:
    """The same size, the same mtime, perhaps the same ctime: only contents tell."""
    (site.path / "f").write_text("word 0000\n")
    ann = await site.client("f")
    stamp = (site.path / "f").stat().st_mtime_ns
    with open(site.path / "f", "r+b", buffering=0) as f:
        for n in range(1, 41):
            for word in (n * 7, n):
                os.pwrite(f.fileno(), b"word %04d\n" % word, 0)
                os.utime(f.fileno(), ns=(stamp, stamp))
            if n % 5 == 0:
                await ann.has(f"word {n:04}\n")
            await asyncio.sleep(n % 3 / 1000)
    await ann.has("word 0040\n")
    ann.text += "typed\n"
    await site.on_disk("f", "word 0040\ntyped\n")


async def test_gone_for_longer_than_the_grace(site: Site) -> None:
    ann, bob = await two_people(site)
    await shell(site, "mv f $X")
    assert await ann.closed() == await bob.closed() == 4404
    await shell(site, "mv $X f; echo back >> f")
    again = await site.client("f", doc=ann.doc, sync=False)
    assert await again.closed() == 4409
    fresh = await site.client("f")
    await fresh.has(TEXT + "back\n")
    assert str(ann.text) == TEXT


@pytest.mark.usefixtures("unsaved")
async def test_gone_for_longer_than_the_grace_while_somebody_types(site: Site) -> None:
    """Then it comes back by what was typed, mode and all; what is put there later is merged in."""
    ann, bob = await two_people(site)
    ann.text += "typed\n"
    await bob.has(str(ann.text))
    await shell(site, "mv f $X")
    await agree(site, [ann, bob], lambda disk: disk == TEXT + "typed\n")
    assert (site.path / "f").stat().st_mode & 0o777 == 0o755
    await shell(site, "sed 's/line 3 /LINE 3 /' f > $X; cat $X > f")
    await agree(site, [ann, bob], lambda disk: disk == TEXT.replace("line 3 ", "LINE 3 ") + "typed\n")


async def test_a_folder_is_moved_or_replaced(site: Site) -> None:
    (site.path / "d/e").mkdir(parents=True)
    for name in ("d/e/f", "d/e/g", "d/h"):
        (site.path / name).write_text(f"{name}\n")
    f, g, h = [await site.client(name) for name in ("d/e/f", "d/e/g", "d/h")]
    await shell(site, "cp -r d new; echo more >> new/e/f; rm new/e/g; mv d old; mv new d")
    await f.has("d/e/f\nmore\n")
    assert await g.closed() == 4404
    await shell(site, "echo again >> d/h; mv d/e elsewhere")
    assert await f.closed() == 4404
    await h.has("d/h\nagain\n")
    assert not (site.path / "d/e").exists()


@pytest.mark.usefixtures("unsaved")
async def test_a_branch_switch_of_500_files(site: Site) -> None:
    def content(n: int, branch: str = "") -> str:
        return f"file {n}\n" + "".join(f"line {k} {branch * (k == 7)}\n" for k in range(30))

    for n in range(500):
        path = site.path / f"d{n % 10}" / f"f{n}"
        path.parent.mkdir(exist_ok=True)
        path.write_text(content(n))
    # on the other branch all are changed, but of ten one is gone, and d9 is gone altogether
    await shell(
        site,
        "git init -q -b main; git add .; git commit -qm main; git checkout -qb other;"
        " sed -i 's/^line 7 $/line 7 other/' d*/*; git rm -qrf d9 d*/f*1 d*/f*3; git add .;"
        " git commit -qam other; git checkout -q main",
    )
    numbers = [0, 2, 4, 6, 8, 10, 494, 496]
    lost = [1, 9, 499]
    pages = {n: await site.client(f"d{n % 10}/f{n}") for n in [*numbers, *lost]}
    typed = {n: await site.client(f"d{n % 10}/f{n}", subject="bob") for n in (4, 13, 19)}
    for n, page in typed.items():
        page.text += "typed\n"
        document_of = app_documents(site)[f"d{n % 10}/f{n}"]
        await until(lambda of=document_of: of.text.endswith("typed\n"))  # type: ignore[misc]
    await shell(site, "git checkout -q other")
    for n in numbers:
        tail = "typed\n" if n == 4 else ""
        await agree(site, [pages[n]], lambda d, n=n, t=tail: d == content(n, "other") + t, f"d{n % 10}/f{n}")  # type: ignore[misc]
    for n in lost:
        assert await pages[n].closed() == 4404
        assert not (site.path / f"d{n % 10}/f{n}").exists()
    for n in (13, 19):
        # git deleted it, but somebody was writing there
        await agree(site, [typed[n]], lambda d, n=n: d == content(n) + "typed\n", f"d{n % 10}/f{n}")  # type: ignore[misc]
    await shell(site, "rm -r d9 d3; git checkout -q -f main")
    for n in [*numbers, 13, 19]:
        page = pages.get(n) or typed[n]
        if n in typed and await closed_or(page, content(n)) == 4404:
            page = await site.client(f"d{n % 10}/f{n}")
        await agree(site, [page], lambda d, n=n: d == content(n), f"d{n % 10}/f{n}")  # type: ignore[misc]
    for n in lost:
        await (await site.client(f"d{n % 10}/f{n}")).has(content(n))


async def closed_or(page: YClient, text: str) -> int | None:
    assert page.ws is not None
    await page.until(lambda: page.ws is None or page.ws.closed or str(page.text) == text)
    return page.ws.close_code


def app_documents(site: Site) -> dict[str, document.Document]:
    assert site.worker is not None
    return site.worker.documents._open


@pytest.mark.usefixtures("unsaved")
async def test_a_file_becomes_a_link(site: Site, tmp_path: Path) -> None:
    """Links are not followed, neither to read nor to write; what was typed is put beside."""
    ann, bob = await two_people(site)
    (tmp_path / "secret").write_text("secret\n")
    ann.text += "typed\n"
    await bob.has(str(ann.text))
    await shell(site, "ln -sf ../secret f")
    assert await ann.closed() == await bob.closed() == 4415
    assert (site.path / "f").is_symlink()
    assert (tmp_path / "secret").read_text() == "secret\n"
    (aside,) = site.path.glob("f.unsaved-*")
    assert aside.read_text() == TEXT + "typed\n"
    assert "secret" not in str(ann.text)


@pytest.mark.parametrize("site", ["inotify"], indirect=True)
@pytest.mark.skipif(
    shutil.which("node") is None or not (PACKAGES.parent / "node_modules" / "y-websocket").exists(),
    reason="needs Node and the page's packages (make setup)",
)
async def test_undo_is_of_ones_own(site: Site) -> None:
    """yjs's UndoManager, as the editor uses it."""
    (site.path / "f").write_text("one\ntwo\nthree\n")
    version = await asyncio.to_thread(subprocess.check_output, ["node", "-p", "process.versions.node"])
    switch = ["--experimental-websocket"] if int(version.split(b".")[0]) < 22 else []
    process = await asyncio.create_subprocess_exec(
        *("node", *switch, str(Path(__file__).with_name("undo.cjs")), str(PACKAGES)),
        *(f"{site.url}/collab".replace("http", "ws", 1), "f"),
        *(str(site.path / "f"), *site.headers().popitem()),
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await within(process.communicate(), 90)
    assert process.returncode == 0, err.decode()
    await site.on_disk("f", out)
