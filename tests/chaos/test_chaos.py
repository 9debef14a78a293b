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
from pupitre.bench.room import BROKER
from pupitre.config import Settings
from pupitre.domain.command import RegisterHost
from pupitre.net.ops_client import ask
from pupitre.pki import issuing
from pupitre.up.processes.ports import free_port
from tests.chaos.crowd import Crowd
from tests.chaos.rig import Rig, pause, repeating, rig
from tests.chaos.schedule import Action, draw
from tests.rigs.cluster_rig import eventually
from tests.rigs.database_servers import Servers

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
        assert not room.ended(), f"{room.ended()} {story(seed, schedule, wrong, room)}"
        assert len(room.answered) >= COMMANDS
        assert repeater.repeated > 0


async def readiness(settings: Settings) -> int:
    """Of the web process, on its own socket."""
    (own,) = (settings.run_dir / "ops").glob("web.*.sock")
    answer = await asyncio.to_thread(ask, own, "/readyz")
    return int(answer.status_code)


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
async def test_what_starts_while_its_database_is_away_waits_for_it(tmp_path: Path, server: DatabaseServer) -> None:
    (host,) = HOSTS[:1]
    async with rig(tmp_path, (host,), start=False) as room:
        for role in ("portal", "gateway"):
            issuing.ensure_certificate(room.settings, role)
        port = free_port()
        web = room.add("web", portal_port=str(port))
        others = [part for name, part in room.parts.items() if name != BROKER]
        await room.parts[BROKER].start()
        await asyncio.to_thread(server.crash)
        try:
            for part in others:
                await part.start(wait=False)
            await web.wait_ready()
            assert await readiness(room.settings) == 503
            await eventually(lambda: room.tail().count("database_away") >= 6)
            assert not room.ended(), room.tail()
            assert not room.parts["endpoint"].ready.is_set()
            assert not room.parts["cluster"].ready.is_set()
        finally:
            await asyncio.to_thread(server.start)
        for part in others:
            await part.wait_ready()

        async def web_is_ready() -> bool:
            return await readiness(room.settings) == 200

        await eventually(web_is_ready)  # a database that failed is tried once a second
        await room.succeed(RegisterHost(name=host, address="127.0.0.1", port=room.console_port(host)))
        assert not await room.settled()
