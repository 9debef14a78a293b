"""The life of hosts under a real cluster: drained, shut down, woken, configured, unregistered, lost and found."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pupitre.domain.command import (
    BootDesktop,
    BootUpHost,
    Command,
    CommandState,
    ConfigureHost,
    Halt,
    RegisterHost,
    RetireHost,
)
from pupitre.domain.desktop import DesktopState
from pupitre.domain.host import Host, HostState
from pupitre.host.simulation.hypervisor import Behaviour
from pupitre.runtime.clock import now_ms
from pupitre.wire.wake import woken_by
from tests.rigs.command_writer import new_id
from tests.rigs.local_cluster import HostRig, LocalCluster, eventually, local_cluster, until

pytestmark = pytest.mark.anyio

MAC = "02:50:75:70:00:02"
BACK = {HostState.READY, HostState.DRAINING, HostState.SHUT_DOWN}


async def failed(here: LocalCluster, command: Command) -> tuple[str, str]:
    """Code and reason."""
    ended = await here.outcome(command, CommandState.FAILED)
    assert ended.fault is not None
    return ended.fault.code, ended.fault.reason


async def removed(here: LocalCluster, name: str) -> None:
    """Wait until the website knows of no such host."""

    async def look() -> Host | None:
        return await here.status.host(name)

    await until(here.changed, look, lambda host: host is None)


async def host_where(here: LocalCluster, name: str, **values: object) -> Host:
    async def look() -> Host | None:
        return await here.status.host(name)

    found = await until(
        here.changed, look, lambda host: host is not None and all(getattr(host, k) == v for k, v in values.items())
    )
    assert found is not None
    return found


class Machine:
    """A machine that is off: it notes the cards that packets name, and starts its host once it may."""

    def __init__(self, host: HostRig) -> None:
        self.named: set[str] = set()
        self.may_start = asyncio.Event()
        self._host = host
        self._woken = asyncio.Event()

    def packet(self, data: bytes) -> None:
        if mac := woken_by(data):
            self.named.add(mac)
            self._woken.set()

    async def start(self) -> None:
        await self._woken.wait()
        await self.may_start.wait()
        await self._host.crash()
        await self._host.start()


@asynccontextmanager
async def machine(here: LocalCluster, host: HostRig) -> AsyncIterator[Machine]:
    made = Machine(host)

    class Card(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, _sender: object) -> None:
            made.packet(data)

    address, port = here.settings.wake_address.rsplit(":", 1)
    listening, _ = await asyncio.get_running_loop().create_datagram_endpoint(Card, local_addr=(address, int(port)))
    starting = asyncio.create_task(made.start())
    try:
        yield made
        await asyncio.wait_for(starting, 20)
    finally:
        starting.cancel()
        listening.close()


def card_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def configured(here: LocalCluster, host: str, **changes: object) -> None:
    await here.outcome(await here.ask(ConfigureHost(host=host, **changes)), CommandState.SUCCEEDED)  # type: ignore[arg-type]


async def test_orderly_shutdown_warns_then_ends_guests_then_host(tmp_path: Path) -> None:
    """An orderly shutdown warns then shuts guests down then the machine."""
    async with local_cluster(tmp_path, drain_notice=1.5) as here:
        host = await here.add_host("host-1")
        boot = await here.running()
        await configured(here, "host-1", label="Room 7")
        other = await here.add_host("host-2")
        asked = now_ms()
        retire = await here.ask(RetireHost(host="host-1", unregister=False))

        warned = await here.desktop_where(boot, lambda desktop: desktop.until is not None)
        assert warned.until is not None
        assert asked + 1500 <= warned.until <= now_ms() + 1500
        assert warned.state is DesktopState.RUNNING
        assert warned.reason == "Room 7 is shut down for maintenance; save your work."
        assert (await here.wait_host("host-1", HostState.DRAINING)).reason == "it is to be shut down"
        elsewhere = await here.running()
        assert (await here.wait_desktop(elsewhere, DesktopState.RUNNING)).host == "host-2"

        gone = await here.wait_desktop(boot, DesktopState.GONE)
        assert now_ms() >= warned.until
        assert gone.reason == "Room 7 was shut down for maintenance."
        assert host.hypervisor.pressed == {boot.desktop: 1}
        assert await host.ended() is True
        await here.outcome(retire, CommandState.SUCCEEDED)
        await here.wait_host("host-1", HostState.SHUT_DOWN)
        assert await other.hypervisor.guests() != {}
        again = await failed(here, await here.ask(RetireHost(host="host-1", unregister=False)))
        assert again == ("VM_SERVER_SHUTDOWN_ERROR", "Room 7 is shut down already.")


async def test_at_once_asks_no_guest(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.DEAF)
        boot = await here.running()
        retire = await here.ask(RetireHost(host="host-1", unregister=False, at_once=True))
        assert await host.ended() is True
        await here.outcome(retire, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.GONE)
        assert host.hypervisor.pressed == {}


async def test_shutdown_at_once_overtakes_orderly_one(tmp_path: Path) -> None:
    """At once overtakes an orderly shutdown of guests that do not hear."""
    async with local_cluster(tmp_path, drain_notice=0, shutdown_grace=600) as here:
        host = await here.add_host(behaviour=Behaviour.DEAF)
        boot = await here.running()
        first = await here.ask(RetireHost(host="host-1", unregister=False))
        await here.wait_desktop(boot, DesktopState.STOPPING)
        await eventually(lambda: boot.desktop in host.hypervisor.pressed)
        second = await here.ask(RetireHost(host="host-1", unregister=False, at_once=True))
        for command in (first, second):
            await here.outcome(command, CommandState.SUCCEEDED)
        assert await host.ended() is True


async def test_its_user_does_not_wait_for_the_time_a_guest_was_given(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, drain_notice=0, shutdown_grace=600) as here:
        host = await here.add_host(behaviour=Behaviour.DEAF)
        boot = await here.running()
        await here.ask(RetireHost(host="host-1", unregister=True))
        await eventually(lambda: boot.desktop in host.hypervisor.pressed)
        await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)
        await removed(here, "host-1")


async def test_an_unregistered_host_is_gone_and_can_come_back(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, drain_notice=0.3) as here:
        host = await here.add_host()
        boot = await here.running()
        await here.outcome(await here.ask(RetireHost(host="127.0.0.1", unregister=True)), CommandState.SUCCEEDED)
        await removed(here, "host-1")
        assert not (await here.status.everything()).rows
        assert await host.hypervisor.guests() == {}
        assert (await here.wait_desktop(boot, DesktopState.GONE)).reason == "host-1 was shut down for maintenance."
        refused = await failed(here, await here.boot())
        assert refused[0] == "VM_BOOT_FAILURE"

        order = RegisterHost(name="host-1", address="127.0.0.1", port=host.console.port)
        for _ in range(2):
            await here.outcome(await here.ask(order), CommandState.SUCCEEDED)
        await here.wait_host("host-1", HostState.READY)
        await here.running()


async def test_a_host_is_woken_and_takes_desktops_again(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, wake_address=card_address(), drain_notice=0.3) as here:
        host = await here.add_host()
        await configured(here, "host-1", mac=MAC)
        await here.outcome(await here.ask(RetireHost(host="host-1", unregister=False)), CommandState.SUCCEEDED)
        await host.ended()
        await here.wait_host("host-1", HostState.SHUT_DOWN)
        async with machine(here, host) as sleeping:
            wake = await here.ask(BootUpHost(host="host-1"))
            assert (await here.wait_host("host-1", HostState.JOINING)).reason == "it is being woken"
            sleeping.may_start.set()
            await here.outcome(wake, CommandState.SUCCEEDED)
        assert sleeping.named == {MAC}
        await here.wait_host("host-1", HostState.READY)
        await here.running()
        await here.outcome(await here.ask(BootUpHost(host="host-1")), CommandState.SUCCEEDED)


async def test_a_machine_that_somebody_switches_on_is_ready(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, drain_notice=0.3) as here:
        host = await here.add_host()
        await here.outcome(await here.ask(RetireHost(host="host-1", unregister=False)), CommandState.SUCCEEDED)
        await host.ended()
        await host.crash()
        await host.start()
        await here.wait_host("host-1", HostState.READY)
        await here.running()


async def test_what_does_not_wake_up_is_said_with_its_reason(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, wake_address=card_address(), host_timeout=0.8) as here:
        host = await here.add_host()
        await host.crash()
        await here.wait_host("host-1", HostState.RECONNECTING)
        code, reason = await failed(here, await here.ask(BootUpHost(host="host-1")))
        assert code == "VM_SERVER_BOOTUP_ERROR"
        assert "no MAC address is known" in reason
        assert (await here.wait_host("host-1", HostState.TIMED_OUT)).reason == "it did not wake up"

        await configured(here, "host-1", mac=MAC)
        code, reason = await failed(here, await here.ask(BootUpHost(host="host-1"), timeout=6))
        assert code == "VM_SERVER_BOOTUP_ERROR"
        assert reason.startswith("host-1 has not answered within ")
        await host.start()
        await here.wait_host("host-1", HostState.READY)


async def test_a_host_that_is_just_being_started_is_waited_for(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(register=False)
        await host.crash()
        command = await here.ask(RegisterHost(name=host.name, address="127.0.0.1", port=host.port))
        await asyncio.sleep(0.5)
        await host.start()
        await here.outcome(command, CommandState.SUCCEEDED)
        await here.wait_host(host.name, HostState.READY)


async def test_commands_about_no_host_or_several_name_those_there_are(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        for order, code in (
            (RetireHost(host="nobody", unregister=True), "VM_SERVER_UNREGISTRATION_ERROR"),
            (RetireHost(host="nobody", unregister=False), "VM_SERVER_SHUTDOWN_ERROR"),
            (BootUpHost(host="nobody"), "VM_SERVER_BOOTUP_ERROR"),
            (ConfigureHost(host="nobody", label="x"), "VM_SERVER_CONFIGURATION_CHANGE_ERROR"),
        ):
            assert await failed(here, await here.ask(order)) == (
                code, "There is no host nobody. None is registered.",
            )  # fmt: skip
        register = RegisterHost(name="host-1", address="127.0.0.1", port=1)
        code, reason = await failed(here, await here.ask(register))
        assert code == "VM_SERVER_REGISTRATION_ERROR"
        assert "does not answer" in reason
        await here.add_host("host-1")
        await here.add_host("host-2")
        asked = await here.ask(BootUpHost(host="127.0.0.1"))
        assert await failed(here, asked) == (
            "VM_SERVER_BOOTUP_ERROR", "127.0.0.1 means host-1 and host-2. Say which, by its name.",
        )  # fmt: skip


async def test_a_host_is_configured_while_desktops_run_on_it(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host("host-1")
        await here.add_host("host-2", register=False)
        boot = await here.running()
        await configured(here, "host-1", label="Room 7", address="localhost", mac=MAC.upper().replace(":", "-"))
        await host_where(here, "host-1", label="Room 7", address="localhost", mac=MAC)
        await configured(here, "Room 7", mac="")
        await host_where(here, "host-1", mac=None, label="Room 7")
        assert (await here.wait_desktop(boot, DesktopState.RUNNING)).host == "host-1"

        async def refused(**changes: object) -> str:
            order = ConfigureHost(host="Room 7", **changes)  # type: ignore[arg-type]
            code, reason = await failed(here, await here.ask(order))
            assert code == "VM_SERVER_CONFIGURATION_CHANGE_ERROR"
            return reason

        assert "Desktops run on Room 7." in await refused(edition=True)
        assert f"listens on port {host.console.port}, not 1." in await refused(port=1)
        assert "52:54:00:12:34:56" in await refused(mac="nonsense")
        other = RegisterHost(name="host-2", address="127.0.0.2", port=here.hosts[1].console.port)
        await here.outcome(await here.ask(other), CommandState.SUCCEEDED)
        for label in ("Room 7", "host-1"):
            order = ConfigureHost(host="host-2", label=label)
            _, reason = await failed(here, await here.ask(order))
            assert reason == f"host-1 is called {label} already. Choose another label."

        await here.outcome(await here.destroy(boot.desktop), CommandState.SUCCEEDED)
        await configured(here, "Room 7", edition=True)
        await host_where(here, "host-1", edition=True)
        usual = await here.running()
        assert (await here.wait_desktop(usual, DesktopState.RUNNING)).host == "host-2"
        editing = await here.ask(BootDesktop(desktop=new_id(), image="plain", edition=True))
        await here.outcome(editing, CommandState.SUCCEEDED)
        assert (await here.wait_desktop(editing, DesktopState.RUNNING)).host == "host-1"


async def test_later_command_holds_and_earlier_one_ends(tmp_path: Path) -> None:
    """The later of two commands holds and the earlier one has its outcome."""
    async with local_cluster(tmp_path, drain_notice=600) as here:
        await here.add_host()
        boot = await here.running()
        retire = await here.ask(RetireHost(host="host-1", unregister=True))
        await here.desktop_where(boot, lambda desktop: desktop.until is not None)
        resume = await here.ask(BootUpHost(host="host-1"))
        overtaken = await here.outcome(retire, CommandState.CANCELLED)
        assert overtaken.fault is not None
        assert overtaken.fault.reason == "Overtaken by a later command: it is to be booted up."
        await here.outcome(resume, CommandState.SUCCEEDED)
        back = await here.desktop_where(boot, lambda desktop: desktop.until is None)
        assert (back.state, back.reason) == (DesktopState.RUNNING, None)
        await here.wait_host("host-1", HostState.READY)
        await here.running()


async def test_silent_draining_host_goes_on_draining(tmp_path: Path) -> None:
    """A draining host that is silent for a while goes on draining."""
    async with local_cluster(tmp_path, drain_notice=4, host_timeout=0.8) as here:
        host = await here.add_host()
        boot = await here.running()
        retire = await here.ask(RetireHost(host="host-1", unregister=False))
        await here.wait_host("host-1", HostState.DRAINING)
        await host.crash()
        await here.wait_host("host-1", HostState.RECONNECTING)
        await here.wait_desktop(boot, DesktopState.LOST)
        await host.start()

        async def look() -> Host | None:
            return await here.status.host("host-1")

        back = await until(here.changed, look, lambda host: host is not None and host.state in BACK)
        assert back is not None
        assert back.state is not HostState.READY
        await here.outcome(retire, CommandState.SUCCEEDED)
        await here.wait_desktop(boot, DesktopState.GONE)
        assert host.hypervisor.pressed == {boot.desktop: 1}


async def test_silent_host_is_unregistered_at_once_only(tmp_path: Path) -> None:
    """A silent host is unregistered at once only and left alone when it returns."""
    async with local_cluster(tmp_path, host_timeout=0.8) as here:
        host = await here.add_host()
        boot = await here.running()
        await host.crash()
        await here.wait_host("host-1", HostState.RECONNECTING)
        code, reason = await failed(here, await here.ask(RetireHost(host="host-1", unregister=True)))
        assert code == "VM_SERVER_UNREGISTRATION_ERROR"
        assert reason.startswith("host-1 does not answer.")
        code, _ = await failed(here, await here.ask(RetireHost(host="host-1", unregister=False, at_once=True)))
        assert code == "VM_SERVER_SHUTDOWN_ERROR"

        retire = await here.ask(RetireHost(host="host-1", unregister=True, at_once=True))
        await here.outcome(retire, CommandState.SUCCEEDED)
        await removed(here, "host-1")
        ended = await here.wait_desktop(boot, DesktopState.FAILED)
        assert (ended.host, ended.reason) == (None, "host-1 left the cluster with it.")
        await host.start()
        await eventually(lambda: host.journal.epoch > 0)
        assert set(await host.hypervisor.guests()) == {boot.desktop}, "unknown guests of an unknown host are let be"


async def test_a_cluster_that_is_killed_goes_on_with_what_it_had_begun(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, drain_notice=2) as here:
        host = await here.add_host()
        boot = await here.running()
        retire = await here.ask(RetireHost(host="host-1", unregister=False))
        await here.desktop_where(boot, lambda desktop: desktop.until is not None)
        await here.stop("cluster")
        await here.start_cluster()
        await here.outcome(retire, CommandState.SUCCEEDED)
        assert await host.ended() is True
        assert host.hypervisor.pressed == {boot.desktop: 1}


async def test_a_host_that_is_given_up_comes_back_by_itself(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=0.6, host_give_up=0.5) as here:
        host = await here.add_host()
        boot = await here.running()
        await host.crash()
        await here.wait_host("host-1", HostState.TIMED_OUT)
        assert (await here.wait_desktop(boot, DesktopState.LOST)).reason == "host-1 does not answer"
        await host.start()
        await here.wait_host("host-1", HostState.READY)
        await here.wait_desktop(boot, DesktopState.RUNNING)


async def test_a_halt_ends_what_is_under_way_and_the_cluster(tmp_path: Path) -> None:
    async with local_cluster(tmp_path) as here:
        host = await here.add_host(behaviour=Behaviour.NEVER_BOOTS)
        running = await here.boot()
        await here.wait_desktop(running, DesktopState.BOOTING)
        host.hypervisor.step()
        await here.outcome(running, CommandState.SUCCEEDED)
        booting = await here.boot()
        await here.wait_desktop(booting, DesktopState.BOOTING)
        halt = await here.ask(Halt())
        cancelled = await here.outcome(booting, CommandState.CANCELLED)
        assert cancelled.fault is not None
        assert cancelled.fault.code == "HALTED"
        await here.outcome(halt, CommandState.SUCCEEDED)
        await here.ended("cluster")
        assert str(running.desktop) in await host.hypervisor.guests()
        await here.ended("endpoint")
        await here.start_cluster()
        await here.start_endpoint()
        await here.wait_desktop(booting, DesktopState.GONE)
        await here.wait_desktop(running, DesktopState.RUNNING)


async def test_a_halt_with_the_hosts_shuts_them_down_first(tmp_path: Path) -> None:
    async with local_cluster(tmp_path, host_timeout=1.2) as here:
        first, second = [await here.add_host(name, Behaviour.DEAF) for name in ("host-1", "host-2")]
        boots = [await here.running() for _ in range(2)]
        await second.crash()
        await here.wait_host("host-2", HostState.RECONNECTING)
        halt = await here.ask(Halt(hosts=True))
        await here.outcome(halt, CommandState.SUCCEEDED)
        await here.ended("cluster")
        await here.ended("endpoint")
        assert await first.ended() is True
        assert await first.hypervisor.guests() == {}
        assert first.hypervisor.pressed == {}
        assert len(boots) == 2
