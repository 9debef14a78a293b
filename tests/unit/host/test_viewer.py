"""Native viewers: a client of our own, TLS as a stranger would make it, the host's real doors, and QEMU behind them."""

import asyncio
import contextlib
import dataclasses
import socket
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from pupitre.config import Settings
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.errors import NotFound
from pupitre.host.console.tickets import ConsoleServer
from pupitre.net.limits import HANDSHAKES
from pupitre.pki import issuing
from tests.rigs.firmware import firmware_guest
from tests.rigs.rfb_viewer import Refused, Viewer

pytestmark = pytest.mark.anyio

ADDRESS = "127.0.0.1"
DESKTOP, OTHER, FLOOD = (str(uuid.UUID(int=number)) for number in (1, 2, 3))
BOOT = 7
CUT = 2.0
"""Seconds within which a screen must be closed."""


@dataclass
class Screens:
    """The agent's part: QEMU's own socket for whoever asks; it notes who did."""

    path: Path
    opened: list[str] = field(default_factory=list)
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    flood: asyncio.Task[None] | None = None

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        if boot != BOOT:
            raise NotFound("This desktop does not run here.")
        self.opened.append(desktop)
        if desktop == FLOOD:
            ours, theirs = socket.socketpair()
            self.flood = asyncio.create_task(self._flood(theirs))
            return ours
        console = socket.socket(socket.AF_UNIX)
        console.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(console, str(self.path))
        except BaseException:
            console.close()
            raise
        return console

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        raise NotFound("There are no pictures here.")

    async def _flood(self, connection: socket.socket) -> None:
        """A guest that sends without end; ``stuck`` says that nobody takes it any more."""
        _, writer = await asyncio.open_connection(sock=connection)
        writer.write(b"RFB 003.008\n" + bytes((1, 1)) + bytes(4))
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                try:
                    async with asyncio.timeout(0.5):
                        await writer.drain()
                except TimeoutError:
                    self.stuck.set()
                    await writer.drain()
        writer.close()


@pytest.fixture(scope="module")
def guest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """QEMU with its firmware alone; it has to live through everything that is done to its screen."""
    path = tmp_path_factory.mktemp("guest") / "vnc"
    with firmware_guest(path):
        yield path


@dataclass
class Rig:
    settings: Settings
    screens: Screens
    server: ConsoleServer
    key: Ed25519PrivateKey

    def ticket(self, **changes: Any) -> Ticket:
        ticket = Ticket(
            id=uuid.uuid4().hex, purpose=Purpose.VIEWER, user="u1", desktop=DESKTOP, boot=BOOT, host="h1",
            address=ADDRESS, port=1, expires=time.time() + 60, bearer="b1", browser=True, until=time.time() + 3600,
        )  # fmt: skip
        return dataclasses.replace(ticket, **changes)

    def password(self, **changes: Any) -> str:
        return sign(self.ticket(**changes), self.key)

    def dial(self) -> Viewer:
        assert self.server.viewer_port
        return Viewer(ADDRESS, self.server.viewer_port, self.settings.pki_dir / "ca/ca.crt")

    def watch(self, password: str, name: str = DESKTOP) -> Viewer:
        """Someone who sees the screen. Raises `Refused`."""
        viewer = self.dial()
        try:
            viewer.authenticate(name, password)
            assert viewer.screen()[0] > 0
        except BaseException:
            viewer.socket.close()
            raise
        return viewer

    def refusal(self, password: str, name: str = DESKTOP) -> str:
        """The host's reason; nothing comes after it."""
        with self.dial() as viewer:
            with pytest.raises(Refused) as refused:
                viewer.authenticate(name, password)
            assert viewer.socket.recv(100) == b""
        return str(refused.value)

    async def alive(self) -> None:
        """Someone with a good ticket sees the screen."""
        (await asyncio.to_thread(self.watch, self.password())).socket.close()


@pytest.fixture
async def rig(tmp_path: Path, guest: Path) -> AsyncIterator[Rig]:
    settings = Settings(home=tmp_path, host_name="h1")
    issuing.ensure_certificate(settings, "host-h1")
    screens = Screens(guest)
    made = Rig(settings, screens, new_server(settings, screens), issuing.ensure_ticket_key(settings))
    await made.server.start()
    yield made
    await made.server.stop()


def new_server(settings: Settings, screens: Screens) -> ConsoleServer:
    folder = issuing.directory(settings, "host-h1")
    return ConsoleServer("h1", folder, screens, settings.home / "state", viewer_port=0)


async def seconds_until_cut(viewer: Viewer, end: Callable[[], None]) -> float:
    """How long after ``end`` the viewer's connection is closed."""
    reading = asyncio.create_task(asyncio.to_thread(viewer.until_cut))
    began = time.monotonic()
    end()
    await reading
    return time.monotonic() - began


