"""The host's console port: the gateway's way to the screens of this host's desktops.

Only a peer whose certificate says ``gateway`` is listened to. It shows the
browser's ticket; the host verifies it again, uses it up (see
`pupitre.host.console.sessions`), and joins the connection to the guest's VNC socket.
Where the host allows it, the port for native viewers opens and closes with this one.
"""

import asyncio
import socket
import ssl
from pathlib import Path

import structlog

from pupitre.domain import console_link
from pupitre.domain.ticket import Purpose, Ticket
from pupitre.errors import MessageError, PupitreError
from pupitre.host.console.pixel_format import bounded
from pupitre.host.console.sessions import ConsoleSession, ConsoleSessions, Screens
from pupitre.host.console.viewer import ViewerServer
from pupitre.net import limits, listener
from pupitre.net.listener import Listener, Slot
from pupitre.net.splice import join
from pupitre.pki import issuing
from pupitre.runtime.timeouts import timeout
from pupitre.timings import HANDSHAKE_LIMIT

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ConsoleServer:
    """Listens on ``address``:``port`` between `start` and `stop`. ``sessions``: who watches a screen here."""

    def __init__(
        self,
        host: str,
        certificates: Path,
        screens: Screens,
        state: Path,
        address: str = "127.0.0.1",
        port: int = 0,
        viewer_port: int | None = None,
    ) -> None:
        """``host`` is this host's name, ``state`` a folder for the ids of burned tickets; port 0 takes a free one."""
        self.sessions = ConsoleSessions(host, issuing.load_ticket_verifier(certificates), screens, state)
        self._role, self._certificates = issuing.host_role(host), certificates
        self._context: ssl.SSLContext = issuing.server_context(certificates, self._role)
        self._address = (address, port)
        self._listener: Listener | None = None
        self._viewers = (
            None if viewer_port is None else ViewerServer(host, certificates, self.sessions, address, viewer_port)
        )

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listener is not None
        return self._listener.port

    @property
    def viewer_port(self) -> int | None:
        """Port for native viewers; None where they are not let in."""
        return self._viewers.port if self._viewers else None

    @property
    def consoles(self) -> int:
        """Consoles open now."""
        return len(self.sessions)

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address or a port is not to be had."""
        listening = listener.listen(*self._address)
        self._listener = Listener("console port", listening, limits.of_host(), self._serve)
        self._listener.start()
        if self._viewers:
            await self._viewers.start()

    def reload(self) -> None:
        """Greet with the certificate as it is now; open consoles stay. Raises `SetupError`, and changes nothing."""
        self._context = issuing.server_context(self._certificates, self._role)
        if self._viewers:
            self._viewers.reload()

    async def stop(self) -> None:
        """Close the ports and every console; the guests go on."""
        if self._listener:
            self._listener.close()
            await self._listener.wait_closed()
        if self._viewers:
            await self._viewers.stop()
        await self.sessions.close()

    async def disconnect(self, desktop: str) -> None:
        """Close every console of ``desktop``."""
        self.sessions.close_desktop(desktop)

    async def _serve(self, connection: socket.socket, slot: Slot) -> None:
        end = ConsoleSession(self.sessions, slot)  # what uvloop's connect_accepted_socket returns is not the protocol
        try:
            async with timeout(HANDSHAKE_LIMIT):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: end, connection, ssl=self._context, ssl_shutdown_timeout=HANDSHAKE_LIMIT
                )
        except OSError as error:  # ssl.SSLError and TimeoutError are two
            log.info("console_tls_handshake_failed", reason=str(error) or "time is up")
            return
        try:
            await self._greet(end, slot)
        except (OSError, MessageError) as error:
            log.info("console_handshake_failed", reason=str(error) or "time is up")
            end.transport.abort()
        except PupitreError as error:
            end.send(console_link.encode(console_link.Reply(ok=False, error=error.code, reason=error.reason)))
            end.finish()
        except asyncio.CancelledError:
            end.transport.abort()
            raise

    async def _greet(self, end: ConsoleSession, slot: Slot) -> None:
        role = issuing.peer_role(end.transport.get_extra_info("ssl_object"))
        if role != "gateway":
            raise MessageError(f"Role {role or 'unknown'} has no business on the console port.")
        async with timeout(HANDSHAKE_LIMIT):
            hello = console_link.decode_hello(await end.read_line(console_link.MAX_LINE))
        ticket = self.sessions.admit(hello.ticket, Purpose.CONSOLE, Purpose.SCREENSHOT)
        slot.settle()
        if ticket.purpose is Purpose.SCREENSHOT:
            await self._send_picture(end, ticket)
        else:
            await self._open_console(end, ticket)

    async def _send_picture(self, end: ConsoleSession, ticket: Ticket) -> None:
        picture = await self.sessions.screens.screenshot(ticket.desktop, ticket.boot)
        if len(picture) > console_link.MAX_PICTURE:
            picture = await asyncio.to_thread(bounded, picture)
        end.send(
            console_link.encode(console_link.Reply(ok=True)) + console_link.PICTURE_SIZE.pack(len(picture)) + picture
        )
        end.finish()

    async def _open_console(self, end: ConsoleSession, ticket: Ticket) -> None:
        screen = await self.sessions.open(end, ticket)
        end.send(console_link.encode(console_link.Reply(ok=True)))
        join(end, screen)
        log.debug("console_opened", desktop=ticket.desktop, user=ticket.user)
