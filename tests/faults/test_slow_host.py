"""Fault 18: a host that hardly gets on (it is stopped and let go, over and over) slows no other one down."""

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pupitre.domain.command import Command, CommandState
from tests.chaos.proxied_cluster import ProxiedCluster, pause, proxied_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]

SLOW, OTHER = "host-1", "host-2"
STARTS = 24
LEAST = 1.0
"""Seconds under which nobody calls a start slow; below, a busy machine's noise is larger than what is measured."""


@contextlib.asynccontextmanager
async def slowed(deployment: ProxiedCluster, host: str) -> AsyncIterator[None]:
    """The host's process runs a quarter of the time."""

    async def stop_and_go() -> None:
        while True:
            deployment.processes[host].signal(signal.SIGSTOP)
            await pause(0.3)
            deployment.processes[host].signal(signal.SIGCONT)
            await pause(0.1)

    cycles = asyncio.create_task(stop_and_go())
    try:
        yield
    finally:
        cycles.cancel()
        await asyncio.gather(cycles, return_exceptions=True)
        deployment.processes[host].signal(signal.SIGCONT)


async def timed(deployment: ProxiedCluster) -> list[float]:
    """Seconds of each start on the other host, the shortest first; all of them succeed, on both hosts."""

    async def start() -> tuple[Command, float]:
        began = time.monotonic()
        ended = await deployment.outcome(await deployment.boot())
        assert ended.state is CommandState.SUCCEEDED, ended
        return ended, time.monotonic() - began

    pairs: list[tuple[Command, float]] = []
    for _ in range(STARTS // 4):
        pairs += await asyncio.gather(*(start() for _ in range(4)))
    placed = (await deployment.gather()).placed
    return sorted(took for command, took in pairs if placed[str(command.desktop)].host == OTHER)


async def test_slow_host_leaves_starts_elsewhere_alone(tmp_path: Path) -> None:
    async with proxied_cluster(tmp_path, [SLOW, OTHER], connection_grace=20) as deployment:
        alone = await timed(deployment)
        async with slowed(deployment, SLOW):
            beside = await timed(deployment)
        assert len(beside) >= STARTS // 4, "the other host had its part"
        assert beside[-1] < max(2 * alone[-1], LEAST), (alone, beside)
        wrong = await deployment.settled()
        assert not wrong, [*map(str, wrong), deployment.tail()]
