"""Commands from their row to their outcome: endpoint, cluster and host over a real broker."""

from pathlib import Path

import pytest

from pupitre.domain.command import CommandState, RegisterHost
from pupitre.domain.desktop import DesktopState
from pupitre.host.simulation.hypervisor import Behaviour
from tests.rigs.local_cluster import eventually, local_cluster

pytestmark = pytest.mark.anyio


async def test_a_desktop_is_booted_and_destroyed(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host()
        boot = await here.running()
        assert boot.desktop in await host.hypervisor.guests()
        assert host.overlays.all() == {boot.desktop}

        destroy = await here.destroy(boot.desktop)
        await here.outcome(destroy, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.GONE)
        assert await host.hypervisor.guests() == {}
        assert host.overlays.all() == set()
        await eventually(lambda: not host.journal.records)


async def test_a_host_that_does_not_answer_is_not_registered(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        command = await here.ask(RegisterHost(name="host-2", address="127.0.0.1", port=9))
        failed = await here.outcome(command, CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "VM_SERVER_REGISTRATION_ERROR"
        assert failed.fault.reason.startswith("host-2 (127.0.0.1:9) does not answer")
        assert await here.status.hosts() == []


async def test_a_host_with_another_console_port_is_not_registered(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host(register=False)
        failed = await here.outcome(
            await here.ask(RegisterHost(name="host-1", address="127.0.0.1", port=9)), CommandState.FAILED
        )
        assert failed.fault is not None
        assert "listens on port" in failed.fault.reason


async def test_an_image_that_no_host_has_is_a_boot_failure(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        await here.add_host()
        failed = await here.outcome(await here.boot(image="unheard-of"), CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "VM_BOOT_FAILURE"
        await here.running()


async def test_guest_that_dies_at_start_is_boot_failure(tmp_path: Path) -> None:
    """A guest that dies at start is a boot failure and leaves nothing."""
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.DIES_AT_START)
        boot = await here.boot()
        failed = await here.outcome(boot, CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "VM_BOOT_FAILURE"
        assert "ended while it started" in failed.fault.reason
        await eventually(lambda: host.overlays.all() == set() and not host.journal.records)
        seen = await here.desktop_where(boot, lambda desktop: desktop.host is None)
        assert (seen.state, seen.reason) == (DesktopState.FAILED, failed.fault.reason)


async def test_guest_that_never_boots_is_timed_out_and_undone(tmp_path: Path) -> None:
    """A guest that never boots is timed out and undone and the next one starts."""
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.NEVER_BOOTS)
        boot = await here.boot(timeout=0.5)
        timed_out = await here.outcome(boot, CommandState.TIMED_OUT)
        assert timed_out.fault is not None
        assert timed_out.fault.code == "TIMED_OUT"
        await here.wait_desktop(boot, DesktopState.GONE)
        assert await host.hypervisor.guests() == {}
        assert host.overlays.all() == set()
        late = await here.command_where(boot, lambda command: command.late is not None)
        assert (late.state, late.late) == (CommandState.TIMED_OUT, CommandState.CANCELLED)

        host.hypervisor.behaviour = Behaviour.PROMPT
        await here.running()


async def test_starts_that_hang_do_not_hold_up_a_stop(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, start_limit=1) as here:
        host = await here.add_host()
        running = await here.running()
        host.hypervisor.behaviour = Behaviour.NEVER_BOOTS
        stuck, waiting = await here.boot(), await here.boot()
        await here.wait_desktop(stuck, DesktopState.BOOTING)
        await here.outcome(await here.destroy(running.desktop), CommandState.SUCCEEDED)
        await here.outcome(await here.destroy(stuck.desktop), CommandState.SUCCEEDED)
        await here.outcome(await here.destroy(waiting.desktop), CommandState.SUCCEEDED)
        await eventually(lambda: host.overlays.all() == set() and not host.journal.records)


async def test_desktop_destroyed_while_starting_is_gone(tmp_path: Path) -> None:
    """A desktop destroyed while it starts is cancelled and gone."""
    async with local_cluster(tmp_path) as here:
        await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)
        await here.outcome(boot, CommandState.CANCELLED)
        await here.wait_desktop(boot, DesktopState.GONE)


async def test_a_slow_start_goes_on_when_it_may(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.SLOW)
        boot = await here.boot()
        await here.wait_desktop(boot, DesktopState.BOOTING)
        assert host.hypervisor.step()
        await here.outcome(boot, CommandState.SUCCEEDED)


async def test_boot_without_room_is_refused_with_reasons(tmp_path: Path) -> None:
    """What does not fit is refused with the reason of each host."""
    async with local_cluster(tmp_path) as here:
        await here.add_host("host-1", memory_mib=300)
        await here.add_host("host-2", memory_mib=300)
        boots = [await here.boot() for _ in range(5)]
        ended = [await here.command_where(boot, lambda command: command.finished is not None) for boot in boots]
        assert sorted(command.state for command in ended) == ["failed"] * 3 + ["succeeded"] * 2
        for command in ended:
            if command.fault:
                assert "host-1: 212 MiB of memory short; host-2: 212 MiB of memory short" in command.fault.reason


async def test_twenty_at_once_all_start(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(memory_mib=65536)
        boots = [await here.boot() for _ in range(16)]
        for boot in boots:
            await here.outcome(boot, CommandState.SUCCEEDED)
        assert len(await host.hypervisor.guests()) == 16


async def test_destroying_a_desktop_that_never_was_fails(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        failed = await here.outcome(await here.destroy("0190aaaa-0000-7000-8000-00000000dead"), CommandState.FAILED)
        assert failed.fault is not None
        assert failed.fault.code == "DOMAIN_DESTRUCTION_ERROR"
