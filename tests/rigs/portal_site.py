"""A whole web process for tests: real databases, real portal and gateway, and a driver in the endpoint's place.

The driver does what the endpoint does to the databases, one step at a time, when the
test says so. The host behind the gateway is a real console server; its one guest is
QEMU with nothing but its firmware.
"""

import asyncio
import io
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx2
import uuid_utils
from PIL import Image as Picture
from PIL import ImageDraw

from pupitre import web
from pupitre.config import Settings
from pupitre.domain.command import BootDesktop, Command, CommandEvent, Fault
from pupitre.domain.desktop import Desktop, DesktopState
from pupitre.domain.host import Host, HostFacts, HostState
from pupitre.domain.image import CopyState, Image
from pupitre.domain.people.access import Role, User
from pupitre.domain.status import ClusterLink, HostImage, Position, Rows
from pupitre.errors import NotFound
from pupitre.host.console.tickets import ConsoleServer
from pupitre.net.ops import Ops
from pupitre.pki import issuing
from pupitre.portal.identity.passwords import hash_password
from pupitre.portal.identity.sessions import COOKIE, digest
from pupitre.store.accounts import Accounts, SessionKind
from pupitre.store.admin.migrate import upgrade
from pupitre.store.commands import ASKED, Commands
from pupitre.store.sql.engine import open_database
from pupitre.store.status import SeenKeys, Status
from pupitre.up.processes.ports import free_port

CLUSTER = "main"
PASSWORD = "open sesame 42"
_HASH = hash_password(PASSWORD)
PEOPLE = {"student": Role.STUDENT, "other": Role.STUDENT, "teacher": Role.TEACHER, "admin": Role.ADMIN}


def now() -> int:
    return int(time.time() * 1000)


def an_image(id: str, name: str, **changes: object) -> Image:
    whole = Image(
        id=id, name=name, description="", state=CopyState.READY, since=now(), memory_mib=256, vcpus=1,
    )  # fmt: skip
    return replace(whole, **changes)  # type: ignore[arg-type]


@dataclass
class Endpoint:
    """The endpoint's part, by hand."""

    commands: Commands
    status: Status

    async def link(self, connected: bool = True, reason: str | None = None, *, ago_ms: int = 0) -> None:
        await self.status.set_link(ClusterLink(CLUSTER, connected, now() - ago_ms, reason))

    async def images(self, *images: Image, host: str = "host-1") -> None:
        await self.status.apply(CLUSTER, Rows(copies=tuple(HostImage(host, image) for image in images)))

    async def host(self, name: str = "host-1", port: int = 1, **changes: object) -> None:
        facts = HostFacts(32000, 8, 200_000, "QEMU 7.2", "kvm", "0.1.0")
        host = Host(name, HostState.READY, "127.0.0.1", port, False, now(), facts=facts)
        await self.status.apply(CLUSTER, Rows(hosts=(replace(host, **changes),)))  # type: ignore[arg-type]

    async def host_gone(self, name: str = "host-1") -> None:
        """A full set of pages, in which that host, its copies and its desktops are no more."""
        others = {host.name for host in await self.status.hosts()} - {name}
        await self.status.retain(CLUSTER, SeenKeys(hosts=others), Position())

    async def next_command(self) -> Command:
        """The oldest command not yet sent, as soon as there is one; it is then accepted."""
        async with self.commands.database.listen(ASKED) as listening, asyncio.timeout(30):
            while not (waiting := (await self.commands.to_send())[0]):
                await listening.wait()
        await self.commands.advance(waiting[0].id, CommandEvent.SEND, now=now())
        await self.commands.advance(waiting[0].id, CommandEvent.ACCEPT, now=now())
        return waiting[0]

    async def desktop(self, command: Command, state: DesktopState, **changes: object) -> Desktop:
        """The cluster says that the desktop of a boot command is in ``state``."""
        assert isinstance(command.order, BootDesktop)
        desktop = Desktop(
            id=command.order.desktop, owner=command.user, image=command.order.image, host="host-1", state=state,
            since=now(), created=command.created, boot=1,
        )  # fmt: skip
        desktop = replace(desktop, **changes)  # type: ignore[arg-type]
        await self.tell(desktop)
        return desktop

    async def tell(self, desktop: Desktop) -> None:
        """The cluster says how a desktop is now."""
        await self.status.apply(CLUSTER, Rows(desktops=(desktop,)))

    async def succeed(self, command: Command) -> None:
        await self.commands.advance(command.id, CommandEvent.SUCCEED, now=now())

    async def fail(self, command: Command, code: str, reason: str) -> None:
        await self.commands.advance(command.id, CommandEvent.FAIL, now=now(), fault=Fault(code, reason))

    async def run(self, command: Command) -> Desktop:
        """A boot, all the way."""
        desktop = await self.desktop(command, DesktopState.RUNNING)
        await self.succeed(command)
        return desktop


