"""Hundreds of commands while everything is killed, frozen, cut off and repeated: nothing is lost, doubled or untrue.

On SQLite hosts are shut down and booted up too; on PostgreSQL its server crashes too.

``PUPITRE_SEED=… pytest tests/chaos/test_chaos.py`` does again what a failing run has done;
``PUPITRE_CHAOS_SECONDS`` and ``PUPITRE_CHAOS_COMMANDS`` make it longer.
"""

import asyncio
import os
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from pupitre.bench.database_servers import DatabaseServer
from pupitre.bench.history import Violation
from tests.chaos.crowd import Crowd
from tests.chaos.rig import Rig, pause, repeating, rig
from tests.chaos.schedule import Action, draw
from tests.database_servers import Servers

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow]

HOSTS = ("host-1", "host-2")
SECONDS = float(os.environ.get("PUPITRE_CHAOS_SECONDS", "25"))
COMMANDS = int(os.environ.get("PUPITRE_CHAOS_COMMANDS", "500"))


def a_seed() -> int:
    return int(os.environ.get("PUPITRE_SEED") or random.SystemRandom().randrange(1 << 32))


async def carry_out(rig: Rig, schedule: Sequence[Action]) -> None:
    begun = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        for action in schedule:
            await pause(max(0.0, begun + action.at - asyncio.get_running_loop().time()))
            tasks.create_task(rig.do(action))


def story(seed: int, schedule: Sequence[Action], wrong: Sequence[Violation], rig: Rig) -> str:
    lines = [f"PUPITRE_SEED={seed}", *map(str, schedule), "", *map(str, wrong), "", rig.tail()]
    return "\n".join(lines)


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> DatabaseServer | None:
    """The server of the databases that the test's processes use, if there is one."""
    servers.place(tmp_path, request.param)
    return None if request.param == "sqlite" else servers.get(request.param).server


async def test_nothing_is_lost_doubled_or_untrue(tmp_path: Path, server: DatabaseServer | None) -> None:
    seed = a_seed()
    print(f"PUPITRE_SEED={seed}")
    schedule = draw(seed, SECONDS, HOSTS, per_second=0.8, drains=server is None, database=server is not None)
    rooms = rig(tmp_path, HOSTS, drain_notice=1.0, shutdown_grace=1.0)
    async with rooms as room, repeating(room, seed, share=0.2) as repeater:
        room.server = server
        crowd = Crowd(room, seed, COMMANDS, SECONDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.run())
            tasks.create_task(carry_out(room, schedule))
        await crowd.tidy()
        await room.outcomes(crowd.given)
        wrong = await room.settled()
        assert not wrong, story(seed, schedule, wrong, room)
        assert not room.ended(), story(seed, schedule, wrong, room)
        assert len(room.answered) >= COMMANDS
        assert repeater.repeated > 0
