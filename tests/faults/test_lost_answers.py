"""Commits that are made while their answers are lost, many of them: whoever asked has to ask again."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest

from pupitre.config import DatabaseName
from pupitre.domain.command import (
    Command,
    CommandState,
    ConfigureHost,
    RegisterHost,
    RetireHost,
)
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from tests.rigs.evidence import gather
from tests.rigs.faulty_database import Faults
from tests.rigs.history import violations
from tests.rigs.local_cluster import LocalCluster, eventually, local_cluster

pytestmark = pytest.mark.anyio

STARTS = 12
SHARE, FEWEST, MOST = 0.4, 6, 15
"""Of the answers how many are lost: as a share, and in all."""


class LostCommits(Faults):
    """Of the answers to commits of one database, but for those that the test itself makes."""

    def __init__(self, name: DatabaseName) -> None:
        chooser = random.Random(name)
        super().__init__(lambda written: self.lost < MOST and chooser.random() < SHARE)


async def ended(here: LocalCluster, command: Command) -> Command:
    return await here.command_where(command, lambda now: now.finished is not None)


async def used(here: LocalCluster) -> None:
    """Desktops come and go, some are given up in the middle; the host is configured, shut down and unregistered."""
    host = await here.add_host(register=False)
    register = RegisterHost(name=host.name, address="127.0.0.1", port=host.console.port)
    await here.outcome(await here.ask(register), CommandState.SUCCEEDED)
    await here.wait_host(host.name, HostState.READY)

    async def start_and_stop(timeout: float) -> None:
        boot = await here.boot(timeout=timeout)
        if timeout < 1:  # then there may be no such desktop
            await ended(here, boot)
            await ended(here, await here.destroy(boot.desktop))
        else:
            await here.outcome(boot, CommandState.SUCCEEDED)
            await here.wait_desktop(boot, DesktopState.RUNNING)
            await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)

    async with asyncio.TaskGroup() as tasks:
        for number in range(STARTS):
            tasks.create_task(start_and_stop(0.03 if number % 3 == 2 else 60))
    await here.outcome(await here.ask(ConfigureHost(host=host.name, label="Room 5")), CommandState.SUCCEEDED)
    await here.outcome(
        await here.ask(RetireHost(host=host.name, unregister=True, at_once=True)), CommandState.SUCCEEDED
    )


@pytest.mark.parametrize("name", ["cluster", "commands", "status"])
async def test_all_is_as_if_every_answer_had_come(tmp_path: Path, name: DatabaseName) -> None:
    async with local_cluster(tmp_path, connection_grace=30, start=()) as here:
        with LostCommits(name).injected(name) as faults:
            await check_all(here)
        assert faults.lost >= FEWEST


async def check_all(here: LocalCluster) -> None:
    await here.start_cluster()
    await here.start_endpoint()
    await here.wait_link(True)
    await used(here)
    wrong: list[str] = []

    async def settled() -> bool:
        seen = await gather(here.settings, ["host-1"])
        # The guests of this cluster keep no log.
        hosts = {name: replace(host, ran=None) for name, host in seen.hosts.items()}
        wrong[:] = map(str, violations(replace(seen, hosts=hosts)))
        return not wrong

    try:
        await eventually(settled)
    except TimeoutError:
        pytest.fail("\n".join(wrong))
