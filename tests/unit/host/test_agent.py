"""The host agent under a real cluster: what it finds, what it reports, what it removes."""

from pathlib import Path

import pytest

from pupitre.domain.command import CommandState
from pupitre.domain.desktop import DesktopState
from pupitre.host.hypervisor.port import Guest
from pupitre.host.simulation.hypervisor import Behaviour
from pupitre.images.store import ImageStore
from pupitre.wire.messages import AnyMessage, Describe, Done, EnsureDesktop, EnsureGone, Refused, Report
from pupitre.wire.subjects import Subjects
from tests.rigs.command_writer import new_id
from tests.rigs.local_cluster import IMAGE, eventually, local_cluster, wire_link

pytestmark = pytest.mark.anyio


async def test_crashed_guest_is_failed_desktop_with_reason(tmp_path: Path) -> None:
    """A crashed guest is a failed desktop with its reason until it is put away."""
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        host.hypervisor.crash(str(boot.desktop), "The guest ran out of luck.")
        failed = await here.wait_desktop(boot, DesktopState.FAILED)
        assert failed.reason == "The guest ran out of luck."
        cleaned = await here.desktop_where(boot, lambda desktop: desktop.host is None)
        assert (cleaned.state, cleaned.reason) == (DesktopState.FAILED, "The guest ran out of luck.")
        assert host.overlays.all() == set()

        await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.GONE)


async def test_a_guest_shut_down_from_inside_is_gone(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        await host.hypervisor.shut_down(str(boot.desktop))
        gone = await here.wait_desktop(boot, DesktopState.GONE)
        assert gone.reason == "It was shut down from inside."
        assert host.overlays.all() == set()


async def test_an_orphan_guest_and_an_orphan_overlay_are_removed(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        mine = await here.running()
        await host.crash()
        orphan, overlay = new_id(), new_id()
        spec = ImageStore(here.settings.images_dir).spec(IMAGE)
        disk = await host.overlays.ensure(orphan, None, None, 1)
        await host.hypervisor.ensure_running(Guest(orphan, 1, spec, disk))
        await host.overlays.ensure(overlay, None, None, 1)

        await host.start()

        async def only_mine() -> bool:
            return set(await host.hypervisor.guests()) == {mine.desktop} == host.overlays.all()

        await eventually(only_mine)
        seen = await here.status.desktop(str(mine.desktop))
        assert seen is not None
        assert seen.state is DesktopState.RUNNING


async def test_guest_ended_without_agent_is_failed_desktop(tmp_path: Path) -> None:
    """A guest that ended while the agent was away is a failed desktop."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        host = await here.add_host()
        boot = await here.running()
        await host.crash()
        host.hypervisor.crash(str(boot.desktop))
        await host.start()
        failed = await here.wait_desktop(boot, DesktopState.FAILED)
        assert failed.reason == "The desktop ended while its host agent was away."


async def test_a_start_that_was_under_way_is_taken_up_again(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        await host.crash()
        await host.start()
        await eventually(lambda: host.agent._starting == {boot.desktop})
        host.hypervisor.step()
        await here.outcome(boot, CommandState.SUCCEEDED)


async def test_a_damaged_journal_costs_no_running_desktop(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=30) as here:
        host = await here.add_host()
        boot = await here.running()
        await host.crash()
        (host.settings.host_dir / "journal.sqlite").write_bytes(b"damaged" * 1000)
        await host.start()
        async with wire_link(here.settings, "cluster") as cluster:
            report = await cluster.request(Subjects("main").orders("host-1"), Describe(epoch=2**60), Report)
        assert [(seen.desktop, seen.state) for seen in report.desktops] == [(boot.desktop, DesktopState.RUNNING)]
        seen = await here.status.desktop(str(boot.desktop))
        assert seen is not None
        assert seen.state is DesktopState.RUNNING


async def test_damaged_record_costs_no_running_desktop(tmp_path: Path) -> None:
    """A damaged record costs no running desktop and the others nothing at all."""
    async with local_cluster(tmp_path, host_timeout=30) as here:
        host = await here.add_host()
        boots = [await here.running() for _ in range(3)]
        await host.crash()
        journal = host.settings.host_dir / "journal.sqlite"
        data = bytearray(journal.read_bytes())
        data[data.rindex(f'"desktop":"{boots[1].desktop}"'.encode()) + 15] ^= 0x01
        journal.write_bytes(data)
        await host.start()
        held = host.journal.records
        assert {desktop: record.state for desktop, record in held.items()} == {
            boot.desktop: DesktopState.RUNNING for boot in boots
        }
        assert [held[str(boot.desktop)].spec is None for boot in boots] == [False, True, False]
        assert len(await host.hypervisor.guests()) == 3
        for boot in boots:
            await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)
        await eventually(lambda: not host.journal.records)


async def test_repeated_orders_and_old_epochs_do_nothing(tmp_path: Path) -> None:
    """Orders repeated do nothing twice and old epochs nothing at all."""
    async with local_cluster(tmp_path, start=()) as here:
        host = await here.add_host(register=False)
        spec, desktop = ImageStore(here.settings.images_dir).spec(IMAGE), new_id()
        orders = Subjects("main").orders("host-1")
        order = EnsureDesktop(epoch=5, desktop=desktop, boot=1, spec=spec)
        async with wire_link(here.settings, "cluster") as cluster:

            async def take(_report: AnyMessage) -> AnyMessage:
                return Done()

            await cluster.serve(Subjects("main").reports("*"), take)
            for _ in range(3):
                await cluster.request(orders, order, Done)
            await eventually(lambda: host.journal.records[desktop].state is DesktopState.RUNNING)
            await cluster.request(orders, order, Done)
            assert len(await host.hypervisor.guests()) == 1

            stale = EnsureGone(epoch=4, desktop=desktop)
            answer = await cluster.request(orders, Describe(epoch=5), Report)
            assert len(answer.desktops) == 1
            refused = await host.agent._on_order(stale)
            assert isinstance(refused, Refused)
            assert refused.code == "old_epoch"
            assert len(await host.hypervisor.guests()) == 1

            for _ in range(3):
                await cluster.request(orders, EnsureGone(epoch=5, desktop=desktop), Done)
            await cluster.request(orders, EnsureGone(epoch=5, desktop=new_id()), Done)
            await eventually(lambda: not host.journal.records)
            assert await host.hypervisor.guests() == {}


async def test_numbers_tell_a_later_report_from_an_earlier_one(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, start=()) as here:
        await here.add_host(register=False)
        async with wire_link(here.settings, "cluster") as cluster:
            orders = Subjects("main").orders("host-1")
            reports = [await cluster.request(orders, Describe(epoch=1), Report) for _ in range(3)]
            numbers = [report.number for report in reports]
            assert numbers == sorted(set(numbers))
            assert len({report.run for report in reports}) == 1


async def test_a_host_that_stops_with_its_guests_says_so(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, guests_on_stop="destroy") as here:
        host = await here.add_host()
        boot = await here.running()
        await host.crash()
        gone = await here.wait_desktop(boot, DesktopState.GONE)
        assert gone.reason == "Pupitre was stopped."
        assert host.overlays.all() == set()
