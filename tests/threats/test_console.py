"""Threats 2 and 6: where a ticket leads while desktops come and go, and what a viewer can do to a guest."""

import asyncio
import contextlib
import random
import socket
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import websockets

from pupitre.domain import console_link
from pupitre.domain.command import CommandState
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.pki import issuing
from tests.rigs.console_rig import GREETING, Guests, Rig, console_rig
from tests.rigs.firmware import firmware_guest
from tests.rigs.local_cluster import HostRig, LocalCluster, local_cluster

pytestmark = pytest.mark.anyio

ROUNDS = 3


@asynccontextmanager
async def dialled(host: HostRig, text: str) -> AsyncIterator[tuple[bool, asyncio.StreamReader, asyncio.StreamWriter]]:
    """The host's answer to a gateway that shows this ticket."""
    context = issuing.client_context(issuing.directory(host.settings, "gateway"), "gateway")
    name = issuing.host_dns_name(host.name)
    reader, writer = await asyncio.open_connection("127.0.0.1", host.console.port, ssl=context, server_hostname=name)
    try:
        writer.write(console_link.encode(console_link.Hello(ticket=text)))
        yield console_link.decode_reply(await reader.readline()).ok, reader, writer
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def screen(host: HostRig, text: str) -> str | None:
    """Whose screen the ticket opens: a simulated guest's screen is called as its desktop. None when refused."""
    async with dialled(host, text) as (accepted, reader, writer):
        if not accepted:
            return None
        try:
            writer.write(GREETING + bytes((1, 1)))
            await reader.readexactly(len(GREETING) + 2 + 4 + 20)
            return (await reader.readexactly(int.from_bytes(await reader.readexactly(4)))).decode()
        except asyncio.IncompleteReadError:
            return None  # its desktop has ended meanwhile


def tickets(here: LocalCluster, host: HostRig, desktop: Desktop, count: int) -> list[str]:
    signer = issuing.load_ticket_signer(issuing.directory(here.settings, "portal"))
    return [
        sign(
            Ticket(
                id=uuid.uuid4().hex, purpose=Purpose.CONSOLE, user=desktop.owner, desktop=desktop.id,
                boot=desktop.boot, host=host.name, address="127.0.0.1", port=host.console.port,
                expires=time.time() + 30, bearer="b", browser=False, until=time.time() + 3600,
            ),
            signer,
        )
        for _ in range(count)
    ]  # fmt: skip


async def test_ticket_reaches_no_desktop_but_its_own(tmp_path: Path) -> None:
    """Desktops are deleted and made anew while their tickets are tried, one after the other."""
    async with local_cluster(tmp_path) as here:
        for role in ("portal", "gateway"):
            issuing.ensure_certificate(here.settings, role)
        host = await here.add_host()
        kept: list[str] = []
        opened = 0
        for _ in range(ROUNDS):
            desktop = await here.wait_desktop(await here.running(), DesktopState.RUNNING)
            assert await screen(host, tickets(here, host, desktop, 1)[0]) == desktop.id
            tried = tickets(here, host, desktop, 8)
            kept += tickets(here, host, desktop, 2)

            async def try_all(texts: list[str]) -> list[str | None]:
                return [await screen(host, text) for text in texts]

            trying = asyncio.create_task(try_all(tried))
            ended = await here.destroy(desktop.id)
            await here.running()
            await here.outcome(ended, CommandState.SUCCEEDED)
            seen = await trying
            assert set(seen) <= {desktop.id, None}, seen
            opened += seen.count(desktop.id)
        assert len(await host.hypervisor.guests()) == ROUNDS, "those that came after run"
        assert await try_all(kept) == [None] * len(kept)


class RealGuests(Guests):
    """Every desktop's screen is that of one QEMU."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        self.opened.append(desktop)
        console = socket.socket(socket.AF_UNIX)
        console.setblocking(False)
        await asyncio.get_running_loop().sock_connect(console, str(self.path))
        return console


async def greeted(rig: Rig, desktop: str) -> bytes:
    """The size, format and name of the screen, all the way through gateway and host."""
    async with rig.connect(rig.sign(rig.ticket(desktop=desktop)), desktop=desktop) as viewer:
        heard = b""
        for said, length in ((b"", 12), (GREETING, 14), (b"\x01", 18), (b"\x01", 42)):
            await viewer.send(said)
            while len(heard) < length:
                part = await viewer.recv()
                assert isinstance(part, bytes)
                heard += part
        return heard[18:]


async def test_hostile_viewers_harm_no_guest_and_no_other(tmp_path: Path) -> None:
    """Half-open handshakes of TCP, HTTP and RFB, and garbage at every step of RFB: QEMU's own parser meets it."""
    seed = random.Random(6)
    with firmware_guest(tmp_path / "vnc"):
        async with console_rig(tmp_path / "home", guests=RealGuests(tmp_path / "vnc")) as rig:
            usual = await greeted(rig, "d2")
            assert usual.endswith(b"QEMU")
            silent = [await rig.connect(rig.sign(rig.ticket())) for _ in range(3)]
            half_open = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(60)]
            for _, writer in half_open[::2]:
                writer.write(b"GET /gateway/v1/console/d1 HTTP/1.1\r\nHost: 127.0.0.1\r\n")
            steps = (b"", GREETING, GREETING + b"\x01", GREETING + b"\x01\x01")
            for number in range(40):
                desktop = f"g{number}"
                async with rig.connect(rig.sign(rig.ticket(desktop=desktop)), desktop=desktop) as viewer:
                    with contextlib.suppress(websockets.ConnectionClosed):
                        await viewer.send(steps[number % 4] + seed.randbytes(seed.randrange(1, 4000)))
                        assert await (await viewer.ping()) >= 0
            assert await greeted(rig, "d2") == usual
            for viewer in silent:
                assert await viewer.recv() == GREETING
                await viewer.close()
            for _, writer in half_open:
                writer.transport.abort()
