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

from pupitre.config import Settings
from pupitre.domain.command import RegisterHost
from pupitre.net.ops_client import ask
from pupitre.pki import issuing
from pupitre.up.processes.ports import free_port
from tests.chaos.crowd import Crowd
from tests.chaos.proxied_cluster import ProxiedCluster, pause, proxied_cluster, repeating
from tests.chaos.schedule import Action, draw
from tests.rigs.database_servers import Servers
from tests.rigs.history import Violation
from tests.rigs.local_cluster import eventually
from tests.rigs.process_cluster import BROKER
from tests.rigs.server_processes import DatabaseServer

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(600), pytest.mark.slow]

HOSTS = ("host-1", "host-2")
SECONDS = float(os.environ.get("PUPITRE_CHAOS_SECONDS", "25"))
COMMANDS = int(os.environ.get("PUPITRE_CHAOS_COMMANDS", "500"))


def a_seed() -> int:
    return int(os.environ.get("PUPITRE_SEED") or random.SystemRandom().randrange(1 << 32))


async def carry_out(proxied_cluster: ProxiedCluster, schedule: Sequence[Action]) -> None:
    begun = asyncio.get_running_loop().time()
    async with asyncio.TaskGroup() as tasks:
        for action in schedule:
            await pause(max(0.0, begun + action.at - asyncio.get_running_loop().time()))
            tasks.create_task(proxied_cluster.do(action))


def story(seed: int, schedule: Sequence[Action], wrong: Sequence[Violation], proxied_cluster: ProxiedCluster) -> str:
    lines = [f"PUPITRE_SEED={seed}", *map(str, schedule), "", *map(str, wrong), "", proxied_cluster.tail()]
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
    deployments = proxied_cluster(tmp_path, HOSTS, drain_notice=1.0, shutdown_grace=1.0)
    async with deployments as deployment, repeating(deployment, seed, share=0.2) as repeater:
        deployment.server = server
        crowd = Crowd(deployment, seed, COMMANDS, SECONDS)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(crowd.run())
            tasks.create_task(carry_out(deployment, schedule))
        await crowd.tidy()
        await deployment.outcomes(crowd.given)
        wrong = await deployment.settled()
        assert not wrong, story(seed, schedule, wrong, deployment)
        assert not deployment.ended(), f"{deployment.ended()} {story(seed, schedule, wrong, deployment)}"
        assert len(deployment.answered) >= COMMANDS
        assert repeater.repeated > 0


async def readiness(settings: Settings) -> int:
    """Of the web process, on its own socket."""
    (own,) = (settings.run_dir / "ops").glob("web.*.sock")
    answer = await asyncio.to_thread(ask, own, "/readyz")
    return int(answer.status_code)


@pytest.mark.parametrize("server", ["postgresql"], indirect=True)
async def test_what_starts_while_its_database_is_away_waits_for_it(tmp_path: Path, server: DatabaseServer) -> None:
    (host,) = HOSTS[:1]
    async with proxied_cluster(tmp_path, (host,), start=False) as deployment:
        for role in ("portal", "gateway"):
            issuing.ensure_certificate(deployment.settings, role)
        port = free_port()
        web = deployment.add("web", portal_port=str(port))
        others = [part for name, part in deployment.processes.items() if name != BROKER]
        await deployment.processes[BROKER].start()
        await asyncio.to_thread(server.crash)
        try:
            for part in others:
                await part.start(wait=False)
            await web.wait_ready()
            assert await readiness(deployment.settings) == 503
            await eventually(lambda: deployment.tail().count("database_away") >= 6)
            assert not deployment.ended(), deployment.tail()
            assert not deployment.processes["endpoint"].ready.is_set()
            assert not deployment.processes["cluster"].ready.is_set()
        finally:
            await asyncio.to_thread(server.start)
        for part in others:
            await part.wait_ready()

        async def web_is_ready() -> bool:
            return await readiness(deployment.settings) == 200

        await eventually(web_is_ready)  # a database that failed is tried once a second
        await deployment.succeed(RegisterHost(name=host, address="127.0.0.1", port=deployment.console_port(host)))
        assert not await deployment.settled()
