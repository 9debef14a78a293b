"""Console sessions: all viewers of this host's screens, by the gateway or by a native viewer.

A ticket opens one screen, once, for the desktop and the boot generation it names, and
only while the sign-in that asked for it lasts. When that ends, or the desktop does,
whoever watches is shown out within `CLOSE_GRACE` seconds, however slowly they read.
"""

import asyncio
import hmac
import socket
import time
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from pupitre.domain import ticket as tickets
from pupitre.domain.ticket import Purpose, Ticket, TicketRefused
from pupitre.errors import LimitReached
from pupitre.host.console.used_tickets import UsedTickets
from pupitre.net.listener import Slot
from pupitre.net.splice import StreamEnd
from pupitre.timings import CLOSE_GRACE, TICKET_LIFE

CONSOLES_PER_DESKTOP = 4

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Screens(Protocol):
    """Access to screens that the agent gives.

    Both raise a `PupitreError` (`NotFound`, say) unless the desktop runs on this host
    now under boot generation ``boot``.
    """

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        """A socket connected to the desktop's VNC server; the caller closes it."""
        ...

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        """The desktop's screen as PNG."""
        ...


class ConsoleSession(StreamEnd):
    """A viewer's side of one screen; counts against its desktop from `ConsoleSessions.open` until it is lost."""

    def __init__(self, sessions: "ConsoleSessions", slot: Slot) -> None:
        super().__init__()
        self.slot = slot
        self.ticket: Ticket | None = None
        self.expiry_timer: asyncio.TimerHandle | None = None
        self.until = 0.0
        """Unix second at which the sign-in ends by which this one watches, as far as a ticket has said."""
        self._sessions = sessions

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._sessions.leave(self)


class ConsoleSessions:
    """``host`` is this host's name, ``state`` a folder for what must outlive the process."""

    def __init__(self, host: str, key: Ed25519PublicKey, screens: Screens, state: Path) -> None:
        self.screens = screens
        self._host = host
        self._key = key
        self._used = UsedTickets(state / "burned-tickets")
        self._open: set[ConsoleSession] = set()
        self._of_desktop: Counter[str] = Counter()

    def __len__(self) -> int:
        """Screens watched now."""
        return len(self._open)

    def admit(self, text: str, *purposes: Purpose, desktop: str | None = None) -> Ticket:
        """The good ticket in ``text``, which is then used up. Raises `TicketRefused` and `Unavailable`."""
        ticket = tickets.verify(text, self._key, now=time.time())
        if ticket.host != self._host:
            raise TicketRefused("The ticket is for a desktop on another host.")
        if ticket.purpose not in purposes:
            raise TicketRefused("The ticket is for something else.")
        if desktop is not None and not hmac.compare_digest(desktop.encode(), ticket.desktop.encode()):
            raise TicketRefused("The ticket is for another desktop.")
        if ticket.until <= time.time() or self._used.has(_revocation_id(ticket.bearer)):
            raise TicketRefused("The sign-in that asked for this ticket has ended. Sign in again.")
        if ticket.purpose is not Purpose.SCREENSHOT:
            self._used.consume(ticket.id, ticket.expires + tickets.LEEWAY)
        self._extend(ticket)
        return ticket

    async def open(self, session: ConsoleSession, ticket: Ticket) -> StreamEnd:
        """The guest's side of the screen, for ``session`` to be joined with; the seat is taken.

        Raises `LimitReached`, and what `Screens.open_console` raises.
        """
        if self._of_desktop[ticket.desktop] >= CONSOLES_PER_DESKTOP:
            raise LimitReached(f"This desktop has {CONSOLES_PER_DESKTOP} consoles open. Close one of them.")
        if not session.lost:
            session.ticket = ticket
            self._of_desktop[ticket.desktop] += 1
            self._open.add(session)
            _close_at(session, ticket.until)
        guest = await self.screens.open_console(ticket.desktop, ticket.boot)
        guest.setblocking(False)
        try:
            _, screen = await asyncio.get_running_loop().create_connection(StreamEnd, sock=guest)
        except BaseException:
            guest.close()
            raise
        return screen

    def _extend(self, ticket: Ticket) -> None:
        """Extend the sessions of the same sign-in to the time that its newest ticket says."""
        for session in self._open:
            if session.ticket and session.ticket.bearer == ticket.bearer and session.until < ticket.until:
                _close_at(session, ticket.until)

    def leave(self, session: ConsoleSession) -> None:
        """``session`` is gone."""
        if session.expiry_timer is not None:
            session.expiry_timer.cancel()
        if session in self._open and session.ticket is not None:
            self._open.discard(session)
            self._of_desktop[session.ticket.desktop] -= 1
            if not self._of_desktop[session.ticket.desktop]:
                del self._of_desktop[session.ticket.desktop]

    def close_desktop(self, desktop: str) -> None:
        """Show out who watches ``desktop``."""
        self._disconnect(session for session in self._open if session.ticket and session.ticket.desktop == desktop)

    def revoke(self, bearers: Collection[str]) -> None:
        """Show out who came by these sign-ins; their tickets are good no more.

        May be repeated. Raises `Unavailable` when that cannot be noted.
        """
        ended = frozenset(bearers)
        shown = self._disconnect(v for v in self._open if v.ticket and v.ticket.bearer in ended)
        if shown:
            log.info("consoles_closed_by_revocation", consoles=shown)
        for bearer in ended:
            if not self._used.has(_revocation_id(bearer)):
                self._used.consume(_revocation_id(bearer), time.time() + TICKET_LIFE)

    async def close(self) -> None:
        """Show everyone out; the guests go on."""
        self._used.close()
        ends = [end for session in self._open for end in (session, session.peer) if end is not None]
        for end in ends:
            end.finish()
        await asyncio.gather(*(end.gone.wait() for end in ends))  # within LINGER, see `StreamEnd.finish`

    def _disconnect(self, sessions: Iterable[ConsoleSession]) -> int:
        disconnected = list(sessions)
        for session in disconnected:
            _disconnect(session)
        return len(disconnected)


def _close_at(session: ConsoleSession, until: float) -> None:
    if session.expiry_timer is not None:
        session.expiry_timer.cancel()
    session.until = until
    session.expiry_timer = asyncio.get_running_loop().call_later(until - time.time(), _disconnect, session)


def _disconnect(session: ConsoleSession) -> None:
    if session.peer is not None:
        session.peer.finish()  # not a byte more, in either direction
    session.finish()
    if not session.lost:
        asyncio.get_running_loop().call_later(CLOSE_GRACE, session.transport.abort)


def _revocation_id(bearer: str) -> str:
    """Id under which a revoked sign-in is remembered among the used tickets."""
    return f"over-{bearer}"
