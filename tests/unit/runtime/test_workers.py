"""Workers: in order for each object, side by side for different ones, no wake-up lost; loops that persist."""

import asyncio

import pytest

from pupitre.errors import Unavailable
from pupitre.runtime.workers import Workers, retry_loop
from pupitre.timings import Pauses

pytestmark = pytest.mark.anyio


async def test_steps_of_one_object_never_overlap_and_no_wake_is_lost() -> None:
    level, seen, inside = 0, 0, 0
    done = asyncio.Event()

    async def step(_key: str) -> None:
        nonlocal seen, inside
        inside += 1
        assert inside == 1
        looked = level
        for _ in range(3):
            await asyncio.sleep(0)
        seen = looked
        inside -= 1
        if seen == 200:
            done.set()

    workers = Workers(step)
    for _ in range(200):
        level += 1
        workers.wake("a")
        await asyncio.sleep(0)
    await asyncio.wait_for(done.wait(), 5)
    await workers.close()


async def test_different_objects_run_side_by_side_up_to_the_limit() -> None:
    running, most = 0, 0
    gate = asyncio.Event()
    full = asyncio.Event()

    async def step(_key: str) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            full.set()
        await gate.wait()
        running -= 1

    workers = Workers(step, limit=3)
    for key in "abcdef":
        workers.wake(key)
    await asyncio.wait_for(full.wait(), 5)
    gate.set()
    await workers.close()
    assert most == 3


@pytest.mark.parametrize("error", [Unavailable("away"), KeyError("a fault of ours")])
async def test_a_step_that_fails_is_tried_again(error: Exception) -> None:
    tries: list[str] = []
    done = asyncio.Event()

    async def step(key: str) -> None:
        tries.append(key)
        if key == "bad" and tries.count("bad") < 3:
            raise error
        if tries.count("bad") == 3 and "good" in tries:
            done.set()

    workers = Workers(step, retry=Pauses(0.001, 0.001))
    workers.wake("bad")
    workers.wake("good")
    await asyncio.wait_for(done.wait(), 5)
    await workers.close()


async def test_wake_cuts_wait_and_closed_worker_sleeps() -> None:
    """A wake cuts a wait short and a closed worker stays asleep."""
    looks = 0
    looked = asyncio.Event()

    async def step(_key: str) -> float:
        nonlocal looks
        looks += 1
        looked.set()
        return 3600

    workers = Workers(step)
    for expected in (1, 2):
        looked.clear()
        workers.wake("a")
        await asyncio.wait_for(looked.wait(), 5)
        assert looks == expected
    await workers.close()
    workers.wake("a")
    await asyncio.sleep(0)
    assert looks == 2


async def test_retry_loop_tries_until_done_then_waits() -> None:
    """Persist tries until it is done and then waits for the next time."""
    answers: list[bool | Unavailable] = [False, Unavailable("away"), True]
    due, done = asyncio.Event(), asyncio.Event()

    async def work() -> bool:
        answer = answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        if answer:
            done.set()
        return answer

    task = asyncio.create_task(retry_loop(work, due, pauses=Pauses(0.001, 0.002)))
    due.set()
    await asyncio.wait_for(done.wait(), 5)
    done.clear()
    answers.append(True)
    await asyncio.sleep(0)
    assert answers == [True]  # nothing is due
    due.set()
    await asyncio.wait_for(done.wait(), 5)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_rings_while_it_fails_do_not_pile_up() -> None:
    tries = 0
    due = asyncio.Event()

    async def work() -> bool:
        nonlocal tries
        tries += 1
        return False

    task = asyncio.create_task(retry_loop(work, due, pauses=Pauses(3600, 3600)))
    for _ in range(50):
        due.set()
        await asyncio.sleep(0)
    for _ in range(20):
        await asyncio.sleep(0)
    after_rings = tries
    assert after_rings <= 50
    for _ in range(200):
        await asyncio.sleep(0)
    assert tries == after_rings  # no timer of an earlier ring goes on
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