async def test_a_viewer_with_a_ticket_sees_the_screen(rig: Rig) -> None:
    def look() -> tuple[str, bytes]:
        with rig.dial() as viewer:
            viewer.authenticate(DESKTOP, rig.password())
            width, height, name = viewer.screen()
            return name, viewer.first_pixels(width, height)

    name, pixels = await asyncio.to_thread(look)
    assert "QEMU" in name
    assert len(pixels) >= 4
    assert rig.screens.opened == [DESKTOP]


async def test_bad_ticket_is_refused_with_reason(rig: Rig) -> None:
    """What is no good ticket is refused with the reason and opens nothing."""
    used = rig.password()
    (await asyncio.to_thread(rig.watch, used)).socket.close()
    rig.screens.opened.clear()
    for password, words in {
        "": "not",
        "secret": "not a ticket",
        used: "has been used",
        rig.password(expires=time.time() - 31): "expired",
        rig.password(until=time.time() - 1): "sign-in",
        rig.password(expires=time.time() + 3600): "longer than any",
        sign(rig.ticket(), Ed25519PrivateKey.generate()): "not one that this portal signed",
        rig.password()[:-4] + "AAAA": "not one that this portal signed",
        rig.password(desktop=OTHER): "another desktop",
        rig.password(host="h2"): "another host",
        rig.password(purpose=Purpose.CONSOLE): "something else",
        rig.password(purpose=Purpose.SCREENSHOT): "something else",
    }.items():
        assert words in await asyncio.to_thread(rig.refusal, password), words
    assert "another desktop" in await asyncio.to_thread(rig.refusal, rig.password(), OTHER)
    assert rig.screens.opened == []
    assert "does not run here" in await asyncio.to_thread(rig.refusal, rig.password(boot=BOOT + 1))
    assert rig.screens.opened == []
    await rig.alive()


async def test_ticket_opens_one_screen_even_after_restart(rig: Rig) -> None:
    """A ticket opens one screen even at the same moment and after a restart."""
    password = rig.password()

    def attempt() -> bool:
        try:
            rig.watch(password).socket.close()
        except Refused:
            return False
        return True

    assert sum(await asyncio.gather(*(asyncio.to_thread(attempt) for _ in range(6)))) == 1
    await rig.server.stop()
    rig.server = new_server(rig.settings, rig.screens)
    await rig.server.start()
    assert "has been used" in await asyncio.to_thread(rig.refusal, password)
    assert len(rig.screens.opened) == 1


async def test_one_desktop_has_so_many_viewers_and_no_more(rig: Rig) -> None:
    held = [await asyncio.to_thread(rig.watch, rig.password()) for _ in range(4)]
    assert "4 consoles open" in await asyncio.to_thread(rig.refusal, rig.password())
    other = await asyncio.to_thread(rig.watch, rig.password(desktop=OTHER), OTHER)
    for viewer in [*held, other]:
        viewer.socket.close()


async def test_certificate_names_address_and_stranger_fails(rig: Rig, tmp_path: Path) -> None:
    """The certificate names the address and a stranger is not believed."""
    stranger = Settings(home=tmp_path / "stranger")
    authority = issuing.ensure_authority(stranger)
    assert rig.server.viewer_port

    def distrust() -> None:
        with Viewer(ADDRESS, rig.server.viewer_port or 0, authority) as viewer:
            viewer.until_tls()
            with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
                viewer.start_tls()

    await asyncio.to_thread(distrust)
    certificate = issuing.load_certificate(issuing.directory(rig.settings, "host-h1") / "host-h1.crt")
    elsewhere = Settings(home=rig.settings.home, host_name="h1", host_address="lab.example.org")
    issuing.ensure_certificate(elsewhere, "host-h1")
    renewed = issuing.load_certificate(issuing.directory(rig.settings, "host-h1") / "host-h1.crt")
    assert renewed.serial_number != certificate.serial_number
    await rig.alive()


async def test_bytes_said_before_tls_do_not_count_inside_it(rig: Rig) -> None:
    """Whoever stands between could otherwise put words into the viewer's mouth."""

    def smuggle() -> bytes:
        with rig.dial() as viewer:
            viewer.socket.sendall(b"RFB 003.008\n" + bytes((19,)) + b"\x00\x02" + b"\x00\x00\x01\x06" + b"\x00" * 64)
            with contextlib.suppress(ConnectionError):
                viewer.read(12 + 2 + 2 + 6 + 1)
                return viewer.socket.recv(1 << 16)
            return b""

    answer = await asyncio.to_thread(smuggle)
    assert answer == b"" or answer[0] == 21  # at most a TLS alert
    assert rig.screens.opened == []


