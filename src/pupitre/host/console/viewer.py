"""The host's viewer port, for native viewers: RFB with TLS, and a password that opens one screen once.

The name is the desktop's id and the password a ticket (`pupitre.domain.ticket`), so
that the port knows no secret of its own. No byte of a guest goes to a viewer, nor the
other way, before the ticket is used up. A caller has `VIEWER_LIMIT` seconds for all
of it. What a refused viewer shows its user is the reason, in our words.
"""

import asyncio
import socket
import ssl
from pathlib import Path

import structlog

from pupitre.domain.ticket import Purpose
from pupitre.errors import MessageError, PupitreError, Unavailable
from pupitre.host.console import rfb
from pupitre.host.console.sessions import ConsoleSession, ConsoleSessions
from pupitre.net import limits, listener
from pupitre.net.listener import Listener, Slot
from pupitre.net.splice import StreamEnd, join
from pupitre.pki import issuing
from pupitre.runtime.timeouts import timeout
from pupitre.timings import VIEWER_GUEST_LIMIT, VIEWER_LIMIT

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ViewerServer:
    """Listens on ``address``:``port`` between `start` and `stop`; ``sessions`` is shared with the console port."""

    def __init__(
        self, host: str, certificates: Path, sessions: ConsoleSessions, address: str = "127.0.0.1", port: int = 0
    ) -> None:
        """``host`` is this host's name; port 0 takes a free one."""
        self._sessions = sessions
        self._role, self._certificates = issuing.host_role(host), certificates
        self.reload()
        self._address = (address, port)
        self._listener: Listener | None = None

    @property
    def port(self) -> int:
        """The port it listens on."""
        assert self._listener is not None
        return self._listener.port

    async def start(self) -> None:
        """Listen. Raises `OSError` when the address or port is not to be had."""
        listening = listener.listen(*self._address)
        self._listener = Listener("viewer port", listening, limits.of_host(), self._serve)
        self._listener.start()

    def reload(self) -> None:
        """Greet with the certificate as it is now. Raises `SetupError`, and changes nothing."""
        self._context: ssl.SSLContext = issuing.viewer_context(self._certificates, self._role)

    async def stop(self) -> None:
        """Close the port. Who watches goes when the `ConsoleSessions` closes."""
        if self._listener:
            self._listener.close()
            await self._listener.wait_closed()

    async def _serve(self, connection: socket.socket, slot: Slot) -> None:
        end = ConsoleSession(self._sessions, slot)
        try:
            async with timeout(VIEWER_LIMIT):
                await rfb.agree_on_tls(rfb.Plain(connection))
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: end, connection, ssl=self._context, ssl_shutdown_timeout=VIEWER_LIMIT
                )
                await self._admit(end, slot)
        except (OSError, MessageError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            log.debug("viewer_handshake_failed", reason=str(error) or "time is up")
            _drop(end, connection)
        except PupitreError as error:
            log.info("viewer_refused", error=error.code, reason=error.reason)
            end.send(rfb.refusal(error.reason))
            end.finish()
        except asyncio.CancelledError:
            _drop(end, connection)
            raise

    async def _admit(self, end: ConsoleSession, slot: Slot) -> None:
        name, password = await rfb.read_credentials(end)
        ticket = self._sessions.admit(password, Purpose.VIEWER, desktop=name)
        slot.settle()
        screen = await self._sessions.open(end, ticket)
        await _shake_hands(screen)
        end.send(rfb.ACCEPTED)
        try:
            await end.read_exactly(rfb.CLIENT_INIT_SIZE)
        except BaseException:
            screen.transport.abort()
            raise
        screen.send(rfb.SHARED)
        join(end, screen)
        log.debug("viewer_opened", desktop=ticket.desktop, user=ticket.user)


async def _shake_hands(screen: StreamEnd) -> None:
    """Raises `Unavailable`."""
    try:
        async with timeout(VIEWER_GUEST_LIMIT):
            await rfb.enter_guest(screen)
    except (OSError, MessageError) as error:
        screen.transport.abort()
        raise Unavailable("The desktop's screen does not answer. Try again in a moment.") from error
    except asyncio.CancelledError:
        screen.transport.abort()
        raise


def _drop(end: ConsoleSession, connection: socket.socket) -> None:
    if hasattr(end, "transport"):
        end.transport.abort()
    else:
        connection.close()
