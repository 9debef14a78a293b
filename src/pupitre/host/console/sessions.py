"""Who watches this host's screens: everyone who came in by the gateway's door or by the viewers'.

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
from pupitre.host.console.used_tickets import BurnedTickets
from pupitre.net.listener import Slot
from pupitre.net.splice import End
from pupitre.timings import CLOSE_GRACE, TICKET_LIFE

CONSOLES_PER_DESKTOP = 4

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Screens(Protocol):
    """What is needed of the agent.

    Both raise a `PupitreError` (`NotFound`, say) unless the desktop runs on this host
    now under boot generation ``boot``.
    """

    async def open_console(self, desktop: str, boot: int) -> socket.socket:
        """A socket connected to the desktop's VNC server; the caller closes it."""
        ...

    async def screenshot(self, desktop: str, boot: int) -> bytes:
        """The desktop's screen as PNG."""
        ...


class Viewing(End):
    """A viewer's side of one screen; counts against its desktop from `Audience.seat` until it is lost."""

    def __init__(self, audience: "Audience", slot: Slot) -> None:
        super().__init__()
        self.slot = slot
        self.ticket: Ticket | None = None
        self.curfew: asyncio.TimerHandle | None = None
        self.until = 0.0
        """Unix second at which the sign-in ends by which this one watches, as far as a ticket has said."""
        self._audience = audience

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._audience.leave(self)


class Audience:
    """``host`` is this host's name, ``state`` a folder for what must outlive the process."""

    def __init__(self, host: str, key: Ed25519PublicKey, screens: Screens, state: Path) -> None:
        self.screens = screens
        self._host = host
        self._key = key
        self._burned = BurnedTickets(state / "burned-tickets")
        self._seated: set[Viewing] = set()
        self._of_desktop: Counter[str] = Counter()

    def __len__(self) -> int:
        """Screens watched now."""
        return len(self._seated)

    def admit(self, text: str, *purposes: Purpose, desktop: str | None = None) -> Ticket:
        """The good ticket in ``text``, which is then used up. Raises `TicketRefused` and `Unavailable`."""
        ticket = tickets.verify(text, self._key, now=time.time())
        if ticket.host != self._host:
            raise TicketRefused("The ticket is for a desktop on another host.")
        if ticket.purpose not in purposes:
            raise TicketRefused("The ticket is for something else.")
        if desktop is not None and not hmac.compare_digest(desktop.encode(), ticket.desktop.encode()):
            raise TicketRefused("The ticket is for another desktop.")
        if ticket.until <= time.time() or self._burned.has(_over(ticket.bearer)):
            raise TicketRefused("The sign-in that asked for this ticket has ended. Sign in again.")
        if ticket.purpose is not Purpose.SCREENSHOT:
            self._burned.burn(ticket.id, ticket.expires + tickets.LEEWAY)
        self._extend(ticket)
        return ticket

    async def seat(self, viewing: Viewing, ticket: Ticket) -> End:
        """The guest's side of the screen, for ``viewing`` to be joined with; the seat is taken.

        Raises `LimitReached`, and what `Screens.open_console` raises.
        """
        if self._of_desktop[ticket.desktop] >= CONSOLES_PER_DESKTOP:
            raise LimitReached(f"This desktop has {CONSOLES_PER_DESKTOP} consoles open. Close one of them.")
        if not viewing.lost:
            viewing.ticket = ticket
            self._of_desktop[ticket.desktop] += 1
            self._seated.add(viewing)
            _close_at(viewing, ticket.until)
        guest = await self.screens.open_console(ticket.desktop, ticket.boot)
        guest.setblocking(False)
        try:
            _, screen = await asyncio.get_running_loop().create_connection(End, sock=guest)
        except BaseException:
            guest.close()
            raise
        return screen

    def _extend(self, ticket: Ticket) -> None:
        """Whoever watches by the same sign-in may do so for as long as its newest ticket says: it was extended."""
        for viewing in self._seated:
            if viewing.ticket and viewing.ticket.bearer == ticket.bearer and viewing.until < ticket.until:
                _close_at(viewing, ticket.until)

    def leave(self, viewing: Viewing) -> None:
        """``viewing`` is gone."""
        if viewing.curfew is not None:
            viewing.curfew.cancel()
        if viewing in self._seated and viewing.ticket is not None:
            self._seated.discard(viewing)
            self._of_desktop[viewing.ticket.desktop] -= 1
            if not self._of_desktop[viewing.ticket.desktop]:
                del self._of_desktop[viewing.ticket.desktop]

    def desktop_ended(self, desktop: str) -> None:
        """Show out who watches ``desktop``."""
        self._show_out(viewing for viewing in self._seated if viewing.ticket and viewing.ticket.desktop == desktop)

    def sign_ins_ended(self, bearers: Collection[str]) -> None:
        """Show out who came by these sign-ins; their tickets are good no more.

        May be repeated. Raises `Unavailable` when that cannot be noted.
        """
        ended = frozenset(bearers)
        shown = self._show_out(v for v in self._seated if v.ticket and v.ticket.bearer in ended)
        if shown:
            log.info("consoles were closed: their sign-in ended", consoles=shown)
        for bearer in ended:
            if not self._burned.has(_over(bearer)):
                self._burned.burn(_over(bearer), time.time() + TICKET_LIFE)

    async def close(self) -> None:
        """Show everyone out; the guests go on."""
        self._burned.close()
        ends = [end for viewing in self._seated for end in (viewing, viewing.peer) if end is not None]
        for end in ends:
            end.finish()
        await asyncio.gather(*(end.gone.wait() for end in ends))  # within LINGER, see `End.finish`

    def _show_out(self, viewings: Iterable[Viewing]) -> int:
        going = list(viewings)
        for viewing in going:
            _show_out(viewing)
        return len(going)


def _close_at(viewing: Viewing, until: float) -> None:
    if viewing.curfew is not None:
        viewing.curfew.cancel()
    viewing.until = until
    viewing.curfew = asyncio.get_running_loop().call_later(until - time.time(), _show_out, viewing)


def _show_out(viewing: Viewing) -> None:
    if viewing.peer is not None:
        viewing.peer.finish()  # not a byte more, in either direction
    viewing.finish()
    if not viewing.lost:
        asyncio.get_running_loop().call_later(CLOSE_GRACE, viewing.transport.abort)


def _over(bearer: str) -> str:
    """Under which id it is noted that this sign-in has ended."""
    return f"over-{bearer}"
