"""The links live: what is away comes back by itself, is visible meanwhile, and no command is swallowed."""

import asyncio
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.status import ClusterLink
from pupitre.errors import NoAnswer
from pupitre.host.simulation.hypervisor import Behaviour
from pupitre.pki import issuing
from pupitre.timings import BROKER_RECONNECT
from pupitre.wire.connection import BrokerConnection, _pause
from pupitre.wire.messages import AnyMessage, StatusPosition, StatusQuery
from pupitre.wire.subjects import Subjects
from tests.rigs.database_servers import Provisioned
from tests.rigs.local_cluster import Broker, LocalCluster, eventually, local_cluster, small_settings, until, wire_link

pytestmark = pytest.mark.anyio
SUBJECTS = Subjects("main")


async def link_where(here: LocalCluster, connected: bool) -> ClusterLink:
    async def look() -> ClusterLink | None:
        links = await here.status.links()
        return links[0] if links else None

    found = await until(here.changed, look, lambda link: link is not None and link.connected is connected)
    assert found is not None
    return found


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_broker_that_is_away_is_said_and_commands_wait_for_it(tmp_path: Path, how: str) -> None:
    async with local_cluster(tmp_path, connection_grace=60, host_timeout=60) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        before = await here.boot()
        await here.wait_desktop(before, DesktopState.BOOTING)
        reached = await link_where(here, True)
        loop = asyncio.get_running_loop()
        since = loop.time()
        if how == "kill":
            await here.broker.kill()
        else:
            here.broker.freeze()
        lost = await link_where(here, False)
        # Silence of 2.5 intervals is enough, and one question that nobody answers; the rest is a busy machine.
        assert loop.time() - since < here.settings.status_update_interval * 2.5 + 1 + 8
        assert lost.since >= reached.since
        assert lost.reason
        host.hypervisor.step()
        host.hypervisor.behaviour = Behaviour.PROMPT
        meanwhile = await here.boot()
        await here.outcome(meanwhile, CommandState.SENT)
        heard = (await here.status.links())[0].heard
        if how == "kill":
            await here.broker.start()
        else:
            here.broker.thaw()
        back = await link_where(here, True)
        assert back.since >= lost.since
        assert back.reason is None
        await here.outcome(before, CommandState.SUCCEEDED)
        await here.outcome(meanwhile, CommandState.SUCCEEDED)
        await here.wait_desktop(meanwhile, DesktopState.RUNNING)

        async def confirmed() -> bool:
            return (await here.status.links())[0].heard > heard

        await eventually(confirmed)


async def test_absent_cluster_is_said_and_command_ends_after_grace(tmp_path: Path) -> None:
    """A cluster that is away is said and a command past its grace is answered."""
    async with local_cluster(tmp_path, connection_grace=0.5) as here:
        await here.add_host()
        await here.stop("cluster")
        lost = await link_where(here, False)
        assert lost.reason is not None
        assert "does not answer" in lost.reason
        failed = await here.outcome(await here.boot(), CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "CONNECTION_ERROR"
        await here.start_cluster()
        await link_where(here, True)
        await here.running()


async def test_confirmation_grows_old_when_endpoint_stops(tmp_path: Path) -> None:
    """Pages mark rows by this time: within an interval and a half of it nothing is wrong."""
    async with local_cluster(tmp_path) as here:
        await here.add_host()

        async def heard() -> int:
            return (await here.status.links())[0].heard

        first = await heard()

        async def later() -> bool:
            return await heard() > first

        await eventually(later)  # nothing changes, and yet it is confirmed
        await here.stop("endpoint")
        last = await heard()
        version = await here.status.version()
        boot = await here.boot()
        assert (await here.commands.get(boot.id)) is not None
        assert await heard() == last
        assert await here.status.version() == version


async def test_closed_connection_reopens_with_its_handlers(tmp_path: Path) -> None:
    """A link that its client gave up is opened anew with all that it served."""
    settings = small_settings(tmp_path)
    broker = Broker(settings, ())
    await broker.start()
    try:
        changes: list[bool] = []
        certificates = issuing.ensure_certificate(settings, "cluster")
        cluster = BrokerConnection(
            settings.nats_url,
            "cluster",
            issuing.client_context(certificates, "cluster"),
            registry=CollectorRegistry(),
            on_change=changes.append,
        )
        await cluster.open()

        async def hello(_message: AnyMessage) -> AnyMessage:
            return StatusPosition(epoch=1, sequence=2)

        await cluster.serve(SUBJECTS.commands, hello)
        async with wire_link(settings, "endpoint") as endpoint:

            async def answered() -> bool:
                try:
                    return bool(await endpoint.request(SUBJECTS.commands, StatusQuery(), StatusPosition))
                except NoAnswer:
                    return False

            await eventually(answered)
            # As after a word of the server's that nats-py takes for the end, a limit of connections for one.
            await cluster._client._process_err("'maximum connections exceeded'")
            await eventually(lambda: changes == [True, False, True])
            await eventually(answered)
        await cluster.close()
        assert not cluster.connected
    finally:
        await broker.kill()


def test_reconnect_backoff_grows_and_is_not_in_step() -> None:
    """Tries come ever more rarely and no two processes try in step."""
    for tries in range(20):
        pauses = {_pause(tries) for _ in range(50)}
        middle = min(BROKER_RECONNECT[0] * 2**tries, BROKER_RECONNECT[1])
        assert len(pauses) > 40
        assert all(0.5 * middle <= pause <= 1.5 * middle for pause in pauses)


async def test_absent_database_server_ends_no_process(tmp_path: Path, each_server: Provisioned) -> None:
    """A database server that is away ends no process and loses nothing."""
    async with local_cluster(tmp_path, connection_grace=60, host_timeout=60) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        await asyncio.to_thread(each_server.server.crash)
        try:
            with capture_logs() as said:
                host.hypervisor.step()
                host.hypervisor.behaviour = Behaviour.PROMPT
                await eventually(lambda: host.journal.records[str(boot.desktop)].state is DesktopState.RUNNING)
                await eventually(lambda: any("does not" in str(entry) for entry in said))  # somebody needed it
        finally:
            await asyncio.to_thread(each_server.server.start)
        await here.outcome(boot, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.RUNNING)
        await link_where(here, True)
        await here.running()
        assert all(here.lives(name) for name in ("cluster", "endpoint"))
