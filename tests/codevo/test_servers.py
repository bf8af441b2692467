"""The manager of servers, above spawners that are well, slow, stuck or broken."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from codevo.servers import ServerManager, ServersBusy, TooManyRunning
from codevo.servers.guests import GuestStarts
from codevo.servers.progress import MAX_EVENTS, ProgressLog, ServerStatus
from codevo.spawner.base import ServerState, SpawnError, WorkspaceStatus
from tests.codevo.fakes import (
    BadSpawner,
    BrokenSpawner,
    FakePods,
    FakeRecords,
    FakeSpawner,
    FakeStores,
    NeverSpawner,
)

S = ServerState
WAIT = 15.0


@asynccontextmanager
async def managing(
    spawner: FakeSpawner | None = None,
    pods: FakePods | None = None,
    records: FakeRecords | None = None,
    **traits: Any,
) -> AsyncIterator[tuple[ServerManager, FakeSpawner, FakePods, FakeRecords]]:
    spawner, pods, records = spawner or FakeSpawner(), pods or FakePods(), records or FakeRecords()
    manager = ServerManager(
        spawner=spawner, records=records, pods=pods, stores=FakeStores(), public_key="k", **traits
    )
    await manager.open()
    try:
        yield manager, spawner, pods, records
    finally:
        spawner.gate.set()
        spawner.stop_gate.set()
        await manager.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT):
        while not condition():
            await asyncio.sleep(0.005)


async def events(manager: ServerManager, project: str) -> list[ServerStatus]:
    async with asyncio.timeout(WAIT):
        return [e.status async for e in manager.progress(project).follow() if e]


async def test_a_start_goes_through_its_states_to_ready() -> None:
    async with managing() as (manager, spawner, _, _):
        assert manager.start("p", "ann").state is S.STARTING
        assert (await manager.wait("p", WAIT)).state is S.READY
        assert manager.address("p") == spawner.running["p"].address
        seen = await events(manager, "p")
        assert [s.state for s in seen] == sorted((s.state for s in seen), key=list(S).index)
        assert seen[-1].state is S.READY and seen[-1].percent == 100
        assert [s.percent for s in seen] == sorted(s.percent for s in seen)
        spec = spawner.starts[0]
        assert (spec.owner, spec.worker.generation, spec.worker.store.prefix) == ("ann", 1, "projects/p/")


async def test_two_people_at_once_get_one_pod() -> None:
    async with managing() as (manager, spawner, _, _):
        for _ in range(5):
            manager.start("p", "ann")
        await manager.wait("p", WAIT)
        manager.start("p", "ann")
        assert len(spawner.starts) == 1
        assert manager.status("p").state is S.READY


async def test_each_start_has_a_higher_generation() -> None:
    async with managing() as (manager, spawner, _, _):
        for _ in range(3):
            manager.start("p", "ann")
            await manager.wait("p", WAIT)
            await manager.stop("p")
        assert [s.worker.generation for s in spawner.starts] == [1, 2, 3]
        assert manager.status("p").state is S.STOPPED and manager.list() == []
        assert manager.address("p") is None


async def test_stopping_what_does_not_run_does_nothing() -> None:
    async with managing() as (manager, spawner, _, _):
        await manager.stop("p")
        assert spawner.stops == []


async def test_stop_while_starting_cancels_the_start() -> None:
    async with managing(NeverSpawner()) as (manager, spawner, _, _):
        manager.start("p", "ann")
        await until(lambda: spawner.now_starting == 1)
        reading = asyncio.create_task(events(manager, "p"))
        await manager.stop("p")
        assert spawner.now_starting == 0 and spawner.stops == ["p"]
        assert manager.status("p").state is S.STOPPED
        assert [s.state for s in await reading][-2:] == [S.STOPPING, S.STOPPED]


async def test_stop_in_the_moment_of_becoming_ready_wins() -> None:
    async with managing(NeverSpawner()) as (manager, spawner, _, _):
        manager.start("p", "ann")
        await until(lambda: spawner.now_starting == 1)
        spawner.gate.set()
        task = manager.begin_stop("p")
        assert task
        await task
        assert manager.status("p").state is S.STOPPED and "p" not in spawner.running


async def test_start_while_stopping_starts_again_after_it() -> None:
    async with managing() as (manager, spawner, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        spawner.stop_gate.clear()
        stopping = manager.begin_stop("p")
        assert manager.start("p", "ann").state is S.STOPPING
        assert len(spawner.starts) == 1
        reading = asyncio.create_task(events(manager, "p"))
        spawner.stop_gate.set()
        assert stopping
        await stopping
        assert (await manager.wait("p", WAIT)).state is S.READY
        assert len(spawner.starts) == 2
        seen = [s.state for s in await reading]
        assert seen[0] is S.STOPPING and seen[-1] is S.READY and S.STOPPED not in seen


async def test_stop_takes_back_a_start_that_waits_for_the_stop() -> None:
    async with managing() as (manager, spawner, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        spawner.stop_gate.clear()
        manager.begin_stop("p")
        manager.start("p", "ann")
        again = manager.begin_stop("p")
        spawner.stop_gate.set()
        assert again
        await again
        assert manager.status("p").state is S.STOPPED and len(spawner.starts) == 1


async def test_starts_are_bounded_and_the_queue_tells_places() -> None:
    spawner = NeverSpawner()
    async with managing(spawner, concurrent_starts=2, max_queue=3) as (manager, _, _, _):
        for n in range(5):
            manager.start(f"p{n}", f"owner{n}")
        with pytest.raises(ServersBusy) as busy:
            manager.start("p5", "owner5")
        assert busy.value.retry_after > 0
        assert manager.status("p5").state is S.STOPPED
        assert manager.start("p4", "owner4").state is S.STARTING  # already in line: no error
        await until(lambda: spawner.now_starting == 2)
        assert "place 3" in manager.status("p4").message
        await manager.stop("p3")
        assert "place 2" in manager.status("p4").message
        spawner.gate.set()
        for n in (0, 1, 2, 4):
            assert (await manager.wait(f"p{n}", WAIT)).state is S.READY
        assert spawner.most_starting == 2


async def test_a_start_cancelled_before_its_first_step_gives_its_place_back() -> None:
    async with managing(concurrent_starts=1, max_queue=1) as (manager, _, _, _):
        manager.start("p", "ann")
        stopping = manager.begin_stop("p")
        assert stopping
        await stopping
        manager.start("q", "ann")
        assert (await manager.wait("q", WAIT)).state is S.READY


async def test_one_owner_may_run_so_many() -> None:
    async with managing(max_running=2) as (manager, _, _, _):
        manager.start("a", "ann")
        manager.start("b", "ann")
        with pytest.raises(TooManyRunning):
            manager.start("c", "ann")
        manager.start("d", "ben")
        await manager.wait("a", WAIT)
        await manager.stop("a")
        assert manager.start("c", "ann").state is S.STARTING


async def test_a_spawner_that_says_why_is_quoted() -> None:
    async with managing(BadSpawner()) as (manager, spawner, _, _):
        manager.start("p", "ann")
        status = await manager.wait("p", WAIT)
        assert status.state is S.FAILED and status.reason == "bubblewrap is not installed"
        assert spawner.stops == ["p"] and manager.address("p") is None
        assert (await events(manager, "p"))[-1].state is S.FAILED
        manager.start("p", "ann")  # a failed one can be tried again
        await until(lambda: len(spawner.starts) == 2)
        await manager.wait("p", WAIT)
        await manager.stop("p")  # and cleared
        assert manager.status("p").state is S.STOPPED


async def test_a_broken_spawner_is_not_quoted() -> None:
    async with managing(BrokenSpawner()) as (manager, _, _, _):
        manager.start("p", "ann")
        status = await manager.wait("p", WAIT)
        assert status.state is S.FAILED and "hunter2" not in status.reason and status.reason


async def test_no_progress_means_failed() -> None:
    async with managing(NeverSpawner(), start_timeout=1.0) as (manager, spawner, _, _):
        began = time.monotonic()
        manager.start("p", "ann")
        status = await manager.wait("p", WAIT)
        assert status.state is S.FAILED and "no progress" in status.reason
        assert time.monotonic() - began >= 0.9 and spawner.stops == ["p"]


async def test_a_long_restore_goes_on_as_long_as_it_moves() -> None:
    pods = FakePods()
    pods.health["worker"] = {"state": "restoring", "percent": 0, "message": "10 of 900 MB"}
    async with managing(pods=pods, start_timeout=1.0) as (manager, _, _, _):
        manager.start("p", "ann")
        await until(lambda: manager.status("p").state is S.RESTORING)
        for percent in range(0, 100, 10):
            pods.health["worker"] = {"state": "restoring", "percent": percent, "message": f"{percent} %"}
            await asyncio.sleep(0.2)
        await until(lambda: "90 %" in manager.status("p").message)
        assert 80 < manager.status("p").percent < 95
        assert manager.address("p") is not None
        pods.health["worker"] = {"state": "ready"}
        assert (await manager.wait("p", WAIT)).state is S.READY


async def test_a_restore_that_fails_fails_the_start_at_once() -> None:
    pods = FakePods()
    pods.health["worker"] = {"state": "failed", "message": "The log has a hole at 7."}
    pods.health["runner"] = ConnectionError()
    async with managing(pods=pods) as (manager, _, _, _):
        manager.start("p", "ann")
        status = await manager.wait("p", WAIT)
        assert (status.state, status.reason) == (S.FAILED, "The log has a hole at 7.")


@pytest.mark.parametrize(
    "lie", ["<html>", None, {}, {"state": "won"}, {"state": "restoring", "percent": "9" * 99}, [1]]
)
async def test_a_pod_that_answers_nonsense_is_never_ready(lie: object) -> None:
    pods = FakePods()
    pods.health["runner"] = lie
    async with managing(pods=pods, start_timeout=1.0) as (manager, _, _, _):
        manager.start("p", "ann")
        assert (await manager.wait("p", WAIT)).state is S.FAILED


async def test_a_pod_that_does_not_answer_yet_is_asked_again() -> None:
    pods = FakePods()
    pods.health["worker"] = ConnectionRefusedError()
    async with managing(pods=pods) as (manager, _, _, _):
        manager.start("p", "ann")
        await until(lambda: sum(c[1] == "worker" for c in pods.calls) > 3)
        pods.health["worker"] = {"state": "ready"}
        assert (await manager.wait("p", WAIT)).state is S.READY


async def test_a_deleted_project_is_not_started() -> None:
    async with managing() as (manager, spawner, _, records):
        records.gone.add("p")
        manager.start("p", "ann")
        assert (await manager.wait("p", WAIT)).state is S.FAILED
        assert spawner.starts == []


async def test_a_stop_that_fails_says_so_and_can_be_repeated() -> None:
    class Stuck(FakeSpawner):
        fails = True

        async def stop(self, project: str, *, grace: float = 30.0) -> None:
            if self.fails:
                raise SpawnError("The supervisor does not answer.")
            await super().stop(project, grace=grace)

    spawner = Stuck()
    async with managing(spawner) as (manager, _, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        with pytest.raises(SpawnError, match="supervisor"):
            await manager.stop("p")
        assert manager.status("p").state is S.FAILED
        spawner.fails = False
        await manager.stop("p")
        assert manager.status("p").state is S.STOPPED and "p" not in spawner.running


async def test_what_runs_is_adopted() -> None:
    spawner = FakeSpawner()
    for n in range(20):
        spawner.add(f"p{n}", generation=7)
    spawner.add("ill", state=S.FAILED)
    async with managing(spawner) as (manager, _, _, _):
        assert all(manager.status(f"p{n}").state is S.READY for n in range(20))
        assert manager.status("p3").since == spawner.running["p3"].started
        assert manager.address("p3") == spawner.running["p3"].address
        assert spawner.starts == [] and manager.running("ann") == 20
        assert manager.status("ill").state is S.FAILED


async def test_what_runs_for_a_deleted_project_is_stopped() -> None:
    spawner, pods, records = FakeSpawner(), FakePods(), FakeRecords()
    spawner.add("p")
    spawner.add("gone")
    records.gone.add("gone")
    async with managing(spawner, pods, records) as (manager, _, _, _):
        await until(lambda: set(spawner.running) == {"p"})
        assert manager.status("p").state is S.READY and spawner.stops == ["gone"]


async def test_adoption_does_not_wait_for_a_restore() -> None:
    spawner, pods = FakeSpawner(), FakePods()
    spawner.add("p")
    pods.health["worker"] = {"state": "restoring", "percent": 10, "message": ""}
    async with managing(spawner, pods, adoption_wait=0.2) as (manager, _, _, _):
        assert manager.status("p").state is S.RESTORING
        pods.health["worker"] = {"state": "ready"}
        assert (await manager.wait("p", WAIT)).state is S.READY


def event(spawner: FakeSpawner, project: str, generation: int, reason: str = "") -> None:
    spawner.queue.put_nowait(
        WorkspaceStatus(project, generation, S.FAILED, None, datetime.now(UTC), reason=reason)
    )


async def test_a_workspace_that_dies_is_failed_and_can_be_started_again() -> None:
    async with managing() as (manager, spawner, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        event(spawner, "p", 99)  # of another start: not ours
        event(spawner, "unknown", 1)
        event(spawner, "p", 1, "Out of memory.")
        await until(lambda: manager.status("p").state is S.FAILED)
        assert manager.status("p").reason == "Out of memory." and manager.address("p") is None
        manager.start("p", "ann")
        assert (await manager.wait("p", WAIT)).state is S.READY


async def test_a_workspace_that_dies_while_it_starts_fails_the_start() -> None:
    pods = FakePods()
    pods.health["worker"] = {"state": "restoring"}
    async with managing(pods=pods) as (manager, spawner, _, _):
        manager.start("p", "ann")
        await until(lambda: manager.status("p").state is S.RESTORING)
        event(spawner, "p", 1, "The sandbox ended.")
        status = await manager.wait("p", WAIT)
        assert (status.state, status.reason) == (S.FAILED, "The sandbox ended.")


async def test_deaths_that_nobody_told_of_are_noticed_when_events_come_back() -> None:
    class Flaky(FakeSpawner):
        breaks = asyncio.Event()

        async def events(self) -> AsyncIterator[WorkspaceStatus]:
            await self.breaks.wait()
            self.breaks.clear()
            raise OSError("watch broke")
            yield

    spawner = Flaky()
    spawner.breaks = asyncio.Event()
    async with managing(spawner) as (manager, _, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        spawner.running.clear()
        spawner.breaks.set()
        await until(lambda: manager.status("p").state is S.FAILED)


async def test_stop_all_flushes_everything_and_takes_no_more() -> None:
    async with managing() as (manager, spawner, _, _):
        for n in range(10):
            manager.start(f"p{n}", f"o{n}")
        await manager.wait("p0", WAIT)
        await manager.stop_all(5)
        assert manager.list() == [] and spawner.running == {}
        with pytest.raises(ServersBusy):
            manager.start("p0", "o0")


async def test_close_leaves_servers_running() -> None:
    spawner = FakeSpawner()
    async with managing(spawner) as (manager, _, _, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        reading = asyncio.create_task(events(manager, "p"))
    assert spawner.stops == [] and "p" in spawner.running
    await reading


async def test_forget_stops_and_removes() -> None:
    async with managing(NeverSpawner()) as (manager, spawner, _, _):
        manager.start("p", "ann")
        await until(lambda: spawner.now_starting == 1)
        await manager.forget("p")
        assert spawner.removed == ["p"] and manager.list() == []


async def test_activity_is_what_pods_report_newest_first() -> None:
    pods = FakePods()
    then = datetime.now(UTC) - timedelta(hours=1)
    pods.activity["worker"] = {"last_activity": then.isoformat()}
    pods.activity["runner"] = {"last_activity": (then - timedelta(hours=1)).isoformat(), "busy": False}
    async with managing(pods=pods, activity_interval=0.1) as (manager, _, _, records):
        manager.start("p", "ann")
        await until(lambda: "p" in records.activity)
        assert records.activity["p"] == then
        pods.activity["runner"] = {"last_activity": "2999-01-01T00:00:00Z"}  # hostile: not in the future
        await until(lambda: records.activity["p"] > then)
        assert records.activity["p"] <= datetime.now(UTC)
        pods.activity["runner"] = {"last_activity": 17, "busy": "very"}
        pods.activity["worker"] = ConnectionError()
        calls = len(pods.calls)
        await until(lambda: len(pods.calls) > calls + 4)  # nonsense and silence do not end the rounds


def status(percent: int, state: ServerState = S.STARTING) -> ServerStatus:
    return ServerStatus(state, None, percent)


async def collect(log: ProgressLog, last: str | None = None) -> list[tuple[str, int]]:
    return [(e.id, e.status.percent) async for e in log.follow(last) if e]


async def test_a_reader_goes_on_after_the_last_event_it_had() -> None:
    log = ProgressLog()
    for n in range(5):
        log.append(status(n))
    log.close()
    everything = await collect(log)
    assert [p for _, p in everything] == [0, 1, 2, 3, 4]
    assert await collect(log, everything[2][0]) == everything[3:]
    assert await collect(log, everything[4][0]) == everything[4:]  # the outcome is told again
    for other in ("", "nonsense", "abc-3", everything[0][0] + "9" * 50, "-1"):
        assert await collect(log, other) == everything
    assert ProgressLog().closed is False


async def test_the_log_is_bounded_and_keeps_the_newest() -> None:
    log = ProgressLog()
    for n in range(MAX_EVENTS + 50):
        log.append(status(n))
    log.close()
    log.append(status(0))
    found = await collect(log)
    assert len(found) == MAX_EVENTS and found[-1][1] == MAX_EVENTS + 49


async def test_readers_get_heartbeats_and_what_comes_later() -> None:
    log = ProgressLog()
    follower = log.follow(heartbeat=0.05)
    assert await anext(follower) is None
    log.append(status(7))
    event = await anext(follower)
    assert event and event.status.percent == 7
    log.close()
    with pytest.raises(StopAsyncIteration):
        await anext(follower)


def test_strangers_start_only_so_often() -> None:
    clock = [0.0]
    guests = GuestStarts(each=2, total=3, window=60, clock=lambda: clock[0])
    assert guests.take("a") == 0 and guests.take("a") == 0
    assert guests.take("a") > 0
    assert guests.take("b") == 0
    assert guests.take("c") > 0  # all together
    clock[0] = 61.0
    assert guests.take("c") == 0 and guests.take("a") == 0


async def test_stopping_closes_the_sockets_first() -> None:
    async with managing() as (manager, spawner, pods, _):
        manager.start("p", "ann")
        await manager.wait("p", WAIT)
        spawner.stop_gate.clear()
        stopping = manager.begin_stop("p")
        assert stopping
        await until(lambda: pods.forgotten == ["p"])
        assert manager.status("p").state is S.STOPPING
        spawner.stop_gate.set()
        await stopping
