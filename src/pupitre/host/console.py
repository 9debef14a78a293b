"""The host's console port: the gateway's way to the screens of this host's desktops.

Only a peer whose certificate says ``gateway`` is listened to. It shows the
browser's ticket; the host verifies it again, burns its id (see
`pupitre.host.burned`), and joins the connection to the guest's VNC socket.
Handshakes have a time limit and a limit in number, at which the oldest gives way,
so that whoever reaches the port without a certificate cannot keep the gateway out.
"""

import asyncio
import errno
import socket
import ssl
import time
from collections import Counter
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pupitre import pki
from pupitre.domain import console_link
from pupitre.domain import ticket as tickets
from pupitre.domain.ticket import Purpose, Ticket, TicketRefused
from pupitre.errors import LimitReached, MessageError, PupitreError
from pupitre.host.burned import BurnedTickets
from pupitre.splice import End, join

HANDSHAKE_LIMIT = 5.0
"""Seconds for TLS, and again for the greeting."""
MAX_HANDSHAKES = 128
"""Connections that have not shown a good ticket yet."""
CONSOLES_PER_DESKTOP = 4
BACKLOG = 512

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Screens(Protocol):
    """What the console server needs of the agent.

    Both raise a `PupitreError` (`NotFound`, say) unless the desktop runs on this host
    now under boot generation ``boot``.
    """

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        """A socket connected to the desktop's VNC server; the caller closes it."""
        ...

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        """The desktop's screen as PNG."""
        ...


class ConsoleServer:
    """Listens on ``address``:``port`` between `start` and `stop`."""

    def __init__(
        self, host: str, certificates: Path, screens: Screens, state: Path, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        """``host`` is this host's name, ``state`` a folder for the ids of burned tickets; port 0 takes a free one."""
        self._host = host
        self._screens = screens
        self._context: ssl.SSLContext = pki.server_context(certificates, pki.host_role(host))
        self._key: Ed25519PublicKey = pki.load_ticket_verifier(certificates)
        self._burned = BurnedTickets(state / "burned-tickets")
        self._address = (address, port)
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._handshakes: dict[asyncio.Task[None] | None, None] = {}  # in order of arrival
        self._consoles: set[_ViewerEnd] = set()
        self._open: Counter[str] = Counter()

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listener is not None
        return int(self._listener.getsockname()[1])

    @property
    def consoles(self) -> int:
        """Consoles open now."""
        return self._open.total()

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address or port is not to be had."""
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._listener = socket.create_server(self._address, family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self._accepting = asyncio.create_task(self._accept(self._listener), name="console port")

    async def stop(self) -> None:
        """Close the port and every console; the guests go on."""
        if self._accepting is None or self._listener is None:
            return
        tasks, self._accepting = [self._accepting, *self._tasks], None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._listener.close()
        self._burned.close()
        ends = [end for console in self._consoles for end in (console, console.peer) if end is not None]
        for end in ends:
            end.finish()
        await asyncio.gather(*(end.gone.wait() for end in ends))  # within LINGER, see `End.finish`

    async def disconnect(self, desktop: str) -> None:
        """Close every console of ``desktop``."""
        for console in [console for console in self._consoles if console.desktop == desktop]:
            console.finish()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOBUFS, errno.ENOMEM):
                    raise
                log.warning("a connection to the console port was not accepted", reason=error.strerror)
                self._drop_oldest()
                await asyncio.sleep(0.1)  # the kernel offers the same connection again at once
                continue
            if len(self._handshakes) >= MAX_HANDSHAKES:
                self._drop_oldest()
            task = asyncio.create_task(self._serve(connection))
            self._tasks.add(task)
            self._handshakes[task] = None
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._handshakes.pop(task, None)

    def _drop_oldest(self) -> None:
        oldest = next(iter(self._handshakes), None)
        if oldest is not None:
            del self._handshakes[oldest]
            oldest.cancel()

    async def _serve(self, connection: socket.socket) -> None:
        end = _ViewerEnd(self)  # what uvloop's connect_accepted_socket returns is not the protocol
        try:
            async with asyncio.timeout(HANDSHAKE_LIMIT):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: end, connection, ssl=self._context, ssl_shutdown_timeout=HANDSHAKE_LIMIT
                )
        except OSError as error:  # ssl.SSLError and TimeoutError are two
            connection.close()
            log.info("a connection to the console port made no TLS handshake", reason=str(error) or "time is up")
            return
        except asyncio.CancelledError:
            connection.close()
            raise
        try:
            await self._greet(end)
        except (OSError, MessageError) as error:
            log.info("a connection to the console port ended early", reason=str(error) or "time is up")
            end.transport.abort()
        except PupitreError as error:
            end.send(console_link.encode(console_link.Reply(ok=False, error=error.code, reason=error.reason)))
            end.finish()
        except asyncio.CancelledError:
            end.transport.abort()
            raise

    async def _greet(self, end: "_ViewerEnd") -> None:
        role = pki.peer_role(end.transport.get_extra_info("ssl_object"))
        if role != "gateway":
            raise MessageError(f"Role {role or 'unknown'} has no business on the console port.")
        async with asyncio.timeout(HANDSHAKE_LIMIT):
            hello = console_link.decode_hello(await end.read_line(console_link.MAX_LINE))
        ticket = self._check(hello.ticket)
        self._handshakes.pop(asyncio.current_task(), None)
        if ticket.purpose is Purpose.SCREENSHOT:
            await self._show(end, ticket)
        else:
            await self._open_console(end, ticket)

    def _check(self, text: str) -> Ticket:
        ticket = tickets.verify(text, self._key, now=time.time())
        if ticket.host != self._host:
            raise TicketRefused("The ticket is for a desktop on another host.")
        if ticket.purpose is Purpose.CONSOLE:
            self._burned.burn(ticket.id, ticket.expires)
        return ticket

    async def _show(self, end: "_ViewerEnd", ticket: Ticket) -> None:
        picture = await self._screens.screenshot(ticket.desktop, ticket.boot)
        end.send(
            console_link.encode(console_link.Reply(ok=True)) + console_link.PICTURE_SIZE.pack(len(picture)) + picture
        )
        end.finish()

    async def _open_console(self, end: "_ViewerEnd", ticket: Ticket) -> None:
        if self._open[ticket.desktop] >= CONSOLES_PER_DESKTOP:
            raise LimitReached(f"This desktop has {CONSOLES_PER_DESKTOP} consoles open. Close one of them.")
        end.claim(ticket.desktop)
        guest = await self._screens.open_console(ticket.desktop, ticket.boot)
        guest.setblocking(False)
        try:
            _, screen = await asyncio.get_running_loop().create_connection(End, sock=guest)
        except BaseException:
            guest.close()
            raise
        end.send(console_link.encode(console_link.Reply(ok=True)))
        join(end, screen)
        log.debug("console opened", desktop=ticket.desktop, user=ticket.user)


class _ViewerEnd(End):
    """The gateway's side of one console; counts against its desktop from `claim` until it is lost."""

    def __init__(self, server: ConsoleServer) -> None:
        super().__init__()
        self.desktop = ""
        self._server = server

    def claim(self, desktop: str) -> None:
        if not self.lost:
            self.desktop = desktop
            self._server._open[desktop] += 1
            self._server._consoles.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        if self in self._server._consoles:
            self._server._consoles.discard(self)
            self._server._open[self.desktop] -= 1
            if not self._server._open[self.desktop]:
                del self._server._open[self.desktop]
