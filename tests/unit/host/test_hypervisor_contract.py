"""One contract, three hypervisors. What one of them cannot do is said in `Backend` and asserted here."""

import asyncio
import io
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from PIL import Image

from pupitre.errors import HypervisorError, NoSuchDomain
from pupitre.host.hypervisor.port import Guest, GuestState, Hypervisor, SeenGuest
from pupitre.images.store import ImageStore
from tests.rigs.hypervisor_backends import BACKENDS, Backend, guest, hypervisor, overlays

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=BACKENDS, ids=lambda backend: backend.uri)
def backend(request: pytest.FixtureRequest) -> Backend:
    chosen: Backend = request.param
    return chosen


@pytest.fixture
async def host(backend: Backend) -> AsyncIterator[Hypervisor]:
    opened = hypervisor(backend.uri)
    await opened.open()
    yield opened
    for desktop in await opened.guests():
        await opened.ensure_gone(desktop)
    await opened.close()
    disks = overlays(backend.uri)
    for desktop in disks.all():
        await disks.ensure_gone(desktop)


async def next_change(host: Hypervisor) -> SeenGuest:
    async with asyncio.timeout(10):
        async for change in host.changes():
            return change
    raise AssertionError("the changes ended")


async def test_a_host_says_what_it_has(host: Hypervisor, backend: Backend) -> None:
    facts = await host.facts()
    assert min(facts.memory_mib, facts.vcpus, facts.disk_free_mib) > 0
    assert facts.hypervisor == backend.uri
    assert facts.accelerator in {"simulated", "test", "tcg"}


