"""Killed at the three places where a save or a commit could be cut, with people who come back; and what a
commit may promise. On the clock of `virtual`, judged by `world`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from pod_runtime.journal.store import StoreError
from tests.pod_runtime.worker.test_model import Player
from tests.pod_runtime.worker.virtual import Chance, run
from tests.pod_runtime.worker.world import Page, tokens


class Cut(Player):
    """A world that tells of a commit's put, and with ``phase`` stops it there."""

    phase = ""
    reached: asyncio.Event

    async def fault(self, operation: str, key: str, phase: str) -> None:
        if operation == "put" and "journal/" in key and phase == (self.phase or "before"):
            self.reached.set()
            if self.phase:
                await asyncio.Event().wait()


@pytest.mark.parametrize("elsewhere", [False, True])
@pytest.mark.parametrize("place", ["state and text", "text and commit", "commit and acknowledgement"])
def test_killed_between(place: str, elsewhere: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(chance: Chance) -> None:
        world = Cut(chance, tmp_path)
        world.reached = asyncio.Event()
        async with world.client():
            await world.start()
            (world.workspace / "f").write_text(f"{world.new_token()}\n")
            ann, bob = world.pages = [Page(world, "f"), Page(world, "f")]
            await world.settle()
            world.reached.clear()
            if place == "state and text":
                written = asyncio.to_thread

                async def cut(function: Any, *args: Any) -> Any:
                    if getattr(function, "__qualname__", "") == "write_file":
                        world.reached.set()
                        await asyncio.Event().wait()
                    return await written(function, *args)

                with monkeypatch.context() as patch:
                    patch.setattr(asyncio, "to_thread", cut)
                    ann.type()
                    await world.reached.wait()
                    await world.kill()
                assert not set(tokens(str(ann.text))) <= set(tokens(world.read("f")))
            else:
                world.phase = "before" if place == "text and commit" else "after"
                ann.type()
                await world.reached.wait()
                assert set(tokens(str(ann.text))) <= set(tokens(world.read("f")))
                await world.kill()
            world.phase = ""
            ann.type()
            bob.type()
            if elsewhere:
                await world.lose_machine()
            await world.start(elsewhere=elsewhere)
            await world.settle()
            # both had everything and came back, so nothing at all may be missing
            assert world.known == set(tokens(world.read("f")))
            await world.finish()

    run(1, main)


def test_durable_means_that_nobody_has_to_come_back(tmp_path: Path) -> None:
    """A commit takes edits that are not in /state yet; a kill must not put the older state in its place."""

    async def main(chance: Chance) -> None:
        world = Cut(chance, tmp_path)
        world.reached = asyncio.Event()
        async with world.client():
            await world.start()
            (world.workspace / "f").write_text(f"{world.new_token()}\n")
            world.pages = [Page(world, "f")]
            await world.settle()
            # typing goes on until a commit is under way: what was typed last is in it, but not saved yet
            world.reached.clear()
            while not world.reached.is_set():
                world.pages[0].type()
                await asyncio.sleep(0.05)
            assert world.worker is not None
            while world.worker.persistence.status().pending:
                await asyncio.sleep(0.001)
            assert world.known == world.durable != set(tokens(world.read("f")))
            await world.kill()
            await world.pages.pop().close()
            world.fates()
            await world.start()
            world.pages = [Page(world, "f")]
            await world.settle()
            await world.finish()

    run(2, main)


def test_a_closed_document_is_brought_up_to_date_alike_by_the_next_machine(tmp_path: Path) -> None:
    """A client has seen the file's change as an edit of a worker that was gone before it could commit it."""

    async def main(chance: Chance) -> None:
        world = Player(chance, tmp_path)
        async with world.client():
            await world.start()
            (world.workspace / "f").write_text(f"{world.new_token()}\n")
            world.pages = [Page(world, "f")]
            await world.settle()
            await world.evict()
            await world.disk_append()
            await asyncio.sleep(10)
            world.trouble = "away"
            world.pages[0].wanted = True
            while not world.pages[0].synced:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert tokens(str(world.pages[0].text)) == tokens(world.read("f"))
            await world.kill()
            world.trouble = "none"
            await world.start(elsewhere=True)
            await world.settle()
            await world.finish()

    run(3, main)


async def test_a_commit_is_not_called_durable_before_state_is(tmp_path: Path) -> None:
    from pod_runtime.journal.memory import MemoryStore
    from tests.pod_runtime.worker.persistence_kit import Machine

    machine = Machine(tmp_path / "m", MemoryStore("p/"))
    worker = await machine.opened(1)
    machine.documents.edit("f", b"text")
    machine.documents.unsynced = OSError(28, "No space left on device")
    worker.touched("f")
    with pytest.raises((OSError, StoreError)):
        await worker._commit_once()
    assert worker.status().pending
    assert "No space left" in (worker.status().last_error or "")
    # but it is there for who comes after this machine
    other = Machine(tmp_path / "other", machine.store)
    await (await other.opened(2)).close()
    assert (other.workspace / "f").read_bytes() == b"text"
    machine.documents.unsynced = None
