"""What a start that cannot be says, and that the next one works: real libvirt, real QEMU."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from pupitre.errors import HypervisorError, ImageFault
from pupitre.host.hypervisor.domain_xml import Machine
from pupitre.host.hypervisor.libvirt_driver import Connection, LibvirtHypervisor
from pupitre.host.hypervisor.port import Hypervisor
from tests.rigs.hypervisor_backends import guest, hypervisor, overlays, paths

pytestmark = [pytest.mark.anyio, pytest.mark.guest, pytest.mark.timeout(120)]
URI = "qemu:///embed"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def host() -> AsyncIterator[Hypervisor]:
    opened = hypervisor(URI)
    await opened.open()
    yield opened
    for desktop in await opened.guests():
        await opened.ensure_gone(desktop)
    await opened.close()
    for desktop in overlays(URI).all():
        await overlays(URI).ensure_gone(desktop)


async def test_a_missing_emulator_is_named_with_the_mend(host: Hypervisor) -> None:
    there = paths(URI)
    missing = Machine("qemu", Path("/nowhere/qemu-system-x86_64"), "none")
    poor = LibvirtHypervisor(Connection(URI, there.serials, there.overlays, there.embed), missing)
    await poor.open()
    wanted = await guest(URI)
    with pytest.raises(HypervisorError, match="apt-get install qemu-system-x86"):
        await poor.ensure_running(wanted)
    await poor.close()
    await host.ensure_running(wanted)


async def test_a_missing_kernel_is_named(host: Hypervisor) -> None:
    wanted = await guest(URI)
    with pytest.raises(ImageFault, match="vmlinuz is missing"):
        await host.ensure_running(replace(wanted, kernel=Path("/nowhere/vmlinuz")))
    await host.ensure_running(wanted)


async def test_a_damaged_disk_is_said_to_be(host: Hypervisor) -> None:
    wanted = await guest(URI)
    whole = wanted.disk.read_bytes()
    wanted.disk.write_bytes(b"no disk")
    with pytest.raises(ImageFault, match="damaged"):
        await host.ensure_running(wanted)
    assert await host.guests() == {}
    wanted.disk.write_bytes(whole)
    await host.ensure_running(wanted)


async def test_more_memory_than_there_is_fails_in_a_sentence(host: Hypervisor) -> None:
    wanted = await guest(URI)
    greedy = replace(wanted, spec=replace(wanted.spec, memory_mib=1 << 40))
    with pytest.raises(HypervisorError, match="refused to start"):
        await host.ensure_running(greedy)
    await host.ensure_running(wanted)