async def test_a_start_may_be_repeated(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await host.ensure_running(wanted)
    await host.ensure_running(wanted)
    assert await host.guests() == {wanted.desktop: SeenGuest(wanted.desktop, 1, GuestState.RUNNING)}
    assert await next_change(host) == SeenGuest(wanted.desktop, 1, GuestState.RUNNING)
    await host.ensure_gone(wanted.desktop)
    change = await next_change(host)  # and not a second start
    assert (change.desktop, change.boot, change.state) == (wanted.desktop, 1, GuestState.STOPPED)
    assert change.reason


async def test_two_starts_at_once_are_one(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await asyncio.gather(host.ensure_running(wanted), host.ensure_running(wanted))
    assert len(await host.guests()) == 1


async def test_a_stop_may_be_repeated(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await host.ensure_gone(wanted.desktop)
    await host.ensure_running(wanted)
    await host.ensure_gone(wanted.desktop)
    await host.ensure_gone(wanted.desktop)
    assert await host.guests() == {}
    assert wanted.disk.exists()


async def test_power_button_is_pressed_again_until_heard(host: Hypervisor, backend: Backend) -> None:
    """The power button may be pressed again and a guest that hears it ends in order."""
    wanted = await guest(backend.uri)
    with pytest.raises(NoSuchDomain):
        await host.shut_down(wanted.desktop)
    await host.ensure_running(wanted)
    assert (await next_change(host)).state is GuestState.RUNNING
    await host.shut_down(wanted.desktop)
    if not backend.hears:  # a machine without a system: only its owner can end it
        await host.shut_down(wanted.desktop)
        assert (await host.guests())[wanted.desktop].state is GuestState.RUNNING
        return
    ended = await next_change(host)
    assert (ended.desktop, ended.state, ended.orderly) == (wanted.desktop, GuestState.STOPPED, True)
    assert await host.guests() == {}


@pytest.mark.guest
async def test_a_real_system_shuts_down_by_its_power_button(images: ImageStore) -> None:
    uri, desktop, spec = "qemu:///embed", str(uuid.uuid4()), images.spec("tiny")
    base = images.blob(spec.disk)
    disk = await overlays(uri).ensure(desktop, base, spec.disk_format, spec.disk_gib)
    assert spec.kernel is not None
    assert spec.initrd is not None
    host = hypervisor(uri)
    await host.open()
    try:
        kernel, initrd = images.blob(spec.kernel), images.blob(spec.initrd)
        await host.ensure_running(Guest(desktop, 1, spec, disk, backing=base, kernel=kernel, initrd=initrd))
        assert (await next_change(host)).state is GuestState.RUNNING
        reader, writer = await asyncio.open_unix_connection(await host.serial(desktop))
        async with asyncio.timeout(90):
            await reader.readuntil(b"# ")
            await host.shut_down(desktop)
            while await reader.read(4096):
                pass
        writer.close()
        ended = await next_change(host)
        assert (ended.state, ended.orderly) == (GuestState.STOPPED, True)
    finally:
        await host.ensure_gone(desktop)
        await host.close()
        await overlays(uri).ensure_gone(desktop)


async def test_later_boot_replaces_earlier_never_reverse(host: Hypervisor, backend: Backend) -> None:
    """A later boot replaces an earlier one and never the other way."""
    first = await guest(backend.uri)
    await host.ensure_running(first)
    await host.ensure_running(replace(first, boot=2))
    assert (await host.guests())[first.desktop].boot == 2
    with pytest.raises(HypervisorError, match="overtaken"):
        await host.ensure_running(first)
    assert (await host.guests())[first.desktop].boot == 2
    heard = [await next_change(host) for _ in range(3)]
    assert [(change.boot, change.state) for change in heard] == [
        (1, GuestState.RUNNING), (1, GuestState.STOPPED), (2, GuestState.RUNNING),
    ]  # fmt: skip


async def test_guests_go_on_when_their_connection_closes(backend: Backend) -> None:
    wanted = await guest(backend.uri, boot=7)
    first, second = hypervisor(backend.uri), hypervisor(backend.uri)
    await first.open()
    await first.ensure_running(wanted)
    await second.open()  # before the first is closed: libvirt's double forgets all when nobody is connected
    await first.close()
    try:
        assert await second.guests() == {wanted.desktop: SeenGuest(wanted.desktop, 7, GuestState.RUNNING)}
        await second.ensure_gone(wanted.desktop)
        assert await second.guests() == {}
    finally:
        await second.close()
        await overlays(backend.uri).ensure_gone(wanted.desktop)


async def test_the_console_speaks_rfb(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await host.ensure_running(wanted)
    if not backend.console:
        with pytest.raises(HypervisorError, match="gives no console"):
            await host.console(wanted.desktop)
        return
    with await host.console(wanted.desktop) as console:
        assert console.getblocking() is False
        async with asyncio.timeout(10):
            assert await asyncio.get_running_loop().sock_recv(console, 12) == b"RFB 003.008\n"


async def test_the_screen_is_a_png(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await host.ensure_running(wanted)
    picture = Image.open(io.BytesIO(await host.screenshot(wanted.desktop)))
    assert (picture.format, picture.width > 0) == ("PNG", True)


async def test_the_serial_line_is_a_unix_socket(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    await host.ensure_running(wanted)
    path = await host.serial(wanted.desktop)
    assert path.is_socket() is backend.serial
    if backend.serial:
        _reader, writer = await asyncio.open_unix_connection(path)
        writer.close()
        await writer.wait_closed()
    await host.ensure_gone(wanted.desktop)
    assert not path.exists()


async def test_what_does_not_run_has_no_console_screen_or_line(host: Hypervisor) -> None:
    nobody = str(uuid.uuid4())
    for ask in (host.console, host.screenshot, host.serial):
        with pytest.raises(NoSuchDomain):
            await ask(nobody)


async def test_what_is_no_id_is_refused(host: Hypervisor, backend: Backend) -> None:
    wanted = await guest(backend.uri)
    for name in ("../../etc", wanted.desktop.upper() + "A", ""):
        with pytest.raises(HypervisorError):
            await host.ensure_running(replace(wanted, desktop=name))
    assert await host.guests() == {}
