"""Fault 12: the network between the cluster and a host is cut, also in one direction only."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import HostState
from tests.chaos.proxy import Proxy, Way
from tests.rigs.local_cluster import HostRig, LocalCluster, eventually, local_cluster

pytestmark = pytest.mark.anyio

WAYS = {"both": tuple(Way), "from_host": (Way.TO_BROKER,), "to_host": (Way.FROM_BROKER,)}


@asynccontextmanager
async def divided(home: Path) -> AsyncIterator[tuple[LocalCluster, HostRig, Proxy]]:
    """A cluster whose host reaches the broker through a proxy alone."""
    async with local_cluster(home) as here:
        proxy = Proxy(here.broker.port)
        await proxy.open()
        try:
            host = await here.add_host(broker_port=proxy.port)
            yield here, host, proxy
            await host.crash()  # before its proxy ends
        finally:
            await proxy.close()


@pytest.mark.parametrize("lost", [False, True], ids=["late", "lost"])
@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
async def test_partition_ends_no_desktop_and_no_old_order_counts(
    tmp_path: Path, ways: tuple[Way, ...], lost: bool
) -> None:
    """Orders of a cluster that has begun anew since, of a command that is over, come late or never."""
    async with divided(tmp_path) as (here, host, proxy):
        kept = await here.running()
        proxy.hold(*ways)
        late = await here.boot(timeout=1.5)
        if Way.TO_BROKER in ways:
            await here.wait_host("host-1", HostState.RECONNECTING)
        await here.outcome(late, CommandState.TIMED_OUT)
        assert kept.desktop in await host.hypervisor.guests()
        await here.stop("cluster")
        await here.start_cluster()
        if lost:
            proxy.cut()
        proxy.release()
        await here.wait_host("host-1", HostState.READY)
        await here.wait_desktop(kept, DesktopState.RUNNING)

        async def is_settled() -> bool:
            return set(await host.hypervisor.guests()) == set(host.journal.records) == {kept.desktop}

        await eventually(is_settled, "only what is wanted runs")
        assert (await host.hypervisor.guests())[str(kept.desktop)].boot == 1, "it was never started again"
        await here.running()
        await here.outcome(await here.destroy(kept.desktop), CommandState.SUCCEEDED)
