"""Random lives of a project against the worker's promise; see `world` for the model, `virtual` for the clock.

A failing seed is printed with the last steps. ``SEED=n pytest -k test_model`` runs that one alone, and ``make
test-soak SOAK=seconds`` runs new ones for so long.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from pod_runtime.worker import merge
from tests.pod_runtime.worker.virtual import Chance, run
from tests.pod_runtime.worker.world import NAMES, Page, World, tokens

STEPS = 250
SEEDS = range(1, 9)


class Player(World):
    """The steps, of which chance takes one after the other."""

    def moves(self) -> list[tuple[float, Callable[[], Awaitable[None]]]]:
        return [
            (30, self.edit), (6, self.burst), (6, self.erase), (4, self.disconnect), (5, self.connect),
            (3, self.close_page), (3, self.open_page), (6, self.disk_append), (4, self.disk_replace),
            (2, self.disk_delete), (2, self.disk_recreate), (2, self.disk_rename), (4, self.disk_sed),
            (2, self.disk_create), (3, self.disk_in_place), (1, self.disk_touch), (2, self.api_rename),
            (1, self.api_delete), (2, self.api_put), (3, self.wait), (1, self.evict), (2, self.restart),
            (3, self.killed), (1.5, self.killed_with_pages), (0.7, self.state_lost),
            (0.7, self.machine_lost), (3, self.fault_step), (1.5, self.settle), (1, self.agreed_delete),
            (1, self.agreed_revert),
        ]  # fmt: skip

    async def play(self, steps: int) -> None:
        async with self.client():
            await self.start()
            for _ in range(2):
                await self.disk_create()
            for _ in range(3):
                await self.open_page()
            weights, moves = zip(*self.moves(), strict=True)
            for _ in range(steps):
                (move,) = self.chance.random.choices(moves, weights)
                self.log(move.__name__)
                await move()
                await self.pass_time()
                self.check()
            await self.settle()
            await self.finish()

    async def pass_time(self) -> None:
        kind = self.chance.random.random()
        if kind < 0.5:
            await self.chance.pause()
        else:
            await asyncio.sleep(self.chance.random.random() * (0.3 if kind < 0.8 else 2))

    # -- people

    def page(self) -> Page:
        return self.chance.random.choice(self.pages)

    async def edit(self) -> None:
        self.page().type()

    async def burst(self) -> None:
        for _ in range(self.chance.random.randrange(3, 15)):
            self.page().type()
            await self.chance.pause(0.4)

    async def erase(self) -> None:
        self.page().erase()

    async def disconnect(self) -> None:
        page = self.page()
        page.wanted = False
        page.drop()

    async def connect(self) -> None:
        self.page().wanted = True

    async def open_page(self) -> None:
        if len(self.pages) < 6:
            self.pages.append(Page(self, self.some_path()))

    async def close_page(self) -> None:
        if len(self.pages) > 2:
            page = self.pages.pop(self.chance.random.randrange(len(self.pages)))
            mine = set(tokens(str(page.text)))
            await page.close()
            # what has arrived is the worker's, the rest was in that page alone
            arrived = set(self.everywhere())
            if self.worker is not None:
                for document in self.worker.documents._open.values():
                    arrived |= set(tokens(document.text))
            for other in self.pages:
                arrived |= set(tokens(str(other.text)))
            self.doubt(mine - arrived, stashed=True)

    # -- the disk, as terminals and git write it

    def read(self, path: str) -> str:
        return (self.workspace / path).read_bytes().decode()

    def write(self, path: str, text: str) -> None:
        """In place, or by a rename over it."""
        file = self.workspace / path
        file.parent.mkdir(exist_ok=True)
        if self.chance.random.random() < 0.5:
            file.write_bytes(text.encode())
        else:
            fresh = file.with_name("new~")
            fresh.write_bytes(text.encode())
            fresh.replace(file)

    def end(self, text: str) -> str:
        return "\r\n" if "\r\n" in text else "\n"

    async def disk_append(self) -> None:
        for path in self.files()[:1] if not self.files() else [self.some_path()]:
            text = self.read(path)
            new = self.new_token()
            if text and not text.endswith("\n") and self.chance.random.random() < 0.5:
                new = self.end(text) + new
            if self.chance.random.random() < 0.8:
                new += self.end(text) if self.chance.random.random() < 0.8 else "\n"
            with (self.workspace / path).open("ab") as f:
                f.write(new.encode())

    async def disk_replace(self) -> None:
        """Some lines go, some come, as by a formatter or a branch switch."""
        if not self.files():
            return
        path = self.some_path()
        text = self.read(path)
        lines = text.splitlines(keepends=True)
        chance = self.chance.random
        kept = [line for line in lines if chance.random() < 0.8]
        for _ in range(chance.randrange(3)):
            kept.insert(chance.randrange(len(kept) + 1), self.new_token() + self.end(text))
        new = "".join(kept)
        self.doubt(set(tokens(text)) - set(tokens(new)))
        self.write(path, new)

    async def disk_sed(self) -> None:
        """One token becomes another, on a line of its own."""
        if not self.files():
            return
        path = self.some_path()
        text = self.read(path)
        alone = [line for line in text.splitlines() if len(tokens(line)) == 1]
        if alone:
            (old,) = tokens(self.chance.random.choice(alone))
            self.doubt([old])
            self.write(path, text.replace(old, self.new_word()))

    async def disk_in_place(self) -> None:
        """The same length, perhaps within the same tick of the file system's clock."""
        if not self.files():
            return
        path = self.some_path()
        text = self.read(path)
        alone = [line for line in text.splitlines() if len(tokens(line)) == 1]
        if alone:
            (old,) = tokens(self.chance.random.choice(alone))
            new = self.new_word(len(old.encode()))
            if len(new.encode()) == len(old.encode()):
                self.doubt([old])
                with (self.workspace / path).open("r+b") as f:
                    f.write(text.replace(old, new).encode())
            else:
                self.known.discard(new)

    async def disk_touch(self) -> None:
        if self.files():
            os.utime(self.workspace / self.some_path())

    async def disk_create(self) -> None:
        path = self.chance.random.choice(NAMES)
        if not (self.workspace / path).exists():
            end = self.chance.random.choice(["\n", "\n", "\r\n"])
            lines = [self.new_token() for _ in range(self.chance.random.randrange(6))]
            self.write(path, end.join(lines) + self.chance.random.choice(["", end]))

    def vanishes(self, path: str) -> None:
        self.doubt(tokens(self.read(path)))
        self.excuse(path)

    async def disk_delete(self) -> None:
        if self.files():
            path = self.some_path()
            self.vanishes(path)
            (self.workspace / path).unlink()

    async def disk_recreate(self) -> None:
        """rm, and after a while the same or something new."""
        if not self.files():
            return
        path = self.some_path()
        text = self.read(path)
        self.vanishes(path)
        (self.workspace / path).unlink()
        await asyncio.sleep(self.chance.random.choice([0, 0, 0.1, 0.3, 2]))
        if not (self.workspace / path).exists() and (self.workspace / path).parent.exists():
            lines = text.splitlines(keepends=True)
            if self.chance.random.random() < 0.5:
                lines = [self.new_token() + self.end(text) for _ in range(3)]
            self.write(path, "".join(lines))

    async def disk_rename(self) -> None:
        if not self.files():
            return
        old, new = self.some_path(), self.chance.random.choice(NAMES)
        held = set(tokens(self.read(new))) if (self.workspace / new).exists() else set()
        for page in self.pages:
            if page.path == new:
                held |= set(tokens(str(page.text)))
        # two texts that share words in another order are a conflict, which may keep both
        if old != new and not held & set(tokens(self.read(old))):
            self.vanishes(old)
            if (self.workspace / new).exists():
                self.vanishes(new)
            (self.workspace / new).parent.mkdir(exist_ok=True)
            (self.workspace / old).replace(self.workspace / new)

    # -- the contents API

    async def api_rename(self) -> None:
        if not self.files():
            return
        old, new = self.some_path(), self.chance.random.choice(NAMES)
        if old == new:
            return
        (self.workspace / new).parent.mkdir(exist_ok=True)
        self.excuse(old)
        status = await self.call("PATCH", old, json={"path": new})
        assert status in (0, 200, 404, 409, 503), status
        if (self.workspace / new).exists() and not (self.workspace / old).exists():
            for page in self.pages:
                if page.path != old:
                    continue
                if page.synced or self.chance.random.random() < 0.5:
                    page.path = new
                else:
                    page.drop()  # it has not heard of the new name, but its socket may have been taken along

    async def api_delete(self) -> None:
        if self.files():
            path = self.some_path()
            self.excuse(path)
            held = set(tokens(self.read(path)))
            assert self.worker is not None
            document = self.worker.documents._open.get(path)
            if document is not None:
                held |= set(tokens(document.text))
            self.doubt(held)
            status = await self.call("DELETE", path)
            assert status in (0, 204, 404, 503), status
            if status == 204 and document is not None:
                self.doubt(tokens(document.text))

    async def api_put(self) -> None:
        """What another editor saves over the REST API."""
        if not self.files():
            return
        path = self.some_path()
        text = self.read(path)
        new = text + ("" if text.endswith("\n") or not text else self.end(text)) + self.new_token()
        assert self.worker is not None
        document = self.worker.documents._open.get(path)
        # it is over what the worker has saved just before, so it deletes what it has not seen
        self.doubt(tokens(document.text) if document is not None else [])
        for page in self.pages:
            if page.path == path:
                self.doubt(tokens(str(page.text)))
        status = await self.call("PUT", path, json={"type": "file", "format": "text", "content": new})
        assert status in (0, 200, 201, 503), status

    # -- time and trouble

    async def wait(self) -> None:
        await asyncio.sleep(self.chance.random.random() * 5)

    async def evict(self) -> None:
        """All tabs sleep until the documents are closed."""
        for page in self.pages:
            page.wanted = False
            page.drop()
        await asyncio.sleep(45)
        for page in self.pages:
            page.wanted = self.chance.random.random() < 0.8

    async def restart(self) -> None:
        await self.stop()
        await asyncio.sleep(self.chance.random.random())
        await self.start(same_generation=self.chance.random.random() < 0.3)

    async def killed(self) -> None:
        if self.chance.random.random() < 0.5:
            self.page().type()
            await self.chance.pause(2)
        await self.kill()
        if self.chance.random.random() < 0.3:
            await self.disk_append()
        if self.chance.random.random() < 0.5:
            self.page().type()
        await self.start(same_generation=self.chance.random.random() < 0.3)

    async def killed_with_pages(self) -> None:
        """The worker and everybody who could tell it again what it forgot; what was durable must be there."""
        path = self.page().path
        for _ in range(self.chance.random.randrange(5, 25)):
            for page in self.pages:
                if page.path == path and self.chance.random.random() < 0.7:
                    page.type()
            await asyncio.sleep(self.chance.random.random() * 0.4)
        await self.kill()
        for page in [p for p in self.pages if p.path == path]:
            self.pages.remove(page)
            await page.close()
        self.fates()
        await self.start()
        while len(self.pages) < 2:
            await self.open_page()

    async def state_lost(self) -> None:
        await (self.kill() if self.chance.random.random() < 0.5 else self.stop())
        await self.lose_state()
        await self.start()
        await self.all_back()

    async def machine_lost(self) -> None:
        await (self.kill() if self.chance.random.random() < 0.5 else self.stop())
        await self.lose_machine()
        await self.start(elsewhere=True)
        await self.all_back()

    async def all_back(self) -> None:
        """Known limit: what somebody wrote into a closed document's file, and a page has seen taken in so
        shortly before /state was lost that no commit had it, is taken in once more if the file has changed
        yet again until that page is back. So nobody touches the disk until then."""
        for page in self.pages:
            page.wanted = True
        for _ in range(100):
            await asyncio.sleep(0.1)
            if all(page.synced for page in self.pages):
                break

    async def fault_step(self) -> None:
        self.trouble = self.chance.random.choice(["none", "none", "slow", "away", "flaky"])

    async def agreed_delete(self) -> None:
        """When all agree and one deletes, it is deleted."""
        await self.settle()
        page = self.page()
        found = tokens(str(page.text))
        if found:
            before = set(found)
            if self.chance.random.random() < 0.5:
                page.erase()
            else:
                token = self.chance.random.choice(found)
                self.doubt([token])
                self.write(page.path, self.read(page.path).replace(token, ""))
            await self.settle()
            now = set(tokens(self.read(page.path)))
            assert now < before, f"deleted, but still there: {before & now}"

    async def agreed_revert(self) -> None:
        """git checkout of an older state, the document being open or not, even the worker away: it stays."""
        await self.settle()
        page = self.page()
        older = self.read(page.path)
        for _ in range(3):
            page.type()
            await asyncio.sleep(2)
        await self.settle()
        kind = self.chance.random.random()
        if kind < 0.3:
            await self.evict()
        elif kind < 0.5:
            await self.stop()
        self.doubt(set(tokens(self.read(page.path))) - set(tokens(older)))
        self.write(page.path, older)
        if self.worker is None:
            await self.start()
        await self.settle()
        assert self.read(page.path) == older, f"put back {older!r}, but it is {self.read(page.path)!r}"


