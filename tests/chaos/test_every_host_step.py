"""``kill -9`` in the middle of all that is done to hosts: the command ends as if nothing had happened.

As `tests.chaos.test_every_step`, at the first steps, after which little is left to do. Whoever is to end may be
killed after its last word, and is started again as by a supervisor; so each round ends with those processes started
anew.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from pupitre.domain.command import (
    BootUpHost,
    Command,
    CommandState,
    ConfigureHost,
    Halt,
    Order,
    RegisterHost,
    RetireHost,
)
from tests.chaos.mortals import Morgue, mortals

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300), pytest.mark.slow]

HOST = "host-1"
STEPS = (1, 2, 3, 4, 5, 6, 8)
NEVER = 1_000_000


async def killed_during(room: Morgue, victim: str, steps: int, order: Order, *anew: str) -> bool:
    """Whether it was killed; then ``anew`` are started again, whatever has become of them."""
    part = room.mortal(victim)

    async def again() -> None:
        await part.ended()
        if not part.fuse.left:
            await part.start(wait=False)

    part.fuse.light(steps)
    begins_again = asyncio.create_task(again())
    ended = await room.outcome(await room.ask(order, seconds=60))
    assert ended.state is CommandState.SUCCEEDED, f"{victim} killed at step {steps} of {ended}\n{room.tail()}"
    if killed := not part.fuse.left:
        await begins_again
    else:
        part.fuse.put_out()
        begins_again.cancel()
    for name in anew:
        await room.parts[name].kill()
    for name in anew:
        await room.parts[name].start(wait=False)
    for name in {victim, *anew}:
        await room.parts[name].wait_ready()
    return killed


async def sound(room: Morgue, *told: object) -> None:
    wrong = await room.settled()
    assert not wrong, f"{told}: {[str(one) for one in wrong]}\n{room.tail()}"


async def running(room: Morgue) -> Command:
    ended = await room.outcome(await room.boot(seconds=60))
    assert ended.state is CommandState.SUCCEEDED, f"{ended}\n{room.tail()}"
    return ended


async def shut_down_and_booted_up(room: Morgue, victim: str, steps: int) -> int:
    """The number of kills."""
    kills = 0
    for at_once in (False, True):
        await running(room)
        retire = RetireHost(host=HOST, unregister=False, at_once=at_once)
        kills += await killed_during(room, victim, steps, retire, HOST)
        kills += await killed_during(room, victim, steps, BootUpHost(host=HOST))
        await sound(room, victim, steps, retire)
    return kills


async def the_cluster(home: Path) -> int:
    kills = 0
    async with mortals(home, heartbeat=0.5, host_timeout=8.0, drain_notice=0.2, shutdown_grace=1.0) as room:
        room.lasting = False
        register = RegisterHost(name=HOST, address="127.0.0.1", port=room.console_port(HOST))
        for steps in STEPS:
            kills += await shut_down_and_booted_up(room, "cluster", steps)
            kills += await killed_during(room, "cluster", steps, ConfigureHost(host=HOST, label=f"Room {steps}"))
            await running(room)
            leave = RetireHost(host=HOST, unregister=True, at_once=True)
            kills += await killed_during(room, "cluster", steps, leave)
            kills += await killed_during(room, "cluster", steps, register)
            await sound(room, steps, register)
    return kills


async def the_host(home: Path) -> int:
    kills = 0
    async with mortals(home, heartbeat=0.5, host_timeout=8.0, drain_notice=0.2, shutdown_grace=1.0) as room:
        room.lasting = False
        for steps in (*STEPS, 10, 15):
            kills += await shut_down_and_booted_up(room, HOST, steps)
    return kills


async def halted(home: Path) -> int:
    """Cluster and endpoint end with a halt and are started anew; desktops run on, unless the hosts are halted too."""
    kills = 0
    async with mortals(home, heartbeat=0.5, host_timeout=8.0, shutdown_grace=1.0) as room:
        for victim in ("cluster", "endpoint"):
            for steps in STEPS:
                await running(room)
                kills += await killed_during(room, victim, steps, Halt(), "cluster", "endpoint")
                await sound(room, victim, steps)
        room.lasting = False
        for victim in ("cluster", "endpoint"):
            await running(room)
            kills += await killed_during(room, victim, STEPS[0], Halt(hosts=True), "cluster", "endpoint", HOST)
            await killed_during(room, victim, NEVER, BootUpHost(host=HOST))
            await sound(room, victim, "with hosts")
    return kills


@pytest.mark.parametrize("victim", [the_cluster, the_host, halted])
async def test_killed_in_the_middle_of_what_is_done_to_hosts(
    tmp_path: Path, victim: Callable[[Path], Awaitable[int]]
) -> None:
    kills = await victim(tmp_path)
    print(f"{kills} kills")
    assert kills >= len(STEPS), "too few of these steps were reached to show anything"
