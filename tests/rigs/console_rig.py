"""A whole console path for tests: a VNC-like guest over TCP, a real console server, a real gateway process."""

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
import ssl
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import websockets

from pupitre.config import Settings
from pupitre.domain.ticket import Purpose, Ticket, sign
from pupitre.errors import NotFound
from pupitre.host.console.tickets import ConsoleServer
from pupitre.pki import issuing
from pupitre.up.processes.ports import free_port

GREETING = b"RFB 003.008\n"
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 300
ORIGIN = "http://desk.test:8080"
SESSION = "a-session-cookie"
BEARER = hashlib.sha256(SESSION.encode()).hexdigest()
BOOT = 7


@dataclass
class Guests:
    """The agent's part: a desktop called ``flood…`` sends without end, others echo. It notes what is asked."""

    opened: list[str] = field(default_factory=list)
    streams: list[asyncio.StreamWriter] = field(default_factory=list)
    _news: asyncio.Condition = field(default_factory=asyncio.Condition)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def _check(self, desktop: str, boot: int) -> None:
        if boot != BOOT:
            raise NotFound("The desktop has been started again. Open its console again.")

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        self._check(desktop, boot)
        self.opened.append(desktop)
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=theirs)
        self.streams.append(writer)
        task = asyncio.create_task(self._flood(writer) if desktop.startswith("flood") else self._echo(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        async with self._news:
            self._news.notify_all()
        return ours

    async def until_opened(self, count: int) -> None:
        """Wait until ``count`` consoles have been opened."""
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(lambda: len(self.opened) >= count)

    async def until_left(self) -> None:
        """Wait until every console's socket has been closed from the other side."""
        async with asyncio.timeout(10):
            while self._tasks:
                await asyncio.wait(self._tasks)

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        self._check(desktop, boot)
        return PICTURE

    async def _echo(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(GREETING)
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def _flood(self, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for stream in self.streams:
            stream.transport.abort()
        for stream in self.streams:
            with contextlib.suppress(OSError):
                await stream.wait_closed()


@dataclass
class Rig:
    settings: Settings
    guests: Guests
    server: ConsoleServer
    gateway: subprocess.Popen[bytes]
    port: int
    log: Path

    def ticket(self, **changes: object) -> Ticket:
        ticket = Ticket(
            id=uuid.uuid4().hex, purpose=Purpose.CONSOLE, user="u1", desktop="d1", boot=BOOT, host="h1",
            address="127.0.0.1", port=self.server.port, expires=time.time() + 30, bearer=BEARER, browser=True,
            until=time.time() + 3600,
        )  # fmt: skip
        return replace(ticket, **changes)  # type: ignore[arg-type]

    def sign(self, ticket: Ticket) -> str:
        return sign(ticket, issuing.load_ticket_signer(issuing.directory(self.settings, "portal")))

    def upgrade(self, text: str, desktop: str) -> bytes:
        """The request of a viewer that speaks for itself."""
        key = base64.b64encode(os.urandom(16)).decode()
        return (
            f"GET /gateway/v1/console/{desktop} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nOrigin: {ORIGIN}\r\n"
            f"Cookie: pupitre_session={SESSION}\r\nSec-WebSocket-Protocol: binary, {text}\r\n\r\n"
        ).encode()

    async def kill_gateway(self) -> None:
        """The gateway's process is killed, and another one comes up on the same port."""
        self.gateway.kill()
        await asyncio.to_thread(self.gateway.wait, 20)
        self.gateway = start_gateway(self.settings, self.log)
        await listening(self.port, self.gateway, self.log)

    async def restart_server(self) -> None:
        """The host's agent ends and comes back on the same port."""
        port = self.server.port
        await self.server.stop()
        self.server = new_server(self.settings, self.guests, port)
        await self.server.start()

    def connect(
        self,
        text: str,
        desktop: str = "d1",
        origin: str | None = ORIGIN,
        headers: Mapping[str, str] | None = None,
        url: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> websockets.connect:
        """A viewer as the browser of the ticket's owner would be, unless told otherwise."""
        if headers is None:
            headers = {"Cookie": f"theme=dark; pupitre_session={SESSION}"}
        return websockets.connect(
            f"{url or f'ws://127.0.0.1:{self.port}'}/gateway/v1/console/{desktop}",
            origin=None if origin is None else websockets.Origin(origin),
            subprotocols=[websockets.Subprotocol("binary"), websockets.Subprotocol(text)],
            additional_headers=headers, compression=None, proxy=None, ssl=tls,
        )  # fmt: skip


def new_server(settings: Settings, guests: Guests, port: int = 0) -> ConsoleServer:
    return ConsoleServer("h1", issuing.directory(settings, "host-h1"), guests, settings.home / "state", port=port)


async def listening(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``process`` accepts connections."""
    async with asyncio.timeout(20):
        while True:
            if process.poll() is not None:
                raise AssertionError(log.read_text())
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except ConnectionRefusedError:
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return


def start_gateway(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "PUPITRE_HOME": str(settings.home),
        "PUPITRE_GATEWAY_PORT": str(settings.gateway_port),
        "PUPITRE_PUBLIC_ORIGIN": settings.origin,
        "PUPITRE_LOG_LEVEL": "debug",
    }
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "pupitre", "gateway"], env=environment, stdout=output, stderr=output
        )


@asynccontextmanager
async def console_rig(home: Path, origin: str = ORIGIN, guests: Guests | None = None) -> AsyncIterator[Rig]:
    settings = Settings(home=home, gateway_port=free_port(), public_origin=origin, host_name="h1")
    for role in ("gateway", "host-h1", "endpoint"):
        issuing.ensure_certificate(settings, role)
    guests = guests or Guests()
    server = new_server(settings, guests)
    await server.start()
    log = home / "gateway.log"
    rig = Rig(settings, guests, server, start_gateway(settings, log), settings.gateway_port, log)
    try:
        await listening(settings.gateway_port, rig.gateway, log)
        yield rig
    finally:
        rig.gateway.terminate()
        await asyncio.to_thread(rig.gateway.wait, 20)
        await rig.server.stop()
        await guests.close()
