"""Shutting down: a guest is asked first and given its time, a host leaves nothing behind and says farewell."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pupitre.domain.desktop import DesktopState
from pupitre.errors import SetupError
from pupitre.host.process import shut_machine_down
from pupitre.host.simulation.hypervisor import Behaviour
from pupitre.images.store import ImageStore
from pupitre.wire.connection import BrokerConnection
from pupitre.wire.messages import (
    AnyMessage,
    Describe,
    Done,
    EnsureDesktop,
    EnsureGone,
    HostShutdownNotice,
    PowerOff,
    Refused,
    Report,
)
from pupitre.wire.subjects import Subjects
from tests.rigs.command_writer import new_id
from tests.rigs.local_cluster import IMAGE, HostRig, LocalCluster, eventually, local_cluster, wire_link

pytestmark = pytest.mark.anyio
ORDERS = Subjects("main").orders("host-1")


class Cluster:
    """Speaks as the cluster, and hears everything."""

    def __init__(self, here: LocalCluster, host: HostRig, link: BrokerConnection) -> None:
        self.host, self.heard = host, list[AnyMessage]()
        self._link = link
        self._spec = ImageStore(here.settings.images_dir).spec(IMAGE)

    async def hear(self, message: AnyMessage) -> AnyMessage:
        self.heard.append(message)
        return Done()

    async def say(self, order: AnyMessage) -> None:
        await self._link.request(ORDERS, order, Done)

    async def running(self) -> str:
        desktop = new_id()
        await self.say(EnsureDesktop(epoch=1, desktop=desktop, boot=1, spec=self._spec))
        await eventually(lambda: self.host.journal.records[desktop].state is DesktopState.RUNNING)
        return desktop

    async def run(self) -> str:
        """Which process of the host this is, as it says itself."""
        return (await self._link.request(ORDERS, Describe(epoch=1), Report)).run

    @property
    def gone(self) -> set[str]:
        reports = [message for message in self.heard if isinstance(message, Report)]
        return {seen.desktop for report in reports for seen in report.desktops if seen.state is DesktopState.GONE}


@asynccontextmanager
async def host_and_cluster(home: Path, behaviour: Behaviour, **changes: object) -> AsyncIterator[Cluster]:
    async with local_cluster(home, start=(), **changes) as here:
        host = await here.add_host(behaviour=behaviour, register=False)
        async with wire_link(here.settings, "cluster") as link:
            cluster = Cluster(here, host, link)
            await link.serve(Subjects("main").reports("*"), cluster.hear)
            yield cluster


async def test_a_guest_with_grace_shuts_down_by_itself(tmp_path: Path) -> None:
    async with host_and_cluster(tmp_path, Behaviour.PROMPT) as cluster:
        desktop = await cluster.running()
        await cluster.say(EnsureGone(epoch=1, desktop=desktop, grace=600))
        await eventually(lambda: desktop in cluster.gone)
        assert cluster.host.hypervisor.pressed == {desktop: 1}


async def test_deaf_guest_is_ended_when_its_time_is_over(tmp_path: Path) -> None:
    """A guest that does not hear is ended when its time is over."""
    async with host_and_cluster(tmp_path, Behaviour.DEAF) as cluster:
        desktop = await cluster.running()
        await cluster.say(EnsureGone(epoch=1, desktop=desktop, grace=0.3))
        await eventually(lambda: desktop in cluster.gone)
        assert cluster.host.hypervisor.pressed[desktop] >= 1


async def test_a_repeat_may_shorten_the_grace_and_never_prolongs_it(tmp_path: Path) -> None:
    async with host_and_cluster(tmp_path, Behaviour.DEAF) as cluster:
        desktop = await cluster.running()
        records = cluster.host.journal.records
        await cluster.say(EnsureGone(epoch=1, desktop=desktop, grace=600))
        first = records[desktop].end_by
        await cluster.say(EnsureGone(epoch=1, desktop=desktop, grace=6000))
        assert records[desktop].end_by == first
        await cluster.host.crash()
        await cluster.host.start()
        assert cluster.host.journal.records[desktop].end_by == first
        await eventually(lambda: cluster.host.hypervisor.pressed.get(desktop, 0) >= 2)
        assert await cluster.host.hypervisor.guests() != {}
        await cluster.say(EnsureGone(epoch=1, desktop=desktop))
        await eventually(lambda: desktop in cluster.gone)


async def test_a_guest_that_is_still_starting_gets_no_grace(tmp_path: Path) -> None:
    async with host_and_cluster(tmp_path, Behaviour.NEVER_BOOTS) as cluster:
        desktop = new_id()
        spec = ImageStore(cluster.host.settings.images_dir).spec(IMAGE)
        await cluster.say(EnsureDesktop(epoch=1, desktop=desktop, boot=1, spec=spec))
        await eventually(lambda: cluster.host.journal.records[desktop].state is DesktopState.BOOTING)
        await cluster.say(EnsureGone(epoch=1, desktop=desktop, grace=600))
        await eventually(lambda: desktop in cluster.gone)
        assert cluster.host.hypervisor.pressed == {}


@pytest.mark.parametrize("at_once", [False, True])
async def test_host_shutdown_leaves_nothing_and_says_so(tmp_path: Path, at_once: bool) -> None:
    """A host that shuts down leaves nothing says farewell and ends."""
    async with host_and_cluster(tmp_path, Behaviour.PROMPT) as cluster:
        desktops = {await cluster.running() for _ in range(3)}
        await cluster.say(PowerOff(epoch=1, at_once=at_once))
        assert await cluster.host.ended() is True
        assert cluster.gone == desktops
        assert isinstance(cluster.heard[-1], HostShutdownNotice)
        assert cluster.host.hypervisor.pressed == ({} if at_once else dict.fromkeys(desktops, 1))
        assert cluster.host.overlays.all() == set()
        assert not cluster.host.journal.records


async def test_at_once_overtakes_in_order(tmp_path: Path) -> None:
    async with host_and_cluster(tmp_path, Behaviour.DEAF) as cluster:
        desktop = await cluster.running()
        await cluster.say(PowerOff(epoch=1))
        await eventually(lambda: desktop in cluster.host.hypervisor.pressed)
        refused = await cluster.host.agent._on_order(
            EnsureDesktop(
                epoch=1, desktop=new_id(), boot=1, spec=ImageStore(cluster.host.settings.images_dir).spec(IMAGE)
            )
        )
        assert isinstance(refused, Refused)
        assert refused.code == "shutting_down"
        await cluster.say(PowerOff(epoch=1, at_once=True))
        assert await cluster.host.ended() is True


async def test_a_copy_that_comes_late_does_not_end_the_next_process(tmp_path: Path) -> None:
    async with host_and_cluster(tmp_path, Behaviour.PROMPT) as cluster:
        order = PowerOff(epoch=1, run=await cluster.run())
        await cluster.say(order)
        assert await cluster.host.ended() is True
        await cluster.host.crash()
        await cluster.host.start()
        assert await cluster.run() != order.run
        refused = await cluster.host.agent._on_order(order)
        assert isinstance(refused, Refused)
        assert refused.code == "old_run"
        assert cluster.host.lives()
        await cluster.say(PowerOff(epoch=1, run=await cluster.run()))
        assert await cluster.host.ended() is True


async def test_the_machine_is_shut_down_by_the_command_of_the_setting(tmp_path: Path) -> None:
    await shut_machine_down(())
    await shut_machine_down(("touch", str(tmp_path / "off")))
    assert (tmp_path / "off").exists()
    with pytest.raises(SetupError, match="host_power_off"):
        await asyncio.wait_for(shut_machine_down(("false",)), 20)