@dataclass
class Screens:
    """Pictures for every desktop; a console for those that `firmware_guest` gave one."""

    sockets: dict[str, Path] = field(default_factory=dict)
    pictures: int = 0

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        if desktop not in self.sockets:
            raise NotFound("This desktop does not run here.")
        console = socket.socket(socket.AF_UNIX)
        console.setblocking(False)
        await asyncio.get_running_loop().sock_connect(console, str(self.sockets[desktop]))
        return console

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        self.pictures += 1
        picture = Picture.new("RGB", (640, 400), "#2b4a6f")
        draw = ImageDraw.Draw(picture)
        draw.rectangle((60, 50, 420, 300), fill="#f3f4f6")
        draw.rectangle((60, 50, 420, 76), fill="#0f766e")
        draw.text((72, 96), "student@desktop:~$ python3 lesson.py", fill="#111827")
        draw.rectangle((0, 372, 640, 400), fill="#1f2937")
        written = io.BytesIO()
        picture.save(written, "PNG")
        return written.getvalue()


@dataclass
class Site:
    settings: Settings
    accounts: Accounts
    endpoint: Endpoint
    screens: Screens
    console_port: int
    users: dict[str, User]
    ops: Ops = field(default_factory=lambda: Ops("web"))
    _web: asyncio.Task[None] | None = None

    async def start_web(self) -> None:
        """The web process, ready to answer."""
        self.ops, started = Ops("web"), asyncio.Event()
        self.ops.ready = started.set  # type: ignore[method-assign]  # what a supervisor would be told
        self._web = asyncio.create_task(web.run_web(self.settings, self.ops))
        waiting = asyncio.create_task(started.wait())
        await asyncio.wait({self._web, waiting}, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if self._web.done():
            await self._web

    async def stop_web(self) -> None:
        if self._web:
            self._web.cancel()
            await asyncio.gather(self._web, return_exceptions=True)

    @property
    def url(self) -> str:
        return self.settings.origin

    def client(self, token: str | None = None) -> httpx2.AsyncClient:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        address = f"http://127.0.0.1:{self.settings.portal_port}"  # not through a proxy
        return httpx2.AsyncClient(base_url=address, headers=headers, timeout=20, trust_env=False)

    async def session(self, name: str, kind: SessionKind) -> str:
        """A session that is written down without signing in, which is slow by design."""
        token = secrets.token_urlsafe(32)
        await self.accounts.open_session(digest(token), self.users[name].id, kind, now=now(), expires=now() + 3_600_000)
        return token

    @asynccontextmanager
    async def as_user(self, name: str) -> AsyncIterator[httpx2.AsyncClient]:
        """A program with a bearer token."""
        async with self.client(await self.session(name, SessionKind.BEARER)) as client:
            yield client

    @asynccontextmanager
    async def in_browser(self, name: str) -> AsyncIterator[httpx2.AsyncClient]:
        """A client with a cookie, which says where its requests come from as browsers do."""
        async with self.client() as client:
            client.headers["Origin"] = self.url
            client.cookies.set(COOKIE, await self.session(name, SessionKind.COOKIE))
            yield client

    async def running(self, name: str = "student", image: str = "tiny") -> Desktop:
        """A desktop of that user, running."""
        async with self.as_user(name) as client:
            answer = await client.post("/api/v1/desktops", json={"image": image})
        assert answer.status_code == 202, answer.text
        return await self.endpoint.run(await self.endpoint.next_command())


@asynccontextmanager
async def open_site(home: Path, **options: object) -> AsyncIterator[Site]:
    settings = Settings.model_validate(
        {"home": home, "portal_port": free_port(), "min_command_interval": 0, "sign_in_per_minute": 100, **options}
    )
    for name in ("accounts", "commands", "status"):
        upgrade(name, settings.database_url(name))
    for role in ("gateway", "portal", "host-host-1"):
        issuing.ensure_certificate(settings, role)
    databases = {name: open_database(settings, "owner", name) for name in ("accounts", "commands", "status")}
    accounts = Accounts(databases["accounts"])
    users = {}
    for name, role in PEOPLE.items():
        users[name] = User(str(uuid_utils.uuid7()), name, role)
        await accounts.add_user(users[name], _HASH, now=now())
    endpoint = Endpoint(
        Commands(databases["commands"]),
        Status(databases["status"]),
    )
    screens = Screens()
    consoles = ConsoleServer("host-1", issuing.directory(settings, "host-host-1"), screens, home / "host")
    await consoles.start()
    await endpoint.link()
    await endpoint.host(port=consoles.port)
    await endpoint.images(an_image("tiny", "Tiny Linux", description="A shell in the blink of an eye."))
    site = Site(settings, accounts, endpoint, screens, consoles.port, users)
    try:
        await site.start_web()
        yield site
    finally:
        await site.stop_web()
        await consoles.stop()
        for database in databases.values():
            await database.close()


@asynccontextmanager
async def firmware_guest(site: Site, desktop: str) -> AsyncIterator[Path]:
    """QEMU with its firmware alone, as the guest of ``desktop``; its screen shows text."""
    path = site.settings.home / f"{secrets.token_hex(4)}.vnc"
    guest = await asyncio.create_subprocess_exec(
        *("qemu-system-x86_64", "-accel", "tcg", "-m", "32", "-nodefaults", "-vga", "std", "-display", "none"),
        *("-vnc", f"unix:{path}", "-qmp", "stdio"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert guest.stdin
        assert guest.stdout
        await guest.stdout.readline()
        guest.stdin.write(b'{"execute": "qmp_capabilities"}\n')
        await guest.stdout.readline()  # it answers once everything is set up, the VNC server too
        site.screens.sockets[desktop] = path
        yield path
    finally:
        site.screens.sockets.pop(desktop, None)
        guest.kill()
        await guest.communicate()
