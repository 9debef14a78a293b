"""``kill -9`` between every two steps of every long operation, one by one. Fault 1 (cluster), 2 (host), endpoint.

For n = 1, 2, 3, … the process dies at its n-th step after the command was given (see `tests.chaos.killable`),
is started again, and the command must end as if nothing had happened, with nothing left over, until n is more than the
operation takes. What is killed is a process of its own with its own loop and disk; only its modules
were imported before it was forked.
"""

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from pupitre.domain.command import Command, CommandState
from tests.chaos.killable_cluster import KillableCluster, killable_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow]

STRIDE = int(os.environ.get("PUPITRE_STRIDE", "1"))
"""1 is every step; more is quicker."""
Operation = Callable[[], Awaitable[Command]]


async def sweep(deployment: KillableCluster, name: str, operation: Operation) -> int:
    """The number of steps at which it was killed."""
    part = deployment.killable(name)

    async def again() -> None:
        await part.ended()
        await part.start()

    for kills, steps in enumerate(itertools.count(1, STRIDE)):
        part.kill_switch.arm(steps)
        begins_again = asyncio.create_task(again())
        ended = await deployment.outcome(await operation())
        assert ended.state is CommandState.SUCCEEDED, f"killed at step {steps}: {ended}\n{deployment.tail()}"
        wrong = await deployment.settled()
        assert not wrong, f"killed at step {steps}: {[str(one) for one in wrong]}\n{deployment.tail()}"
        if part.kill_switch.disarm():  # all is done, and it was not reached
            begins_again.cancel()
            return kills
        await begins_again
    raise AssertionError("an endless operation")


async def start_and_stop(deployment: KillableCluster, name: str) -> tuple[int, int]:
    """The numbers of steps of a start, and of a stop, at which ``name`` was killed."""
    boots: list[Command] = []

    async def boot() -> Command:
        boots.append(await deployment.boot(timeout=60))
        return boots[-1]

    async def destroy() -> Command:
        boot = boots.pop() if boots else await deployment.outcome(await deployment.boot())
        return await deployment.destroy(boot.desktop, timeout=60)

    return await sweep(deployment, name, boot), await sweep(deployment, name, destroy)


async def test_killed_at_every_step_of_a_start_and_of_a_stop(tmp_path: Path) -> None:
    """Three deployments side by side, since most of the time somebody waits to try again."""
    victims = ("cluster", "host-1", "endpoint")
    async with AsyncExitStack() as exit:
        deployments = [
            await exit.enter_async_context(
                killable_cluster(tmp_path / name, heartbeat=1.0, host_timeout=8.0, command_timeout_check_interval=5.0)
            )
            for name in victims
        ]
        async with asyncio.TaskGroup() as tasks:
            sweeps = [tasks.create_task(start_and_stop(*pair)) for pair in zip(deployments, victims, strict=True)]
    killed = [one.result() for one in sweeps]
    print(dict(zip(victims, killed, strict=True)))
    assert all(steps * STRIDE >= 4 for pair in killed for steps in pair)
