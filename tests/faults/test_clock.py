"""Fault 17: clocks that jump an hour and disagree. Leases are by the monotonic clock; rows are compared, not timed.

The programs' wall clock alone is changed, by libfaketime; their monotonic clock goes on as the kernel's.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from tests.chaos.proxied_cluster import ProxiedCluster, pause, proxied_cluster

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(300)]
HOST = "host-1"
LIBRARIES = [*Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]
HOUR = 3600


def set_clock(file: Path, seconds: int) -> None:
    """Put the clock of who reads ``file`` that many seconds ahead, in one piece."""
    partial = file.with_suffix(".partial")
    partial.write_text(f"{seconds:+d}\n")
    partial.rename(file)


@pytest.fixture
async def deployment(tmp_path: Path) -> AsyncIterator[ProxiedCluster]:
    assert LIBRARIES, "apt-get install faketime"
    # Without disks, since qemu-img would run under the false clock too.
    without_disks = "simulated://prompt"
    async with proxied_cluster(
        tmp_path, [HOST], start=False, host_timeout=2.0, connection_grace=20, hypervisor=without_disks
    ) as made:
        for name in ("cluster", "endpoint", HOST):
            clock = tmp_path / f"{name}.clock"
            set_clock(clock, 0)
            part = made.processes[name]
            environment = {
                **part.spec.environment,
                "LD_PRELOAD": str(LIBRARIES[0]),
                "FAKETIME_TIMESTAMP_FILE": str(clock),
                "FAKETIME_CACHE_DURATION": "1",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
                # Else each wait of a thread for the interpreter's lock ends at once, and is begun again.
                "FAKETIME_FORCE_MONOTONIC_FIX": "0",
            }
            part.set_environment(environment)
        await made.start()
        yield made


@pytest.mark.parametrize("who", ["cluster", "endpoint", HOST])
async def test_a_clock_jumps_and_nobody_is_lost(deployment: ProxiedCluster, tmp_path: Path, who: str) -> None:
    for jump in (HOUR, -HOUR):
        await jumps(deployment, tmp_path / f"{who}.clock", jump)
    wrong = await deployment.settled()
    assert not wrong, [*map(str, wrong), deployment.tail()]


async def jumps(deployment: ProxiedCluster, clock: Path, jump: int) -> None:
    """To there and back again."""
    first = await deployment.outcome(await deployment.boot())
    assert first.state is CommandState.SUCCEEDED
    set_clock(clock, jump)
    seen = []
    for _ in range(15):  # longer than it takes to notice that a host is silent
        row = (await deployment.gather()).placed[first.desktop or ""]
        seen.append(row.state)
        await pause(0.2)
    assert set(seen) == {DesktopState.RUNNING}
    second = await deployment.outcome(await deployment.boot())
    assert second.state is CommandState.SUCCEEDED, second
    assert (await deployment.outcome(await deployment.destroy(first.desktop))).state is CommandState.SUCCEEDED
    set_clock(clock, 0)
    third = await deployment.outcome(await deployment.boot())
    assert third.state is CommandState.SUCCEEDED, third