def play(seed: int, folder: Path, steps: int = STEPS) -> int:
    """One life; tells seed and steps when it fails."""
    worlds: list[Player] = []

    async def main(chance: Chance) -> None:
        world = Player(chance, folder)
        worlds.append(world)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(merge, "_stacked", world.stacked)
            await world.play(steps)

    try:
        run(seed, main)
    except BaseException:
        print(f"SEED={seed}; the last steps:", *worlds[0].steps[-40:], sep="\n  ")
        raise
    finally:
        gc.collect()
    return steps


@contextlib.contextmanager
def place() -> Iterator[Path]:
    """In memory where the machine has that: nothing here is about what fsync costs."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = tempfile.mkdtemp(dir=memory, prefix="codevo-model-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("seed", [int(os.environ["SEED"])] if "SEED" in os.environ else SEEDS)
def test_random_lives(seed: int) -> None:
    with place() as folder:
        play(seed, folder)


@pytest.mark.skipif("SOAK" not in os.environ, reason="make test-soak")
@pytest.mark.timeout(0)
def test_soak() -> None:
    """New seeds until the time is over."""
    end = time.monotonic() + float(os.environ["SOAK"])
    seed = int(os.environ.get("SEED", time.time_ns() % 10**9))
    steps = 0
    while time.monotonic() < end:
        with place() as folder:
            steps += play(seed, folder)
        seed += 1
    print(f"{steps} steps")
