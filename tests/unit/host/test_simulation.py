"""The simulated hypervisor misbehaves as its names say, and is fast."""

import asyncio
import io
import struct
import time
import uuid
from pathlib import Path

import pytest
from PIL import Image

from pupitre.domain.image import DiskFormat, ImageSpec
from pupitre.errors import HypervisorError, SetupError
from pupitre.host.hypervisor.port import Guest, GuestState
from pupitre.host.simulation.hypervisor import Behaviour, SimulatedHypervisor
from pupitre.host.simulation.screen import HEIGHT, WIDTH

pytestmark = pytest.mark.anyio
SPEC = ImageSpec("i", "d", DiskFormat.RAW, 64, 1)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def guest(boot: int = 1) -> Guest:
    return Guest(str(uuid.uuid4()), boot, SPEC, Path("/none"))


async def states(host: SimulatedHypervisor) -> list[GuestState]:
    return [seen.state for seen in (await host.guests()).values()]


@pytest.mark.parametrize("behaviour", [Behaviour.SLOW, Behaviour.NEVER_BOOTS])
async def test_a_start_waits_for_the_test_to_step(behaviour: Behaviour, tmp_path: Path) -> None:
    host = SimulatedHypervisor(behaviour, tmp_path, delay=None)
    async with asyncio.timeout(5), asyncio.TaskGroup() as starts:
        start = starts.create_task(host.ensure_running(guest()))
        await asyncio.sleep(0)
        assert await states(host) == [GuestState.STARTING]
        assert not start.done()
        assert host.step()
    assert await states(host) == [GuestState.RUNNING]
    assert not host.step()


async def test_a_start_that_is_stopped_is_answered(tmp_path: Path) -> None:
    host = SimulatedHypervisor(Behaviour.NEVER_BOOTS, tmp_path)
    wanted = guest()
    start = asyncio.create_task(host.ensure_running(wanted))
    await asyncio.sleep(0)
    await host.ensure_gone(wanted.desktop)
    with pytest.raises(HypervisorError):
        await start
    assert await host.guests() == {}


async def test_dying_at_start_leaves_nothing(tmp_path: Path) -> None:
    host = SimulatedHypervisor(Behaviour.DIES_AT_START, tmp_path)
    with pytest.raises(HypervisorError):
        await host.ensure_running(guest())
    assert await host.guests() == {}


async def test_a_crash_is_heard_of(tmp_path: Path) -> None:
    host = SimulatedHypervisor(Behaviour.PROMPT, tmp_path)
    wanted = guest()
    await host.ensure_running(wanted)
    host.crash(wanted.desktop, "It fell over.")
    await host.close()
    assert [(seen.state, seen.reason) async for seen in host.changes()] == [
        (GuestState.RUNNING, None),
        (GuestState.STOPPED, "It fell over."),
    ]


def test_an_unknown_behaviour_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="never_boots"):
        SimulatedHypervisor.named("nonsense", tmp_path)


async def test_it_starts_thousands_a_second(tmp_path: Path) -> None:
    host = SimulatedHypervisor(Behaviour.PROMPT, tmp_path)
    began = time.monotonic()
    for _ in range(2000):
        await host.ensure_running(guest())
    assert time.monotonic() - began < 1


async def test_simulated_screen_is_same_by_rfb_and_picture(tmp_path: Path) -> None:
    """Its screen is the same over rfb and as a picture and answers keys."""
    host = SimulatedHypervisor(Behaviour.PROMPT, tmp_path)
    wanted = guest()
    await host.ensure_running(wanted)
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(sock=await host.console(wanted.desktop))
        assert await reader.readexactly(12) == b"RFB 003.008\n"
        writer.write(b"RFB 003.008\n")
        assert await reader.readexactly(2) == b"\1\1"
        writer.write(b"\1\1")
        assert await reader.readexactly(4) == bytes(4)
        width, height = struct.unpack(">HH16x", await reader.readexactly(20))
        assert (width, height) == (WIDTH, HEIGHT)
        (length,) = struct.unpack(">I", await reader.readexactly(4))
        assert (await reader.readexactly(length)).decode() == wanted.desktop

        async def shown() -> tuple[int, ...]:
            await reader.readexactly(16)
            pixels = await reader.readexactly(4 * WIDTH * HEIGHT)
            return tuple(pixels[2::-1])

        async def pictured() -> tuple[int, ...]:
            picture = Image.open(io.BytesIO(await host.screenshot(wanted.desktop)))
            colour = picture.getpixel((0, 0))
            assert isinstance(colour, tuple)
            return tuple(int(part) for part in colour)

        writer.write(struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT))
        before = await shown()
        assert before == await pictured()
        writer.write(struct.pack(">BBHHHH", 3, 1, 0, 0, WIDTH, HEIGHT) + struct.pack(">BBxxI", 4, 1, ord("a")))
        after = await shown()
        assert after == await pictured() != before
        writer.close()
        await writer.wait_closed()
    await host.close()