async def test_half_open_and_silent_callers_are_dropped(rig: Rig) -> None:
    """Half open and silent callers keep nobody out and are dropped."""

    def flood() -> list[Viewer]:
        callers = [rig.dial() for _ in range(2 * HANDSHAKES)]
        for number, caller in enumerate(callers):
            if number % 3 == 1:
                caller.socket.sendall(b"RFB 003.008\n")
            elif number % 3 == 2:
                with contextlib.suppress(OSError):
                    caller.socket.sendall(b"GET / HTTP/1.1\r\n\r\n" * 20)
        return callers

    callers = await asyncio.to_thread(flood)
    await rig.alive()
    # The last ones were not pushed out by others: their time runs out.
    async with asyncio.timeout(30):
        await asyncio.gather(*(asyncio.to_thread(caller.until_cut) for caller in callers[-4:]))
    for caller in callers:
        caller.socket.close()
    await rig.alive()


async def test_garbage_at_any_moment_opens_nothing_and_the_guest_lives(rig: Rig) -> None:
    @settings(max_examples=60, deadline=None, database=None)
    @given(stage=st.integers(0, 4), garbage=st.binary(min_size=1, max_size=3000))
    def babble(stage: int, garbage: bytes) -> None:
        said = [b"RFB 003.008\n", bytes((19,)), b"\x00\x02", b"\x00\x00\x01\x06"][:stage]
        with socket.create_connection((ADDRESS, rig.server.viewer_port or 0), timeout=20) as caller:
            heard = b""
            with contextlib.suppress(OSError):
                caller.sendall(b"".join(said) + garbage)
                caller.shutdown(socket.SHUT_WR)
                while part := caller.recv(1 << 16):
                    heard += part
        assert b"QEMU" not in heard
        assert len(heard) < 200

    await asyncio.to_thread(babble)
    assert rig.screens.opened == []
    await rig.alive()


async def test_garbage_inside_the_screen_goes_to_the_guest_which_lives(rig: Rig) -> None:
    def babble() -> None:
        with rig.watch(rig.password()) as viewer, contextlib.suppress(OSError):
            for number in range(50):
                viewer.socket.sendall(bytes((number * 37 + i) % 256 for i in range(4000)))

    await asyncio.to_thread(babble)
    await rig.alive()


async def test_revoked_sign_in_loses_screens_and_tickets(rig: Rig) -> None:
    """The end of a sign in closes its screens alone and its tickets are void."""
    with (
        await asyncio.to_thread(rig.watch, rig.password()) as mine,
        await asyncio.to_thread(rig.watch, rig.password(bearer="b2", desktop=OTHER), OTHER) as theirs,
    ):
        unused = rig.password()
        assert await seconds_until_cut(mine, lambda: rig.server.sessions.revoke(["b1"])) < CUT
        assert "sign-in" in await asyncio.to_thread(rig.refusal, unused)
        assert await asyncio.to_thread(theirs.first_pixels, 100, 100)
    await rig.server.stop()
    rig.server = new_server(rig.settings, rig.screens)
    await rig.server.start()
    assert "sign-in" in await asyncio.to_thread(rig.refusal, rig.password())
    (await asyncio.to_thread(rig.watch, rig.password(bearer="b2"))).socket.close()


async def test_a_screen_closes_when_its_sign_in_runs_out(rig: Rig) -> None:
    until = time.time() + 3
    with await asyncio.to_thread(rig.watch, rig.password(until=until)) as viewer:
        await asyncio.to_thread(viewer.until_cut)
        assert -0.1 < time.time() - until < CUT


async def test_end_of_desktop_closes_screens_of_slow_readers(rig: Rig) -> None:
    """The end of a desktop closes its screens even for who does not read."""
    with await asyncio.to_thread(rig.watch, rig.password()) as reading:
        with await asyncio.to_thread(rig.dial) as lazy:
            await asyncio.to_thread(lazy.authenticate, FLOOD, rig.password(desktop=FLOOD))
            lazy.socket.sendall(b"\x01")
            async with asyncio.timeout(30):
                await rig.screens.stuck.wait()
            assert rig.server.consoles == 2
            for desktop in (FLOOD, DESKTOP):
                await rig.server.disconnect(desktop)
            began = time.monotonic()
            while rig.server.consoles:  # the server tells nobody that it has none
                await asyncio.sleep(0.01)
                assert time.monotonic() - began < CUT
            assert rig.screens.flood
            await rig.screens.flood
        await asyncio.to_thread(reading.until_cut)
    await rig.alive()
