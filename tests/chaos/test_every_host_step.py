"""``kill -9`` between every two steps of all that is done to hosts: the command ends as if nothing had happened.

As `tests.chaos.test_every_step`. Whoever is to end may be killed after its last word, and is started again as by a
supervisor; so each round ends with those processes started anew.
"""

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
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
from tests.chaos.killable_cluster import KillableCluster, killable_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow]

HOST = "host-1"
NEVER = 1_000_000
Round = Callable[[KillableCluster, str, int], Awaitable[int]]
"""What is asked for in a deployment while one of its processes is to die at a step; how often it died."""


async def killed_during(deployment: KillableCluster, victim: str, steps: int, order: Order, *anew: str) -> bool:
    """Whether it was killed; then ``anew`` are started again, whatever has become of them."""
    part = deployment.killable(victim)

    async def again() -> None:
        await part.ended()
        if not part.kill_switch.left:  # else it has ended as it was to
            await part.start(wait=False)

    part.kill_switch.arm(steps)
    begins_again = asyncio.create_task(again())
    ended = await deployment.outcome(await deployment.ask(order, timeout=60))
    assert ended.state is CommandState.SUCCEEDED, f"{victim} killed at step {steps} of {ended}\n{deployment.tail()}"
    if killed := not part.kill_switch.disarm():
        await begins_again
    else:
        begins_again.cancel()
    for name in anew:
        await deployment.processes[name].kill()
    for name in anew:
        await deployment.processes[name].start(wait=False)
    for name in {victim, *anew}:
        await deployment.processes[name].wait_ready()
    return killed


async def sound(deployment: KillableCluster, *told: object) -> None:
    wrong = await deployment.settled()
    assert not wrong, f"{told}: {[str(one) for one in wrong]}\n{deployment.tail()}"


async def running(deployment: KillableCluster) -> Command:
    ended = await deployment.outcome(await deployment.boot(timeout=60))
    assert ended.state is CommandState.SUCCEEDED, f"{ended}\n{deployment.tail()}"
    return ended


async def shut_down_and_booted_up(deployment: KillableCluster, victim: str, steps: int, *, at_once: bool) -> int:
    deployment.lasting = False
    await running(deployment)
    retire = RetireHost(host=HOST, unregister=False, at_once=at_once)
    kills = int(await killed_during(deployment, victim, steps, retire, HOST))
    kills += await killed_during(deployment, victim, steps, BootUpHost(host=HOST))
    await sound(deployment, victim, steps, retire)
    return kills


async def configured_and_registered(deployment: KillableCluster, victim: str, steps: int) -> int:
    deployment.lasting = False
    kills = int(await killed_during(deployment, victim, steps, ConfigureHost(host=HOST, label=f"Room {steps}")))
    await running(deployment)
    kills += await killed_during(deployment, victim, steps, RetireHost(host=HOST, unregister=True, at_once=True))
    register = RegisterHost(name=HOST, address="127.0.0.1", port=deployment.console_port(HOST))
    kills += await killed_during(deployment, victim, steps, register)
    await sound(deployment, victim, steps, register)
    return kills


async def halted(deployment: KillableCluster, victim: str, steps: int) -> int:
    """Cluster and endpoint end and are started anew; desktops run on."""
    await running(deployment)
    killed = await killed_during(deployment, victim, steps, Halt(), "cluster", "endpoint")
    await sound(deployment, victim, steps)
    return killed


async def halted_with_the_hosts(deployment: KillableCluster, victim: str, steps: int) -> int:
    deployment.lasting = False
    await running(deployment)
    killed = await killed_during(deployment, victim, steps, Halt(hosts=True), "cluster", "endpoint", HOST)
    await killed_during(deployment, victim, NEVER, BootUpHost(host=HOST))
    await sound(deployment, victim, steps, "with hosts")
    return killed


ROUNDS: dict[str, Round] = {
    "in order": partial(shut_down_and_booted_up, at_once=False),
    "at once": partial(shut_down_and_booted_up, at_once=True),
    "registered": configured_and_registered,
    "halted": halted,
    "halted with hosts": halted_with_the_hosts,
}


async def sweep(deployment: KillableCluster, victim: str, one: Round) -> int:
    """The number of kills in rounds at step 1, 2, 3, … until the victim outlives one."""
    kills = 0
    for steps in itertools.count(1):
        found = await one(deployment, victim, steps)
        if not found:
            break
        kills += found
    return kills


@pytest.mark.parametrize(("victim", "kills"), [("cluster", 80), ("endpoint", 30), (HOST, 100)])
async def test_killed_at_every_step_of_what_is_done_to_hosts(tmp_path: Path, victim: str, kills: int) -> None:
    """Rooms side by side, since most of the time somebody waits to try again."""
    # To a host it is nothing whether the others are halted.
    rounds = {name: one for name, one in ROUNDS.items() if (victim, name) != (HOST, "halted")}
    async with AsyncExitStack() as exit:
        deployments = [
            await exit.enter_async_context(
                killable_cluster(tmp_path / name, heartbeat=0.5, host_timeout=8.0, drain_notice=0.2, shutdown_grace=1.0)
            )
            for name in rounds
        ]
        async with asyncio.TaskGroup() as tasks:
            sweeps = [
                tasks.create_task(sweep(deployment, victim, one))
                for deployment, one in zip(deployments, rounds.values(), strict=True)
            ]
    found = {name: one.result() for name, one in zip(rounds, sweeps, strict=True)}
    print(victim, found)
    assert sum(found.values()) >= kills, "too few of the steps were reached to show anything"
