"""Consoles under attack (fault 22): what viewers send or leave unread costs little, and so does a gateway that dies."""

import asyncio
import contextlib
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import psutil
import pytest
from websockets.frames import Frame, Opcode

from pupitre.pki import issuing
from tests.rigs.attacker import MIB, dial, is_closed, push
from tests.rigs.console_rig import GREETING, Rig, console_rig

pytestmark = [pytest.mark.attack, pytest.mark.anyio]

PINGS = Frame(Opcode.PING, b"").serialize(mask=True) * 10_000
KEYS = Frame(Opcode.BINARY, b"k").serialize(mask=True) * 10_000


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with console_rig(tmp_path) as made:
        yield made


async def open_raw(rig: Rig, desktop: str) -> socket.socket:
    """A console whose viewer reads nothing, not even the answer to its request."""
    viewer = await asyncio.to_thread(dial, rig.port, send_buffer=65_536)
    viewer.sendall(rig.upgrade(rig.sign(rig.ticket(desktop=desktop)), desktop))
    await rig.guests.until_opened(len(rig.guests.opened) + 1)
    return viewer


async def growth(rig: Rig, attack: Callable[[], Awaitable[None]], times: int = 6) -> float:
    """MiB by which each attack makes the gateway grow; the first two make the room that all share."""
    gateway = psutil.Process(rig.gateway.pid)
    for _ in range(2):
        await attack()
    before = gateway.memory_info().rss
    for _ in range(times):
        await attack()
    return (gateway.memory_info().rss - before) / times / MIB


@pytest.mark.parametrize(
    ("desktop", "frames", "most", "limit"),
    [
        ("quiet", PINGS, 4 * MIB, 1.0),
        ("quiet", KEYS, MIB // 4, 1.0),
        # Both directions full: 0.95 measured, of which the TLS link to the host has 0.85; the rest is the allocator's.
        ("flood", PINGS, 16 * MIB, 1.2),
    ],
    ids=["pings", "keys", "pings-flood"],
)
async def test_unread_console_costs_little(rig: Rig, desktop: str, frames: bytes, most: int, limit: float) -> None:
    """A viewer sends without end and reads nothing, while its guest is quiet, or fills its screen."""
    numbers = itertools.count()
    with contextlib.ExitStack() as viewers:

        async def attack() -> None:
            viewer = viewers.enter_context(await open_raw(rig, f"{desktop}-{next(numbers)}"))
            await asyncio.to_thread(push, viewer, frames, most, 0.6)

        assert await growth(rig, attack) < limit


async def test_ping_flood_is_not_read(rig: Rig) -> None:
    """Its sender is made to wait, others are not, and the last ping has its answer."""
    with await open_raw(rig, "quiet") as viewer:
        sent = await asyncio.to_thread(push, viewer, PINGS, 64 * MIB, 0.5)
        assert sent < 32 * MIB
        async with asyncio.timeout(5), rig.connect(rig.sign(rig.ticket())) as other:
            assert await other.recv() == GREETING


async def test_last_of_many_pings_answered(rig: Rig) -> None:
    async with rig.connect(rig.sign(rig.ticket())) as viewer:
        assert await viewer.recv() == GREETING
        pongs = [await viewer.ping(str(number)) for number in range(200)]
        async with asyncio.timeout(10):
            await pongs[-1]
        await viewer.send(b"still here")
        assert await viewer.recv() == b"still here"


@pytest.mark.parametrize("last", [Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True), b""], ids=["close", "half"])
async def test_unread_console_ends_when_viewer_leaves(rig: Rig, last: bytes) -> None:
    """A close frame, or half a connection: it ends in seconds, although nobody reads what waits."""
    with await open_raw(rig, "flood") as viewer:
        await asyncio.to_thread(push, viewer, last or b"\x82\x80\0\0\0\0", 6)
        if not last:
            viewer.shutdown(socket.SHUT_WR)
        await rig.guests.until_left()
    assert rig.server.consoles == 0


async def test_killed_gateway_costs_only_its_consoles(rig: Rig) -> None:
    """Fault 22: what it had open ends, seats are free again, and a new ticket opens a console at once."""
    first = await rig.connect(rig.sign(rig.ticket()))
    assert await first.recv() == GREETING
    await rig.kill_gateway()
    await first.wait_closed()
    await rig.guests.until_left()
    for _ in range(2):
        async with rig.connect(rig.sign(rig.ticket())) as viewer:
            assert await viewer.recv() == GREETING


async def test_endless_greeting_ends_at_console_port(rig: Rig) -> None:
    """Even a gateway's certificate buys no more than one line of 4 KiB."""
    context = issuing.client_context(issuing.directory(rig.settings, "gateway"), "gateway")

    def attack() -> int:
        raw = dial(rig.server.port)
        with context.wrap_socket(raw, server_hostname=issuing.host_dns_name("h1")) as link:
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 64 * MIB:
                    link.sendall(b"x" * 16_384)
                    sent += 16_384
            return sent

    assert await asyncio.to_thread(attack) < 16 * MIB
    assert rig.guests.opened == []


async def test_silent_handshakes_end_at_console_port(rig: Rig) -> None:
    """Nothing, and half a TLS handshake: both end by themselves."""
    for said in (b"", b"\x16\x03\x01\x02\x00\x01"):
        with await asyncio.to_thread(dial, rig.server.port) as caller:
            caller.sendall(said)
            assert await asyncio.to_thread(is_closed, caller)
